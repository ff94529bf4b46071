"""Deaths on the way to post-copy's switch and just behind it: the guest goes on at the source or, once the store has committed, at the destination, once.

One lab bears several blows, each on a migration of its own: what one leaves behind the next would meet.
"""

import os
import signal
import time

from tests.lab.processes import wait_until

from .failures import Background, everything_works_again, newest, restart, runs_in_one_place, stray_memory, wait_for_the_order_to_switch, wait_state
from .movement import guest_at_home, moved
from .postcopy import SLOW
from .registry import check, check_equal, scenario_beside_others
from .switchover import MANAGEMENT, at_switch, loaded, state_now, strike, strike_when_committed, strike_when_stopped, thawed

VICTIMS = (["bridge host-a"], ["bridge host-b"], ["dataplane host-a"], ["dataplane host-b"], ["controlplane"])
# Rounds until it is told to switch: TRANSFERRING lasts.
ROUNDS = {**SLOW, "mode": "hybrid", "postcopy_after_rounds": 0}


def at_home_again(lab):
    """The guest is whole, in one place, and on host-a for the next blow."""
    here = runs_in_one_place(lab, "guest")
    wait_until("all hosts to be connected", lab._all_registered, 30, 0.1)
    wait_until("memory that nobody knows of to go", lambda: not stray_memory(lab, "guest"), 10, 0.2)
    if here != "host-a":
        moved(lab, "guest", "host-a")


def struck_in(wait, into_s, plan):
    with guest_at_home(rate=200) as lab:
        for victims in VICTIMS:
            known = len(lab.ctl("migrations"))
            migration = Background(lab, "guest", "host-b", **plan)
            wait_until("the migration", lambda n=known: len(lab.ctl("migrations")) > n, 30, 0.005)
            wait(lab, migration)
            time.sleep(into_s)
            strike(lab, victims)
            migration.join()
            at_home_again(lab)
        everything_works_again(lab, "guest")


@scenario_beside_others
def postcopy_kills_preparing():
    struck_in(lambda lab, _: wait_state(lab, "PREPARING"), 0.0, SLOW)


@scenario_beside_others
def postcopy_kills_transferring():
    struck_in(lambda lab, _: wait_state(lab, "TRANSFERRING"), 0.4, ROUNDS)


@scenario_beside_others
def postcopy_kills_switching():
    struck_in(lambda lab, migration: wait_for_the_order_to_switch(lab, migration.is_over), 0.0, SLOW)


@scenario_beside_others
def postcopy_kills_stopped():
    with guest_at_home(rate=200) as lab:
        for victims in VICTIMS:
            strike_when_stopped(lab, victims, **SLOW)
            at_home_again(lab)
        everything_works_again(lab, "guest")


@scenario_beside_others
def postcopy_kills_committed():
    with guest_at_home(rate=200) as lab:
        for unheard in ("host-a", "host-b"):
            for kind in (["bridge"], ["dataplane"], ["bridge", "dataplane"]):
                strike_when_committed(lab, unheard, [f"{each} {unheard}" for each in kind], **SLOW)
                at_home_again(lab)
        strike_when_committed(lab, "host-a", ["controlplane"], **SLOW)
        everything_works_again(lab, "guest")


@scenario_beside_others
def postcopy_source_qemu_dies_in_the_switch():
    """The destination may be told to run without all of its pages at any moment now: the memory of a QEMU that dies then is kept until the word has been heard."""
    with guest_at_home(rate=200) as lab:
        migration = at_switch(lab, "controlplane", **SLOW)
        loaded(lab)
        lab.network.cut("host-a", MANAGEMENT)
        thawed(lab, "controlplane")
        wait_until("the commit", lambda: state_now(lab) == "PULLING", 10, 0.01)
        for pid in lab.qemu_pids("host-a"):
            os.kill(pid, signal.SIGKILL)
        wait_until("its end to be seen", lambda: not lab.qemu_pids("host-a"), 10, 0.05)
        time.sleep(1)
        lab.network.heal("host-a", MANAGEMENT)
        migration.join()
        check(migration.error is None, f"the migration failed: {migration.error}")
        check_equal(newest(lab.ctl("migrations"))["state"], "COMMITTED", "state in the end")
        check_equal(runs_in_one_place(lab, "guest"), "host-b", "host")
        restart_all(lab)
        everything_works_again(lab, "guest")


def restart_all(lab):
    """Whoever starts anew finds nothing left of it."""
    keys = list(lab.daemons)
    for key in keys:
        lab.kill(key)
    for key in keys:
        restart(lab, key)
