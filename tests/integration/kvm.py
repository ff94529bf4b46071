"""Guests under real hardware virtualisation. A paravirtual /dev/kvm emulates every instruction, and boots no kernel in useful time: there these are
skipped, and run in the machines of tests/kernel/nested.py."""

import os
import struct

from tests.lab.lab import Lab
from tests.lab.processes import wait_until

from .heat import PAGE, SCANS_KEPT, heat, pages_of, ram_file, scans_after
from .movement import home_and_away, moved
from .registry import Skip, check, check_equal, scenario
from .splitting import split_of

WORKLOAD_PAGES = 8192
PATIENT = {"host_heartbeat": "60s"}  # a machine of TCG stands still for seconds when the machine that it is in has other work


def needs_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Skip("no usable /dev/kvm")
    if not any(os.path.exists(f"/sys/module/{module}") for module in ("kvm_intel", "kvm_amd")):
        raise Skip("/dev/kvm is neither kvm_intel's nor kvm_amd's")


@scenario
def kvm():
    needs_kvm()
    with Lab(options=PATIENT) as lab:
        lab.start()
        home_and_away(lab, accel="kvm")


def workload_pages(pages):
    """Where the workload's pages are, by the number that each has; and those that the guest has never used."""
    numbered, unused = {}, []
    for at, page in enumerate(pages):
        version, number = struct.unpack_from("<2Q", page)
        if number < WORKLOAD_PAGES and version < 1 << 20 and page[-8:] != bytes(8):
            numbered[number] = at
        elif not page.strip(b"\0"):
            unused.append(at)
    check_equal(len(numbered), WORKLOAD_PAGES, "pages of the workload")
    return set(numbered.values()), unused


def heat_of(known, pages):
    """Mean heat of the cells that these pages are in."""
    cells = known["cells"]
    return sum(cells[page * len(cells) // known["page_count"]] for page in pages) / len(pages)


def pulled_and_split(lab, **plan):
    """vCPUs fault pages in over the network, and lose them again to a sub host, while they write."""
    moved(lab, "guest", "host-b", mode="postcopy", **plan)
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


def holes_of(lab):
    """Pages of the guest's RAM that have no memory here."""
    with open(ram_file(lab), "rb") as file:
        holes, at, end = set(), 0, os.fstat(file.fileno()).st_size
        while at < end:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # none any more
                data = end
            holes.update(range(at // PAGE, data // PAGE))
            at = os.lseek(file.fileno(), data, os.SEEK_HOLE) if data < end else end
    return holes


def what_is_hot_stays(lab, used):
    """When it is split, what was found accessed stays on the main host. The guest runs, so of what it needs some has come back."""
    lab.ctl("vm", "split", "guest", "--budget", "64MiB", "--sub", "host-b")
    wait_until("the guest to be within its budget", lambda: 0 < (split_of(lab) or {"resident_bytes": 0})["resident_bytes"] <= 64 << 20, 120, 0.2)
    away, back = used & holes_of(lab), split_of(lab)["refetched_pages"]
    evicted = split_of(lab)["evicted_pages"]
    print(f"{evicted} pages were evicted, {back} came back, {len(away)} of {len(used)} in use are away", flush=True)
    check(evicted > 1000, f"only {evicted} pages left: there was nothing to choose")
    check(len(away) + back < len(used) / 8, f"{len(away)} pages in use are away, and {back} came back")
    lab.ctl("vm", "gather", "guest")
    wait_until("all of it to be back", lambda: split_of(lab) is None, 240, 0.2)


# Scans often, and none where the guest is split: who knows what is cold sends away hardly anything that comes back.
SMALL_LAB = {"options": {**PATIENT, "lend": "512MiB", "heat_core_percent": {"host-a": 25, "host-b": 0}}}
SMALL_GUEST = {"mem_mib": 128, "mb": WORKLOAD_PAGES * PAGE >> 20, "rate": 100, "accel": "kvm"}


@scenario
def kvm_pulled_and_split():
    needs_kvm()
    with Lab(**SMALL_LAB) as lab:
        lab.start()
        lab.start_vm(**SMALL_GUEST)
        pulled_and_split(lab)


@scenario
def kvm_heat_by_module():
    """The module sees what a guest reads: pages that it reads all the time are hot, those that it never touches are not. In that order they follow it."""
    needs_kvm()
    if not os.path.exists("/dev/godwit-ept"):
        raise Skip("no /dev/godwit-ept: the module is not loaded")
    with Lab(**SMALL_LAB) as lab:
        lab.start()
        lab.start_vm(**SMALL_GUEST)
        known = scans_after(lab, heat(lab)["scans"], SCANS_KEPT + 1)  # none of the guest's start is left
        check_equal((known["source"], known["source_reason"]), ("module", ""), "source")
        used, unused = workload_pages(pages_of(lab))
        hot, cold = heat_of(known, used), heat_of(known, unused)
        print(f"scans of {known['period_us'] / 1e6:.1f} s: mean heat of {len(used)} pages in use {hot:.0f}, of {len(unused)} that are not {cold:.1f}", flush=True)
        # By what it writes alone, 100 of them from scan to scan, it would be 3.
        check(hot > 64, f"pages that the guest reads all the time have a heat of {hot:.0f} only")
        check(cold < hot / 16, f"pages that the guest never touches have a heat of {cold:.0f}")
        what_is_hot_stays(lab, used)
        pulled_and_split(lab, background_order="hottest-first")
