"""usage: python3 -m perf.system.split [--json FILE] [--link 1gbit|veth] [--trips N] [--loads idle,memcached] [--small]

A guest of 2 GiB that memcached has filled goes to a host with room for 1 GiB of it, and a sub host takes the rest; then it comes together on one host again.
Beside it the same guest goes to a host with room for all of it; and stock QEMU's, to a host with room and to one that must swap (a memory cgroup of 1 GiB,
a swap file). Idle, and with sets and gets as fast as said; --small: a quarter of everything, to see that it works.
"""

import argparse
import time
from dataclasses import dataclass

from tests.lab.applications import PATIENT, built_guest, goes_on
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
MAIN, SUB = "host-b", "host-c"
EVERY_S = 0.2


@dataclass(frozen=True)
class Size:
    mem_mib: int = 2048
    keys: int = 1310720
    store_mib: int = 1650
    budget_mib: int = 1024

    def mode(self):
        """The guest's application, and words for it."""
        return f"memcached keys={self.keys} sets=6 store_mib={self.store_mib} {PATIENT}"


PAPER, SMALL = Size(), Size(512, 262144, 330, 256)


class Ours:
    """godwit's guest, in three hosts."""

    def __init__(self, lab, size, load):
        self.lab, self.size = lab, size
        lab.guest = built_guest("memcached")
        lab.start()
        lab.start_vm(mem_mib=size.mem_mib, mb=0, rate=LOADS[load], mode=size.mode())
        self.here = lab.hosts[0]

    def _move(self, destination, **plan):
        for image in self.lab.ctl("images"):
            if not image["in_use"]:
                self.lab.ctl("images", "drop", "--host", image["host"], "guest")  # not the guest's, and not to be counted as its memory
        wire = self.lab.network.wire_bytes(DATA)
        with Sampled(lambda: (allocated(self.lab.memory_dir(MAIN), ".ram"), allocated(self.lab.memory_dir(SUB))), EVERY_S) as used:
            summary = self.lab.migrate("guest", destination, **ROUNDS, **plan)
        self.here = destination
        if summary["state"] != "COMMITTED":
            raise LabError(f"it did not move: {summary}")
        ok, verdict = goes_on(self.lab.console("guest", destination))
        return {"total_ms": (summary["ended_unix_us"] - summary["created_unix_us"]) / 1e3, "blackout_ms": summary["downtime_us"] / 1e3,
                "wire_bytes": self.lab.network.wire_bytes(DATA) - wire, "used": used.series, "ok": ok, "verdict": verdict}

    def whole(self):
        return self._move(MAIN)

    def back(self):
        return self._move(self.lab.hosts[0])

    def split(self):
        return self._move(MAIN, resident_budget=f"{self.size.budget_mib}MiB", sub_hosts=[SUB])

    def together(self):
        return self._move(self.lab.hosts[0], whole=True)


class Theirs:
    """Stock QEMU's, in two of them."""

    def __init__(self, lab, size, load):
        self.lab, self.size = lab, size
        lab.guest = built_guest("memcached")
        self.vm = PeerVm(lab, size.mem_mib, f"console=ttyS0 quiet cryptomgr.notests mb=0 rate={LOADS[load]} mode={size.mode()}")

    def _move(self, destination):
        made = self.vm.migrate(destination)
        ok, verdict = goes_on(self.vm.qemu.console)
        return {**made, "ok": ok, "verdict": verdict}

    def whole(self):
        return self._move(MAIN)

    def back(self):
        return self._move(self.lab.hosts[0])

    def swap(self, host):
        self.vm.within = {MAIN: host.within}
        try:
            with Sampled(host.used, EVERY_S) as used:
                return {**self._move(MAIN), "used": used.series}
        finally:
            self.vm.within = {}


def lab_of(link):
    return Lab(hosts=3, shape_bps=trips.SHAPES[link], options={"lend": "3GiB"})


def godwit_trip(lab, size, load):
    """There whole and back, there split and together again."""
    ours = Ours(lab, size, load)
    made = {name: settled(move) for name, move in (("whole", ours.whole), ("back", ours.back), ("split", ours.split), ("together", ours.together))}
    lab.ctl("stop", "guest")
    return made


def qemu_trip(lab, size, load):
    """There and back, there into swap and back from it. It may lose its guest: then the trip ends."""
    theirs, made = None, {}
    try:
        theirs = Theirs(lab, size, load)
        with SwapHost(size.budget_mib << 20, size.mem_mib << 20) as host:
            for name, move in (("whole", theirs.whole), ("back", theirs.back), ("swap", lambda: theirs.swap(host)), ("from_swap", theirs.back)):
                made[name] = settled(move)
                if not made[name]["ok"]:
                    break
            theirs.vm.end()
    except LabError as error:
        made["lost"] = {"ok": False, "verdict": str(error)}
        if theirs:
            theirs.vm.end()
    return made


def settled(move):
    time.sleep(2)
    return move()


TRIPS = {"godwit": godwit_trip, "qemu": qemu_trip}


def trip(system, link, size, load):
    with lab_of(link) as lab:
        return TRIPS[system](lab, size, load)


def most_resident(trips_made):
    return max(most for each in trips_made for _, most, _ in each["split"]["used"])


def one(report, load, options):
    size = SMALL if options.small else PAPER
    made = {system: [trip(system, options.link, size, load) for _ in range(options.trips)] for system in TRIPS}
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
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    report = Report("split")
    well = [one(report, load, options) for load in options.loads.split(",")]
    report.finish(options.json)
    return 0 if all(well) else 1


if __name__ == "__main__":
    raise SystemExit(main())
