"""Stock QEMU's own migration of the same guest on a network of the same shape: what godwit is measured against."""

import json
import os
import socket
import time

from .console import Console
from .network import PEER
from .processes import Daemon, LabError, wait_until

CAPABILITIES = ("events", "multifd", "xbzrle", "auto-converge", "postcopy-ram", "postcopy-preempt", "postcopy-blocktime")  # all others stay off
ANSWER_S = 120  # a QEMU that says nothing for so long hangs


class Qmp:
    """A QMP connection good enough for a measurement: replies in order, events with their time."""

    def __init__(self, path):
        self.events = []
        deadline = time.monotonic() + 20
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError as error:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise LabError(f"no QMP at {path}: {error}") from error
                time.sleep(0.02)
        self.socket.settimeout(ANSWER_S)
        # Two files: one that is read and written drops the lines that it has read ahead when it is written to.
        self.file, self.out = self.socket.makefile("r"), self.socket.makefile("w")
        # QEMU sends first what the client before has left unread: events, and a reply.
        while "QMP" not in (line := self.file.readline()):
            if not line:
                raise LabError(f"QEMU closed its monitor {path} before its greeting")
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        try:
            self.out.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self.out.flush()
            return self._answer(command)
        except OSError as error:
            raise LabError(f"QEMU's monitor, at {command}: {error}") from error

    def _answer(self, command):
        while True:
            line = self.file.readline()
            if not line:
                raise LabError(f"QEMU closed its monitor during {command}")
            reply = json.loads(line)
            if "event" in reply:
                stamp = reply["timestamp"]
                self.events.append((reply["event"], reply.get("data", {}), stamp["seconds"] + stamp["microseconds"] * 1e-6))
            elif "error" in reply:
                raise LabError(f"QEMU refused {command}: {reply['error']['desc']}")
            else:
                return reply["return"]

    def time_of(self, name, **data):
        """When the last event of that name was that has `data` in it."""
        self("query-status")
        times = [t for event, said, t in self.events if event == name and data.items() <= said.items()]
        return times[-1] if times else None

    def close(self):
        for each in (self.file, self.out, self.socket):
            try:
                each.close()
            except OSError:  # a QEMU that has ended has not read what was to be sent
                pass


class PeerQemu:
    """One stock QEMU with the guest, in a host's namespace, its console appended to the guest's file of that host.

    ${base} in `arguments` becomes the path from which the names of this QEMU's files begin. `within`: a command that runs the rest of the line.
    """

    count = 0

    def __init__(self, lab, host, incoming, mem_mib, append, console, ram_file=None, arguments=(), within=()):
        PeerQemu.count += 1
        self.base = base = f"{lab.directory}/{host}/peer{PeerQemu.count}"
        self.host, self.qmp_path, self.ram_file = host, base + ".qmp", ram_file
        self.console = Console(f"{lab.directory}/{host}/{console}")
        command = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", str(mem_mib), "-nodefaults", "-no-user-config",
                   "-kernel", f"{lab.guest}/vmlinuz", "-initrd", f"{lab.guest}/initramfs.gz", "-append", append, "-display", "none",
                   "-chardev", f"file,id=con,path={self.console.path},append=on", "-serial", "chardev:con", "-monitor", "none",
                   "-qmp", f"unix:{self.qmp_path},server=on,wait=off", *[argument.replace("${base}", base) for argument in arguments]]
        if ram_file:
            command[2] += ",memory-backend=ram0"
            command += ["-object", f"memory-backend-file,id=ram0,size={mem_mib}M,mem-path={ram_file},share=on"]
        if incoming:
            command += ["-incoming", "defer"]
        self.daemon = Daemon(f"peer QEMU on {host}", [*within, *lab.network.command(host, *command)], base + ".log")
        self.qmp = Qmp(self.qmp_path)

    def end(self):
        self.qmp.close()
        self.daemon.kill()


