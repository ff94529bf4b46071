"""Only what is on the main host moves: the sub hosts keep what they have, whoever dies meanwhile, and no host needs room for all of the guest."""

import time

from tests.lab.lab import Lab
from tests.lab.processes import LabError, wait_until

from .failures import Background, newest, restart, runs_in_one_place, stray_memory, wait_state
from .movement import SMALL, moved
from .registry import check, check_equal, scenario, scenario_beside_others
from .split_moves import FITS, SLOW, lab_with_guest, right_split_and_gathered, split_guest, sub_hosts_are_free, tell, wait_for_split
from .splitting import BATCH_BYTES, BUDGET_BYTES, Resident, split_of

VICTIMS = ("dataplane host-c", "bridge host-a", "controlplane")
# Rounds until it is told to switch: TRANSFERRING lasts.
ROUNDS = {**SLOW, "mode": "hybrid", "postcopy_after_rounds": 0}


def stores(lab):
    return {sub["host"]: sub["store_id"] for sub in split_of(lab)["subs"]}


def held(lab):
    """Pages at each sub host, as the main host of the moment tells; None: nobody tells now."""
    split = split_of(lab)
    return {sub["host"]: sub["pages"] for sub in split["subs"]} if split["known"] else None


def main_part_moved(lab, destination, verdict=None, **plan):
    """While it moves, and from its first moment there, the page stores are what they were, and hold pages."""
    before, migration = stores(lab), Background(lab, "guest", destination, **plan)
    while migration.thread.is_alive():
        check_equal(stores(lab), before, "page stores")
        pages = held(lab)
        check(pages is None or all(pages.values()), f"pages at sub hosts: {pages}")
    migration.join()
    check(migration.error is None, f"the migration failed: {migration.error}")
    summary = migration.summary
    check_equal((summary["state"], summary["plan"]["keeps_stores"]), ("COMMITTED", True), "state, keeps_stores")
    tell(summary)
    check_equal(runs_in_one_place(lab, "guest", verdict=verdict), destination, "host")
    check_equal(stores(lab), before, "page stores")
    return summary


@scenario_beside_others
def a_main_part_moves_there_and_back():
    with split_guest("host-b", "host-d", hosts=4) as lab:
        summary = main_part_moved(lab, "host-c")
        check_equal(summary["plan"]["mode"], "HYBRID", "mode of a pre-copy of it")
        wait_for_split(lab, ("host-b", "host-d"))
        main_part_moved(lab, "host-a", mode="postcopy")
        right_split_and_gathered(lab, "host-a", ("host-b", "host-d"))


@scenario_beside_others
def a_main_part_moves_with_another_budget():
    with split_guest("host-b") as lab:
        lab.ctl("vm", "split", "guest", "--sub", "host-b", "--budget", "96MiB")
        for budget_mib, host in ((64, "host-c"), (96, "host-a")):
            summary = lab.ctl("migrate", "--vm", "guest", "--to", host, "--budget", f"{budget_mib}MiB")
            check_equal(summary["state"], "COMMITTED", "state")
            wait_for_split(lab, ("host-b",), budget_mib << 20)
        right_split_and_gathered(lab, "host-a", ("host-b",), 96 << 20)


@scenario_beside_others
def a_main_part_that_does_not_move_is_as_it_was():
    with split_guest("host-b", **FITS) as lab:
        before, migration = stores(lab), Background(lab, "guest", "host-c", **ROUNDS)
        wait_state(lab, "TRANSFERRING", 120)
        time.sleep(0.5)
        try:
            lab.ctl("vm", "gather", "guest")
            check(False, "it is gathered while it moves")
        except LabError as error:
            check("migration" in str(error), str(error))
        lab.ctl("cancel", newest(lab.ctl("migrations"))["id"])
        migration.join()
        check(migration.error, "it moved all the same")
        check_equal(stores(lab), before, "page stores")
        right_split_and_gathered(lab, "host-a", ("host-b",))


