"""The guests of the evaluation, each under godwit and under stock QEMU, moved and measured alike."""

import functools
import re
import time
from dataclasses import dataclass

from perf.system import trips
from tests.lab.applications import PATIENT, built_guest, goes_on
from tests.lab.configs import kernel_line
from tests.lab.lab import Lab, total_us
from tests.lab.metrics import telemetry
from tests.lab.network import DATA
from tests.lab.peer import PeerVm, verdict
from tests.lab.processes import LabError, wait_until

from .terminal import TERMINAL, terminal_of

PATIENCE_S = 30  # for a whole sweep of a guest that verifies its pages, whoever runs it
RATE = re.compile(r"GODWIT RATE (\d+)")


@dataclass(frozen=True)
class Guest:
    """What runs in it. `mode` is the workload's, or the application's name and words for it; `arguments` are QEMU's, with ${base} for its files."""

    mb: int = trips.MB
    rate: int = 0
    mode: str = ""
    mem_mib: int = trips.MEM_MIB
    application: str = ""
    arguments: tuple = ()


TOLD = Guest(mode="told", arguments=TERMINAL)  # its rate is told to it while it runs


def port_bytes(lab):
    """Bytes of frames that the data planes say they have sent, all hosts."""
    return sum(telemetry(lab, host, "/godwit/loop")["/godwit/loop"]["bytes_sent"] for host in lab.hosts)


class Running:
    """What a guest does, whoever runs it. `well`: stock QEMU has not lost it; `arrived`: when its last move was over."""

    def __init__(self):
        self.well, self.arrived = True, 0.0

    def wait_until_filled(self):
        wait_until("the guest to fill its memory", self.console().filled, 240)

    def verdict(self):
        return verdict(self.console(), PATIENCE_S)

    def write_at(self, rate):
        """Of one that can be told: pages a second from now on."""
        console = self.console()
        before = len(RATE.findall(console.text()))
        with terminal_of(self) as terminal:
            terminal.type(str(rate))
            wait_until("the guest to take its rate", lambda: RATE.findall(console.text())[before:] == [str(rate)], 30)


class Godwit(Running):
    """The guest under godwit in this lab, booting."""

    def __init__(self, lab, guest):
        super().__init__()
        self.lab, self.here = lab, lab.hosts[0]
        lab.start()
        arguments = [argument.replace("${base}", "${run_dir}/${name}") for argument in guest.arguments]
        lab.start_vm(wait=False, mem_mib=guest.mem_mib, mb=guest.mb, rate=guest.rate, mode=f"{guest.mode} {PATIENT}", arguments=arguments)

    def base(self):
        return f"{self.lab.vm_dir('guest', self.here)}/guest"

    def console(self):
        return self.lab.console("guest", self.here)

    def move(self, **plan):
        """To the other host. Bytes are the interfaces' own, and beside them those that the data planes count."""
        destination = self.lab.hosts[1 - self.lab.hosts.index(self.here)]
        wire, port = self.lab.network.wire_bytes(DATA), port_bytes(self.lab)
        summary = self.lab.migrate("guest", destination, **plan)
        self.here, self.arrived = destination, time.monotonic()
        stats = summary["stats"]
        figures = {"total_ms": total_us(summary) / 1e3, "blackout_ms": summary["downtime_us"] / 1e3, "pages_sent": stats["pages_sent"],
                   "pages_reused": stats["pages_reused"], "rounds": stats["round"]}
        paging = (summary.get("destination_stats") or {}).get("paging") or {}
        if paging.get("pages_missing_first"):
            figures |= trips.postcopy_figures(summary) | {"pages_sent": stats["pages_sent"], "pages_background": paging["pages_background"]}
        return {"wire_bytes": self.lab.network.wire_bytes(DATA) - wire, "port_bytes": port_bytes(self.lab) - port, **figures}

    def nothing_to_reuse(self):
        """What an earlier trip has left goes."""
        trips.drop_images(self.lab)

    def qmp(self, command):
        monitor = self.lab.qmp("guest", self.here)
        monitor(command)
        monitor.close()

    def end(self):
        self.lab.ctl("stop", "guest")


