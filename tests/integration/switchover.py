"""Failures between the order to switch and the guest's first step at the destination: the seconds in which nobody runs it, and one store decides.

To hit moments that last milliseconds, a process is stopped (SIGSTOP) while the order is on its way, and let go on when the blow has fallen.
"""

import os
import signal
import time

from tests.lab.processes import LabError, wait_until

from .failures import Background, everything_works_again, newest, on_its_way, restart, runs_in_one_place, state_now, wait_for_the_order_to_switch
from .movement import guest_at_home
from .registry import check, check_equal, scenario_beside_others

MANAGEMENT = "mgmt0"


def frozen(lab, key):
    os.kill(lab.daemons[key].pid, signal.SIGSTOP)


def thawed(lab, key):
    os.kill(lab.daemons[key].pid, signal.SIGCONT)


def asked(lab, host, command):
    """What the guest's QEMU there answers; {} when it is gone."""
    try:
        qmp = lab.qmp("guest", host)
        try:
            return qmp(command)
        finally:
            qmp.close()
    except (OSError, LabError):
        return {}


def at_switch(lab, freeze, **plan):
    """Begins a migration from host-a, and stops daemon `freeze` in the moment in which the source has the order to switch."""
    migration = Background(lab, "guest", "host-b", **plan)
    wait_for_the_order_to_switch(lab)
    frozen(lab, freeze)
    return migration


def guest_stopped(lab):
    """Until the guest stands still at the source."""
    wait_until("the guest to stop", lambda: asked(lab, "host-a", "query-status").get("status") in ("finish-migrate", "postmigrate"), 10, 0.01)


def loaded(lab):
    """Until the destination's QEMU has loaded everything, and waits for the word."""
    wait_until("the destination to be loaded", lambda: asked(lab, "host-b", "query-migrate").get("status") == "completed", 10, 0.01)
    time.sleep(0.1)  # the event is on its way


def strike(lab, victims):
    for key in victims:
        lab.kill(key)
    time.sleep(0.5)
    for key in victims:
        restart(lab, key)


def strike_when_stopped(lab, victims, **plan):
    """The guest stands still at the source, its last pages are held up on the way: whoever dies now, it goes on somewhere, once."""
    held_up = "dataplane host-a" if "dataplane host-b" in victims else "dataplane host-b"
    migration = at_switch(lab, held_up, **plan)
    guest_stopped(lab)
    strike(lab, victims)
    if held_up not in victims:
        thawed(lab, held_up)
    migration.join()


def strike_when_committed(lab, unheard, victims, **plan):
    """The store has committed, host `unheard` does not know it yet, and its daemons die: the guest must run at the destination."""
    migration = at_switch(lab, "controlplane", **plan)
    loaded(lab)
    lab.network.cut(unheard, MANAGEMENT)
    thawed(lab, "controlplane")
    wait_until("the commit", lambda: state_now(lab) in ("PULLING", "COMMITTED"), 10, 0.01)
    strike(lab, victims)
    lab.network.heal(unheard, MANAGEMENT)
    migration.join()
    check_equal(runs_in_one_place(lab, "guest"), "host-b", "host of a committed migration")
    check_equal(newest(lab.ctl("migrations"))["reason"], "", "reason of a committed migration")


def stopped_and_struck(*victims):
    with guest_at_home(rate=200) as lab:
        strike_when_stopped(lab, victims)
        everything_works_again(lab, "guest")


def committed_and_struck(unheard, *victims):
    with guest_at_home(rate=200) as lab:
        strike_when_committed(lab, unheard, victims)
        everything_works_again(lab, "guest")


def _register():
    for host in ("host_a", "host_b"):
        key = host.replace("_", "-")
        for name, victims in {"bridge": [f"bridge {key}"], "dataplane": [f"dataplane {key}"],
                              "both": [f"bridge {key}", f"dataplane {key}"]}.items():
            for when, body in {"stopped": lambda v=tuple(victims): stopped_and_struck(*v),
                               "committed": lambda k=key, v=tuple(victims): committed_and_struck(k, *v)}.items():
                body.__name__ = f"kill_{name}_{host}_{when}"
                scenario_beside_others(body)


