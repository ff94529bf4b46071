"""A split guest moves; to one of its sub hosts whole: gathered where it is, moved as any other, and split again where it is then, whatever dies meanwhile."""

import contextlib
import time

from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.sampled import Sampled, allocated

from .failures import Background, newest, restart, runs_in_one_place, wait_state
from .movement import SMALL, moved
from .registry import check, check_equal, scenario_beside_others
from .splitting import BATCH_BYTES, BUDGET_BYTES, Resident, split_of, subs_of

# Slow enough that some seconds are spent on the way.
SLOW = {"bandwidth_limit": "200Mbit/s"}
# What it touches all the time fits the budget: else rounds of its main part end as soon as there is no room left.
FITS = {"mb": 4}


@contextlib.contextmanager
def lab_with_guest(hosts=3, **guest):
    with Lab(hosts=hosts, options={"lend": "512MiB"}) as lab:
        lab.start()
        lab.start_vm(**{**SMALL, "rate": 200, **guest})
        yield lab


@contextlib.contextmanager
def split_guest(*subs, hosts=3, **guest):
    """Split on host-a over `subs`, within its budget."""
    with lab_with_guest(hosts, **guest) as lab:
        lab.ctl("vm", "split", "guest", "--budget", "64MiB", *(word for sub in subs for word in ("--sub", sub)))
        wait_for_split(lab, subs)
        yield lab


def wait_for_split(lab, subs, budget_bytes=BUDGET_BYTES):
    wait_until(f"{', '.join(subs)} to hold it", lambda: subs_of(lab) == dict.fromkeys(subs, "CONNECTED"), 60, 0.1)
    wait_until("the guest to be within its budget", lambda: 0 < split_of(lab)["resident_bytes"] <= budget_bytes, 60, 0.1)
    check_equal(split_of(lab)["budget_bytes"], budget_bytes, "budget")


def tell(summary):
    stats = summary["stats"]
    print(f"downtime {summary['downtime_us']} us, {stats['pages_sent']} pages sent, {stats['wire_bytes']} bytes on the wire", flush=True)


def sub_hosts_are_free(lab):
    wait_until("nothing to be lent", lambda: not any(host["memory_lent_bytes"] for host in lab.ctl("hosts")), 60, 0.1)


def right_split_and_gathered(lab, host, subs, budget_bytes=BUDGET_BYTES):
    """It runs on `host`, split over `subs` within its budget, its memory is right, and again when all of it is back."""
    wait_for_split(lab, subs, budget_bytes)
    with Resident(lab, host) as resident:
        check_equal(runs_in_one_place(lab, "guest"), host, "host")
    check(resident.most_bytes <= budget_bytes + BATCH_BYTES, f"{resident.most_bytes} bytes were resident")
    check_equal(lab.ctl("vm", "show", "guest")["to_be_split"], "", "what is left to do")
    lab.ctl("vm", "gather", "guest")
    wait_until("all of it to be back", lambda: split_of(lab) is None, 120, 0.1)
    check_equal(runs_in_one_place(lab, "guest"), host, "host")
    sub_hosts_are_free(lab)


@scenario_beside_others
def a_guest_goes_to_all_of_its_hosts_at_once():
    """What it uses most to its new host, the rest to a sub host, over a link that is slower than all else: when the one has half of its part, the other has some."""
    with Lab(hosts=3, shape_bps=200_000_000, options={"lend": "512MiB"}) as lab:
        lab.start()
        lab.start_vm(**{**SMALL, "mb": 128, "rate": 20})
        with Sampled(lambda: (allocated(lab.memory_dir("host-b"), ".ram"), allocated(lab.memory_dir("host-c"))), 0.02) as lies:
            summary = lab.ctl("migrate", "--vm", "guest", "--to", "host-b", "--budget", "64MiB", "--sub", "host-c")
        check_equal(summary["state"], "COMMITTED", f"state ({summary['reason']})")
        half = lies.most(1) / 2
        at_main = next(main_bytes for _, main_bytes, sub_bytes in lies.series if sub_bytes >= half > 0)
        print(f"with {half / 2**20:.0f} MiB on the sub host there were {at_main / 2**20:.0f} MiB on host-b", flush=True)
        check(at_main > 4 << 20, "one after the other")
        right_split_and_gathered(lab, "host-b", ("host-c",))


