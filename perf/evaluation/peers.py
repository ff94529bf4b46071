"""godwit and each of stock QEMU's ways to migrate, the same guest on the same link: away with nothing to reuse, and home after a while."""

import time

from perf.system.trips import SHAPES

from .guests import Guest, in_a_lab, moved_and_checked, pause_until
from .points import Benchmark, in_turn
from .series import bars, cell, fates, figure, table

MB = 1e-6
WAYS = {
    "godwit pre-copy": {"system": "godwit", "how": {}},
    "godwit hybrid": {"system": "godwit", "how": {"mode": "hybrid", "postcopy_after_rounds": 1}},
    "godwit post-copy": {"system": "godwit", "how": {"mode": "postcopy"}},
    "QEMU pre-copy": {"system": "qemu", "how": {}},
    "QEMU multifd 2": {"system": "qemu", "how": {"multifd": 2}},
    "QEMU multifd 4": {"system": "qemu", "how": {"multifd": 4}},
    "QEMU xbzrle": {"system": "qemu", "how": {"xbzrle": True}},
    "QEMU post-copy": {"system": "qemu", "how": {"postcopy": True}},
    "QEMU post-copy preempt": {"system": "qemu", "how": {"postcopy": True, "preempt": True}},
}


class Peers(Benchmark):
    name, title = "peers", "Peers: the same guest of 1 GiB with 500 MiB of random data, each way to move it"

    def points(self, quick):
        settings = {f"{link}.{rate}": {"link": link, "rate": rate, "away_s": 3 if quick else 10}
                    for link in SHAPES for rate in (0, 1000, 5000) if not quick or (link, rate) == ("1gbit", 1000)}
        ways = {way: WAYS[way] for way in self.QUICK} if quick else self.ways
        return in_turn(self.name, settings, ways, 1 if quick else 3, 22 if quick else 40)

    QUICK = ("godwit pre-copy", "QEMU pre-copy", "QEMU multifd 4", "QEMU xbzrle", "QEMU post-copy")

    @staticmethod
    def ways(setting):
        """xbzrle sends what changed of a page that it has sent before: of a guest that writes nothing it is pre-copy."""
        return {way: options for way, options in WAYS.items() if not (way == "QEMU xbzrle" and setting.endswith(".0"))}

    def measure(self, point):
        options = point.options
        with in_a_lab(options["link"], options["system"], Guest(rate=options["rate"])) as running:
            time.sleep(2)
            out = moved_and_checked(running, "on the way out", options["how"])
            if not out["ok"]:
                return {"out": out}
            pause_until(time.monotonic(), options["away_s"])
            return {"out": out, "home": moved_and_checked(running, "on the way home", options["how"])}

    def charts(self, outcome):
        ways, drawn = {way: way for way in WAYS}, []
        for leg, words in (("out", "nothing to reuse"), ("home", "on the way home")):
            for key, label, scale in (("wire_bytes", "amount of transferred memory [MB]", MB), ("total_ms", "total migration time [s]", 1e-3)):
                drawn.append(bars(outcome, self.name, ways, leg, key, scale=scale, name=f"peers-{leg}-{key.split('_')[0]}", y_label=label,
                                  title=f"Each way to move a guest, {words}", x_label="link, pages written a second"))
        return drawn

    def report(self, outcome):
        rows = []
        for setting in outcome.settings(self.name):
            for way in outcome.systems(self.name, setting):
                found = outcome.of(self.name, setting, way)
                rows.append([setting, way] + [cell(figure(found, leg, key, scale=scale), digits) for leg in ("out", "home") for key, scale, digits in
                                              (("wire_bytes", MB, 1), ("total_ms", 1e-3, 2), ("blackout_ms", 1, 1))] +
                            [cell(figure(found, "home", "blocked_ms"), 0), fates(found)])
        return table(["link, pages/s", "way", "out, MB", "out, s", "out, downtime ms", "home, MB", "home, s", "home, downtime ms", "home, blocked ms", "guest"],
                     rows)


BENCHMARKS = [Peers()]