class PeerVm:
    """The guest under stock QEMU: boot it, migrate it there and back, see how it fares."""

    count = 0

    def __init__(self, lab, mem_mib, append, ram_files=False, arguments=(), wait=True):
        PeerVm.count += 1
        self.console = f"peer-console{PeerVm.count}.log"  # of this guest: another one of the same lab has its own
        self.lab, self.mem_mib, self.append, self.ram_files, self.arguments = lab, mem_mib, append, ram_files, arguments
        self.port = 4400
        self.within = {}  # by host, from the next QEMU there on
        self.made = []
        self.qemu = self._qemu(lab.hosts[0], incoming=False)
        if wait:
            wait_until("the peer's guest to fill its memory", self.qemu.console.filled, 240)

    def _qemu(self, host, incoming):
        ram = f"{self.lab.memory_dir(host)}/peer.ram" if self.ram_files else None
        self.made.append(PeerQemu(self.lab, host, incoming, self.mem_mib, self.append, self.console, ram, self.arguments, self.within.get(host, ())))
        return self.made[-1]

    def _pair(self, destination, capabilities, parameters):
        """This QEMU, one at the destination that waits for it and goes on by itself, both set up alike, and their address."""
        source, dest = self.qemu, self._qemu(destination, incoming=True)
        for q in (source.qmp, dest.qmp):
            q("migrate-set-capabilities", capabilities=[{"capability": c, "state": c in capabilities} for c in CAPABILITIES])
            q("migrate-set-parameters", **{"max-bandwidth": 100 << 30, "downtime-limit": 300, **parameters})
        self.port += 1
        return source, dest, f"tcp:{self.lab.network.peer_address(destination)}:{self.port}"

    def _moved(self, source, dest, wire, status, **figures):
        """Both ends are done: the guest is the destination's now."""
        stop = source.qmp.time_of("STOP")
        resume = wait_until("RESUME", lambda: dest.qmp.time_of("RESUME"))
        result = {"blackout_ms": (resume - stop) * 1e3, "qemu_downtime_ms": status.get("downtime"),
                  "wire_bytes": self.lab.network.wire_bytes(PEER) - wire, "pages_sent": status["ram"]["normal"],
                  "pages_zero": status["ram"]["duplicate"], "rounds": status["ram"]["dirty-sync-count"], **figures}
        source.end()
        self.qemu = dest
        return result

    def migrate(self, destination, multifd=0, xbzrle=False):
        """Pre-copy to another host; returns its figures. The guest's fate is for healthy() to tell."""
        capabilities, parameters = (["multifd"], {"multifd-channels": multifd}) if multifd else (["xbzrle"] if xbzrle else [], {})
        source, dest, uri = self._pair(destination, capabilities, parameters)
        dest.qmp("migrate-incoming", uri=uri)
        wire = self.lab.network.wire_bytes(PEER)
        source.qmp.events.clear()
        begin = time.monotonic()
        source.qmp("migrate", uri=uri)
        status = wait_until("stock QEMU's migration to end", lambda: self._ended(source.qmp, begin), 180, 0.005)
        total_s = time.monotonic() - begin
        if status["status"] != "completed":
            dest.end()
            raise LabError(f"stock QEMU's migration {status['status']}: {status.get('error-desc', '')}")
        wait_until("stock QEMU's destination", lambda: dest.qmp("query-migrate").get("status") == "completed", 30, 0.002)
        if not dest.qmp("query-status")["running"]:  # one that was stopped for it to converge
            dest.qmp("cont")
        return self._moved(source, dest, wire, status, total_ms=total_s * 1e3)

    def migrate_postcopy(self, destination, preempt=False):
        """Post-copy from the first moment on; returns its figures. The total is until the destination says that all memory is there.

        blocked_ms is QEMU's own: of its vCPUs, from a fault's being read to its page's being in place, in whole milliseconds.
        """
        capabilities = ["events", "postcopy-ram"] + (["postcopy-preempt"] if preempt else [])
        source, dest, uri = self._pair(destination, capabilities, {"max-postcopy-bandwidth": 0})
        dest.qmp("migrate-set-capabilities", capabilities=[{"capability": "postcopy-blocktime", "state": True}])
        dest.qmp("migrate-incoming", uri=uri)
        wire = self.lab.network.wire_bytes(PEER)
        source.qmp.events.clear()
        begin = time.time()
        source.qmp("migrate", uri=uri)
        source.qmp("migrate-start-postcopy")
        try:
            # Seldom: who asks a QEMU holds its vCPU up. The events have their own time.
            end = wait_until("stock QEMU's memory to be there", lambda: dest.qmp.time_of("MIGRATION", status="completed"), 60, 0.05)
            wait_until("stock QEMU's source", lambda: source.qmp("query-migrate")["status"] == "completed", 30)
        except LabError as error:
            dest.end()
            raise LabError(f"{error}; the source says {source.qmp('query-migrate')}") from error
        status = source.qmp("query-migrate")
        return self._moved(source, dest, wire, status, total_ms=(end - begin) * 1e3, faults=status["ram"]["postcopy-requests"],
                           blocked_ms=sum(dest.qmp("query-migrate")["postcopy-vcpu-blocktime"]))

    @staticmethod
    def _ended(qmp, begin):
        status = qmp("query-migrate")
        if status.get("status") in ("failed", "cancelled"):
            return status
        # A QEMU that was a destination before says "completed" of that; only a guest that was stopped since has left.
        if status.get("status") == "completed" and qmp.time_of("STOP"):
            return status
        if time.monotonic() - begin > 60:  # it does not converge: stop the guest and let it finish, as an operator would
            qmp("stop")
        return None

    def healthy(self, timeout_s=10):
        """The guest's verdict: (True, text) when it goes on and finds nothing wrong for a whole sweep."""
        return verdict(self.qemu.console, timeout_s)

    def end(self):
        """All of its QEMUs, those too that a move that failed has left."""
        for qemu in self.made:
            qemu.end()


def verdict(console, timeout_s=60, sweeps=2):
    """Waits until the guest has verified all of its pages since now; (ok, one line). What it said here before it left and came back does not count."""
    before, deadline = len(console.statuses()), time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if console.died():
            return False, f"guest kernel: {console.died()}"
        said = console.statuses()[before:]
        if said and said[-1].bad:
            return False, f"{said[-1].bad} wrong pages"
        if said and said[-1].sweeps >= said[0].sweeps + sweeps:
            return True, f"clean, {said[-1].checked} checks"
        time.sleep(0.05)
    said = console.statuses()[before:]
    return False, f"no whole sweep within {timeout_s:.0f} s (at {said[-1]})" if said else "guest is silent"