@scenario_beside_others
def a_split_guest_moves_to_its_sub_host():
    """Which lends nothing to it any more when it comes; another is chosen."""
    with split_guest("host-b") as lab:
        tell(moved(lab, "guest", "host-b", verify="full"))
        wait_until("other sub hosts", lambda: subs_of(lab) and "host-b" not in subs_of(lab), 30, 0.1)
        right_split_and_gathered(lab, "host-b", tuple(subs_of(lab)))


@scenario_beside_others
def a_split_guest_moves_and_is_whole_there():
    """Gathered by its new host, from its sub host and from where it came."""
    with split_guest("host-b") as lab:
        summary = lab.ctl("migrate", "--vm", "guest", "--to", "host-c", "--whole")
        check_equal((summary["state"], runs_in_one_place(lab, "guest")), ("COMMITTED", "host-c"), "state, host")
        sub_hosts_are_free(lab)
        time.sleep(3)  # reports of all hosts have come since
        check_equal((split_of(lab), lab.ctl("vm", "show", "guest")["to_be_split"]), (None, ""), "split")
        check_equal(runs_in_one_place(lab, "guest"), "host-c", "host")


@scenario_beside_others
def a_whole_guest_is_split_where_it_arrives():
    with lab_with_guest() as lab:
        summary = lab.ctl("migrate", "--vm", "guest", "--to", "host-b", "--budget", "96MiB", "--sub", "host-c", "--sub", "host-a")
        check_equal(summary["state"], "COMMITTED", "state")
        right_split_and_gathered(lab, "host-b", ("host-a", "host-c"), 96 << 20)


@scenario_beside_others
def the_main_host_of_a_split_guest_is_drained():
    with split_guest("host-b") as lab:
        drained = lab.ctl("host", "drain", "host-a")
        check_equal([part["refusal"] for part in drained["parts"]], [""], "what stays on host-a")
        wait_until("the migration to end", lambda: newest(lab.ctl("migrations"))["state"] == "COMMITTED", 120, 0.1)
        host = runs_in_one_place(lab, "guest")
        check(host != "host-a", "it is where it was")
        wait_until("it to be split again", lambda: split_of(lab), 60, 0.1)
        right_split_and_gathered(lab, host, tuple(subs_of(lab)))


def _struck(key, into, plan, stays, destination="host-c"):
    """Something dies while the guest is on its way; it is split where it is then."""
    with split_guest("host-b", **FITS) as lab:
        migration = Background(lab, "guest", destination, **plan)
        into(lab)
        lab.kill(key)
        time.sleep(0.5)
        restart(lab, key)
        migration.join(180)
        check_equal(bool(migration.error), stays, f"failed ({migration.said()})")
        right_split_and_gathered(lab, "host-a" if stays else "host-c", ("host-b",))
        wait_until("all hosts to be connected", lab._all_registered, 30, 0.1)
        moved(lab, "guest", "host-c" if stays else "host-a")


def _in(state, into_s=0.5):
    def wait(lab):
        check_equal(wait_state(lab, state, 120), state, "state")
        time.sleep(into_s)

    return wait


@scenario_beside_others
def a_split_guest_moves_and_its_destination_dies():
    _struck("dataplane host-c", _in("TRANSFERRING"), SLOW, stays=True)


@scenario_beside_others
def a_split_guest_moves_and_its_source_dies_pulling():
    _struck("dataplane host-a", _in("PULLING"), {"mode": "postcopy", **SLOW}, stays=False)


@scenario_beside_others
def a_split_guest_is_gathered_to_move_and_the_control_plane_dies():
    _struck("controlplane", _in("PREPARING", 0.0), {}, stays=True, destination="host-b")
