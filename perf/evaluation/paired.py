"""Benchmarks whose points are measured with one guest a system: both stand in the same hosts, and who is not in turn is paused."""

import time
from contextlib import contextmanager

from .points import Benchmark

SETTLE_S = 0.5  # after a pause


class Paired(Benchmark):
    """Points of the same group, one after the other, have the same guests. They are booted side by side for the first, and taken down by leave()."""

    hosts = group = None

    def hosts_for(self, point):
        """guests.Hosts, of both systems."""
        raise NotImplementedError

    @contextmanager
    def turn(self, point):
        """The guest of this point's system, running, with nothing to reuse elsewhere. One that was lost before has another one in its place.

        What is raised within ends all guests: nobody knows how they are.
        """
        try:
            running = self._begin(point)
            yield running
            self._end(running)
        except BaseException as error:
            self._close(type(error), error, error.__traceback__)
            raise

    def _begin(self, point):
        if self.group != point.group:
            self.leave()
        if not self.hosts:
            self._open(point)
        system = point.options.get("system", point.system)
        running = self.hosts.running[system]
        if running.well:
            running.nothing_to_reuse()
            running.qmp("cont")
        else:
            self.hosts.boot(system)
            running = self.hosts.running[system]
            running.wait_until_filled()
        time.sleep(SETTLE_S)
        return running

    def _open(self, point):
        hosts = self.hosts_for(point)
        hosts.__enter__()
        self.hosts, self.group = hosts, point.group
        for running in hosts.running.values():
            running.qmp("stop")

    @staticmethod
    def _end(running):
        if running.well:
            running.qmp("stop")
        else:
            running.end()  # one that is ill may keep a CPU busy

    def _close(self, *why):
        hosts, self.hosts, self.group = self.hosts, None, None
        if hosts:
            hosts.__exit__(*why)

    def leave(self):
        self._close(None, None, None)
