"""The evaluation without a guest: what goes on after a break, what is fitted, what is drawn and reported. Needs no root."""

import io
import json
import os
import shutil
import tempfile
import unittest
from unittest import mock

from . import cluster, document, drawing, fit, main, paired, peers, points, runner
from .points import Benchmark, Point, Store, in_turn
from .series import Bars, Lines, bars, fates, figure, table


class Silent(runner.Progress):
    def __init__(self):
        super().__init__(io.StringIO())


def point(setting="s", system="godwit", repetition=0, **options):
    return Point("b", setting, system, repetition, 10, options)


class Resuming(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.store = Store(self.directory)
        self.measured = []

    def measure(self, each):
        self.measured.append(each)
        return {"value": len(self.measured)}

    def run_all(self, work, **more):
        return runner.run(work, self.store, Silent(), **more)

    def test_what_was_measured_is_not_measured_again(self):
        work = [(point("a"), "1", self.measure), (point("b"), "1", self.measure)]
        self.run_all(work[:1])
        outcome = self.run_all(work)
        self.assertEqual(self.measured, [point("a"), point("b")])
        self.assertEqual([result["value"] for result in outcome.results.values()], [1, 2])

    def test_with_other_programs_it_is_measured_again(self):
        self.run_all([(point(), "old", self.measure)])
        outcome = self.run_all([(point(), "new", self.measure)])
        self.assertEqual(outcome.results[point()], {"value": 2})

    def test_a_point_that_fails_is_named_and_the_others_go_on(self):
        def fails(_point):
            raise ValueError("no such guest\nand more")

        outcome = self.run_all([(point("a"), "1", fails), (point("b"), "1", self.measure)])
        self.assertEqual(outcome.failed, {point("a"): "ValueError: no such guest"})
        self.assertEqual(list(outcome.results), [point("b")])
        self.run_all([(point("a"), "1", self.measure)])
        self.assertEqual(self.measured, [point("b"), point("a")])

    def test_an_interrupt_ends_the_run_and_keeps_what_was_measured(self):
        def interrupted(_point):
            raise SystemExit(130)

        with self.assertRaises(SystemExit):
            self.run_all([(point("a"), "1", self.measure), (point("b"), "1", interrupted), (point("c"), "1", self.measure)])
        self.assertEqual(self.run_all([(point("a"), "1", self.measure)]).results, {point("a"): {"value": 1}})
        self.assertEqual(self.measured, [point("a")])

    def test_half_a_file_is_no_result(self):
        self.run_all([(point(), "1", self.measure)])
        path = self.store.path(point())
        with open(path) as file:
            whole = file.read()
        for text in (whole[:len(whole) // 2], "[]", "null", ""):
            with open(path, "w") as file:
                file.write(text)
            self.assertIsNone(self.store.load(point(), "1"))

    def test_a_result_is_written_whole_or_not_at_all(self):
        self.run_all([(point(), "1", self.measure)])
        with mock.patch("os.fsync", side_effect=OSError("the disk is full")), self.assertRaises(OSError):
            points.write_atomically(self.store.path(point()), "x" * 100)
        self.assertEqual(self.store.load(point(), "1"), {"value": 1})

    def test_what_would_not_be_through_in_time_is_left_out(self):
        work = [(point(name), "1", self.measure) for name in "abc"]
        outcome = self.run_all(work, limit_s=25, now=lambda: 8 * len(self.measured))  # each takes 8 s, and is thought to take 10
        self.assertEqual(outcome.left_out, [point("c")])
        self.assertEqual(self.run_all(work).left_out, [])

    def test_on_a_slow_machine_fewer_points_begin(self):
        work = [(point(name), "1", self.measure) for name in "abcd"]
        outcome = self.run_all(work, limit_s=119, now=lambda: 50 * len(self.measured))  # each takes 50 s, and is thought to take 10
        self.assertEqual(outcome.left_out, [point("c"), point("d")])  # at 100 s: 10 s more would do, 20 would not

    def test_long_points_are_left_out_first(self):
        long, takes_40_s = Point("b", "long", "godwit", 0, 40, {}), lambda: 40 * len(self.measured)
        outcome = self.run_all([(long, "1", self.measure), (point("a"), "1", self.measure)], limit_s=45, now=takes_40_s)
        self.assertEqual((self.measured, outcome.left_out), ([point("a")], [long]))
        self.measured.clear()
        self.run_all([(long, "2", self.measure), (point("a"), "2", self.measure)])
        self.assertEqual(self.measured, [long, point("a")])  # else as they were given

    def test_a_fingerprint_is_of_options_and_version(self):
        here, prints = os.path.abspath(__file__), set()
        for each, version in ((point(), None), (point(rate=1), None), (point(rate=2), None), (point(system="qemu"), None), (point(setting="t"), None)):
            prints.add(points.fingerprint(each, here, version))
        with mock.patch.object(points, "COMMON", ()):
            prints |= {points.fingerprint(point(), here, {"godwit": name}) for name in ("1", "2")}
        self.assertEqual(len(prints), 7)

    def test_a_changed_module_counts_too(self):
        paths = [os.path.join(self.directory, name) for name in ("one", "two")]
        for path in paths:
            with open(path, "w") as file:
                file.write(path)
        self.assertNotEqual(*[points.fingerprint(point(), path, None) for path in paths])

    def test_systems_take_turns_and_each_repetition_begins_with_another(self):
        found = [(each.repetition, each.system) for each in in_turn("b", {"s": {}}, {"qemu": {}, "godwit": {}}, 3, 1)]
        self.assertEqual(found, [(0, "qemu"), (0, "godwit"), (1, "godwit"), (1, "qemu"), (2, "qemu"), (2, "godwit")])

    def test_a_group_is_measured_whole_before_it_is_repeated(self):
        made = in_turn("b", {"x.1": {}, "y.1": {}, "x.2": {}}, {"s": {}}, 2, lambda setting, _system: int(setting[2:]), group=lambda setting: setting[0])
        self.assertEqual([(each.setting, each.repetition) for each in made], [("x.1", 0), ("x.2", 0), ("x.1", 1), ("x.2", 1), ("y.1", 0), ("y.1", 1)])
        self.assertEqual(len({each.group for each in made}), 4)
        self.assertEqual([each.seconds for each in made], [1, 2, 1, 2, 1, 1])

    def test_what_a_group_shares_goes_when_no_other_point_of_it_follows(self):
        def fails(_point):
            raise ValueError("no such guest")

        said = []
        made = [Point("b", name, "godwit", 0, 10, {}, group) for name, group in (("a", "1"), ("b", "1"), ("c", "2"))]
        work = [(each, "1", fails if each.setting == "a" else lambda each: said.append(each.setting)) for each in made]
        self.run_all(work, leave=lambda: said.append("left"))
        self.assertEqual(said, ["b", "left", "c", "left"])

    def test_guests_that_cannot_be_taken_down_are_named(self):
        def leave():
            raise ValueError("they stay")

        outcome = self.run_all([(point("a"), "1", self.measure)], leave=leave)
        self.assertEqual((list(outcome.results), outcome.failed), ([point("a")], {point("a"): "behind it: ValueError: they stay"}))

    def test_names_are_names_of_files(self):
        self.assertEqual(point("10/s", "QEMU multifd 2").name, "10-s.qemu-multifd-2.0")


class Made:
    """A guest that notes what it is told."""

    def __init__(self, name, said):
        self.name, self.said, self.well = name, said, True

    def __getattr__(self, told):
        return lambda *words: self.said.append(" ".join((self.name, *words) if words else (self.name, told)))


class Hosts:
    def __init__(self, said):
        self.said, self.booted, self.running = said, 0, {}

    def __enter__(self):
        self.boot("qemu"), self.boot("godwit")

    def boot(self, system):
        self.booted += 1
        self.running[system] = Made(f"{system}-{self.booted}", self.said)

    def __exit__(self, kind, error, _trace):
        self.said.append(f"down: {error}")


class InTurns(unittest.TestCase):
    """Both systems' guests in the same hosts."""

    def setUp(self):
        self.said = []
        self.benchmark = paired.Paired()
        self.benchmark.hosts_for = lambda _point: Hosts(self.said)
        no_wait = mock.patch.object(paired, "SETTLE_S", 0)
        no_wait.start()
        self.addCleanup(no_wait.stop)

    def turn(self, system, group="1", lost=False, error=None):
        with self.benchmark.turn(Point("b", "s", system, 0, 1, {}, group)) as running:
            self.said.append("measured")
            running.well = not lost
            if error:
                raise error

    def test_who_is_not_in_turn_is_paused(self):
        self.turn("godwit")
        self.turn("qemu")
        self.assertEqual(self.said, ["qemu-1 stop", "godwit-2 stop",
                                     "godwit-2 nothing_to_reuse", "godwit-2 cont", "measured", "godwit-2 stop",
                                     "qemu-1 nothing_to_reuse", "qemu-1 cont", "measured", "qemu-1 stop"])

    def test_for_a_guest_that_was_lost_there_is_another(self):
        self.turn("qemu", lost=True)
        del self.said[:4]
        self.turn("godwit")
        self.turn("qemu")
        self.assertEqual(self.said, ["measured", "qemu-1 end", "godwit-2 nothing_to_reuse", "godwit-2 cont", "measured", "godwit-2 stop",
                                     "qemu-3 wait_until_filled", "measured", "qemu-3 stop"])

    def test_another_group_has_other_guests(self):
        self.turn("godwit")
        self.turn("godwit", group="2")
        self.benchmark.leave()
        self.assertEqual(self.said.count("down: None"), 2)
        self.assertEqual(self.said.count("qemu-1 stop"), 2)

    def test_after_a_failure_no_guest_is_trusted(self):
        with self.assertRaises(ValueError):
            self.turn("godwit", error=ValueError("wrong pages"))
        self.assertEqual(self.said[-1], "down: wrong pages")
        self.turn("godwit")
        self.assertEqual(self.said.count("qemu-1 stop"), 2)


class TimeLeft(unittest.TestCase):
    def test_it_learns_from_what_was_measured(self):
        progress = Silent()
        progress.expect(3, 300)
        self.assertAlmostEqual(progress.left(), 300)
        for _ in range(2):
            progress.end(100, 300)
        self.assertAlmostEqual(progress.left(), 100 * 660 / 260)
        self.assertEqual(runner.clock(59.6), "1:00")
        self.assertEqual(runner.clock(3725), "1:02:05")


class Fitting(unittest.TestCase):
    def test_a_line_is_found_again(self):
        line = fit.fit([(x, 3 + 2 * x) for x in (1, 2, 4, 8, 16)])
        self.assertAlmostEqual(line.at(1024), 2051)
        self.assertAlmostEqual(line.error_at(1024), 0)

    def test_the_error_is_that_of_the_textbook(self):
        # By hand: slope 0.6, intercept 2.2, residual sum of squares 2.4, of which 3 degrees of freedom are left.
        line = fit.fit([(1, 2), (2, 4), (3, 5), (4, 4), (5, 5)])
        self.assertAlmostEqual(line.slope, 0.6)
        self.assertAlmostEqual(line.intercept, 2.2)
        self.assertAlmostEqual(line.error_at(10), 3.182 * 0.8 ** 0.5 * (1 + 1 / 5 + 49 / 10) ** 0.5)

    def test_no_line_through_one_place(self):
        self.assertIsNone(fit.fit([(1, 2)]))
        self.assertIsNone(fit.fit([(1, 2), (1, 3)]))
        self.assertIsNone(fit.fit([(1, 2), (2, 3)]).error_at(4))

    def test_between_two_degrees_the_wider_counts(self):
        self.assertEqual(fit.student_t(13), fit.T_95[12])
        self.assertEqual(fit.student_t(1), 12.706)
        self.assertEqual(fit.student_t(100), fit.T_95_MANY)


def outcome_of(results):
    outcome = runner.Outcome()
    for number, (setting, system, result) in enumerate(results):
        outcome.results[point(setting, system, number)] = result
    return outcome


class Plotting(unittest.TestCase):
    def setUp(self):
        self.outcome = outcome_of([("200", "qemu", {"home": {"wire_bytes": 600e6}}), ("200", "godwit", {"home": {"wire_bytes": 10e6}}),
                                   ("200", "godwit", {"home": {"wire_bytes": 30e6}}), ("200", "godwit", {"home": {"wire_bytes": 14e6}}),
                                   ("5000", "godwit", {"home": {"ok": False, "verdict": "gone"}})])
        self.chart = bars(self.outcome, "b", {"qemu": "without", "godwit": "with"}, "home", "wire_bytes", scale=1e-6, name="n", title="t", x_label="x",
                          y_label="y")

    def test_medians_and_spread(self):
        found = self.chart.series["with"][0]
        self.assertEqual((found.middle, found.least, found.most, found.count), (14, 10, 30, 3))
        self.assertEqual(drawing.spread_around([found]), [[4], [16]])

    def test_order_and_gaps(self):
        self.assertEqual(list(self.chart.series), ["without", "with"])
        self.assertEqual(self.chart.groups, ["200", "5000"])
        self.assertIsNone(self.chart.series["without"][1])
        self.assertIsNone(self.chart.series["with"][1])

    def test_who_was_not_measured_at_all_has_no_bars(self):
        chart = bars(self.outcome, "b", {"godwit": "with", "xen": "other"}, "home", "wire_bytes", name="n", title="t", x_label="x", y_label="y")
        self.assertEqual(list(chart.series), ["with"])

    def test_what_is_no_number_is_no_figure(self):
        self.assertIsNone(figure([{"ok": True}], "ok"))
        self.assertIsNone(figure([{"home": None}, {}], "home", "total_ms"))

    def test_plots_are_written(self):
        if drawing.missing():
            self.skipTest(drawing.missing())
        with tempfile.TemporaryDirectory() as directory:
            lines = Lines("l", "t", "x", "y", {"a": [(1, figure([{"v": 2}], "v")), (2, figure([{"v": 3}], "v"))]}, {"a": [(1, 2, 1), (1024, 99, 5)]}, True)
            for chart in (self.chart, lines):
                drawing.draw(chart, directory)
                for suffix in ("svg", "png"):
                    self.assertGreater(os.path.getsize(f"{directory}/{chart.name}.{suffix}"), 1000)


class Consolidating(unittest.TestCase):
    """The model of the cluster keeps its own rules."""

    def cluster(self, budget, aware=True, **more):
        return cluster.Cluster(1, budget, aware, hosts=8, vms=60, **more)

    def test_without_a_budget_nothing_is_saved(self):
        found = self.cluster(0).run(24)
        self.assertGreater(found["moves"], 10)
        self.assertEqual((found["returns"], found["saved_share"]), (0, 0))

    def test_images_keep_within_budget_and_memory(self):
        made = self.cluster(0.2)
        kept_at_all = 0
        for _ in range(48):
            made.run(0.5)
            for host in made.hosts:
                images = sum(size for _, size in host.images.values())
                kept_at_all += images
                self.assertLessEqual(images, 0.2 * cluster.MEMORY_GIB + 1e-6)
                self.assertLessEqual(images + host.memory(), cluster.MEMORY_GIB + 1e-6)
                self.assertFalse(set(host.images) & set(host.vms))
        self.assertGreater(kept_at_all, 0)

    def test_a_seed_is_a_run(self):
        self.assertEqual(self.cluster(0.5).run(12), self.cluster(0.5).run(12))
        self.assertNotEqual(self.cluster(0.5).run(12), cluster.Cluster(2, 0.5, True, hosts=8, vms=60).run(12))

    def test_home_at_once_costs_the_table_alone(self):
        made = self.cluster(1)
        vm = made.vms[0]
        home, away = made.hosts[vm.host], next(host for host in made.hosts if host.number != vm.host)
        made.move(vm, away)
        self.assertAlmostEqual(made.counts.sent_gib, vm.content)
        made.move(vm, home)
        self.assertAlmostEqual(made.counts.sent_gib, vm.content + vm.memory / 1024)
        self.assertEqual((made.counts.moves, made.counts.returns), (2, 1))

    def test_a_host_that_is_switched_off_has_no_images(self):
        for asleep_keep in (True, False):
            made = self.cluster(1, asleep_keep=asleep_keep)
            emptied, other = [host for host in made.hosts if host.vms][:2]
            for vm in list(emptied.vms.values()):
                made.move(vm, other)
            self.assertEqual(bool(emptied.images), asleep_keep)

    def test_what_nobody_counts_is_not_counted(self):
        self.assertLess(self.cluster(0.5).run(1, warm_up_hours=23)["moves"], self.cluster(0.5).run(24)["moves"])


class Told(Benchmark):
    name, title = "b", "A benchmark"

    def report(self, outcome):
        return table(["setting"], [[setting] for setting in outcome.settings(self.name)])

    def charts(self, _outcome):
        return [Bars("n", "t", "x", "y", ["g"], {"s": [None]})]


class Report(unittest.TestCase):
    def write(self, outcome, missing=None):
        with tempfile.TemporaryDirectory() as directory, mock.patch.object(drawing, "missing", return_value=missing), \
                mock.patch.object(drawing, "draw", return_value="n.png"):
            path = document.write(directory, [Told()], outcome, {"qemu": "QEMU", "godwit": "g"}, False)
            with open(path) as report, open(os.path.join(directory, "b.json")) as data:
                return report.read(), json.load(data)

    def test_it_has_what_failed_and_why(self):
        outcome = outcome_of([("s", "godwit", {})])
        outcome.failed[point("lost")] = "LabError: it | broke"
        outcome.left_out += [point("late"), point("later")]
        text, data = self.write(outcome)
        self.assertIn("| b lost godwit, 1. | failed | LabError: it / broke |", text)
        self.assertIn("| b, 2 points | left out |", text)
        self.assertEqual([each["reason"] for each in data["failed"]], ["LabError: it | broke"])
        self.assertIn("![t](plots/n.png)", text)

    def test_without_matplotlib_the_plots_are_a_reported_omission(self):
        text, _ = self.write(outcome_of([("s", "godwit", {})]), "no plots: none here")
        self.assertIn("no plots: none here", text)
        self.assertNotIn("![", text)

    def test_what_cannot_be_shown_costs_itself_alone(self):
        with mock.patch.object(Told, "report", side_effect=ZeroDivisionError("nothing there")):
            text, data = self.write(outcome_of([("s", "godwit", {})]))
        self.assertIn("Cannot be shown: ZeroDivisionError: nothing there", text)
        self.assertEqual(len(data["points"]), 1)

    def test_counters_that_disagree_are_shown(self):
        good = outcome_of([("s", "godwit", {"home": {"wire_bytes": 1000, "port_bytes": 990}})])
        self.assertIn("1.00 %", document.wire_text(good))
        self.assertNotIn("DIFFER", document.wire_text(good))
        bad = outcome_of([("s", "godwit", {"home": {"wire_bytes": 1000, "port_bytes": 970}}), ("s", "qemu", {"home": {"wire_bytes": 1000}})])
        self.assertIn("1 DIFFER BY MORE: 3.0 % at 1000 bytes", document.wire_text(bad))

    def test_lost_guests_are_counted(self):
        self.assertEqual(fates([{"home": {"ok": True}}, {"home": {"ok": False, "verdict": "panic"}}]), "lost in 1 of 2: panic")


def thought_up(benchmark, each):
    """A result as the benchmark's measure() makes it."""
    move = {"wire_bytes": 1e6, "total_ms": 1000.0, "blackout_ms": 10.0, "pages_sent": 1, "rounds": 3, "ok": True, "verdict": "clean"}
    return {"section-6.1": {"tracked": 1.0, "untracked": 1.0, "first": 0.5, "ratio": 1.0, "first_ratio": 0.5},
            "scale-size": {"out": move, "home": move, "daemons_kib": {"dataplane": 1000 * each.options.get("gib", 0)}},
            "scale-count": {"kib": {"1": {"dataplane": 5}, "2": {"dataplane": 7}}},
            "consolidation": {"moves": 1, "been_there_share": 0.1, "returns_share": 0.1, "whole_gib": 2, "sent_gib": 1, "saved_share": 0.5,
                              "awake_hosts": 3}}.get(benchmark.name, {"out": move, "home": move})


class AllOfThem(unittest.TestCase):
    BENCHMARKS = [benchmark for module in main.MODULES for benchmark in module.BENCHMARKS]

    def test_points_have_files_of_their_own(self):
        for quick in (True, False):
            made = [each for benchmark in self.BENCHMARKS for each in benchmark.points(quick)]
            self.assertEqual(len(made), len({(each.benchmark, each.name) for each in made}))

    def test_a_quick_run_too_measures_a_group_at_a_stretch(self):
        made = sorted((each for benchmark in self.BENCHMARKS for each in benchmark.points(True)), key=lambda each: each.seconds)
        groups = [(each.benchmark, each.group) for each in made]
        self.assertEqual(len([1 for before, each in zip([None, *groups], groups) if before != each]), len(set(groups)))

    def test_peers_alternate_and_are_shown_in_the_order_of_their_systems(self):
        self.assertEqual(set(peers.TURNS), set(peers.WAYS))
        benchmark = next(benchmark for benchmark in self.BENCHMARKS if benchmark.name == "peers")
        outcome = runner.Outcome({each: thought_up(benchmark, each) for each in benchmark.points(False)})
        shown = [line.split("|")[2].strip() for line in benchmark.report(outcome).splitlines() if line.startswith("| veth.5000 ")]
        self.assertEqual(shown, list(peers.WAYS))

    def test_the_quick_run_is_meant_to_fit(self):
        self.assertLess(sum(each.seconds for benchmark in self.BENCHMARKS for each in benchmark.points(True)), main.QUICK_LIMIT_S)

    def test_the_long_run_measures_each_point_three_times(self):
        for benchmark in self.BENCHMARKS:
            for each in benchmark.points(False):
                self.assertIn(2, [other.repetition for other in benchmark.points(False) if (other.setting, other.system) == (each.setting, each.system)])

    def test_each_shows_what_it_has(self):
        for quick in (True, False):
            for benchmark in self.BENCHMARKS:
                made = benchmark.points(quick)
                for some in (made, made[:1], made[-1:]):
                    outcome = runner.Outcome({each: thought_up(benchmark, each) for each in some})
                    self.assertIn("|", benchmark.report(outcome))
                    charts = benchmark.charts(outcome)
                    self.assertEqual(len(charts), len({chart.name for chart in charts}))
                    self.assertTrue(all(chart.series for chart in charts))

    def test_the_paper_has_without_before_with(self):
        updating = next(benchmark for benchmark in self.BENCHMARKS if benchmark.name == "figures-4-5")
        outcome = runner.Outcome({each: thought_up(updating, each) for each in updating.points(False)})
        shown = {chart.name: chart for chart in updating.charts(outcome)}
        self.assertEqual(list(shown), ["figure-4", "figure-5", "figure-4-unshaped", "figure-5-unshaped"])
        self.assertEqual(shown["figure-4"].groups, ["200", "1000", "5000", "10000"])
        self.assertEqual([label.split()[0] for label in shown["figure-4"].series], ["without", "with"])
        self.assertEqual([found.count for found in shown["figure-5"].series["with MIYAKODORI (godwit)"]], [3, 3, 3, 3])

    def test_where_the_paper_could_not_move_its_guest_it_moves_by_hybrid(self):
        updating = next(benchmark for benchmark in self.BENCHMARKS if benchmark.name == "figures-4-5")
        modes = {each.options["rate"]: each.options["plan"].get("mode") for each in updating.points(False) if each.system == "godwit"}
        self.assertEqual(modes, {200: None, 1000: None, 5000: None, 10000: "hybrid"})


if __name__ == "__main__":
    unittest.main()
