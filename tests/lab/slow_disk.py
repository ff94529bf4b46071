"""Reads that take their time: a kernel that throttles processes keeps their reads under way, the pages they go to pinned."""

import os

from .processes import LabError

V1, V2 = "/sys/fs/cgroup/blkio", "/sys/fs/cgroup"


class SlowReads:
    """A control group in which reads from the device of `path` are slow. Use as a context manager, around the lab: empty when it ends."""

    def __init__(self, path, bytes_per_s):
        number = os.stat(path).st_dev
        self.device = f"{os.major(number)}:{os.minor(number)}"
        self.bytes_per_s = bytes_per_s
        self.group = None

    @staticmethod
    def missing():
        """Why this machine cannot, or ""."""
        if os.path.exists(f"{V1}/blkio.throttle.read_bps_device"):
            return ""
        try:
            with open(f"{V2}/cgroup.subtree_control") as file:
                return "" if "io" in file.read().split() else "no io controller for control groups"
        except OSError:
            return "no control groups"

    def __enter__(self):
        old = os.path.exists(f"{V1}/blkio.throttle.read_bps_device")
        self.group = f"{V1 if old else V2}/godwit-lab-{os.getpid()}"
        os.mkdir(self.group)
        limit = f"{self.device} {self.bytes_per_s}" if old else f"{self.device} rbps={self.bytes_per_s}"
        try:
            self._write("blkio.throttle.read_bps_device" if old else "io.max", limit)
        except OSError as error:
            os.rmdir(self.group)
            raise LabError(f"{self.group}: {error}") from error
        return self

    def _write(self, name, text):
        with open(f"{self.group}/{name}", "w") as file:
            file.write(text)

    def slow_down(self, pid):
        self._write("cgroup.procs", str(pid))

    def __exit__(self, *_):
        os.rmdir(self.group)
