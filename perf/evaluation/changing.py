"""Workloads that change memory while they run, which the paper names as future work: key-value stores, a program build, a database.

Each goes to host-b by pre-copy, works there, and comes home. Even a get writes: memcached notes when an item was used last.
"""

import time

from tests.lab.applications import operations

from .guests import Guest, hosts_with, moved_and_goes_on, pause_until
from .paired import Paired
from .points import in_turn
from .series import bars, cell, fates, figure, table

MB = 1e-6
SYSTEMS = {"qemu": {}, "godwit": {}}
# Operations a second; 0: as fast as it goes.
APPLICATIONS = {"memcached": {"rate": 500, "keys": 65536}, "redis": {"rate": 500, "keys": 65536}, "build": {"rate": 0}, "database": {"rate": 0}}
QUICK = {"memcached": {"rate": 500, "keys": 8192}}


class Changing(Paired):
    name, title = "changing", "Workloads that change while they run: memcached, Redis, a program build, a database; 10 s away"

    def points(self, quick):
        settings = {application: {"away_s": 5 if quick else 10, "link": "1gbit", **more} for application, more in (QUICK if quick else APPLICATIONS).items()}
        return in_turn(self.name, settings, SYSTEMS, 1 if quick else 3, 30)

    def hosts_for(self, point):
        options = point.options
        mode = f"{point.setting} keys={options.get('keys', 0)}"
        return hosts_with(options["link"], SYSTEMS, Guest(mode=mode, rate=options["rate"], application=point.setting))

    def measure(self, point):
        with self.turn(point) as running:
            result = {"out": moved_and_goes_on(running, "on the way out", {})}
            if not result["out"]["ok"]:
                return result
            begin, first = time.monotonic(), operations(running.console())
            pause_until(running.arrived, point.options["away_s"])
            result["away"] = {"operations_per_s": (operations(running.console()) - first) / (time.monotonic() - begin)}
            result["home"] = moved_and_goes_on(running, "on the way home", {})
            return result

    def charts(self, outcome):
        systems = {"qemu": "stock QEMU", "godwit": "godwit"}
        return [bars(outcome, self.name, systems, "home", key, scale=scale, name=f"changing-{key.split('_')[0]}", x_label="workload", y_label=label,
                     title="Home after 10 s of work")
                for key, label, scale in (("wire_bytes", "amount of transferred memory [MB]", MB), ("total_ms", "total migration time [s]", 1e-3))]

    def report(self, outcome):
        rows = []
        for application in outcome.settings(self.name):
            for system in SYSTEMS:
                found = outcome.of(self.name, application, system)
                rows.append([application, system] + [cell(figure(found, *path, scale=scale), digits) for *path, scale, digits in
                                                     (("out", "wire_bytes", MB, 1), ("home", "wire_bytes", MB, 1), ("home", "total_ms", 1e-3, 2),
                                                      ("home", "blackout_ms", 1, 1), ("home", "pages_reused", 1, 0), ("home", "rounds", 1, 0),
                                                      ("away", "operations_per_s", 1, 0))] + [fates(found)])
        return table(["workload", "system", "out, MB", "home, MB", "home, s", "downtime, ms", "pages reused", "rounds", "operations/s away", "guest"], rows)


BENCHMARKS = [Changing()]
