"""What a larger guest costs, and more guests: measured up to 16 GiB, and a line drawn on to 1 TiB, with its error.

The guests are sparse: the same 100 MiB are in use in each, so what grows is what depends on the guest's size alone: tables, scans, comparison.
"""

from .fit import fit
from .guests import SYSTEMS, Godwit, Guest, hosts_with, there_and_back
from .paired import Paired
from .points import Benchmark, in_turn
from .series import Lines, cell, fates, figure, table

TIB_GIB = 1024
USED_MIB = 100
AWAY_S = 2
GROWING = {"total_ms": "total time, ms", "blackout_ms": "downtime, ms", "wire_bytes": "bytes on the wire"}


def anonymous_kib(pid):
    """Memory that is the process's own: the guest's RAM, which it has mapped, is not in it."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))


def memory_of_daemons(lab):
    """KiB: the larger one of both hosts."""
    found = {}
    for key, daemon in lab.daemons.items():
        kind = key.split()[0]
        found[kind] = max(found.get(kind, 0), anonymous_kib(daemon.pid))
    return found


class GuestSize(Paired):
    name, title = "scale-size", "Scale: a sparse guest of 1 to 16 GiB"
    SIZES_GIB = (1, 2, 4, 8, 16)

    def points(self, quick):
        sizes = self.SIZES_GIB[:3] if quick else self.SIZES_GIB
        settings = {str(size): {"gib": size, "used_mib": USED_MIB} for size in sizes}
        return in_turn(self.name, settings, {"godwit": {}} if quick else {"qemu": {}, "godwit": {}}, 1 if quick else 3, 20)

    def hosts_for(self, point):
        options = point.options
        budgets = {host: f"{4 * options['gib'] + 4}GiB" for host in ("host-a", "host-b")}
        return hosts_with("veth", SYSTEMS, Guest(mb=options["used_mib"], mem_mib=options["gib"] * 1024), memory_budget=budgets)

    def measure(self, point):
        with self.turn(point) as running:
            result = there_and_back(running, {}, AWAY_S)
            if isinstance(running, Godwit):
                result["daemons_kib"] = memory_of_daemons(running.lab)
            return result

    @staticmethod
    def paths():
        return [(leg, key) for leg in ("out", "home") for key in GROWING]

    def line(self, outcome, system, *path):
        found = [(int(setting), figure([result], *path)) for setting in outcome.settings(self.name) for result in outcome.of(self.name, setting, system)]
        return fit([(size, value.middle) for size, value in found if value])

    def series(self, outcome, system, *path):
        found = [(int(setting), figure(outcome.of(self.name, setting, system), *path)) for setting in outcome.settings(self.name)]
        return [(size, value) for size, value in found if value]

    def charts(self, outcome):
        drawn = []
        for leg, words in (("out", "nothing to reuse"), ("home", "on the way home")):
            for key, label in list(GROWING.items())[:2]:
                series = {system: self.series(outcome, system, leg, key) for system in ("qemu", "godwit")}
                series = {system: points for system, points in series.items() if points}
                fitted = {}
                for system in series:
                    line = self.line(outcome, system, leg, key)
                    if line:
                        fitted[system] = [(x, line.at(x), line.error_at(x)) for x in (2 ** n for n in range(11))]
                drawn.append(Lines(f"scale-{leg}-{key.split('_')[0]}", f"Cost of a guest's size, {words}: measured, and drawn on", "guest [GiB]", label, series,
                                   fitted, logarithmic=True))
        return drawn

    def report(self, outcome):
        rows = []
        for system in dict.fromkeys(system for size in outcome.settings(self.name) for system in outcome.systems(self.name, size)):
            for path in self.paths():
                rows.append(self.row(outcome, system, path, f"{path[0]}: {GROWING[path[1]]}"))
        kinds = {kind for result in outcome.of(self.name, system="godwit") for kind in result["daemons_kib"]}
        rows += [self.row(outcome, "godwit", ("daemons_kib", kind), f"memory of the {kind}, KiB") for kind in sorted(kinds)]
        sizes = outcome.settings(self.name)
        return table(["system", "figure", *(f"{size} GiB" for size in sizes), "a GiB", "at 1 TiB", "guests"], rows) + \
            "\n\nThe line is that of least squares through all measurements; its error at 1 TiB is half of the 95 % interval of a single measurement there,\n" \
            "which holds only if cost stays linear that far. Memory is anonymous memory of the process, in the end, with the guest on one host and its image " \
            "on the other."

    def row(self, outcome, system, path, label):
        cells = [cell(figure(outcome.of(self.name, setting, system), *path), 0) for setting in outcome.settings(self.name)]
        line = self.line(outcome, system, *path)
        error = line.error_at(TIB_GIB) if line else None
        ends = [f"{line.slope:.1f}", f"{line.at(TIB_GIB):.0f} ± {error:.0f}" if error is not None else f"{line.at(TIB_GIB):.0f}"] if line else ["-", "-"]
        return [system, label, *cells, *ends, fates(outcome.of(self.name, system=system))]


class GuestCount(Benchmark):
    name, title = "scale-count", "Scale: memory of the daemons by the number of VMs on a host"
    MEM_MIB, MB = 128, 16

    def points(self, quick):
        count = 4 if quick else 8
        return in_turn(self.name, {str(count): {"count": count, "mem_mib": self.MEM_MIB, "mb": self.MB}}, {"godwit": {}}, 1 if quick else 3, 10 + 6 * count)

    def measure(self, point):
        options = point.options
        with hosts_with("veth", ["godwit"], Guest(mb=options["mb"], mem_mib=options["mem_mib"])) as guests:
            lab = guests["godwit"].lab
            result = {1: memory_of_daemons(lab)}  # by how many there are
            for number in range(2, options["count"] + 1):
                lab.start_vm(f"guest{number}", mem_mib=options["mem_mib"], mb=options["mb"])
                result[number] = memory_of_daemons(lab)
            for number in range(2, options["count"] + 1):
                lab.ctl("stop", f"guest{number}")
            return {"kib": {str(number): kib for number, kib in result.items()}}

    def report(self, outcome):
        rows = []
        found = [result["kib"] for result in outcome.of(self.name)]
        for kind in sorted({kind for kib in found for each in kib.values() for kind in each}):
            line = fit([(int(number), each[kind]) for kib in found for number, each in kib.items()])
            counts = sorted({int(number) for kib in found for number in kib})
            cells = [cell(figure(found, str(number), kind), 0) for number in counts]
            rows.append([kind, ", ".join(f"{number}: {text}" for number, text in zip(counts, cells)), f"{line.slope:.0f}" if line else "-"])
        return table(["daemon", "KiB by VMs", "KiB a VM"], rows) + f"\n\nEach VM has {self.MEM_MIB} MiB; tables and bitmaps of its size are in the figure."


BENCHMARKS = [GuestSize(), GuestCount()]
