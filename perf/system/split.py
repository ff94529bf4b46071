"""usage: python3 -m perf.system.split [--json FILE] [--link 1gbit|veth] [--trips N] [--loads idle,memcached] [--small]

A guest of 2 GiB that memcached has filled goes to a host with room for 1 GiB of it, and a sub host takes the rest; then it comes together on one host again.
Beside it the same guest goes to a host with room for all of it; and stock QEMU's, to a host with room and to one that must swap (a memory cgroup of 1 GiB,
a swap file). Idle, and with sets and gets as fast as said; --small: a quarter of everything, to see that it works.
"""

import argparse
import time
from dataclasses import dataclass

from tests.lab.applications import PATIENT, built_guest, goes_on
from tests.lab.configs import kernel_line
from tests.lab.lab import Lab
from tests.lab.network import DATA
from tests.lab.peer import PeerVm
from tests.lab.processes import LabError
from tests.lab.sampled import Sampled, allocated

from . import trips
from .report import Report
from .swap_host import SwapHost

LOADS = {"idle": 1, "memcached": 3000}  # operations a second; three sets to two gets, as the paper's
LIMITS = {"idle": 1.05, "memcached": 1.10}
KEYS = {"idle": "idle", "memcached": "loaded"}
BATCH_BYTES = 64 * 4096  # dataplane/memory/evictor.h
ROUNDS = {"mode": "hybrid", "postcopy_after_rounds": 1, "reuse": "never"}
SUB = "host-c"  # the guest is on one of the other two
EVERY_S = 0.2


@dataclass(frozen=True)
class Size:
    mem_mib: int = 2048
    keys: int = 1310720
    store_mib: int = 1650
    budget_mib: int = 1024

    def mode(self):
        """The guest's application, and words for it."""
        return f"memcached keys={self.keys} sets=6 store_mib={self.store_mib}"


PAPER, SMALL = Size(), Size(512, 262144, 330, 256)


def other(lab, here):
    return lab.hosts[1 - lab.hosts.index(here)]


class OurMoves:
    """Of godwit's guest, in three hosts: of its `lab` and `size`, from where it is `here`."""

    def trip(self):
        """There whole, back split, and there together again."""
        return {name: settled(move) for name, move in (("whole", self.whole), ("split", self.split), ("together", self.together))}

    def _move(self, **plan):
        trips.drop_images(self.lab)
        destination, wire = other(self.lab, self.here), self.lab.network.wire_bytes(DATA)
        with Sampled(lambda: (allocated(self.lab.memory_dir(destination), ".ram"), allocated(self.lab.memory_dir(SUB))), EVERY_S) as used:
            summary = self.lab.migrate("guest", destination, **ROUNDS, **plan)
        self.here = destination
        if summary["state"] != "COMMITTED":
            raise LabError(f"it did not move: {summary}")
        ok, verdict = goes_on(self.lab.console("guest", destination))
        return {"total_ms": (summary["ended_unix_us"] - summary["created_unix_us"]) / 1e3, "blackout_ms": summary["downtime_us"] / 1e3,
                "wire_bytes": self.lab.network.wire_bytes(DATA) - wire, "used": used.series, "ok": ok, "verdict": verdict}

    def whole(self):
        return self._move()

    def split(self):
        return self._move(resident_budget=f"{self.size.budget_mib}MiB", sub_hosts=[SUB])

    def together(self):
        return self._move(whole=True)


class Ours(OurMoves):
    def __init__(self, lab, size, load):
        self.lab, self.size, self.here = lab, size, lab.hosts[0]
        lab.start()
        lab.start_vm(mem_mib=size.mem_mib, mb=0, rate=LOADS[load], mode=f"{size.mode()} {PATIENT}")

    def end(self):
        self.lab.ctl("stop", "guest")


