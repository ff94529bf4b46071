"""A command on a terminal of its own, as a person would have it: what it shows, what is typed, Ctrl-C."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

from .processes import LabError

CTRL_C = "\x03"


class Terminal:
    """Use as a context manager; leaving it ends the command."""

    def __init__(self, *command, columns=120, cwd=None, environment=None):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        # A session of its own whose controlling terminal this is: Ctrl-C reaches the foreground process group, as from a keyboard.
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=cwd,
                                        env={**os.environ, **(environment or {})}, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.shown = ""
        self.seen = 0  # what expect() has gone past

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text):
        os.write(self.master, text.encode())

    def expect(self, pattern, timeout_s=60):
        """Waits until something new on the screen matches; what is before it will not match again."""
        end = time.monotonic() + timeout_s
        while True:
            match = re.compile(pattern).search(self.shown, self.seen)
            if match:
                self.seen = match.end()
                return match
            if not self._read(end - time.monotonic()):
                raise LabError(f"{pattern!r} was not shown; the screen ends: {self.shown[-800:]!r}")

    def end(self, timeout_s=60):
        """Exit status of the command, when it has ended by itself."""
        end = time.monotonic() + timeout_s
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(max(1.0, end - time.monotonic()))

    def _read(self, timeout_s):
        """More of the screen; False at the end of the command or of the time."""
        if timeout_s <= 0 or not select.select([self.master], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the terminal any more
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)
