"""A day of consolidation, simulated (cluster.py): how often a VM comes to a host that still has its image, and what that saves."""

import inspect

from . import cluster
from .points import Benchmark, in_turn
from .series import Lines, cell, figure, table

BUDGETS = (0, 5, 10, 20, 30, 40, 50, 60, 80, 100)
POLICIES = {"blind": {"aware": False, "asleep_keep": True}, "aware": {"aware": True, "asleep_keep": True},
            "aware, hosts off": {"aware": True, "asleep_keep": False}}


class Consolidation(Benchmark):
    name, title = "consolidation", "A day of consolidation: how often a VM returns, and what is saved (simulated)"
    runs_programs = False

    def points(self, quick):
        settings = {f"{budget}": {"budget": budget, "hours": 24, "warm_up_hours": 48, "model": inspect.getsource(cluster)} for budget in BUDGETS}
        return in_turn(self.name, settings, POLICIES, 1 if quick else 5, 0.4)

    def measure(self, point):
        options = point.options
        made = cluster.Cluster(point.repetition, options["budget"] / 100, options["aware"], options["asleep_keep"])
        return made.run(options["hours"], options["warm_up_hours"])

    def charts(self, outcome):
        drawn = []
        for key, label in (("returns_share", "moves to a host with the VM's image [%]"), ("saved_share", "bytes saved [%]")):
            series = {policy: [(int(budget), figure(outcome.of(self.name, budget, policy), key, scale=100)) for budget in outcome.settings(self.name)]
                      for policy in POLICIES}
            series = {policy: [(x, y) for x, y in points if y] for policy, points in series.items()}
            drawn.append(Lines(f"consolidation-{key.split('_')[0]}", "A day of consolidation, by the image budget of a host", "image budget [% of a host's memory]",
                               label, series))
        return drawn

    def report(self, outcome):
        rows = []
        for policy in POLICIES:
            for budget in outcome.settings(self.name):
                found = outcome.of(self.name, budget, policy)
                rows.append([policy, f"{budget} %"] + [cell(figure(found, key, scale=scale), digits) for key, scale, digits in
                                                       (("moves", 1, 0), ("been_there_share", 100, 1), ("returns_share", 100, 1), ("whole_gib", 1, 0),
                                                        ("sent_gib", 1, 0), ("saved_share", 100, 1), ("awake_hosts", 1, 1))])
        return table(["destination", "image budget", "moves", "been there, %", "image there, %", "content moved, GiB", "sent, GiB", "saved, %", "hosts awake"],
                     rows) + \
            f"\n\n{cluster.HOSTS} hosts, {cluster.VMS} VMs, the third day, each repetition another seed; perf/evaluation/cluster.py says what is assumed. blind: the fullest " \
            "host that has room; aware: of those, one with an image. hosts off: a host without VMs loses its images; else it sleeps with its memory on."


BENCHMARKS = [Consolidation()]
