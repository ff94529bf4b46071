"""What every system benchmark prints and writes: a table for people, and JSON with metrics and ratios."""

import argparse
import json
import os
import platform
import statistics


def median(values):
    return statistics.median(values)


class Report:
    def __init__(self, benchmark):
        self.benchmark, self.metrics, self.ratios, self.rows, self.notes = benchmark, {}, {}, [], []

    def row(self, **cells):
        self.rows.append(cells)

    def ratio(self, key, value, limit=None, at_most=True):
        """Keeps a ratio; says in the table whether it is what it must be."""
        self.ratios[key] = round(value, 4)
        self._judge(key, value, limit, at_most)

    def metric(self, key, value, limit=None, at_most=True):
        """The same of an absolute figure."""
        self.metrics[key] = round(value, 4)
        self._judge(key, value, limit, at_most)

    def _judge(self, key, value, limit, at_most):
        if limit is not None:
            good = value <= limit if at_most else value >= limit
            self.notes.append(f"{key} = {value:.3f} (must be {'<=' if at_most else '>='} {limit}): {'ok' if good else 'MISSED'}")

    def rates(self, **of_guests):
        """Of each guest what it did in each sweep, pages a second."""
        for name, values in of_guests.items():
            self.row(guest=name, pages_per_s=median(values), best=max(values), worst=min(values), sweeps=len(values))
            self.metrics[f"pages_per_s.{name}"] = median(values)

    def finish(self, path):
        """Prints it, and writes it if somebody named a file."""
        self.print()
        if path:
            self.write(path)

    def print(self):
        heads = list(dict.fromkeys(key for row in self.rows for key in row))
        cells = [heads] + [[self._text(row.get(h)) for h in heads] for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
        for line in cells:
            print("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))))
        for note in self.notes:
            print(note)

    @staticmethod
    def _text(value):
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    def write(self, path):
        environment = {"cpus": os.cpu_count(), "kernel": platform.release(), "machine": platform.machine()}
        with open(path, "w") as file:
            json.dump({"benchmark": self.benchmark, "metrics": self.metrics, "ratios": self.ratios, "rows": self.rows, "environment": environment},
                      file, indent=2)


def run_points(benchmark, one, **defaults):
    """A program that measures by link and rate, `one(report, link, rate, options)` each: whether godwit's guest was well. Returns its exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    for name, value in {"trips": 3, **defaults}.items():
        parser.add_argument(f"--{name}", default=value, type=type(value))
    options = parser.parse_args()
    report = Report(benchmark)
    well = [one(report, link, int(rate), options) for link in options.links.split(",") for rate in options.rates.split(",")]
    report.finish(options.json)
    return 0 if all(well) else 1
