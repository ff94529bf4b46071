"""A guest of 1 GiB within 256 MiB of its host: one host becomes three, each of the three parts moves, and they come together on one host again."""

import contextlib
import os

from tests.lab.applications import PATIENT, NotToBeHad, all_answers, built_guest, goes_on
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.sampled import Sampled, allocated

from .failures import runs_in_one_place, stray_memory
from .main_parts import main_part_moved
from .registry import Skip, check, check_equal, scenario_beside_others
from .split_moves import sub_hosts_are_free, wait_for_split
from .splitting import BATCH_BYTES, split_of, subs_of

MEM_MIB, BUDGET_MIB = 1024, 256
LIMIT_BYTES = (BUDGET_MIB << 20) + BATCH_BYTES
SUBS = ("host-c", "host-d")
SPLIT = ("--budget", f"{BUDGET_MIB}MiB", *(word for sub in SUBS for word in ("--sub", sub)))
LAB = {"hosts": 4, "options": {"lend": "1GiB"}}


@contextlib.contextmanager
def within_the_budget(lab, *hosts):
    """All the time what the guest has allocated on each of these hosts is at most the budget and a batch, its image there included."""
    with Sampled(lambda: [allocated(lab.memory_dir(host), ".ram") for host in hosts], 0.005) as resident:
        yield
    for place, host in enumerate(hosts):
        print(f"at most {resident.most(place) >> 10} KiB were resident on {host}", flush=True)
        check(0 < resident.most(place) <= LIMIT_BYTES, f"{resident.most(place)} bytes were resident on {host}")


def all_parts_move(lab, main, there, verdict):
    """The main part goes to `there`; what one sub host has to the host that is free then; another sub host is drained."""
    wait_for_split(lab, SUBS, BUDGET_MIB << 20)
    with within_the_budget(lab, main, there):
        main_part_moved(lab, there, verdict)
        wait_for_split(lab, SUBS, BUDGET_MIB << 20)
        lab.ctl("vm", "split", "guest", "--without", "host-c", "--sub", main)
        wait_until("host-c's part to be elsewhere", lambda: subs_of(lab) == dict.fromkeys((main, "host-d"), "CONNECTED"), 240, 0.1)
        drained = lab.ctl("host", "drain", "host-d")
        check_equal([part["refusal"] for part in drained["parts"]], [""], "what stays on host-d")
        wait_until("host-d's part to be elsewhere", lambda: "host-d" not in subs_of(lab) and set(subs_of(lab).values()) == {"CONNECTED"}, 240, 0.1)
        check_equal(runs_in_one_place(lab, "guest", verdict=verdict), there, "host")
        split = split_of(lab)
    print(f"{split['refetched_pages']} pages refetched, {split['moved_pages']} moved from sub host to sub host", flush=True)
    check(split["refetched_pages"] > 0 and split["moved_pages"] > 0, "nothing came back, or moved")
    check_equal(split["warnings"], [], "warnings")


def whole_again(lab, host, verdict):
    """On `host`, its memory right, and nothing left of it elsewhere."""
    wait_until("all of it to be there", lambda: split_of(lab) is None, 240, 0.1)
    check_equal(runs_in_one_place(lab, "guest", verdict=verdict), host, "host")
    sub_hosts_are_free(lab)
    wait_until("memory that nobody knows of to go", lambda: not stray_memory(lab, "guest"), 10, 0.2)
    left = {each: [name for name in os.listdir(lab.memory_dir(each)) if ".split-" in name] for each in lab.hosts}
    check_equal(left, dict.fromkeys(lab.hosts, []), "files of the split")


@scenario_beside_others
def a_large_guest_in_three_hosts():
    """It verifies 320 MiB over and over, and writes; split and gathered where it runs."""
    with Lab(**LAB) as lab:
        lab.start()
        lab.start_vm(mem_mib=MEM_MIB, mb=320, rate=500, mode=f" {PATIENT}")
        lab.ctl("vm", "split", "guest", *SPLIT)
        all_parts_move(lab, "host-a", "host-b", lab.verdict)
        lab.ctl("vm", "gather", "guest")
        whole_again(lab, "host-b", lab.verdict)


@scenario_beside_others
def memcached_in_three_hosts():
    """memcached with 300 MiB of keys, and a load that checks each answer; it is split on its way, and gathered on another."""
    try:
        guest = built_guest("memcached")
    except NotToBeHad as reason:
        raise Skip(str(reason)) from reason
    with Lab(**LAB) as lab:
        lab.guest = guest
        lab.start()
        lab.start_vm(mem_mib=MEM_MIB, mb=0, rate=300, mode=f"memcached keys=262144 sets=6 store_mib=400 sweep {PATIENT}")
        with within_the_budget(lab, "host-b"):
            summary = lab.ctl("migrate", "--vm", "guest", "--to", "host-b", *SPLIT)
        check_equal(summary["state"], "COMMITTED", f"state ({summary['reason']})")
        all_parts_move(lab, "host-b", "host-a", lambda vm, host: goes_on(lab.console(vm, host)))
        summary = lab.ctl("migrate", "--vm", "guest", "--to", "host-d", "--whole")
        check_equal(summary["state"], "COMMITTED", f"state ({summary['reason']})")
        whole_again(lab, "host-d", lambda vm, host: all_answers(lab.console(vm, host)))