@scenario_beside_others
def a_guest_goes_to_a_host_that_is_smaller():
    """Split where it is first, so that no more than the budget ever comes to a host that has no room for all of it."""
    with Lab(hosts=3, options={"lend": "512MiB", "memory_budget": {"host-c": "128MiB"}}) as lab:
        lab.start()
        lab.start_vm(**SMALL, rate=200)
        try:
            lab.ctl("migrate", "--vm", "guest", "--to", "host-c")
            check(False, "it went there whole")
        except LabError as error:
            check("not enough memory" in str(error), str(error))
        with Resident(lab, "host-c") as resident:
            summary = lab.ctl("migrate", "--vm", "guest", "--to", "host-c", "--budget", "64MiB", "--sub", "host-b")
            check_equal(summary["state"], "COMMITTED", f"state ({summary['reason']})")
            wait_for_split(lab, ("host-b",))
            check_equal(runs_in_one_place(lab, "guest"), "host-c", "host")
        print(f"at most {resident.most_bytes >> 10} KiB were resident", flush=True)
        check(0 < resident.most_bytes <= BUDGET_BYTES + BATCH_BYTES, f"{resident.most_bytes} bytes were resident")
        check_equal(lab.ctl("vm", "show", "guest")["to_be_split"], "", "what is left to do")


@scenario_beside_others
def a_guest_that_was_split_to_move_and_does_not_is_whole_again():
    with lab_with_guest() as lab:
        lab.ctl("migrate", "--vm", "guest", "--to", "host-c", "--budget", "64MiB", "--sub", "host-b", "--mode", "hybrid",
                "--postcopy-after-rounds", "0", "--bandwidth-limit", SLOW["bandwidth_limit"], "--detach")
        wait_state(lab, "TRANSFERRING", 120)
        lab.ctl("cancel", newest(lab.ctl("migrations"))["id"])
        wait_until("all of it to be back", lambda: split_of(lab) is None, 120, 0.1)
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host")
        sub_hosts_are_free(lab)


def struck_in(state, into_s, plan):
    """One lab bears several blows, each on a migration of its own; the guest is split wherever it is after each."""
    with split_guest("host-b") as lab:
        for victim in VICTIMS:
            before, known = stores(lab), len(lab.ctl("migrations"))
            migration = Background(lab, "guest", "host-c", **{"reuse": "never", **plan})
            wait_until("the migration", lambda n=known: len(lab.ctl("migrations")) > n, 30, 0.005)
            print(f"{victim} dies: {wait_state(lab, state, 120)}", flush=True)
            time.sleep(into_s)
            lab.kill(victim)
            time.sleep(0.5)
            restart(lab, victim)
            migration.join(180)
            wait_until("it to be decided", lambda: newest(lab.ctl("migrations", check=False) or [{"created_unix_us": 0, "state": ""}])["state"] in ("COMMITTED", "ABORTED"), 120, 0.2)
            here = runs_in_one_place(lab, "guest")
            wait_for_split(lab, ("host-b",))
            check_equal(stores(lab), before, "page stores")
            wait_until("all hosts to be connected", lab._all_registered, 30, 0.1)
            wait_until("memory that nobody knows of to go", lambda: not stray_memory(lab, "guest"), 10, 0.2)
            if here != "host-a":
                moved(lab, "guest", "host-a")
                wait_for_split(lab, ("host-b",))
        right_split_and_gathered(lab, "host-a", ("host-b",))


@scenario
def main_part_kills_preparing():
    struck_in("PREPARING", 0.0, SLOW)


@scenario
def main_part_kills_transferring():
    struck_in("TRANSFERRING", 0.4, ROUNDS)


@scenario
def main_part_kills_switching():
    struck_in("SWITCHING", 0.0, {"mode": "postcopy", **SLOW})


@scenario
def main_part_kills_committed():
    struck_in("PULLING", 0.3, {"mode": "postcopy", **SLOW})
