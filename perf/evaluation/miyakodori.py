"""The tables and figures of the paper on memory reuse (MIYAKODORI, ComSys 2011), of godwit and stock QEMU: the paper's "with" and "without".

What differs from the paper: the guest is Linux and busybox under TCG where the paper's was Ubuntu 10.10 under KVM; it writes from its boot on, not only
while it is away. Beside httperf a few requests a second go to its Apache whose answers are checked byte by byte.
"""

import os
import re
import time

from perf.system import tracking
from tests.lab.applications import built_guest
from tests.lab.lab import BUILD
from tests.lab.processes import LabError, run, wait_until

from .guests import TOLD, Guest, hosts_with, moved_and_goes_on, pause_until, there_and_back
from .paired import Paired
from .points import Benchmark, in_turn
from .series import Bars, bars, cell, fates, figure, table
from .terminal import TERMINAL, answers, login

WITH_AND_WITHOUT = {"qemu": "without MIYAKODORI (stock QEMU)", "godwit": "with MIYAKODORI (godwit)"}
SYSTEMS = {"qemu": {}, "godwit": {}}  # in the paper's order
MB = 1e-6
LINKS = {"1gbit": "", "veth": "-unshaped"}  # the paper's, and as fast as this machine carries it: what the plots' names end with


def links(quick):
    return ["1gbit"] if quick else list(LINKS)


def measured_links(outcome, benchmark):
    return [link for link in LINKS if any(setting.startswith(link + ".") for setting in outcome.settings(benchmark))]


def unless_shaped(link):
    return "" if link == "1gbit" else ", unshaped"


class LoggingIn(Paired):
    name, title = "table-3", "Table 3: amount of transferred memory, idle guest, logged in to while away"
    PAPER_MB = {"A → B": (137, 141), "B → A": (138, 18)}

    def points(self, quick):
        return in_turn(self.name, {"1gbit": {"link": "1gbit"}}, SYSTEMS, 1 if quick else 3, 15)

    def hosts_for(self, point):
        return hosts_with(point.options["link"], SYSTEMS, Guest(mode="login", application="login", arguments=TERMINAL))

    def measure(self, point):
        with self.turn(point) as running:
            out = running.move()
            login(running)
            home = running.move()
            answers(running)
            return {"out": out, "home": home}

    def report(self, outcome):
        rows = []
        for (direction, paper), move in zip(self.PAPER_MB.items(), ("out", "home")):
            found = [figure(outcome.of(self.name, "1gbit", system), move, "wire_bytes", scale=MB) for system in SYSTEMS]
            saved = f"{100 * (1 - found[1].middle / found[0].middle):.0f} %" if all(found) else "-"
            rows.append([direction, *map(cell, found), saved, *paper, f"{100 * (1 - paper[1] / paper[0]):.0f} %"])
        return table(["migration", "stock QEMU, MB", "godwit, MB", "saved", "paper without, MB", "paper with, MB", "paper saved"], rows)


class Updating(Paired):
    """Figures 4 and 5. One guest a system makes the trip at each rate."""

    name, title = "figures-4-5", "Figures 4 and 5: 500 MB of random data, updated for 10 s while away"
    RATES = (200, 1000, 5000, 10000)
    AWAY_S = 10

    def points(self, quick):
        settings = {f"{link}.{rate}": {"link": link, "rate": rate} for link in links(quick) for rate in self.RATES if not quick or rate != 1000}
        return in_turn(self.name, settings, self.systems, 1 if quick else 3, 22, group=lambda setting: setting.partition(".")[0])

    @staticmethod
    def systems(setting):
        # At this rate the paper could not move its guest at all: pre-copy never gets through.
        plan = {"mode": "hybrid", "postcopy_after_rounds": 1} if setting.endswith(".10000") else {}
        return {"qemu": {}, "godwit": {"plan": plan}}

    def hosts_for(self, point):
        return hosts_with(point.options["link"], SYSTEMS, TOLD)

    def measure(self, point):
        with self.turn(point) as running:
            running.write_at(point.options["rate"])
            return there_and_back(running, point.options.get("plan", {}), self.AWAY_S)

    def charts(self, outcome):
        return [chart for link in measured_links(outcome, self.name) for chart in self.charts_of(outcome, link)]

    def charts_of(self, outcome, link):
        measured = outcome.settings(self.name)
        groups = {f"{link}.{rate}": str(rate) for rate in self.RATES if f"{link}.{rate}" in measured}
        common = {"x_label": "memory update frequency [pages/s]", "groups": groups}
        return [bars(outcome, self.name, WITH_AND_WITHOUT, "home", "wire_bytes", scale=MB, name="figure-4" + LINKS[link],
                     y_label="amount of transferred memory [MB]",
                     title="Amount of transferred memory versus memory update frequency" + unless_shaped(link), **common),
                bars(outcome, self.name, WITH_AND_WITHOUT, "home", "total_ms", scale=1e-3, name="figure-5" + LINKS[link],
                     y_label="total migration time [s]", title="Total migration time versus memory update frequency" + unless_shaped(link), **common)]

    def report(self, outcome):
        rows = []
        for rate in outcome.settings(self.name):
            for system in SYSTEMS:
                found = outcome.of(self.name, rate, system)
                rows.append([rate, system, cell(figure(found, "home", "wire_bytes", scale=MB)), cell(figure(found, "home", "total_ms", scale=1e-3), 2),
                             cell(figure(found, "home", "blackout_ms")), cell(figure(found, "out", "wire_bytes", scale=MB)), fates(found)])
        return table(["link, pages/s", "system", "home, MB", "home, s", "downtime, ms", "out, MB", "guest"], rows) + \
            "\n\ngodwit moves by pre-copy, at 10000 pages/s by hybrid with one round: the paper could not migrate there."


