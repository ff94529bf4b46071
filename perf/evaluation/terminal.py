"""The guest's second serial port: what one types there, and what a shell on it says."""

import contextlib
import socket

from tests.lab.processes import LabError, wait_until

TERMINAL = ("-chardev", "socket,id=term,path=${base}-terminal.sock,server=on,wait=off", "-serial", "chardev:term")


class Terminal:
    """The guest's second serial port, as a person has it before them."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(0.2)
        wait_until("the guest's serial port", lambda: self._connected(path), 10)
        self.text = ""

    def _connected(self, path):
        try:
            self.socket.connect(path)
            return True
        except OSError:
            return False

    def type(self, line):
        self.text = ""
        self.socket.sendall(line.encode() + b"\n")

    def wait_for(self, words, timeout_s=30):
        def seen():
            try:
                self.text += self.socket.recv(4096).decode(errors="replace")
            except TimeoutError:
                pass
            return words in self.text
        try:
            wait_until(f"{words!r} on the guest's terminal", seen, timeout_s)
        except LabError as error:
            raise LabError(f"{error}, which says {self.text[-200:]!r}") from error

    def close(self):
        self.socket.close()


def terminal_of(running):
    """Context manager."""
    return contextlib.closing(Terminal(running.base() + "-terminal.sock"))


def login(running):
    """Logs in as root and waits for the shell."""
    with terminal_of(running) as terminal:
        for _ in range(10):
            terminal.type("")
            try:
                terminal.wait_for("login:", 3)
                break
            except LabError:
                continue
        terminal.type("root")
        terminal.wait_for("#")
        reckon(terminal)


def answers(running):
    """Whether the shell that login() left is still there."""
    with terminal_of(running) as terminal:
        reckon(terminal)


def reckon(terminal):
    """The shell at the other end does."""
    terminal.type("echo $((6 * 7))")
    terminal.wait_for("42")
