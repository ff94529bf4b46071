"""The guests of the evaluation, each under godwit and under stock QEMU, moved and measured alike."""

import socket
import time
from dataclasses import dataclass

from perf.system import trips
from tests.lab.applications import PATIENT, built_guest, goes_on
from tests.lab.lab import Lab, total_us
from tests.lab.metrics import telemetry
from tests.lab.network import DATA
from tests.lab.peer import PeerVm, verdict
from tests.lab.processes import LabError, wait_until


@dataclass(frozen=True)
class Guest:
    """What runs in it. `mode` is the workload's, or the application's name and words for it; `arguments` are QEMU's, with ${base} for its files."""

    mb: int = trips.MB
    rate: int = 0
    mode: str = ""
    mem_mib: int = trips.MEM_MIB
    application: str = ""
    arguments: tuple = ()


def port_bytes(lab):
    """Bytes that the data planes' drivers say they have sent, all hosts."""
    return sum(telemetry(lab, host, "/ethdev/stats,0")["/ethdev/stats"]["obytes"] for host in lab.hosts)


class Godwit:
    """The guest under godwit in this lab, booted and at its work."""

    def __init__(self, lab, guest):
        self.lab, self.here = lab, lab.hosts[0]
        lab.start()
        arguments = [argument.replace("${base}", "${run_dir}/${name}") for argument in guest.arguments]
        lab.start_vm(mem_mib=guest.mem_mib, mb=guest.mb, rate=guest.rate, mode=f"{guest.mode} {PATIENT}", arguments=arguments)

    def base(self):
        return f"{self.lab.vm_dir('guest', self.here)}/guest"

    def console(self):
        return self.lab.console("guest", self.here)

    def move(self, **plan):
        """To the other host. Bytes are the interfaces' own, and beside them those of the driver."""
        destination = self.lab.hosts[1 - self.lab.hosts.index(self.here)]
        wire, port = self.lab.network.wire_bytes(DATA), port_bytes(self.lab)
        summary = self.lab.migrate("guest", destination, **plan)
        self.here = destination
        stats = summary["stats"]
        figures = {"total_ms": total_us(summary) / 1e3, "blackout_ms": summary["downtime_us"] / 1e3, "pages_sent": stats["pages_sent"],
                   "pages_reused": stats["pages_reused"], "rounds": stats["round"]}
        paging = (summary.get("destination_stats") or {}).get("paging") or {}
        if paging.get("pages_missing_first"):
            figures |= trips.postcopy_figures(summary) | {"pages_sent": stats["pages_sent"], "pages_background": paging["pages_background"]}
        return {"wire_bytes": self.lab.network.wire_bytes(DATA) - wire, "port_bytes": port_bytes(self.lab) - port, **figures}

    def verdict(self):
        return verdict(self.console())

    def qmp(self, command):
        monitor = self.lab.qmp("guest", self.here)
        monitor(command)
        monitor.close()

    def end(self):
        self.lab.ctl("stop", "guest")


class Stock:
    """The same guest under stock QEMU."""

    def __init__(self, lab, guest):
        self.lab = lab
        self.vm = PeerVm(lab, guest.mem_mib, f"console=ttyS0 quiet mb={guest.mb} rate={guest.rate} mode={guest.mode} {PATIENT}", arguments=guest.arguments)

    def base(self):
        return self.vm.qemu.base

    def console(self):
        return self.vm.qemu.console

    def move(self, postcopy=False, **how):
        destination = self.lab.hosts[1 - self.lab.hosts.index(self.vm.qemu.host)]
        return (self.vm.migrate_postcopy if postcopy else self.vm.migrate)(destination, **how)

    def verdict(self):
        return self.vm.healthy()

    def qmp(self, command):
        self.vm.qemu.qmp(command)

    def end(self):
        self.vm.end()


SYSTEMS = {"godwit": Godwit, "qemu": Stock}


class in_a_lab:
    """Context: the guest, running, in hosts of its own network, and taken down behind it."""

    def __init__(self, link, system, guest, **lab_options):
        self.guest, self.system = guest, system
        self.lab = Lab(shape_bps=trips.SHAPES[link], options={"metrics": True, **lab_options})
        self.running = None

    def __enter__(self):
        image = built_guest(self.guest.application)
        self.lab.__enter__()
        try:
            self.lab.guest = image
            self.running = SYSTEMS[self.system](self.lab, self.guest)
        except BaseException as error:
            self.lab.__exit__(type(error), error, None)
            raise
        return self.running

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self.running.end()
        finally:
            self.lab.__exit__(kind, error, trace)


def lost(what, error_or_text):
    """What became of a guest that stock QEMU lost is a result: the point has no figures of what would have come after."""
    return {"ok": False, "verdict": f"{what}: {error_or_text}"}


def _moved(running, what, how, check):
    """One move, and what `check` says of the guest after it: (well, one line). Of stock QEMU a loss is a result, of godwit a failure of the point."""
    try:
        figures = running.move(**how)
        ok, text = check(running)
    except LabError as error:
        if isinstance(running, Godwit):
            raise
        return lost(what, error)
    if not ok and isinstance(running, Godwit):
        raise LabError(f"{what}: THE GUEST IS NOT WELL: {text}")
    return {**figures, "ok": ok, "verdict": text}


def moved_and_checked(running, what, how):
    """Of the guest that verifies its pages."""
    return _moved(running, what, how, lambda guest: guest.verdict())


def moved_and_goes_on(running, what, how):
    """Of a guest with an application."""
    return _moved(running, what, how, lambda guest: goes_on(guest.console()))


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


def login(running):
    """Logs in as root and waits for the shell."""
    terminal = Terminal(running.base() + "-terminal.sock")
    try:
        for _ in range(10):
            terminal.type("")
            try:
                terminal.wait_for("login:", 3)
                break
            except LabError:
                continue
        terminal.type("root")
        terminal.wait_for("#")
        terminal.type("echo $((6 * 7))")
        terminal.wait_for("42")
    finally:
        terminal.close()


def answers(running):
    """Whether the shell that login() left is still there."""
    terminal = Terminal(running.base() + "-terminal.sock")
    try:
        terminal.type("echo $((6 * 7))")
        terminal.wait_for("42")
    finally:
        terminal.close()


TERMINAL = ("-chardev", "socket,id=term,path=${base}-terminal.sock,server=on,wait=off", "-serial", "chardev:term")


def pause_until(begin, seconds):
    time.sleep(max(0.0, begin + seconds - time.monotonic()))
