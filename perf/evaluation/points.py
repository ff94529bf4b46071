"""What is measured, point by point, and the files that keep what was found, so that a run that was broken off goes on where it stopped.

A point is one system under one setting, once. Its result is a file of its own, written whole or not at all, and names what it was measured with: it
counts as long as that is still so.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field

from tests.lab.lab import PROGRAMS, ROOT, program

# What every system benchmark runs through, besides its own module.
COMMON = ("tests/lab", "tests/guest", "perf/system/trips.py", "perf/system/tracking.py", "perf/system/split.py", "perf/system/swap_host.py",
          "perf/evaluation/guests.py", "perf/evaluation/paired.py", "perf/evaluation/terminal.py")


@dataclass(frozen=True)
class Point:
    benchmark: str
    setting: str  # what is measured, e.g. "1gbit.200"
    system: str
    repetition: int
    seconds: float  # it takes about so long
    options: dict = field(default_factory=dict, compare=False)
    group: str = field(default="", compare=False)  # points of one group may share guests

    @property
    def name(self):
        return re.sub(r"[^a-z0-9.-]+", "-", f"{self.setting}.{self.system}.{self.repetition}".lower())

    @property
    def title(self):
        return f"{self.benchmark} {self.setting} {self.system}, {self.repetition + 1}."


def in_turn(benchmark, settings, systems, repetitions, seconds, group=None):
    """Points in the order in which they are measured: systems alternate, so that drift of the machine meets all, and each repetition begins with another.

    `settings`: {name: options}; `systems`: {name: options} or, by setting, a function that returns one; `seconds`: what a point takes, or a function of
    setting and system. `group`: a function of the setting; else each setting is one. A group is measured once as a whole before it is repeated.
    """
    found, groups = [], {}
    for setting in settings:
        groups.setdefault(group(setting) if group else setting, []).append(setting)
    for name, members in groups.items():
        for repetition in range(repetitions):
            for setting in members:
                of_setting = systems(setting) if callable(systems) else systems
                for system in rotated(list(of_setting), repetition, repetitions):
                    takes = seconds(setting, system) if callable(seconds) else seconds
                    found.append(Point(benchmark, setting, system, repetition, takes, {**settings[setting], **of_setting[system]}, f"{name}.{repetition}"))
    return found


def rotated(names, repetition, repetitions):
    first = repetition * max(1, len(names) // repetitions) % len(names)
    return names[first:] + names[:first]


class Benchmark:
    """A table or figure of the report: name, title, points(quick), measure(point) -> what JSON can hold, report(outcome) -> Markdown.

    These are what most have in common.
    """

    runs_programs = True  # daemons, QEMU: a result counts for their version

    def charts(self, outcome):
        return []

    def leave(self):
        """What measure() has kept for other points of the group goes."""


def _hash_of_files(paths):
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.path.relpath(path, ROOT).encode() + b"\0")
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()[:16]


def _files_below(path):
    if os.path.isfile(path):
        return [path]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
                  if not name.endswith(".pyc") and not name.endswith("_test.py"))


def programs_version():
    """What is measured: our daemons, QEMU, the kernel. Raises LabError if the tree is not built."""
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {"godwit": _hash_of_files([program(name) for name in PROGRAMS]), "qemu": qemu, "kernel": platform.release()}


def fingerprint(point, module_file, version):
    """Of all that a result depends on. A benchmark that runs no programs has no `version`."""
    sources = [module_file] + ([path for each in COMMON for path in _files_below(os.path.join(ROOT, each))] if version else [])
    text = json.dumps([point.benchmark, point.setting, point.system, point.options, version, _hash_of_files(sources)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomically(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)


class Store:
    """The results below one directory: DIRECTORY/points/BENCHMARK/POINT.json."""

    def __init__(self, directory):
        self.directory = directory

    def path(self, point):
        return os.path.join(self.directory, "points", point.benchmark, point.name + ".json")

    def load(self, point, expected):
        """The result with this fingerprint, or None: never measured, measured with something else, failed, or unreadable."""
        try:
            with open(self.path(point)) as file:
                kept = json.load(file)
            return kept["result"] if kept["fingerprint"] == expected else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def seconds(self, point):
        """What it took when it was measured last, whatever with, or None."""
        try:
            with open(self.path(point)) as file:
                return float(json.load(file)["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, point, print_of_it, result, seconds):
        kept = {"benchmark": point.benchmark, "setting": point.setting, "system": point.system, "repetition": point.repetition,
                "options": point.options, "fingerprint": print_of_it, "seconds": round(seconds, 3), "result": result}
        write_atomically(self.path(point), json.dumps(kept, indent=2) + "\n")


def module_file(benchmark):
    return os.path.abspath(sys.modules[type(benchmark).__module__].__file__)
