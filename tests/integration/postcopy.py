"""Guests whose pages come after them: the guest finds its memory right at every moment, whoever dies while pages are missing."""

import time

from tests.lab.network import DATA
from tests.lab.processes import wait_until

from .failures import Background, everything_works_again, newest, restart, runs_in_one_place, wait_state
from .movement import guest_at_home, moved
from .registry import check, check_equal, scenario_beside_others

# Slow enough that some seconds are spent pulling.
SLOW = {"mode": "postcopy", "bandwidth_limit": "200Mbit/s"}


def paging(summary):
    """The destination's figures of what came after the guest."""
    for side in ("destination_stats", "stats"):
        figures = (summary.get(side) or {}).get("paging") or {}
        if figures.get("pages_missing_first"):
            return figures
    return {}


def pulled(lab, vm, destination, **plan):
    """Moves it, and checks that pages were missing when it went on, and that none is in the end."""
    summary = moved(lab, vm, destination, **plan)
    figures = paging(summary)
    check(figures, f"nothing was missing after the switch: {summary}")
    check_equal(figures["pages_missing"], 0, "pages missing in the end")
    return summary


@scenario_beside_others
def postcopy_a_b_a():
    with guest_at_home() as lab:
        first = pulled(lab, "guest", "host-b", mode="postcopy")
        wait_until("two seconds' writes on host-b", lambda: lab.console("guest", "host-b").written() >= 200)
        second = pulled(lab, "guest", "host-a", mode="postcopy")
        check(paging(second)["pages_missing_first"] < paging(first)["pages_missing_first"] / 3,
              f"on the way home {paging(second)['pages_missing_first']} pages were missing, at first {paging(first)['pages_missing_first']}")
        check_equal([i["host"] for i in lab.ctl("images") if not i["in_use"]], ["host-b"], "hosts with a retained image")


@scenario_beside_others
def postcopy_then_precopy_home():
    """What came after the guest is the image's as well as what came before it: the way home is cheap."""
    with guest_at_home() as lab:
        pulled(lab, "guest", "host-b", mode="postcopy")
        home = moved(lab, "guest", "host-a")
        check(home["stats"]["pages_reused"] > home["stats"]["pages_total"] * 0.8, f"only {home['stats']['pages_reused']} pages reused")


@scenario_beside_others
def hybrid_a_b():
    with guest_at_home(rate=2000) as lab:
        moved(lab, "guest", "host-b", mode="hybrid", bandwidth_limit="400Mbit/s")


def hybrid_switches(rate, switched, **plan):
    """Rounds, then post-copy: at the resume some pages are missing, and not those that had come before."""
    with guest_at_home(rate=rate) as lab:
        migration = Background(lab, "guest", "host-b", **{"mode": "hybrid", "bandwidth_limit": "400Mbit/s", **plan})
        switched(lab)
        migration.join()
        check(migration.error is None, f"the migration failed: {migration.error}")
        figures, summary = paging(migration.summary), migration.summary
        check(figures, f"nothing was missing after the switch: {summary}")
        came_before = summary["stats"]["pages_sent"] - figures["pages_demand"] - figures["pages_background"]
        check(came_before > 0, f"no page came before the guest: {summary}")
        check_equal(figures["pages_missing"], 0, "pages missing in the end")
        check_equal(runs_in_one_place(lab, "guest"), "host-b", "host")
        moved(lab, "guest", "host-a", verify="full")
        return summary


@scenario_beside_others
def hybrid_on_request():
    def ask(lab):
        check_equal(wait_state(lab, "TRANSFERRING"), "TRANSFERRING", "state before it is asked for")
        wait_until("pages to have come", lambda: newest(lab.ctl("migrations"))["stats"]["pages_sent"] > 1000, 30, 0.05)
        lab.ctl("switch-to-postcopy", newest(lab.ctl("migrations"))["id"])

    hybrid_switches(200, ask, postcopy_after_rounds=0)


@scenario_beside_others
def hybrid_after_a_round():
    summary = hybrid_switches(2000, lambda lab: None, postcopy_after_rounds=1, downtime_limit="1ms")
    # Of the next the beginning may have been sent until the guest stood still.
    check(summary["stats"]["round"] <= 3, f"{summary['stats']['round']} rounds")


@scenario_beside_others
def hybrid_after_a_time():
    hybrid_switches(200, lambda lab: None, postcopy_after="1s")


@scenario_beside_others
def precopy_that_does_not_converge_goes_on_as_postcopy():
    """The guest writes faster than the link: rounds alone would never end."""
    hybrid_switches(20000, lambda lab: None, mode="precopy", downtime_limit="1ms", rounds_max=2, on_no_convergence="postcopy")


def while_pulling(strike):
    """A guest that lacks pages; `strike` happens; all of them come all the same."""
    with guest_at_home(rate=200) as lab:
        migration = Background(lab, "guest", "host-b", **SLOW)
        check_equal(wait_state(lab, "PULLING"), "PULLING", "state")
        time.sleep(0.5)
        strike(lab)
        migration.join()
        check(migration.error is None, f"the migration failed: {migration.error}")
        check_equal(migration.summary["state"], "COMMITTED", "state in the end")
        check_equal(runs_in_one_place(lab, "guest"), "host-b", "host")
        everything_works_again(lab, "guest")


def _register_kills():
    for victim in ("dataplane host-a", "dataplane host-b"):

        def body(victim=victim):
            def strike(lab):
                lab.kill(victim)
                time.sleep(0.5)
                restart(lab, victim)

            while_pulling(strike)

        body.__name__ = f"postcopy_kill_{victim.replace(' ', '_').replace('-', '_')}_pulling"
        scenario_beside_others(body)


_register_kills()


@scenario_beside_others
def postcopy_network_cut_pulling():
    def cut(lab):
        lab.network.cut("host-a", DATA)
        time.sleep(15)  # both ends give the flow up after ten
        lab.network.heal("host-a", DATA)

    while_pulling(cut)
