"""Guests with an application in them: tests/guest/applications builds them, from Debian packages and programs of ours."""

import fcntl
import os
import re

from .lab import BUILD, ROOT
from .processes import LabError, run, wait_until

SOURCES = os.path.join(ROOT, "tests/guest")
APP = re.compile(r"GODWIT APP done=(\d+) bad=(\d+)")
SWEEPS = re.compile(r"GODWIT APP .* sweeps=(\d+)")
# Else the guest's kernel takes a pause of its QEMU, on a busy machine, for a bug of its own, and says so in the words of one.
PATIENT = "nosoftlockup"


class NotToBeHad(LabError):
    """A package that runs in the guest cannot be downloaded here."""


def _newest_source():
    return max(os.path.getmtime(os.path.join(folder, name)) for folder, _, names in os.walk(SOURCES) for name in names)


def built_guest(application):
    """Directory of the guest that has this application, made anew when its sources have changed. "": the tests' guest."""
    if not application:
        return os.path.join(BUILD, "guest")
    directory = os.path.join(BUILD, "guest-" + application)
    os.makedirs(directory, exist_ok=True)
    built = os.path.join(directory, "built-" + application)
    with open(os.path.join(directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(built) or _newest_source() >= os.path.getmtime(built):
            _build(directory, application)
    return directory


def _build(directory, application):
    done = run(os.path.join(SOURCES, "applications/build-guest"), directory, application, check=False, timeout=120)
    if done.returncode != 0:
        said = done.stderr.strip()
        raise NotToBeHad(said.splitlines()[-1]) if done.returncode == 77 else LabError(said)


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


def all_answers(console, timeout_s=240, sweeps=2):
    """(well, one line): every key that there is has been got since now, and nothing wrong found. Of a load with `sweep`."""
    before = len(SWEEPS.findall(console.text()))  # what it said here before it left and came back does not count

    def swept():
        said = [int(number) for number in SWEEPS.findall(console.text())[before:]]
        return said and said[-1] >= said[0] + sweeps

    def ill():
        said = APP.findall(console.text())
        return console.died() or said and said[-1][1] != "0"

    wait_until("the load to get all keys", lambda: ill() or swept(), timeout_s, 0.1)
    return goes_on(console)
