"""What a plot and a table show: figures of several repetitions put together. Pure: what draws them is drawing.py."""

from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Figure:
    """The median of the repetitions, and from the smallest to the largest."""

    middle: float
    least: float
    most: float
    count: int

    def text(self, digits=1):
        spread = f" ({self.least:.{digits}f}-{self.most:.{digits}f})" if self.count > 1 else ""
        return f"{self.middle:.{digits}f}{spread}"


def figure(results, *path, scale=1.0):
    """Of the results that have a number at this path, e.g. ("home", "wire_bytes"); None if none has."""
    found = []
    for value in results:
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(value * scale)
    return Figure(median(found), min(found), max(found), len(found)) if found else None


def cell(value, digits=1):
    return "-" if value is None else value.text(digits) if isinstance(value, Figure) else str(value)


@dataclass(frozen=True)
class Bars:
    """Groups of bars, one bar a series, in this order."""

    name: str
    title: str
    x_label: str
    y_label: str
    groups: list
    series: dict  # {label: [Figure or None of each group]}


@dataclass(frozen=True)
class Lines:
    name: str
    title: str
    x_label: str
    y_label: str
    series: dict  # {label: [(x, Figure)]}
    fitted: dict = field(default_factory=dict)  # {label: [(x, y, half of the interval or None)]}
    logarithmic: bool = False


def bars(outcome, benchmark, systems, *path, name, title, x_label, y_label, groups=None, scale=1.0):
    """Bars of one figure by setting; `systems` and `groups`: {key: label}. A bar nobody has a figure of is None."""
    groups = groups or {setting: setting for setting in outcome.settings(benchmark)}
    series = {label: [figure(outcome.of(benchmark, setting, system), *path, scale=scale) for setting in groups]
              for system, label in systems.items() if outcome.of(benchmark, system=system)}
    return Bars(name, title, x_label, y_label, list(groups.values()), series)


def table(heads, rows):
    """Markdown."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(str(c).replace("|", "/").replace("\n", " ") for c in row) + " |" for row in rows])


def fates(results):
    """What became of the guests: one line."""
    verdicts = [move["verdict"] for result in results for move in result.values() if isinstance(move, dict) and move.get("ok") is False]
    return f"lost in {len(verdicts)} of {len(results)}: {verdicts[0]}" if verdicts else "well"
