"""What failure does: at every state, whoever dies, the guest runs on in exactly one place with its memory right, and the next migration works."""

import contextlib
import glob
import json
import os
import re
import signal
import subprocess
import threading
import time

from tests.lab.lab import Lab
from tests.lab.network import DATA
from tests.lab.processes import LabError, wait_until

from .movement import SMALL, guest_at_home, moved
from .registry import check, check_equal, scenario_beside_others

# Slow enough that TRANSFERRING lasts some seconds.
SLOW = {"bandwidth_limit": "200Mbit/s"}


class Background:
    """One migration run by godwitctl in a thread, so that the scenario can break things meanwhile."""

    def __init__(self, lab, vm, destination, **plan):
        self.error, self.summary = None, None
        self.thread = threading.Thread(target=self._run, args=(lab, vm, destination, plan))
        self.thread.start()

    def _run(self, lab, vm, destination, plan):
        try:
            self.summary = lab.migrate(vm, destination, **plan)
        except LabError as error:
            self.error = error

    def join(self, timeout_s=90):
        self.thread.join(timeout_s)
        check(not self.thread.is_alive(), "godwitctl migrate did not end")
        said = self.said()
        print(f"godwitctl: {said}", flush=True)
        if self.error:
            check(re.search(r"host-[a-d]|control plane|operator", said) and "\\n" not in said, f"no clear line that says where: {said}")

    def is_over(self):
        return not self.thread.is_alive()

    def said(self):
        """What godwitctl told at the end, in one line."""
        if self.error:
            reason = re.search(r'"reason": "(.*)"', str(self.error))
            return reason.group(1) if reason else str(self.error)
        return f"{self.summary['state']} {self.summary['reason']} ({self.summary['note']})"


def newest(rows):
    return max(rows, key=lambda row: row["created_unix_us"])


def state_now(lab):
    rows = lab.ctl("migrations", check=False)
    return newest(rows)["state"] if rows else None