class TheirMoves:
    """Of stock QEMU's guest `vm`, in two of the hosts."""

    def trip(self):
        """There, and back into swap. The guest may be lost: then the trip ends. In any case it is over with its host."""
        made = {}
        with SwapHost(self.size.budget_mib << 20, self.size.mem_mib << 20) as host:
            try:
                for name, move in (("whole", self.whole), ("swap", lambda: self.swap(host))):
                    made[name] = settled(move)
                    if not made[name]["ok"]:
                        break
            except LabError as error:
                made["lost"] = {"ok": False, "verdict": str(error)}
            finally:
                self.vm.end()
        return made

    def whole(self):
        made = self.vm.migrate(other(self.lab, self.vm.qemu.host))
        ok, verdict = goes_on(self.vm.qemu.console)
        return {**made, "ok": ok, "verdict": verdict}

    def swap(self, host):
        self.vm.within = {other(self.lab, self.vm.qemu.host): host.within}
        with Sampled(host.used, EVERY_S) as used:
            return {**self.whole(), "used": used.series}


class Theirs(TheirMoves):
    def __init__(self, lab, size, load):
        self.lab, self.size = lab, size
        self.vm = PeerVm(lab, size.mem_mib, kernel_line(0, LOADS[load], f"{size.mode()} {PATIENT}"))

    def end(self):
        """It has ended with its trip."""


def settled(move):
    time.sleep(2)
    return move()


SYSTEMS = {"godwit": Ours, "qemu": Theirs}


def lab_of(link):
    return Lab(hosts=3, shape_bps=trips.SHAPES[link], options={"lend": "3GiB"})


def trip(system, link, size, load):
    with lab_of(link) as lab:
        lab.guest = built_guest("memcached")
        guest = SYSTEMS[system](lab, size, load)
        made = guest.trip()
        guest.end()
        return made


def most_resident(trips_made):
    return max(most for each in trips_made for _, most, _ in each["split"]["used"])


def one(report, load, options):
    size = SMALL if options.small else PAPER
    made = {system: [trip(system, options.link, size, load) for _ in range(options.trips)] for system in SYSTEMS}
    for system, trips_made in made.items():
        for name in dict.fromkeys(move for each in trips_made for move in each):
            moves = [each[name] for each in trips_made if name in each]
            wire = trips.middle(moves, "wire_bytes")
            report.row(load=load, system=system, move=name, total_s=(trips.middle(moves, "total_ms") or 0) / 1e3, totals_ms=trips.spread(moves, "total_ms"),
                       blackout_ms=trips.middle(moves, "blackout_ms"), wire_MiB=wire / 2**20 if wire else None, guest=trips.fate(moves))
        report.metrics[f"{system}.{load}"] = trips_made

    def total(system, name):
        return trips.middle([each[name] for each in made[system] if name in each], "total_ms")

    key = KEYS[load]
    report.ratio(f"split_vs_whole.{key}", total("godwit", "split") / total("godwit", "whole"), LIMITS[load])
    if total("qemu", "swap"):
        report.ratio(f"swap_vs_whole.{key}", total("qemu", "swap") / total("qemu", "whole"))
    report.metric(f"main_resident_MiB.{key}", most_resident(made["godwit"]) / 2**20, size.budget_mib + BATCH_BYTES / 2**20)
    return trips.warn_of_lost_guests(report, load, [move for each in made["godwit"] for move in each.values()])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--link", default="1gbit", choices=trips.SHAPES)
    parser.add_argument("--trips", type=int, default=3)
    parser.add_argument("--loads", default=",".join(LOADS), help=f"some of {','.join(LOADS)}")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    report = Report("split")
    unknown = [load for load in options.loads.split(",") if load not in LOADS]
    if unknown:
        parser.error(f"--loads: no load {unknown[0]!r}: some of {','.join(LOADS)}")
    well = [one(report, load, options) for load in options.loads.split(",")]
    report.finish(options.json)
    return 0 if all(well) else 1


if __name__ == "__main__":
    raise SystemExit(main())
