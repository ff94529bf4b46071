"""A host that has too little memory and must swap: a memory cgroup (v1 or v2) with a limit, and a swap file. What runs elsewhere swaps only if the machine
itself runs out of memory."""

import os
import uuid

from tests.lab.processes import LabError, run, wait_until

SWAP_DIRECTORY = "/var/tmp"  # on a disk: not every file system can swap


def _memory_cgroups():
    """(directory below which a cgroup with the memory controller can be made, its version)."""
    with open("/proc/self/mounts") as file:
        mounts = [line.split() for line in file]
    for _, where, kind, options, *_ in mounts:
        if kind == "cgroup" and "memory" in options.split(","):
            return where, 1
    for _, where, kind, *_ in mounts:
        if kind == "cgroup2" and "memory" in _text(f"{where}/cgroup.controllers").split():
            with open(f"{where}/cgroup.subtree_control", "w") as file:
                file.write("+memory")
            return where, 2
    raise LabError("no memory cgroup here: a host that swaps cannot be made")


def _text(path):
    with open(path) as file:
        return file.read()


class SwapHost:
    """Context manager. Processes that begin with `within` are in it; they must have ended before it does."""

    def __init__(self, limit_bytes, swap_bytes):
        self.limit_bytes, self.swap_bytes = limit_bytes, swap_bytes
        name = f"godwit-swap-{uuid.uuid4().hex[:8]}"
        above, self.version = _memory_cgroups()
        self.cgroup, self.swap = f"{above}/{name}", f"{SWAP_DIRECTORY}/{name}"
        self.within = ("sh", "-c", f'echo $$ > {self.cgroup}/cgroup.procs && exec "$@"', "sh")

    def __enter__(self):
        try:
            with open(self.swap, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                os.posix_fallocate(file.fileno(), 0, self.swap_bytes)
            run("mkswap", self.swap)
            run("swapon", self.swap)
            os.mkdir(self.cgroup)
            with open(f"{self.cgroup}/{'memory.limit_in_bytes' if self.version == 1 else 'memory.max'}", "w") as file:
                file.write(str(self.limit_bytes))
        except BaseException:
            self._take_down()
            raise
        return self

    def __exit__(self, *_):
        self._take_down()

    def _take_down(self):
        if os.path.isdir(self.cgroup):
            wait_until("the swapping host's processes to end", lambda: not _text(f"{self.cgroup}/cgroup.procs"), 30)
            os.rmdir(self.cgroup)
        run("swapoff", self.swap, check=False)
        if os.path.exists(self.swap):
            os.unlink(self.swap)

    def used(self):
        """(bytes of memory, bytes of swap) of what runs in it."""
        if self.version == 2:
            return int(_text(f"{self.cgroup}/memory.current")), int(_text(f"{self.cgroup}/memory.swap.current"))
        figures = dict(line.split() for line in _text(f"{self.cgroup}/memory.stat").splitlines())
        return int(_text(f"{self.cgroup}/memory.usage_in_bytes")), int(figures.get("swap", 0))
