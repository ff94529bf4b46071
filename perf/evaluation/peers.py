"""godwit and each of stock QEMU's ways to migrate, the same guest on the same link: away with nothing to reuse, and home after a while.

One guest a system makes the trip by each way and at each rate, in turn with the other system's; of stock QEMU another one where it has lost it.
"""

from perf.system.trips import SHAPES

from .guests import SYSTEMS, TOLD, hosts_with, there_and_back
from .paired import Paired
from .points import in_turn
from .series import bars, cell, fates, figure, table

MB = 1e-6
AWAY_S = 3
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
# As they are measured: the systems alternate.
TURNS = ("godwit pre-copy", "QEMU pre-copy", "QEMU multifd 2", "godwit hybrid", "QEMU xbzrle", "QEMU multifd 4", "godwit post-copy", "QEMU post-copy",
         "QEMU post-copy preempt")


class Peers(Paired):
    name, title = "peers", "Peers: the same guest of 1 GiB with 500 MiB of random data, each way to move it"

    def points(self, quick):
        settings = {f"{link}.{rate}": {"link": link, "rate": rate, "away_s": AWAY_S}
                    for link in SHAPES for rate in (0, 1000, 5000) if not quick or (link, rate) == ("1gbit", 1000)}
        ways = {way: WAYS[way] for way in self.QUICK} if quick else self.ways
        return in_turn(self.name, settings, ways, 1 if quick else 3, 13, group=lambda setting: setting.partition(".")[0])

    QUICK = ("godwit pre-copy", "QEMU pre-copy", "QEMU multifd 4", "QEMU xbzrle", "QEMU post-copy")

    @staticmethod
    def ways(setting):
        """xbzrle sends what changed of a page that it has sent before: of a guest that writes nothing it is pre-copy."""
        return {way: WAYS[way] for way in TURNS if not (way == "QEMU xbzrle" and setting.endswith(".0"))}

    def hosts_for(self, point):
        return hosts_with(point.options["link"], SYSTEMS, TOLD)

    def measure(self, point):
        with self.turn(point) as running:
            running.write_at(point.options["rate"])
            return there_and_back(running, point.options["how"], point.options["away_s"])

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
            for way in (way for way in WAYS if way in outcome.systems(self.name, setting)):
                found = outcome.of(self.name, setting, way)
                rows.append([setting, way] + [cell(figure(found, leg, key, scale=scale), digits) for leg in ("out", "home") for key, scale, digits in
                                              (("wire_bytes", MB, 1), ("total_ms", 1e-3, 2), ("blackout_ms", 1, 1))] +
                            [cell(figure(found, "home", "blocked_ms"), 0), fates(found)])
        return table(["link, pages/s", "way", "out, MB", "out, s", "out, downtime ms", "home, MB", "home, s", "home, downtime ms", "home, blocked ms", "guest"],
                     rows) + \
            f"\n\nHome after {AWAY_S} s, in which the guest verifies its pages (figures 4 and 5: after 10 s). One guest a system makes all of these trips; of stock " \
            "QEMU another one where it has lost it. A page that it loses of the guest's kernel may show in a later trip than the one that lost it."


BENCHMARKS = [Peers()]
