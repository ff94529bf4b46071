"""Draws plots as the papers have them: grouped bars, the paper's order and axes; black and white enough to be printed. SVG and PNG.

matplotlib may be missing (Debian's python3-matplotlib): then there are no plots, and the report says so.
"""

import os

from .series import Bars

COLOURS = ("#4d4d4d", "#c0d8ee", "#e8a33d", "#7fb069", "#b56576", "#6d597a", "#355070", "#eaac8b", "#a3a3a3")
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "++", "oo", "**")


def missing():
    """Why nothing can be drawn, or None."""
    try:
        import matplotlib
        matplotlib.use("Agg")  # no display
    except ImportError as error:
        return f"no plots: {error} (Debian's python3-matplotlib has it)"
    return None


def spread_around(figures):
    """matplotlib's error bars: from the median down to the smallest and up to the largest."""
    return [[f.middle - f.least for f in figures], [f.most - f.middle for f in figures]]


def _bars(axes, chart):
    width = 0.8 / max(1, len(chart.series))
    for number, (label, figures) in enumerate(chart.series.items()):
        places = [group + (number - (len(chart.series) - 1) / 2) * width for group in range(len(figures))]
        there = [(place, found) for place, found in zip(places, figures) if found is not None]
        axes.bar([place for place, _ in there], [found.middle for _, found in there], width, label=label, color=COLOURS[number % len(COLOURS)],
                 edgecolor="black", hatch=HATCHES[number % len(HATCHES)], yerr=spread_around([found for _, found in there]), capsize=3)
        for place, found in zip(places, figures):
            if found is None:
                axes.annotate("none", (place, 0), (0, 3), textcoords="offset points", rotation=90, ha="center", fontsize=7)
    axes.set_xticks(range(len(chart.groups)), chart.groups)
    axes.set_ylim(bottom=0)


def _lines(axes, chart):
    for number, (label, points) in enumerate(chart.series.items()):
        colour = ("#4d4d4d", "#3b7dbd", "#e8a33d", "#7fb069", "#b56576")[number % 5]
        axes.errorbar([x for x, _ in points], [found.middle for _, found in points], yerr=spread_around([found for _, found in points]),
                      label=label, color=colour, marker="osv^D"[number % 5], capsize=3)
        fitted = [each for each in chart.fitted.get(label, []) if each[1] > 0]
        if fitted:
            axes.plot([x for x, _, _ in fitted], [y for _, y, _ in fitted], color=colour, linestyle="--", linewidth=1)
        if fitted and all(error is not None for _, _, error in fitted):
            axes.fill_between([x for x, _, _ in fitted], [y - e for _, y, e in fitted], [y + e for _, y, e in fitted], color=colour, alpha=0.15)
    if chart.logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", nonpositive="clip")
        axes.xaxis.set_major_formatter(lambda x, _position: f"{x:g}")
    axes.set_ylim(bottom=min((found.least / 2 for points in chart.series.values() for _, found in points), default=1) if chart.logarithmic else 0)


def draw(chart, directory):
    """Writes DIRECTORY/NAME.svg and .png; returns NAME.png."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    (_bars if isinstance(chart, Bars) else _lines)(axes, chart)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_title(chart.title, fontsize=10, wrap=True)
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)
    figure.tight_layout()
    os.makedirs(directory, exist_ok=True)
    for suffix in ("svg", "png"):
        figure.savefig(f"{directory}/{chart.name}.{suffix}", dpi=120)
    pyplot.close(figure)
    return f"{chart.name}.png"