def journal_phase(lab, host):
    try:
        with open(f"{lab.directory}/{host}/state/vms/{lab.uuids['guest']}.json") as file:
            return json.load(file).get("migration", {}).get("phase")
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def ahead_of_others():
    """This thread runs as soon as it can: a moment that it looks out for is not missed on a busy machine."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


def wait_for_the_order_to_switch(lab, is_over=lambda: False):
    """Until host-a, the source, has it (or has had it, and it is over). It is seen there at once; who asks the control plane is late by a godwitctl."""
    with ahead_of_others():
        wait_until("the order to switch", lambda: journal_phase(lab, "host-a") == "switching" or is_over(), 60, 0.0002)


def wait_state(lab, state, timeout_s=30):
    """Until the newest migration is in `state` or past it; returns what it is then."""
    order = ["PREPARING", "TRANSFERRING", "SWITCHING", "PULLING", "COMMITTED", "ABORTED"]
    return wait_until(f"state {state}", lambda: (s := state_now(lab)) and order.index(s) >= order.index(state) and s, timeout_s, 0.005)


def runs_in_one_place(lab, vm, timeout_s=60, verdict=None):
    """Waits until the guest runs on exactly one host, no other QEMU of it is left, and it finds its memory right (`verdict`: or else); returns the host."""

    def settled():
        running = [h for h in lab.hosts if lab.qemu_pids(h)]
        return running[0] if len(running) == 1 else None

    def speaking():
        before = {h: lab.console(vm, h).size() for h in lab.hosts}
        time.sleep(1.0)
        return [h for h in lab.hosts if lab.console(vm, h).size() > before[h]]

    host = wait_until("one QEMU to be left", settled, timeout_s, 0.2)
    speakers = wait_until("the guest to go on", speaking, timeout_s, 0.1)
    check_equal(speakers, [host], "hosts on which the guest speaks")
    ok, text = (verdict or lab.verdict)(vm, host)
    check(ok, f"guest on {host}: {text}")
    wait_until("the control plane to know", lambda: lab.where(vm) == host, 30, 0.2)
    return host


def everything_works_again(lab, vm):
    """The next migration, to whichever host the guest is not on; nothing is left of what failed."""
    here = runs_in_one_place(lab, vm)
    there = next(h for h in lab.hosts if h != here)
    wait_until("all hosts to be connected", lab._all_registered, 30, 0.1)
    wait_until("memory that nobody knows of to go", lambda: not stray_memory(lab, vm), 10, 0.2)
    try:
        moved(lab, vm, there)
    except LabError as error:  # that host may not be done yet, and says what to do
        check("is being cleared away: try again" in str(error), str(error))
        time.sleep(2)
        moved(lab, vm, there)
    check_equal(stray_memory(lab, vm), [], "memory left behind")


def stray_memory(lab, vm):
    """RAM files that are neither a running guest's nor an image's, and images that count as in use by nobody."""
    images, here = lab.ctl("images"), lab.where(vm)
    stray = [f"image of {i['vm_name']} on {i['host']} in use by nobody" for i in images if i["in_use"] and i["host"] != here]
    for host in lab.hosts:
        kept = [path for i in images if i["host"] == host for path in i["ram_paths"]]
        found = [f"{lab.memory_dir(host)}/{n}" for n in os.listdir(lab.memory_dir(host)) if n.endswith(".ram")]
        stray += [path for path in found if host != here and path not in kept]
    return stray


def restart(lab, key):
    kind, _, host = key.partition(" ")
    return lab.start_controlplane() if kind == "controlplane" else getattr(lab, f"start_{kind}")(host)


@contextlib.contextmanager
def on_its_way(state="TRANSFERRING", into_s=0.5, rate=200, plan=None):
    """A lab whose guest moves to host-b, `into_s` into `state`; gives (lab, migration)."""
    with guest_at_home(rate=rate) as lab:
        migration = Background(lab, "guest", "host-b", **(SLOW if plan is None else plan))
        if state == "SWITCHING":
            wait_for_the_order_to_switch(lab, migration.is_over)
        else:
            wait_state(lab, state)
        time.sleep(into_s)
        yield lab, migration


def kill_at(key, state, into_s):
    with on_its_way(state, into_s, plan={} if state == "SWITCHING" else SLOW) as (lab, migration):
        lab.kill(key)
        time.sleep(0.5)
        restart(lab, key)
        migration.join()
        everything_works_again(lab, "guest")


def _register_kills():
    for victim in ("dataplane host-a", "dataplane host-b", "bridge host-a", "bridge host-b", "controlplane"):
        for state in ("PREPARING", "TRANSFERRING", "SWITCHING"):
            name = f"kill_{victim.replace(' ', '_').replace('-', '_')}_{state.lower()}"

            def body(victim=victim, state=state):
                kill_at(victim, state, 0.5 if state == "TRANSFERRING" else 0.0)

            body.__name__ = name
            scenario_beside_others(body)


_register_kills()


@scenario_beside_others
def network_cut_during_transfer():
    with on_its_way() as (lab, migration):
        lab.network.cut("host-a", DATA)
        migration.join()
        check(migration.error is not None, "a migration over a cut network was reported as done")
        lab.network.heal("host-a", DATA)
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host after the cut")
        everything_works_again(lab, "guest")


@scenario_beside_others
def short_network_cut_is_survived():
    with on_its_way() as (lab, migration):
        lab.network.cut("host-a", DATA)
        time.sleep(1)
        lab.network.heal("host-a", DATA)
        migration.join()
        check(migration.error is None, f"a cut of one second ended the migration: {migration.error}")
        check_equal(runs_in_one_place(lab, "guest"), "host-b", "host")


@scenario_beside_others
def destination_qemu_dies():
    with on_its_way(into_s=0) as (lab, migration):
        for pid in wait_until("the destination's QEMU", lambda: lab.qemu_pids("host-b"), 10):
            os.kill(pid, signal.SIGKILL)
        migration.join()
        check(migration.error is not None and "QEMU" in str(migration.error), f"what was said: {migration.error}")
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host")
        everything_works_again(lab, "guest")


@scenario_beside_others
def cancelled():
    with on_its_way() as (lab, migration):
        lab.ctl("cancel", newest(lab.ctl("migrations"))["id"])
        migration.join()
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host")
        everything_works_again(lab, "guest")


@scenario_beside_others
def does_not_converge():
    with guest_at_home(rate=20000) as lab:
        try:
            lab.migrate("guest", "host-b", bandwidth_limit="100Mbit/s", downtime_limit="1ms", rounds_max=4, on_no_convergence="abort")
            raise AssertionError("a guest that writes faster than the link was moved without stopping it")
        except LabError as error:
            check("converge" in str(error), f"what was said: {error}")
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host")
        summary = lab.migrate("guest", "host-b", bandwidth_limit="400Mbit/s", downtime_limit="1ms", rounds_max=4, on_no_convergence="stop-anyway")
        check_equal(summary["state"], "COMMITTED", "stop-anyway")
        check_equal(runs_in_one_place(lab, "guest"), "host-b", "host")


@scenario_beside_others
def aborted_image_is_reused():
    """What an aborted attempt carried need not be carried again, and nothing stale of it is ever used."""
    with on_its_way(into_s=1.5, rate=100, plan={"bandwidth_limit": "400Mbit/s"}) as (lab, migration):
        lab.ctl("cancel", newest(lab.ctl("migrations"))["id"])
        migration.join()
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host")
        time.sleep(1)
        moved(lab, "guest", "host-b", verify="full")


def ram_file_cut_short(host, reason):
    """Whoever runs a QEMU may own its RAM file: what he does to it ends his own migration at most."""
    with Lab() as lab:
        lab.start()
        lab.start_vm("victim", **SMALL, rate=50, user="nobody", wait=False)
        lab.start_vm("guest", **SMALL, rate=50, wait=False)
        for name in ("victim", "guest"):
            wait_until(f"{name} to fill its memory", lab.console(name, "host-a").filled, 240)
        daemons = {key: daemon.pid for key, daemon in lab.daemons.items()}
        victim = Background(lab, "victim", "host-b", **SLOW)
        wait_until("the victim's transfer", lambda: state_of(lab, "victim") == "TRANSFERRING", 30, 0.005)
        other = Background(lab, "guest", "host-b", **SLOW)
        wait_until("the other's transfer", lambda: state_of(lab, "guest") == "TRANSFERRING", 30, 0.005)
        subprocess.run(["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "truncate", "--size=1M",
                        *glob.glob(f"{lab.memory_dir(host)}/{lab.uuids['victim']}.*.ram")], check=True)
        victim.join()
        check(victim.error is not None and re.search(reason, victim.said()), f"what was said of the victim: {victim.said()}")
        other.join()
        check(other.error is None, f"the other guest's migration ended with its neighbour's: {other.said()}")
        ok, text = lab.verdict("guest", "host-b")
        check(ok, f"the other guest: {text}")
        check_equal({key: daemon.pid for key, daemon in lab.daemons.items()}, daemons, "daemons")
        for daemon in lab.daemons.values():
            daemon.check_alive()
        if host == "host-b":
            ok, text = lab.verdict("victim", "host-a")
            check(ok, f"the victim, whose own memory nobody touched: {text}")
        moved(lab, "guest", "host-a")


def state_of(lab, vm):
    rows = [row for row in lab.ctl("migrations") if row["vm_name"] == vm]
    return newest(rows)["state"] if rows else None


@scenario_beside_others
def ram_file_cut_short_at_the_destination():
    ram_file_cut_short("host-b", "cut short")


@scenario_beside_others
def ram_file_cut_short_at_the_source():
    # Whether the data plane reads beyond the end first or QEMU touches it and dies is chance.
    ram_file_cut_short("host-a", "cut short|QEMU of this VM has exited|QEMU has exited")


@scenario_beside_others
def images_outlive_their_data_plane():
    """A data plane that dies at rest costs nothing: the images that it kept are taken again, and so is the running guest's history."""
    with guest_at_home() as lab:
        moved(lab, "guest", "host-b")
        for host in ("host-a", "host-b"):
            lab.kill(f"dataplane {host}")
            lab.start_dataplane(host)
        wait_until("all hosts to be connected", lab._all_registered, 30, 0.1)
        check_equal([i["host"] for i in lab.ctl("images") if not i["in_use"]], ["host-a"], "hosts with a retained image")
        home = moved(lab, "guest", "host-a", verify="full")
        total = home["stats"]["pages_total"]
        check(home["stats"]["pages_reused"] > total * 0.8, f"only {home['stats']['pages_reused']} of {total} pages reused ({home['reuse_reason']})")
