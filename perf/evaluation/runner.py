"""Runs the points that have no result yet, one after the other, and says how it goes."""

import sys
import time
import traceback
from dataclasses import dataclass, field

from . import points as p

BAR_WIDTH = 24


@dataclass
class Outcome:
    """What one run has of all points asked for. `results` may be of earlier runs."""

    results: dict = field(default_factory=dict)  # {Point: result}
    failed: dict = field(default_factory=dict)  # {Point: reason}
    left_out: list = field(default_factory=list)  # for want of time

    def of(self, benchmark, setting=None, system=None):
        return [result for point, result in self.results.items()
                if point.benchmark == benchmark and setting in (None, point.setting) and system in (None, point.system)]

    def settings(self, benchmark):
        return list(dict.fromkeys(point.setting for point in self.results if point.benchmark == benchmark))

    def systems(self, benchmark, setting):
        return list(dict.fromkeys(point.system for point in self.results if point.benchmark == benchmark and point.setting == setting))


def clock(seconds):
    seconds = int(round(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}" if seconds >= 3600 else f"{seconds // 60}:{seconds % 60:02}"


class Progress:
    """A bar on a terminal, a line a point elsewhere. The time left is what the points' estimates say, put right by how wrong they were so far."""

    def __init__(self, stream=sys.stderr, now=time.monotonic):
        self.stream, self.now = stream, now
        self.done_estimated = self.done_took = 0.0
        self.at = self.count = 0
        self.left_estimated = 0.0

    def expect(self, count, seconds):
        self.count, self.left_estimated = count, seconds

    def slowness(self):
        """How much longer points took than was thought. That they take as long weighs as much as one minute of measurements."""
        return (self.done_took + 60) / (self.done_estimated + 60)

    def left(self):
        """Seconds."""
        return self.left_estimated * self.slowness()

    def begin(self, title):
        bar = "#" * (BAR_WIDTH * self.at // max(1, self.count))
        line = f"[{bar:<{BAR_WIDTH}}] {self.at + 1}/{self.count}, {clock(self.left())} left: {title}"
        self.stream.write(f"\r\x1b[K{line[:150]}" if self.stream.isatty() else line + "\n")
        self.stream.flush()

    def skip(self, estimated):
        self.at += 1
        self.left_estimated -= estimated

    def end(self, estimated, took):
        self.skip(estimated)
        self.done_estimated += estimated
        self.done_took += took

    def finish(self, text):
        self.stream.write(("\r\x1b[K" if self.stream.isatty() else "") + text + "\n")


def reason(error):
    """One line for the report."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no text'}"


def run(work, store, progress, limit_s=None, now=time.monotonic, leave=lambda: None):
    """`work`: [(point, fingerprint, measure)], measure(point) returning what JSON can hold.

    A point that fails is noted with its reason and the next one has its turn; SystemExit and KeyboardInterrupt end the run, with what was measured kept.
    A point that would not be through within `limit_s` is left out, long ones first. `leave` is called when no other point of the same group follows.
    """
    outcome, to_do = Outcome(), []
    for point, print_of_it, measure in work:
        kept = store.load(point, print_of_it)
        if kept is not None:
            outcome.results[point] = kept
        else:
            to_do.append((point, print_of_it, measure, store.seconds(point) or point.seconds))
    if limit_s is not None:
        to_do.sort(key=lambda each: each[0].seconds)  # in the time that there is, as many as can be
    progress.expect(len(to_do), sum(estimate for *_, estimate in to_do))
    _measure_all(to_do, outcome, store, progress, limit_s, now, leave)
    ordered = {point: outcome.results[point] for point, *_ in work if point in outcome.results}
    outcome.results = ordered
    progress.finish(f"{len(ordered)} of {len(work)} points measured, {len(outcome.failed)} failed, {len(outcome.left_out)} left out for want of time")
    return outcome


def _measure_all(to_do, outcome, store, progress, limit_s, now, leave):
    started, last = now(), None
    try:
        for point, print_of_it, measure, estimate in to_do:
            if limit_s is not None and now() - started + estimate * progress.slowness() > limit_s:
                outcome.left_out.append(point)
                progress.skip(estimate)
                continue
            if last and (last.benchmark, last.group) != (point.benchmark, point.group):
                _leave(leave, last, outcome)
            last = point
            progress.begin(point.title)
            begin = now()
            try:
                result = measure(point)
                store.save(point, print_of_it, result, now() - begin)
                outcome.results[point] = result
            except Exception as error:  # whatever it is, the others have their turn
                outcome.failed[point] = reason(error)
                progress.finish(f"{point.title} failed: {''.join(traceback.format_exception_only(error)).strip()}")
            progress.end(estimate, now() - begin)
    finally:
        if last:
            _leave(leave, last, outcome)


def _leave(leave, last, outcome):
    try:
        leave()
    except Exception as error:  # that its guests could not be taken down is the last point's failure, though it has its figures
        outcome.failed[last] = "behind it: " + reason(error)


def work_of(benchmarks, quick, version):
    """All points of these benchmarks with their fingerprints."""
    return [(point, p.fingerprint(point, p.module_file(benchmark), version if benchmark.runs_programs else None), benchmark.measure)
            for benchmark in benchmarks for point in benchmark.points(quick)]
