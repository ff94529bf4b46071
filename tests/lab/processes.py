"""Processes of one lab: started with a log file each, found and ended by pid, never by name."""

import os
import signal
import subprocess
import time


class LabError(Exception):
    """Something in the lab did not work; the text is for a person."""


def run(*command, check=True, timeout=60, **options):
    """Runs a short command; returns its CompletedProcess with text output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def wait_until(what, condition, timeout_s=30.0, interval_s=0.02):
    """Waits for condition() to be true and returns its value; the limit is only there to end a hung test."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise LabError(f"waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(interval_s)


class Daemon:
    """One started program with its log file."""

    def __init__(self, name, command, log_path, environment=None, umask=-1):
        self.name, self.command, self.log_path = name, command, log_path
        self.log_file = open(log_path, "ab")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log_file, stderr=subprocess.STDOUT,
                                        start_new_session=True, umask=umask, env={**os.environ, **(environment or {})})

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process.poll() is None

    def log(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()

    def check_alive(self):
        if not self.alive():
            tail = "\n".join(self.log().splitlines()[-15:])
            raise LabError(f"{self.name} ended with {self.process.returncode}; its log ends:\n{tail}")

    def kill(self):
        """SIGKILL, as a crash would end it."""
        if self.alive():
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.log_file.close()

    def ask_to_end(self):
        if self.alive():
            self.process.terminate()

    def stop(self, timeout_s=10):
        """SIGTERM, then SIGKILL for whoever does not listen."""
        if self.alive():
            self.ask_to_end()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.log_file.close()


def processes_naming(text):
    """Pids of the processes that have `text` in their command line (this one and its parents excepted)."""
    found, mine = [], os.getpid()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == mine:
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                line = file.read()
        except OSError:
            continue
        if text.encode() in line:
            found.append(int(entry))
    return found


def _over(pid):
    """It has ended, and holds nothing any more. Its parent, maybe the machine's init, may take its time to ask for its status."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        return state == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True


def end_processes(pids, timeout_s=5):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    end = time.monotonic() + timeout_s
    while not all(_over(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.01)
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)  # of our own children nothing is left
        except ChildProcessError:
            pass
