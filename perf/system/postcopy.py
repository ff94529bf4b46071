"""usage: python3 -m perf.system.postcopy [--json FILE] [--rates 1000,5000] [--links veth,1gbit] [--trips N]

The guest of return-trip moves with nothing to reuse, by post-copy from the first moment on: godwit, stock QEMU's post-copy, and that with postcopy-preempt,
in turn, N times; who is not in turn is paused. Each figure is the median of the moves, and is held against the better one of stock QEMU's two.
"""

import functools
import time

from tests.lab.lab import Lab
from tests.lab.network import DATA
from tests.lab.processes import LabError

from . import trips
from .report import run_points

PEERS = {"QEMU": False, "QEMU preempt": True}
LIMITS = {"blackout": 1.25, "blocked": 0.2, "total": 1.05}
FAULT_MAX_MS = 5


class Ours:
    """godwit's guest in this lab."""

    def __init__(self, lab, rate):
        self.lab, self.here = lab, "host-a"
        lab.start()
        trips.start_guest(lab, rate)

    def tell(self, command):
        monitor = self.lab.qmp("guest", self.here)
        monitor(command)
        monitor.close()

    def move(self, destination):
        wire = self.lab.network.wire_bytes(DATA)
        summary = self.lab.migrate("guest", destination, mode="postcopy", reuse="never")
        self.here = destination
        return {"wire_bytes": self.lab.network.wire_bytes(DATA) - wire, **trips.postcopy_figures(summary)}

    def verdict(self):
        return self.lab.verdict("guest", self.here)


class Theirs:
    """The same under stock QEMU."""

    def __init__(self, lab, rate):
        self.vm = trips.start_peer(lab, rate)

    def tell(self, command):
        self.vm.qemu.qmp(command)

    def verdict(self):
        return self.vm.healthy()


def in_turn(guest, move, destination):
    """One move of a guest that was paused until now, and will be."""
    guest.tell("cont")
    time.sleep(1)
    made = move(destination)
    made["ok"], made["verdict"] = guest.verdict()
    guest.tell("stop")
    return made


def moves_of_all(link, rate, trips_count):
    """By system. Stock QEMU may lose its guest: then it has no more turns."""
    with Lab(shape_bps=trips.SHAPES[link]) as lab:
        ours = Ours(lab, rate)
        ours.tell("stop")
        theirs = Theirs(lab, rate)
        try:
            theirs.tell("stop")
            moves, alive = {system: [] for system in ("godwit", *PEERS)}, True
            for turn in range(trips_count):
                moves["godwit"].append(in_turn(ours, ours.move, lab.hosts[1 - turn % 2]))
                for system, preempt in PEERS.items():
                    if alive:
                        here = theirs.vm.qemu.host
                        move = functools.partial(theirs.vm.migrate_postcopy, preempt=preempt)
                        try:
                            moves[system].append(in_turn(theirs, move, lab.hosts[1 - lab.hosts.index(here)]))
                        except LabError as error:
                            moves[system].append({"ok": False, "verdict": str(error)})
                        alive = moves[system][-1]["ok"]
            return moves
        finally:
            theirs.vm.end()


def one(report, link, rate, options):
    moves, key = moves_of_all(link, rate, options.trips), f"{link}.{rate}"
    for system, made in moves.items():
        wire = trips.middle(made, "wire_bytes")
        report.row(link=link, rate=rate, system=system, total_ms=trips.middle(made, "total_ms"), blackout_ms=trips.middle(made, "blackout_ms"),
                   blackouts=trips.spread(made, "blackout_ms"), blocked_ms=trips.middle(made, "blocked_ms"), faults=trips.middle(made, "faults"),
                   p50_ms=trips.middle(made, "fault_p50_ms"), p99_ms=trips.middle(made, "fault_p99_ms"),
                   max_ms=max((m["fault_max_ms"] for m in made if "fault_max_ms" in m), default=None),
                   wire_MiB=wire / 2**20 if wire is not None else None, pages=trips.middle(made, "pages_sent"), guest=trips.fate(made) if made else "-")
        report.metrics[f"{system.lower().replace(' ', '_')}.{key}"] = made
    ours = moves["godwit"]
    for name, limit in LIMITS.items():
        rivals = [value for value in (trips.middle(moves[peer], f"{name}_ms") for peer in PEERS) if value is not None]
        if rivals:
            report.ratio(f"{name}_vs_qemu.{key}", trips.middle(ours, f"{name}_ms") / min(rivals), None if (name, link) == ("blocked", "veth") else limit)
    for percentile in ("p50", "p90", "p99", "p99_9"):
        report.metric(f"fault_{percentile}_ms.{key}", trips.middle(ours, f"fault_{percentile}_ms"))
    report.metric(f"fault_max_ms.{key}", max(move["fault_max_ms"] for move in ours), FAULT_MAX_MS if link == "veth" else None)
    return trips.warn_of_lost_guests(report, key, ours)


if __name__ == "__main__":
    raise SystemExit(run_points("postcopy", one, rates="1000,5000", links="veth,1gbit"))
