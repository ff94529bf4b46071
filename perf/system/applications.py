"""Guests with an application in them: perf/guest builds them, from Debian packages and programs of ours."""

import fcntl
import os
import re

from tests.lab.lab import BUILD, ROOT
from tests.lab.processes import run, wait_until

SOURCE = os.path.join(ROOT, "perf/guest")
APP = re.compile(r"GODWIT APP done=(\d+) bad=(\d+)")
# Else the guest's kernel takes a pause of its QEMU, on a busy machine, for a bug of its own, and says so in the words of one.
PATIENT = "nosoftlockup"


def _newest(*roots):
    return max(os.path.getmtime(os.path.join(folder, name)) for root in roots for folder, _, names in os.walk(root) for name in names)


def built_guest(application):
    """Directory of the guest that has this application, made anew when its sources have changed. "": the tests' guest."""
    if not application:
        return os.path.join(BUILD, "guest")
    directory = os.path.join(BUILD, "guest-" + application)
    os.makedirs(directory, exist_ok=True)
    built = os.path.join(directory, "built-" + application)
    with open(os.path.join(directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(built) or _newest(SOURCE, os.path.join(ROOT, "tests/guest")) >= os.path.getmtime(built):
            run(os.path.join(SOURCE, "build-guest"), directory, application, timeout=120)
    return directory


def operations(console):
    """How many the application says it has done."""
    return int(APP.findall(console.text())[-1][0])


def goes_on(console, patience_s=60):
    """(well, one line): the application does more from now on, and finds nothing wrong with what it gets."""
    start = len(APP.findall(console.text()))

    def more():
        said = APP.findall(console.text())[start:]
        return console.died() or said and (int(said[-1][1]) or int(said[-1][0]) > int(said[0][0]))

    wait_until("the guest's application to go on", more, patience_s, 0.1)
    done, bad = map(int, APP.findall(console.text())[-1])
    if console.died() or bad:
        return False, console.died() or f"{bad} wrong answers"
    return True, f"clean, {done} done"
