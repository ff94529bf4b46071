"""The lab's end: what it takes down, whatever fails meanwhile, and what it leaves alone; what a guest's console says of the guest. Needs no root."""

import math
import os
import subprocess
import sys
import tempfile
import threading
import unittest
import unittest.mock

from .applications import all_answers
from .console import Console
from .lab import Lab
from .peer import verdict
from .processes import LabError, end_processes, wait_until


class FailsToStop:
    def ask_to_end(self):
        raise OSError("nobody listens")

    def stop(self, _timeout_s):
        raise OSError("the log file's disk is full")


class Stops:
    asked = stopped = False

    def ask_to_end(self):
        self.asked = True

    def stop(self, _timeout_s):
        self.stopped = True


class End(unittest.TestCase):
    def setUp(self):
        self.lab = Lab()
        os.mkdir(self.lab.directory)
        os.makedirs(self.lab.shm)

    def test_a_step_that_fails_keeps_no_other_from_its_turn(self):
        first = Stops()
        self.lab.daemons = {"first": first, "second": FailsToStop()}
        self.lab.close()
        self.assertTrue(first.asked and first.stopped)
        self.assertFalse(os.path.exists(self.lab.directory))
        self.assertFalse(os.path.exists(self.lab.shm))

    def test_who_only_looks_is_left_alone(self):
        looks = subprocess.Popen([sys.executable, "-c", "input()", self.lab.directory], stdin=subprocess.PIPE)
        try:
            self.lab.close()
            self.assertIsNone(looks.poll())
        finally:
            looks.communicate(b"\n")
        self.assertEqual(looks.returncode, 0)


def name_of(pid):
    with open(f"/proc/{pid}/comm") as file:
        return file.read()


class EndedProcesses(unittest.TestCase):
    def test_nobody_waits_for_a_parent_that_does_not_ask_for_its_child(self):
        with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"], stdout=subprocess.PIPE, text=True) as parent:
            try:
                child = int(parent.stdout.readline())
                wait_until("the parent to be one that has never heard of its child", lambda: name_of(parent.pid) == "sleep\n")
                end_processes([child], timeout_s=math.inf)
                self.assertTrue(os.path.exists(f"/proc/{child}"))
            finally:
                parent.kill()


class Watched(Console):
    """Tells when somebody has looked."""

    def __init__(self, path):
        super().__init__(path)
        self.looked_at = threading.Event()

    def text(self):
        text = super().text()
        self.looked_at.set()
        return text


class FromNowOn(unittest.TestCase):
    """Of a guest that was here before: it is back after five sweeps elsewhere."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.console = Watched(os.path.join(directory.name, "console"))
        self.say(sweeps=1)

    def say(self, sweeps, bad=0):
        with open(self.console.path, "a") as file:
            file.write(f"GODWIT ms=1 writes=0 checked={sweeps} sweeps={sweeps} bad={bad}\nGODWIT APP done={sweeps} bad={bad} sweeps={sweeps}\n")

    def found_by(self, check, *lines):
        """What `check` finds if the guest says these, one after the other, from now on."""
        found = []

        def asks():
            try:
                found.append(check(self.console, 1))
            except LabError as error:
                found.append((False, str(error)))

        self.console.looked_at.clear()
        asking = threading.Thread(target=asks)
        asking.start()
        self.console.looked_at.wait()
        for line in lines:
            self.say(**line)
        asking.join()
        return found[0]

    def verdict_of(self, *lines):
        return self.found_by(verdict, *lines)

    def test_what_was_verified_elsewhere_does_not_count(self):
        self.assertFalse(self.verdict_of({"sweeps": 6})[0])
        self.assertFalse(self.verdict_of({"sweeps": 6}, {"sweeps": 7})[0])  # of the sixth sweep nobody knows when it began
        self.assertEqual(self.verdict_of({"sweeps": 6}, {"sweeps": 7}, {"sweeps": 8}), (True, "clean, 8 checks"))

    def test_it_is_ill_or_silent(self):
        self.assertEqual(self.verdict_of({"sweeps": 6, "bad": 2}), (False, "2 wrong pages"))
        self.assertEqual(self.verdict_of(), (False, "guest is silent"))

    def test_keys_that_were_got_elsewhere_do_not_count(self):
        with unittest.mock.patch("tests.lab.applications.goes_on", return_value=(True, "clean")):
            self.assertFalse(self.found_by(all_answers, {"sweeps": 6}, {"sweeps": 7})[0])
            self.assertEqual(self.found_by(all_answers, {"sweeps": 6}, {"sweeps": 7}, {"sweeps": 8}), (True, "clean"))


if __name__ == "__main__":
    unittest.main()
