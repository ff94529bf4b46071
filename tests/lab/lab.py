"""The whole laboratory: network, control plane, a data plane and a bridge on every host, and the guests that they run."""

import atexit
import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import signal
import sys
import threading
import uuid

from . import configs
from .console import Console
from .network import Network
from .peer import Qmp, verdict
from .processes import Daemon, LabError, end_processes, processes_naming, run, wait_until

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("GODWIT_BUILD", os.path.join(ROOT, "build"))
PROGRAMS = {
    "dataplane": "dataplane/daemon/godwit-dataplane",
    "bridge": "qemu-bridge/agent/godwit-bridge",
    "controlplane": "controlplane/service/godwit-controlplane",
    "ctl": "controlplane/ctl/godwitctl",
}


def program(name):
    path = os.path.join(BUILD, PROGRAMS[name])
    if not os.access(path, os.X_OK):
        raise LabError(f"{path} is not built: run `ninja -C {BUILD}`")
    return path


HUGEPAGES_LOCK = "/run/lock/godwit-lab-hugepages"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _end(number, _frame):
    ignore_signals()  # a second Ctrl-C must not stop the cleaning up, nor reach the commands that do it
    print("interrupted: taking down what was set up", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def end_on_signals():
    """From here on a signal ends the program through its `finally` and `with`. Only the main thread may say so; others leave it as it is."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _end)


def ignore_signals():
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


class Lab:
    """Use as a context manager. Hosts are named host-a, host-b, ... in namespaces of their own."""

    def __init__(self, hosts=2, mtu=9000, shape_bps=None, backing="tmpfs", tracker="auto", keep=False, options=None):
        self.id = "gw" + uuid.uuid4().hex[:5]
        self.hosts = [f"host-{letter}" for letter in "abcdefgh"[:hosts]]
        self.backing, self.tracker, self.keep, self.options = backing, tracker, keep, options or {}
        self.directory = f"/tmp/godwit-lab-{self.id}-{uuid.uuid4().hex[:8]}"
        self.shm = f"/dev/shm/{os.path.basename(self.directory)}"
        self.network = Network(self.id, self.hosts, mtu, shape_bps, self.options.get("ipv6", False), self.options.get("offloads", True))
        self.guest = os.path.join(BUILD, "guest")
        self.daemons = {}
        self.uuids = {}
        self.hugepages = 0  # that are this lab's
        self.closed = False

    # ---- life -------------------------------------------------------------------------------------------------------

    def __enter__(self):
        end_on_signals()
        atexit.register(self.close)
        try:
            self._make_directories()
            self._make_certificates()
            build_guest(self.guest)
            self.network.up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind, error, trace):
        if error is not None and not isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._show_guests()
            self._save_logs()
        self.close()

    def _make_directories(self):
        os.mkdir(self.directory, 0o700)
        for name in ["controlplane"] + self.hosts:
            os.makedirs(f"{self.directory}/{name}", exist_ok=True)
        for host in self.hosts:
            os.makedirs(f"{self.shm}/{host}", exist_ok=True)
            if self.options.get("as_units"):  # what the units' RuntimeDirectoryMode says; memory_dir is the daemons' to make
                os.chmod(f"{self.directory}/{host}", 0o711)
            else:
                os.chmod(f"{self.shm}/{host}", 0o777)
        os.chmod(self.directory, 0o755)
        if self.backing == "hugetlbfs" or self.options.get("dpdk_hugepages"):
            self._reserve_hugepages()
        if self.backing == "hugetlbfs":
            for host in self.hosts:
                os.makedirs(f"{self.shm}/{host}/huge", exist_ok=True)
                run("mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "godwit-lab", f"{self.shm}/{host}/huge")

    def _make_certificates(self):
        if not self.options.get("insecure"):
            addresses = [argument for host in self.hosts for argument in ("--address", self.network.control_address(host))]
            self.pki("init", *self.hosts, *addresses)
        with open(f"{self.directory}/controlplane/godwitctl.toml", "w") as file:
            file.write(configs.ctl(self))

    def pki(self, verb, *arguments, directory="pki"):
        """godwitctl pki VERB ARGUMENTS in a directory of the lab; returns the parsed answer."""
        return json.loads(run(program("ctl"), "pki", verb, "--directory", f"{self.directory}/{directory}", *arguments, "--json").stdout)

    def _reserve_hugepages(self):
        """The pool is the machine's: each lab adds its own. A kernel that has just lost a lab's finds them after a while."""
        want = self.options.get("hugepages", 512)
        wait_until(f"{want} hugepages of the kernel", lambda: self._add_hugepages(want - self.hugepages) == want, 30, 0.5)

    def _add_hugepages(self, count):
        with open(HUGEPAGES_LOCK, "w") as lock, open("/proc/sys/vm/nr_hugepages", "r+") as pool:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = int(pool.read())
            pool.seek(0)
            pool.write(str(before + count))
            pool.flush()
            pool.seek(0)
            self.hugepages += int(pool.read()) - before
            return self.hugepages

    def close(self):
        """Ends everything that the lab made, whatever signals come. Safe to call twice."""
        if self.closed:
            return
        ignore_signals()
        self.closed = True
        daemons = list(reversed(self.daemons.values()))
        steps = [daemon.ask_to_end for daemon in daemons] + [functools.partial(daemon.stop, 5) for daemon in daemons]  # each takes a second or two
        steps += [self._end_processes, self.network.down]
        if self.backing == "hugetlbfs":
            steps += [functools.partial(run, "umount", f"{self.shm}/{host}/huge", check=False) for host in self.hosts]
        steps += [self._give_hugepages_back, functools.partial(shutil.rmtree, self.shm, ignore_errors=True)]
        if not self.keep:
            steps.append(functools.partial(shutil.rmtree, self.directory, ignore_errors=True))
        for step in steps:
            try:
                step()
            except Exception as error:  # whatever it is, the others have their turn
                print(f"taking down {self.directory}: {error}", file=sys.stderr)
        end_on_signals()

    def _end_processes(self):
        """Of those that name our directory only what runs in our network: a pager or an editor that looks at a log is somebody else's."""
        inside = self.network.processes()
        end_processes([pid for pid in processes_naming(self.directory) if pid in inside])

    def _give_hugepages_back(self):
        if self.hugepages:
            self._add_hugepages(-self.hugepages)

    def _show_guests(self):
        """What the control plane, if it is there, says of each: who reads a failure elsewhere has no logs."""
        with contextlib.suppress(Exception):  # the test's own error is what counts
            for vm in self.ctl("vms", check=False, timeout=20) or []:
                print(f"VM {vm['name']}: {json.dumps(self.ctl('vm', 'show', vm['name'], check=False, timeout=20))}", flush=True)

    def _save_logs(self):
        """Keeps the daemons' logs of a failed run where CI and people find them."""
        target = os.environ.get("GODWIT_LAB_LOGS", os.path.join(BUILD, "lab-logs", os.path.basename(self.directory)))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.directory, target, ignore=shutil.ignore_patterns("*.sock", "*.qmp", "*.db*", "*.key", "dpdk_telemetry*", "pin"), ignore_dangling_symlinks=True)
        print(f"logs of the failed lab: {target}")

    # ---- daemons ----------------------------------------------------------------------------------------------------

    def memory_dir(self, host):
        return f"{self.shm}/{host}/godwit" if self.options.get("as_units") else f"{self.shm}/{host}"

    def start(self):
        """Control plane first, then every host; returns when all hosts are registered."""
        self.start_controlplane()
        for host in self.hosts:
            daemon = self.start_dataplane(host)
            self.start_bridge(host)
            if self.options.get("device") == "net_memif" and host == self.hosts[0]:  # the server: its client's rings are its own
                wait_until("the memif server", lambda: "ready:" in daemon.log(), 30)
        wait_until("all hosts to register", self._all_registered, 120)
        return self

    def _all_registered(self):
        for daemon in self.daemons.values():
            daemon.check_alive()
        result = self.ctl("hosts", check=False)
        return result is not None and sum(1 for h in result if h["connected"] and h["dataplane_up"]) == len(self.hosts)

    def _start(self, key, where, name, config):
        directory = f"{self.directory}/{where}"
        path = f"{directory}/{name}.toml"
        with open(path, "w") as file:
            file.write(config)
        confined, umask = (as_unit(name), 0o077) if self.options.get("as_units") else ([], -1)
        command = self.network.command(where, *confined, program(name), "--config", path)
        # Where DPDK puts its telemetry socket: two data planes of one machine must not meet.
        self.daemons[key] = Daemon(key, command, f"{directory}/{name}.log", {"RUNTIME_DIRECTORY": directory}, umask)
        return self.daemons[key]

    def start_controlplane(self):
        return self._start("controlplane", "controlplane", "controlplane", configs.controlplane(self))

    def start_dataplane(self, host):
        return self._start(f"dataplane {host}", host, "dataplane", configs.dataplane(self, host))

    def start_bridge(self, host):
        return self._start(f"bridge {host}", host, "bridge", configs.bridge(self, host))

    def stop_daemons(self):
        """Ends all daemons as a service manager would; guests and network stay."""
        for key in reversed(list(self.daemons)):
            self.daemons.pop(key).stop()

    def kill(self, key):
        self.daemons.pop(key).kill()

    # ---- what an operator does --------------------------------------------------------------------------------------

    def ctl(self, *arguments, check=True, timeout=300):
        """godwitctl ARGUMENTS --json; returns the parsed answer (None on failure with check=False)."""
        config = f"{self.directory}/controlplane/godwitctl.toml"
        command = self.network.command("controlplane", program("ctl"), "--config", config, *arguments, "--json")
        done = run(*command, check=False, timeout=timeout)
        if done.returncode != 0:
            if check:
                raise LabError(f"godwitctl {' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
            return None
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def write_vm_definition(self, name, mem_mib=1024, mb=500, rate=0, mode="", regions=1, arguments=(), user="", **more):
        """A VM definition of the self-checking guest; returns the file's path."""
        path = f"{self.directory}/{name}.toml"
        self.uuids[name] = more.setdefault("vm_uuid", str(uuid.uuid4()))
        with open(path, "w") as file:
            file.write(configs.vm(self, name, mem_mib, regions, list(arguments), user, configs.kernel_line(mb, rate, mode), **more))
        return path

    def start_vm(self, name="guest", host="host-a", wait=True, **definition):
        self.ctl("start", "-f", self.write_vm_definition(name, **definition), "--host", host)
        if wait:
            wait_until("the guest to fill its memory", self.console(name, host).filled, 240)

    def vm_dir(self, vm, host):
        """What ${run_dir} of a VM definition is on that host."""
        return f"{self.directory}/{host}/vms/{self.uuids[vm]}"

    def qmp(self, vm, host):
        """A second monitor connection is not possible: asks the bridge's QEMU through the socket kept for people."""
        return Qmp(f"{self.vm_dir(vm, host)}/{vm}-people.qmp")

    def console(self, name, host):
        return Console(f"{self.vm_dir(name, host)}/{name}-console.log")

    def migrate(self, vm, destination, check=True, **plan):
        """Runs one migration to its end through a plan file; returns godwitctl's summary as a dict."""
        path = f"{self.directory}/plan-{uuid.uuid4().hex[:6]}.toml"
        with open(path, "w") as file:
            file.write(configs.plan(vm, destination, **plan))
        return self.ctl("migrate", "-f", path, check=check)

    def verdict(self, vm, host, timeout_s=240):
        return verdict(self.console(vm, host), timeout_s)

    def where(self, vm):
        """Name of the host that the control plane says runs the VM."""
        for row in self.ctl("vms"):
            if row["name"] == vm:
                return row["host"]
        return None

    def qemu_pids(self, host):
        """QEMU processes of a host, those of VMs on their way included."""
        found = []
        for pid in processes_naming(f"{self.directory}/{host}/"):
            try:
                if "qemu-system" in os.readlink(f"/proc/{pid}/exe"):
                    found.append(pid)
            except OSError:
                continue
        return found


def as_unit(name):
    """Prefix of a command that gives a daemon the capabilities that its unit gives it, and no more."""
    with open(os.path.join(ROOT, f"config/systemd/godwit-{name}.service.in")) as file:
        text = file.read()
    capabilities = re.search(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE).group(1).split()
    wanted = ",".join(["-all"] + ["+" + c.removeprefix("CAP_").lower() for c in capabilities])
    return ["setpriv", "--bounding-set", wanted] + (["--no-new-privs"] if "\nNoNewPrivileges=yes\n" in text else [])


def total_us(summary):
    """From the start of the transfer until the guest runs at the destination. Starting QEMU there is not in it, as it is not in QEMU's own figure."""
    stats = summary["stats"]
    return stats["elapsed_us"] - stats["last_round_us"] + summary["downtime_us"]


def build_guest(directory):
    """The test guest, made once per build directory and again when its sources change; labs that start together wait for each other."""
    sources = [os.path.join(ROOT, "tests/guest", f) for f in ("workload.c", "build-guest")]
    image = os.path.join(directory, "initramfs.gz")
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(image) or any(os.path.getmtime(s) >= os.path.getmtime(image) for s in sources):
            run(sources[1], directory, timeout=120)