_register()


@scenario_beside_others
def kill_controlplane_stopped():
    stopped_and_struck("controlplane")


@scenario_beside_others
def kill_controlplane_committed():
    """The destination learns of the commit, the source does not, and the one who decided dies."""
    committed_and_struck("host-a", "controlplane")


@scenario_beside_others
def destination_qemu_dies_when_stopped():
    with guest_at_home(rate=200) as lab:
        migration = at_switch(lab, "dataplane host-b")
        guest_stopped(lab)
        for pid in lab.qemu_pids("host-b"):
            os.kill(pid, signal.SIGKILL)
        thawed(lab, "dataplane host-b")
        migration.join()
        check(migration.error is not None and "QEMU" in str(migration.error), f"what was said: {migration.error}")
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host")
        everything_works_again(lab, "guest")


@scenario_beside_others
def everything_dies_when_loaded():
    """All daemons of the cluster at once, both QEMUs standing still, the word unspoken."""
    with guest_at_home(rate=200) as lab:
        migration = at_switch(lab, "controlplane")
        loaded(lab)
        strike(lab, list(lab.daemons))
        migration.join()
        everything_works_again(lab, "guest")


@scenario_beside_others
def cancelled_when_stopped():
    with guest_at_home(rate=200) as lab:
        migration = at_switch(lab, "dataplane host-b")
        guest_stopped(lab)
        lab.ctl("cancel", newest(lab.ctl("migrations"))["id"])
        wait_until("the guest to go on", lambda: asked(lab, "host-a", "query-status").get("status") == "running", 10, 0.05)
        thawed(lab, "dataplane host-b")
        migration.join()
        check(migration.error is not None and "cancelled" in str(migration.error), f"what was said: {migration.error}")
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host")
        everything_works_again(lab, "guest")


def without_control_plane(when):
    """The control plane is down for ten seconds: whoever is in doubt waits, and asks."""
    with guest_at_home(rate=200) as lab:
        if when == "stopped":
            migration = at_switch(lab, "dataplane host-b")
            guest_stopped(lab)
            lab.kill("controlplane")
            thawed(lab, "dataplane host-b")
        else:
            migration = at_switch(lab, "controlplane")
            loaded(lab)
            lab.kill("controlplane")
        time.sleep(10)
        restart(lab, "controlplane")
        migration.join()
        everything_works_again(lab, "guest")


@scenario_beside_others
def controlplane_away_when_stopped():
    without_control_plane("stopped")


@scenario_beside_others
def controlplane_away_when_loaded():
    without_control_plane("loaded")


def management_away(lab, host, migration, meanwhile=lambda: None):
    lab.network.cut(host, MANAGEMENT)
    meanwhile()
    time.sleep(12)
    lab.network.heal(host, MANAGEMENT)
    migration.join()
    everything_works_again(lab, "guest")


def without_management_network(host, state):
    if state != "SWITCHING":
        with on_its_way(state, 0, plan={"bandwidth_limit": "100Mbit/s"}) as (lab, migration):
            management_away(lab, host, migration)
        return
    with guest_at_home(rate=200) as lab:
        migration = at_switch(lab, "dataplane host-b")
        guest_stopped(lab)
        management_away(lab, host, migration, lambda: thawed(lab, "dataplane host-b"))


def _register_cuts():
    for host in ("host-a", "host-b"):
        for state in ("PREPARING", "TRANSFERRING", "SWITCHING"):
            body = lambda h=host, s=state: without_management_network(h, s)  # noqa: E731
            body.__name__ = f"management_cut_{host.replace('-', '_')}_{state.lower()}"
            scenario_beside_others(body)


_register_cuts()


@scenario_beside_others
def network_cut_when_stopped():
    """The data network goes while the guest stands still, and stays away."""
    with guest_at_home(rate=200) as lab:
        migration = at_switch(lab, "dataplane host-b")
        guest_stopped(lab)
        lab.network.cut("host-a")
        thawed(lab, "dataplane host-b")
        migration.join()
        check(migration.error is not None, "a switchover over a cut network was reported as done")
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host")
        lab.network.heal("host-a")
        everything_works_again(lab, "guest")