class Stock(Running):
    """The same guest under stock QEMU."""

    def __init__(self, lab, guest):
        super().__init__()
        self.lab = lab
        self.vm = PeerVm(lab, guest.mem_mib, kernel_line(guest.mb, guest.rate, f"{guest.mode} {PATIENT}"), arguments=guest.arguments, wait=False)

    def base(self):
        return self.vm.qemu.base

    def console(self):
        return self.vm.qemu.console

    def move(self, postcopy=False, **how):
        destination = self.lab.hosts[1 - self.lab.hosts.index(self.vm.qemu.host)]
        figures = (self.vm.migrate_postcopy if postcopy else self.vm.migrate)(destination, **how)
        self.arrived = time.monotonic()
        return figures

    def nothing_to_reuse(self):
        """It reuses nothing."""

    def qmp(self, command):
        self.vm.qemu.qmp(command)

    def end(self):
        self.vm.end()


SYSTEMS = {"godwit": Godwit, "qemu": Stock}


class Hosts:
    """Context: a lab and guests in it, which boot side by side, filled and running: {system: guest}. `makers`: {system: function of the lab}."""

    def __init__(self, lab, application, makers):
        self.lab, self.application, self.makers, self.running = lab, application, makers, {}

    def __enter__(self):
        image = built_guest(self.application)
        self.lab.__enter__()
        try:
            self.lab.guest = image
            for system in self.makers:
                self.boot(system)
            for running in self.running.values():
                running.wait_until_filled()
        except BaseException as error:
            self.lab.__exit__(type(error), error, None)
            raise
        return self.running

    def boot(self, system):
        self.running[system] = self.makers[system](self.lab)

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                for running in self.running.values():
                    running.end()
        finally:
            self.lab.__exit__(kind, error, trace)


def hosts_with(link, systems, guest, **lab_options):
    """Two hosts with such a guest under each of these systems."""
    lab = Lab(shape_bps=trips.SHAPES[link], options={"metrics": True, **lab_options})
    return Hosts(lab, guest.application, {system: functools.partial(SYSTEMS[system], guest=guest) for system in systems})


def _lost(running, what, error_or_text):
    """What became of a guest that stock QEMU lost is a result: the point has no figures of what would have come after."""
    running.well = False
    return {"ok": False, "verdict": f"{what}: {error_or_text}"}


def _moved(running, what, how, check):
    """One move, and what `check` says of the guest after it: (well, one line). Of stock QEMU a loss is a result, of godwit a failure of the point."""
    try:
        figures = running.move(**how)
        ok, text = check(running)
    except LabError as error:
        if isinstance(running, Godwit):
            raise
        return _lost(running, what, error)
    if not ok:
        if isinstance(running, Godwit):
            raise LabError(f"{what}: THE GUEST IS NOT WELL: {text}")
        running.well = False
    return {**figures, "ok": ok, "verdict": text}


def moved_and_checked(running, what, how):
    """Of the guest that verifies its pages."""
    return _moved(running, what, how, lambda guest: guest.verdict())


def moved_and_goes_on(running, what, how):
    """Of a guest with an application."""
    return _moved(running, what, how, lambda guest: goes_on(guest.console()))


def there_and_back(running, how, away_s):
    """Out with nothing to reuse, and home so long after the guest has arrived; that it verifies its pages is in that time."""
    out = moved_and_checked(running, "on the way out", how)
    if not out["ok"]:
        return {"out": out}
    pause_until(running.arrived, away_s)
    return {"out": out, "home": moved_and_checked(running, "on the way home", how)}


def pause_until(begin, seconds):
    time.sleep(max(0.0, begin + seconds - time.monotonic()))
