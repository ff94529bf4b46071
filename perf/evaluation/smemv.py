"""The figures of the paper on split migration (S-memV, the second of the two papers), and what it left open: how fast the guest is behind it.

What differs from the paper: the guest is Linux and busybox under TCG, filled by memcached where the paper's idle one was an Ubuntu of 2 GiB; load and server
are in the guest; a host that lacks memory is a memory cgroup, its swap a file; godwit moves by hybrid with one round, whole and split, stock QEMU by pre-copy.
"""

import dataclasses
import functools
import time

from perf.system import split, trips
from tests.lab.applications import PATIENT
from tests.lab.lab import Lab
from tests.lab.processes import LabError, wait_until

from .guests import Godwit, Guest, Hosts, Stock
from .paired import Paired
from .points import Benchmark, in_turn
from .series import Bars, Figure, Lines, cell, fates, figure, table

MIB = 1 / 2**20
# Moves and what they are called, by system.
MOVES = {"whole": "enough memory (godwit)", "split": "split (godwit)", "together": "N-to-1 (godwit)"}
PEERS = {"whole": "enough memory (stock QEMU)", "swap": "swap (stock QEMU)"}
PAPER = {("idle", "split"): 1.28, ("idle", "swap"): 1.45, ("memcached", "split"): 1.11, ("memcached", "swap"): 3.7}


def guest_of(size, load):
    return Guest(mb=0, rate=split.LOADS[load], mode=size.mode(), mem_mib=size.mem_mib, application="memcached")


class Ours(split.OurMoves, Godwit):
    def __init__(self, lab, size, load):
        super().__init__(lab, guest_of(size, load))
        self.size = size


class Theirs(split.TheirMoves, Stock):
    def __init__(self, lab, size, load):
        super().__init__(lab, guest_of(size, load))
        self.size = size

    def trip(self):
        self.well = False  # it ends with its trip
        return super().trip()


class Split(Paired):
    """Figures 5 to 8."""

    name, title = "s-memv", "S-memV, figures 5 to 8: a guest of 2 GiB goes to a host with room for 1 GiB of it"

    def points(self, quick):
        settings = {load: {"link": "1gbit", "size": dataclasses.asdict(split.SMALL if quick else split.PAPER)} for load in (["idle"] if quick else split.LOADS)}
        return in_turn(self.name, settings, {"qemu": {}, "godwit": {}}, 1 if quick else 3, 30 if quick else 70)

    def hosts_for(self, point):
        size = split.Size(**point.options["size"])
        makers = {system: functools.partial(make, size=size, load=point.setting) for system, make in (("godwit", Ours), ("qemu", Theirs))}
        return Hosts(split.lab_of(point.options["link"]), "memcached", makers)

    def measure(self, point):
        with self.turn(point) as running:
            made = running.trip()
            for name, move in made.items():
                if point.system == "godwit" and not move["ok"]:
                    raise LabError(f"{name}: THE GUEST IS NOT WELL: {move['verdict']}")
            return made

    def charts(self, outcome):
        common = {"x_label": "", "y_label": "migration time [s]"}
        groups = {"idle": "figure-7: idle", "memcached": "figure-8: memory load"}
        series = {label: [figure(outcome.of(self.name, load, system), move, "total_ms", scale=1e-3) for load in groups]
                  for system, moves in (("qemu", PEERS), ("godwit", MOVES)) for move, label in moves.items()}
        return [Bars("s-memv-7-8", "Migration time", groups=list(groups.values()), series=series, **common)] + \
            self.used(outcome, "qemu", "swap", "s-memv-5", "Memory and swap in use, conventional", ("physical memory", "swap")) + \
            self.used(outcome, "godwit", "split", "s-memv-6", "Memory in use, split", ("physical memory of the main host", "memory of the sub host"))

    def used(self, outcome, system, move, name, title, labels):
        """Of the first idle guest: bytes by time."""
        found = [made[move]["used"] for made in outcome.of(self.name, "idle", system) if "used" in made.get(move, {})]
        if not found:
            return []
        series = {label: [(sample[0], Figure(sample[place] * MIB, sample[place] * MIB, sample[place] * MIB, 1)) for sample in found[0]]
                  for place, label in enumerate(labels, 1)}
        return [Lines(name, title, "time [s]", "in use [MiB]", series)]

    def report(self, outcome):
        rows = []
        for load in outcome.settings(self.name):
            for system, moves in (("qemu", PEERS), ("godwit", MOVES)):
                found = outcome.of(self.name, load, system)
                whole = figure(found, "whole", "total_ms")
                for move, label in moves.items():
                    total = figure(found, move, "total_ms")
                    rows.append([load, label, cell(figure(found, move, "total_ms", scale=1e-3), 2), f"{total.middle / whole.middle:.2f}" if total and whole else "-",
                                 PAPER.get((load, move), "-"), cell(figure(found, move, "blackout_ms")), cell(figure(found, move, "wire_bytes", scale=MIB), 0),
                                 fates([{move: made[move]} for made in found if move in made])])
        most = [sample[1] * MIB for made in outcome.of(self.name, system="godwit") for sample in made.get("split", {}).get("used", [])]
        bound = "\n\ngodwit's time is from the order to COMMITTED, the start of QEMU at the destination in it; stock QEMU's own is without that start."
        bound += f"\nThe main host never held more than {max(most):.1f} MiB of the split guest." if most else ""
        return table(["guest", "move", "time, s", "of enough memory", "the paper's", "downtime, ms", "wire, MiB", "guest after"], rows) + bound


