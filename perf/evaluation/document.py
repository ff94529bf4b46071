"""The report of one run: report.md, one JSON a benchmark, the plots."""

import json
import os
import platform
import time
from collections import Counter

from . import drawing
from .points import write_atomically
from .runner import reason
from .series import table

WIRE_MAY_DIFFER = 0.02


def wire_check(results):
    """Each move has two counters of its bytes: of the data planes and of the network's interfaces. [(deviation, bytes)] of all moves."""
    found = []
    for result in results:
        for move in result.values():
            if isinstance(move, dict) and move.get("port_bytes") and move.get("wire_bytes"):
                found.append((abs(move["port_bytes"] / move["wire_bytes"] - 1), move["wire_bytes"]))
    return found


def wire_text(outcome):
    found = wire_check(outcome.results.values())
    if not found:
        return "No move of godwit's in this run has both counters."
    wrong = [f"{100 * deviation:.1f} % at {size} bytes" for deviation, size in found if deviation > WIRE_MAY_DIFFER]
    text = f"Bytes on the wire are the network interfaces' own counters. Of {len(found)} moves of godwit's the data planes' own counters differ from them by " \
           f"{100 * max(deviation for deviation, _ in found):.2f} % at most (allowed: {100 * WIRE_MAY_DIFFER:.0f} %)."
    return text + (f" **{len(wrong)} DIFFER BY MORE: {'; '.join(wrong[:5])}.**" if wrong else "")


def troubles(outcome):
    rows = [[point.title, "failed", why] for point, why in outcome.failed.items()]
    left_out = Counter(point.benchmark for point in outcome.left_out)
    rows += [[f"{name}, {count} points", "left out", "for want of time: the same command again goes on here"] for name, count in left_out.items()]
    return table(["point", "", "reason"], rows) if rows else "All points were measured."


def data_of(benchmark, outcome):
    return {"benchmark": benchmark.name, "title": benchmark.title,
            "points": [{"setting": point.setting, "system": point.system, "repetition": point.repetition, "options": point.options, "result": result}
                       for point, result in outcome.results.items() if point.benchmark == benchmark.name],
            "failed": [{"setting": point.setting, "system": point.system, "repetition": point.repetition, "reason": why}
                       for point, why in outcome.failed.items() if point.benchmark == benchmark.name],
            "left_out": [point.title for point in outcome.left_out if point.benchmark == benchmark.name]}


def _section(benchmark, outcome, directory, no_plots):
    lines = [f"## {benchmark.title}", ""]
    if not any(point.benchmark == benchmark.name for point in outcome.results):
        return lines + ["Not measured: see above.", ""]
    try:  # what one benchmark cannot say or draw costs itself, not the report
        lines += [benchmark.report(outcome), ""]
        for chart in [] if no_plots else benchmark.charts(outcome):
            lines += [f"![{chart.title}](plots/{drawing.draw(chart, os.path.join(directory, 'plots'))})", ""]
    except Exception as error:
        lines += [f"**Cannot be shown: {reason(error)}.** Its figures are in {benchmark.name}.json.", ""]
    return lines


def write(directory, benchmarks, outcome, version, quick):
    """Returns the report's path."""
    for benchmark in benchmarks:
        write_atomically(os.path.join(directory, benchmark.name + ".json"), json.dumps(data_of(benchmark, outcome), indent=2) + "\n")
    no_plots = drawing.missing()
    lines = ["# Evaluation", "", f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} CPUs, kernel {platform.release()}, {version['qemu']}; "
             f"godwit's programs {version['godwit']}. docs/evaluation.md explains what is measured and how to read it.", "",
             "godwit's moves are encrypted (AES-128-GCM), stock QEMU's are in clear text.", ""]
    if quick:
        lines += ["**A quick run: each point once, fewer of them, shorter. It shows that all works; its figures are not for quoting.**", ""]
    lines += ["Figures are medians, with the smallest and the largest in brackets where a point was measured more than once.", "", wire_text(outcome), ""]
    lines += [no_plots, ""] if no_plots else []
    lines += [troubles(outcome), ""]
    for benchmark in benchmarks:
        lines += _section(benchmark, outcome, directory, no_plots)
    path = os.path.join(directory, "report.md")
    write_atomically(path, "\n".join(lines))
    return path