WEB = re.compile(r"GODWIT WEB longest_ms=(\d+) cached_kib=(\d+)")
# What httperf says at its end.
REPORT = {"connections": r"Total: connections (\d+)", "replies": r"Total: .* replies (\d+)", "seconds": r"test-duration ([\d.]+) s", "errors": r"Errors: total (\d+)",
          "connection_ms": r"Connection time \[ms\]: min [\d.]+ avg ([\d.]+)", "connection_ms_max": r"Connection time \[ms\]: min .* max ([\d.]+)"}
ENDS = re.compile(r"GODWIT HTTPERF exit=(\d+)")
FILES, FILE_BYTES, CONNECTIONS_PER_S = 1024, 256 << 10, 100
MIX, WORD = 0x9E3779B97F4A7C15, 1 << 64


def web_disk():
    """An ext4 of the files that are served: made once, as its content never changes. web_check.c has what is in a file."""
    path = os.path.join(BUILD, "guest-web", "disk.img")
    if os.path.exists(path):
        return path
    folder = path + ".files"
    os.makedirs(folder, exist_ok=True)
    try:
        for number in range(FILES):
            words = FILE_BYTES // 8
            with open(f"{folder}/{number:04}", "wb") as file:
                file.write(b"".join((((number << 32) + i + 1) * MIX % WORD).to_bytes(8, "little") for i in range(words)))
        with open(path + ".new", "wb") as file:
            file.truncate(FILES * FILE_BYTES * 5 // 4)
        run("mke2fs", "-q", "-t", "ext4", "-d", folder, path + ".new", timeout=120)
        os.rename(path + ".new", path)
    finally:
        run("rm", "-rf", folder)
    return path


class Serving(Benchmark):
    """Figures 6 and 7."""

    name, title = "figures-6-7", "Figures 6 and 7: Apache and httperf in the guest, there at 30 s and back at 60 s"
    MODES = {"precopy": "figure-6", "postcopy": "figure-7"}

    def points(self, quick):
        leg_s = 10 if quick else 30
        settings = {f"{link}.{mode}": {"link": link, "leg_s": leg_s, "at_home_s": 5 if quick else 15} for link in links(quick) for mode in self.MODES}
        return in_turn(self.name, settings, SYSTEMS, 1 if quick else 3, 42 if quick else 92)

    def measure(self, point):
        postcopy = point.setting.endswith(".postcopy")
        how = {"mode": "postcopy"} if point.system == "godwit" and postcopy else {"postcopy": True} if postcopy else {}
        disk = ("-drive", f"file={web_disk()},format=raw,if=virtio,readonly=on,file.locking=off")
        connections = CONNECTIONS_PER_S * (2 * point.options["leg_s"] + point.options["at_home_s"])
        guest = Guest(mode=f"web files={FILES} connections={connections}", rate=CONNECTIONS_PER_S, application="web", arguments=disk)
        result = {}
        with hosts_with(point.options["link"], [point.system], guest) as guests:
            running, begin = guests[point.system], time.monotonic()
            for number, leg in enumerate(("out", "home"), 1):
                pause_until(begin, number * point.options["leg_s"])
                result[leg] = moved_and_goes_on(running, leg, how)
                if not result[leg]["ok"]:
                    return result
            result["load"] = self.load(running)
        return result

    @staticmethod
    def load(running):
        """What httperf says of all of its time, and the slowest of our own requests at home."""
        console = running.console()
        wait_until("httperf to end", lambda: ENDS.search(console.text()) or console.died(), 120)
        text = console.text()
        if not ENDS.search(text) or ENDS.search(text)[1] != "0":
            raise LabError(f"httperf has not done its work: {console.died() or 'it failed'}")
        said = {name: float(re.search("GODWIT HTTPERF .*" + line, text)[1]) for name, line in REPORT.items()}
        slowest, cached = (max(map(int, column)) for column in zip(*WEB.findall(text)))
        return said | {"longest_ms_at_home": slowest, "cached_kib": cached}

    def charts(self, outcome):
        return [self.chart(outcome, link, mode, name) for link in measured_links(outcome, self.name) for mode, name in self.MODES.items()]

    def chart(self, outcome, link, mode, name):
        legs = {"out": "A → B", "home": "B → A"}
        series = {label: [figure(outcome.of(self.name, f"{link}.{mode}", system), leg, "wire_bytes", scale=MB) for leg in legs]
                  for system, label in WITH_AND_WITHOUT.items()}
        title = f"Application benchmark with {'post' if mode == 'postcopy' else 'pre'}-copy live migration"
        return Bars(name + LINKS[link], title + unless_shaped(link), "migration", "amount of transferred memory [MB]", list(legs.values()), series)

    def report(self, outcome):
        rows = []
        for mode in outcome.settings(self.name):
            for system in SYSTEMS:
                found = outcome.of(self.name, mode, system)
                for leg in ("out", "home"):
                    background = figure(found, leg, "pages_background", scale=4096 * MB)
                    rows.append([mode, system, leg, cell(figure(found, leg, "wire_bytes", scale=MB)), cell(background),
                                 cell(figure(found, leg, "total_ms", scale=1e-3), 2), cell(figure(found, leg, "blackout_ms")), fates(found)])
                rows.append([mode, system, "load", *self.load_row(found)])
        return table(["link, mode", "system", "move", "wire, MB", "in the background, MB", "s", "downtime, ms", "guest"], rows) + \
            "\n\nThe paper counts of post-copy what was copied in the background alone; the plots have all bytes of the wire."

    @staticmethod
    def load_row(found):
        texts = [f"{what}: {cell(figure(found, 'load', key), 0)}" for key, what in
                 (("replies", "replies"), ("errors", "errors"), ("connection_ms", "a connection, ms"), ("connection_ms_max", "the longest, ms"))]
        return [*texts, "-"]


class Tracking(Benchmark):
    name, title = "section-6.1", "Section 6.1: what tracking costs the guest"
    # In the paper: no difference of the kernel, about 20 % of a page's first write.
    SETTINGS = {"page-writes": {"mode": "bench", "application": ""}, "conjugate-gradient": {"mode": "kernel", "application": "kernel"}}

    def points(self, quick):
        settings = {name: {**options, "seconds": 3 if quick else 8} for name, options in self.SETTINGS.items()}
        return in_turn(self.name, settings, {"attached": {}}, 1 if quick else 6, 15 if quick else 26)

    def measure(self, point):
        rates, first = tracking.measure_attached(point.options["mode"], built_guest(point.options["application"]), point.options["seconds"])
        tracked, untracked = (tracking.median(rates[name]) for name in ("tracked", "untracked"))
        return {"tracked": tracked, "untracked": untracked, "first": first, "ratio": tracked / untracked, "first_ratio": first / untracked}

    def report(self, outcome):
        rows = [[setting, *(cell(figure(outcome.of(self.name, setting), key), digits)
                            for key, digits in (("untracked", 0), ("tracked", 0), ("ratio", 3), ("first", 0), ("first_ratio", 3)))]
                for setting in outcome.settings(self.name)]
        return table(["kernel", "untracked, /s", "tracked, /s", "ratio", "first sweep, /s", "ratio of the first"], rows) + \
            "\n\nPages (or rows of the matrix) a second. One guest in one QEMU, before and after it is attached. In the first sweep then each page is written for the first time.\n" \
            "The paper saw no difference in CG of the NAS Parallel Benchmarks, and about 20 % in the first write of each page."


BENCHMARKS = [LoggingIn(), Updating(), Serving(), Tracking()]