ORDERS = {"access frequency": {"order": "coldest-first"}, "address threshold": {"order": "highest-first"}}


class Placement(Benchmark):
    name, title = "s-memv-placement", "S-memV, left open: the guest's speed after a split migration, a quarter of its memory hot, half on the main host"
    WATCHED_S, SCANS = 10, 4
    # Without the kernel module a scan finds what is written, and of a guest under TCG costs half a second: with the usual percent of a core they are a minute
    # apart. The order by address gets the same.
    HEAT_CORE_PERCENT = {"host-a": 25, "host-b": 25}
    HOT = {"hot": "the first quarter", "hot-last": "the last quarter"}

    def points(self, quick):
        if quick:
            return []
        guest = {"link": "1gbit", "mem_mib": 1280, "mb": 1024}
        return in_turn(self.name, {mode: {**guest, "mode": mode} for mode in self.HOT}, ORDERS, 3, 42)

    def measure(self, point):
        options = point.options
        with Lab(hosts=3, shape_bps=trips.SHAPES[options["link"]], options=self.lab_options(options["order"])) as lab:
            lab.start()
            lab.start_vm(mem_mib=options["mem_mib"], mb=options["mb"], mode=f"{options['mode']} {PATIENT}")
            filled = self.scans(lab)
            wait_until("scans to see what is hot", lambda: self.scans(lab) >= filled + self.SCANS, 120, 0.5)
            before = self.sweeps(lab.console("guest", lab.hosts[0]))
            lab.migrate("guest", "host-b", **split.ROUNDS, resident_budget=f"{options['mem_mib'] // 2}MiB", sub_hosts=[split.SUB])
            console = lab.console("guest", "host-b")
            wait_until("the guest's word", lambda: console.bench_rates() or console.died(), 60)
            after = self.sweeps(console)
            shown = lab.ctl("vm", "show", "guest")["split"]
            lab.ctl("stop", "guest")
            return {"before": {"sweeps_per_s": before}, "after": {"sweeps_per_s": after, "refetched": shown["refetched_pages"]},
                    "relative": {"speed": after / before}}

    def lab_options(self, order):
        return {"lend": "2GiB", "eviction_order": order, "heat_core_percent": self.HEAT_CORE_PERCENT}

    @staticmethod
    def scans(lab):
        return lab.ctl("vm", "heat", "guest")["scans"]

    def sweeps(self, console):
        """How many a second, of the hot quarter."""
        first, begin = len(console.bench_rates()), time.monotonic()
        time.sleep(self.WATCHED_S)
        return (len(console.bench_rates()) - first) / (time.monotonic() - begin)

    def report(self, outcome):
        rows = [[hot, order] + [cell(figure(outcome.of(self.name, mode, order), *path), digits)
                                for *path, digits in (("before", "sweeps_per_s", 1), ("after", "sweeps_per_s", 1), ("relative", "speed", 2), ("after", "refetched", 0))]
                for mode, hot in self.HOT.items() for order in ORDERS]
        return table(["hot", "placed by", "before, sweeps/s", f"first {self.WATCHED_S} s after, sweeps/s", "of before", "pages fetched again"], rows)


BENCHMARKS = [Split(), Placement()]
