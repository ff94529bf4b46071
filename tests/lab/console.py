"""What the self-checking guest says on its console (tests/guest/workload.c), read from the file that QEMU writes."""

import os
import re
from dataclasses import dataclass

STATUS = re.compile(r"GODWIT ms=(\d+) writes=(\d+) checked=(\d+) sweeps=(\d+) bad=(\d+)")
DISK = re.compile(r"GODWIT DISK reads=(\d+)")
DEVICES = re.compile(r"GODWIT DEVICES echoes=(\d+) random=(\d+)")
BEAT = re.compile(r"GODWIT BEAT n=(\d+)")
BENCH = re.compile(r"GODWIT BENCH sweep=(\d+) \w+_per_s=(\d+)")


@dataclass(frozen=True)
class Status:
    uptime_ms: int
    writes: int
    checked: int
    sweeps: int
    bad: int


class Console:
    """One console file. It may not exist yet; it only grows."""

    def __init__(self, path):
        self.path = path

    def text(self):
        if not os.path.exists(self.path):
            return ""
        with open(self.path, errors="replace") as file:
            return file.read()

    def filled(self):
        return "GODWIT FILLED" in self.text()

    def statuses(self):
        return [Status(*map(int, m.groups())) for m in STATUS.finditer(self.text())]

    def last(self):
        found = self.statuses()
        return found[-1] if found else None

    def written(self):
        """Pages that the guest has written since its first word here."""
        found = self.statuses()
        return found[-1].writes - found[0].writes if found else 0

    def bench_rates(self):
        return [int(m.group(2)) for m in BENCH.finditer(self.text())]

    def disk_reads(self):
        found = DISK.findall(self.text())
        return int(found[-1]) if found else 0

    def device_counts(self):
        """Echoes that came back and draws of random numbers so far, of mode=devices."""
        found = DEVICES.findall(self.text())
        return tuple(map(int, found[-1])) if found else (0, 0)

    def beats(self):
        """How often the process has spoken that touches none of the checked pages."""
        found = BEAT.findall(self.text())
        return int(found[-1]) if found else 0

    def died(self):
        """The guest kernel's own words, if it says that it is in trouble."""
        for line in self.text().splitlines():
            if re.search(r"Kernel panic|BUG:|Oops|general protection|segfault|Attempted to kill init|rcu_sched self-detected", line):
                return line.strip()
        return None

    def size(self):
        return len(self.text())
