"""A guest that is larger than what its host may hold: the rest lies on sub hosts, and comes back when it is touched."""

import os

from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.sampled import Sampled, allocated

from .failures import restart
from .metrics import check_metrics_of_split
from .movement import SMALL
from .registry import check, check_equal, scenario_beside_others

BUDGET_BYTES = 64 << 20
BATCH_BYTES = 64 * 4096  # dataplane/memory/evictor.h


class Resident(Sampled):
    """Looks at the RAM files of the main host, all the time, and remembers the most that was allocated."""

    def __init__(self, lab, host):
        super().__init__(lambda: (allocated(lab.memory_dir(host), ".ram"),), 0.005)

    @property
    def most_bytes(self):
        return self.most()


def split_of(lab):
    return lab.ctl("vm", "show", "guest")["split"]


def connected(lab):
    split = split_of(lab)
    return bool(split) and [sub["state"] for sub in split["subs"]] == ["CONNECTED"] * 2


def subs_of(lab):
    split = split_of(lab)
    return {sub["host"]: sub["state"] for sub in split["subs"]} if split else {}


def self_check(lab):
    ok, text = lab.verdict("guest", "host-a")
    check(ok, f"guest: {text}")


@scenario_beside_others
def split_and_gathered():
    with Lab(hosts=3, options={"lend": "512MiB", "metrics": True}) as lab:
        lab.start()
        lab.start_vm(**SMALL, rate=200)
        lab.ctl("vm", "split", "guest", "--budget", "64MiB", "--sub", "host-b", "--sub", "host-c")
        wait_until("both sub hosts to be connected", lambda: connected(lab), 30, 0.1)
        wait_until("the guest to be within its budget", lambda: 0 < split_of(lab)["resident_bytes"] <= BUDGET_BYTES, 60, 0.1)
        check_metrics_of_split(lab, "host-a", ["host-b", "host-c"])
        with Resident(lab, "host-a") as resident:
            self_check(lab)
            lab.kill("dataplane host-b")
            wait_until("the operator to be told", lambda: split_of(lab)["warnings"], 30, 0.1)
            restart(lab, "dataplane host-b")
            wait_until("the sub host to be connected again", lambda: connected(lab), 60, 0.1)
            self_check(lab)
        most_bytes = resident.most_bytes
        print(f"at most {most_bytes >> 10} KiB were resident", flush=True)
        check(most_bytes <= BUDGET_BYTES + BATCH_BYTES, f"{most_bytes} bytes were resident")
        check(split_of(lab)["refetched_pages"] > 0, "no page came back: there was nothing to prove")
        lab.ctl("vm", "gather", "guest")
        wait_until("all of it to be back", lambda: split_of(lab) is None, 120, 0.1)
        self_check(lab)
        for host in ("host-b", "host-c"):
            wait_until(f"{host} to have freed it", lambda host=host: not os.listdir(f"{lab.directory}/{host}/state/stores"), 30, 0.1)
        check_equal([host["memory_lent_bytes"] for host in lab.ctl("hosts")], [0, 0, 0], "what is still lent")


@scenario_beside_others
def a_guest_is_paused_while_a_sub_host_is_away():
    def warned(*words):
        return any(all(word in warning for word in words) for warning in split_of(lab)["warnings"])

    def is_paused():
        return lab.ctl("vm", "show", "guest")["run_state"] == "paused"

    with Lab(hosts=2, options={"lend": "512MiB"}) as lab:
        lab.start()
        lab.start_vm(**SMALL, rate=200)
        lab.ctl("vm", "split", "guest", "--budget", "64MiB", "--sub", "host-b")
        wait_until("the guest to be within its budget", lambda: 0 < split_of(lab)["resident_bytes"] <= BUDGET_BYTES, 60, 0.1)
        lab.kill("dataplane host-b")
        wait_until("the guest to be paused", is_paused, 60, 0.1)
        wait_until("the operator to be told why", lambda: warned("is paused", "pages ", "host-b", "goes on by itself"), 30, 0.1)
        restart(lab, "dataplane host-b")
        wait_until("the guest to go on", lambda: not is_paused(), 60, 0.1)
        self_check(lab)
        wait_until("no warning to be left", lambda: not split_of(lab)["warnings"], 30, 0.1)

        lab.kill("dataplane host-b")
        for name in os.listdir(lab.memory_dir("host-b")):
            os.remove(f"{lab.memory_dir('host-b')}/{name}")
        restart(lab, "dataplane host-b")
        wait_until("the guest to be paused for good", is_paused, 60, 0.1)
        wait_until("the operator to be told what helps", lambda: warned("host-b has lost", "godwitctl stop"), 60, 0.1)
        lab.ctl("stop", "guest")  # though a processor of it waits for what never comes
        check_equal(([vm["run_state"] for vm in lab.ctl("vms")], lab.qemu_pids("host-a")), (["stopped"], []), "VMs, and QEMUs")


@scenario_beside_others
def a_sub_host_is_drained():
    with Lab(hosts=3, options={"lend": "512MiB"}) as lab:
        lab.start()
        lab.start_vm(**SMALL, rate=200)
        lab.ctl("vm", "split", "guest", "--budget", "64MiB", "--sub", "host-b", "--encryption", "aes-256-gcm")
        wait_until("pages to be there", lambda: split_of(lab)["pages_missing"] > 0 and subs_of(lab) == {"host-b": "CONNECTED"}, 60, 0.1)
        drained = lab.ctl("host", "drain", "host-b")
        check_equal([part["refusal"] for part in drained["parts"]], [""], "what stays on host-b")
        wait_until("pages to move", lambda: split_of(lab)["moved_pages"] > 0, 60, 0.05)
        lab.kill("dataplane host-b")
        restart(lab, "dataplane host-b")
        wait_until("host-c to hold it alone", lambda: subs_of(lab) == {"host-c": "CONNECTED"}, 120, 0.1)
        wait_until("host-b to have freed it", lambda: not os.listdir(f"{lab.directory}/host-b/state/stores"), 30, 0.1)
        check_equal([host["memory_lent_bytes"] > 0 for host in lab.ctl("hosts")], [False, False, True], "who still lends")
        self_check(lab)
        check_equal(split_of(lab)["warnings"], [], "warnings")
        lab.ctl("vm", "gather", "guest")
        wait_until("all of it to be back", lambda: split_of(lab) is None, 120, 0.1)
        self_check(lab)
