"""Guests under real hardware virtualisation. A paravirtual /dev/kvm emulates every instruction, and boots no kernel in useful time: there these are
skipped, and run in the machines of tests/kernel/nested.py."""

import os

from tests.lab.lab import Lab
from tests.lab.processes import wait_until

from .movement import home_and_away, moved
from .registry import Skip, check, scenario
from .splitting import split_of


def needs_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Skip("no usable /dev/kvm")
    if not any(os.path.exists(f"/sys/module/{module}") for module in ("kvm_intel", "kvm_amd")):
        raise Skip("/dev/kvm is neither kvm_intel's nor kvm_amd's")


@scenario
def kvm():
    needs_kvm()
    with Lab() as lab:
        lab.start()
        home_and_away(lab, accel="kvm")


@scenario
def kvm_pulled_and_split():
    """vCPUs fault pages in over the network, and lose them again to a sub host, while they write."""
    needs_kvm()
    with Lab(options={"lend": "512MiB"}) as lab:
        lab.start()
        lab.start_vm(mem_mib=128, mb=32, rate=100, accel="kvm")
        moved(lab, "guest", "host-b", mode="postcopy")
        print("it has moved", flush=True)
        lab.ctl("vm", "split", "guest", "--budget", "40MiB", "--sub", "host-a")
        wait_until("pages to lie on the sub host", lambda: (split_of(lab) or {}).get("pages_missing", 0) > 0, 120, 0.2)
        wait_until("pages to come back", lambda: split_of(lab)["refetched_pages"] > 100, 120, 0.2)
        ok, text = lab.verdict("guest", "host-b", timeout_s=120)
        check(ok, f"split guest: {text}")
        print(f"{split_of(lab)['refetched_pages']} pages came back", flush=True)
        lab.ctl("vm", "gather", "guest")
        wait_until("all of it to be back", lambda: split_of(lab) is None, 240, 0.2)
        ok, text = lab.verdict("guest", "host-b")
        check(ok, f"gathered guest: {text}")
