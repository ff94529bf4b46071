"""The lab's end: what it takes down, whatever fails meanwhile, and what it leaves alone. Needs no root: nothing of a network is made."""

import math
import os
import subprocess
import sys
import unittest

from .lab import Lab
from .processes import end_processes, wait_until


class FailsToStop:
    def stop(self, _timeout_s):
        raise OSError("the log file's disk is full")


class Stops:
    stopped = False

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
        self.assertTrue(first.stopped)
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


if __name__ == "__main__":
    unittest.main()
