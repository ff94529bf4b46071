"""Guests that move: home and away, other routes, every tracker, both kinds of memory, several regions, users."""

import contextlib
import pwd
import subprocess

from tests.lab.console import Console
from tests.lab.lab import Lab
from tests.lab.processes import LabError, wait_until

from .registry import Skip, check, check_equal, scenario_beside_others

SMALL = {"mem_mib": 256, "mb": 96}


@contextlib.contextmanager
def guest_at_home(rate=100, vcpus=1, mode="", **lab):
    """A started lab (Lab's own arguments) with one small guest on host-a that writes `rate` pages a second."""
    with Lab(**lab) as lab:
        lab.start()
        lab.start_vm(**SMALL, rate=rate, vcpus=vcpus, mode=mode)
        yield lab


def moved(lab, vm, destination, **plan):
    """Migrates, and checks that the guest runs there, and only there, with its memory right."""
    summary = lab.migrate(vm, destination, **plan)
    check_equal(summary["state"], "COMMITTED", f"state ({summary.get('reason')})")
    check_equal(lab.where(vm), destination, "owner")
    ok, text = lab.verdict(vm, destination)
    check(ok, f"guest on {destination}: {text}")
    for host in lab.hosts:
        if host != destination:
            check_equal(len(lab.qemu_pids(host)), 0, f"QEMU left on {host}")
    return summary


def home_and_away(lab, plan=None, **guest):
    """A to B to A; the way home must be cheap: only what was written in between."""
    rate = 100
    plan = plan or {}
    lab.start_vm(**{**SMALL, "rate": rate, **guest})
    first = moved(lab, "guest", "host-b", **plan)
    check_equal(first["stats"]["pages_reused"], 0, "pages reused on the first move")
    wait_until("two seconds' writes on host-b", lambda: lab.console("guest", "host-b").written() >= 2 * rate)
    second = moved(lab, "guest", "host-a", **plan)
    total = second["stats"]["pages_total"]
    check(second["stats"]["pages_reused"] > total * 0.8, f"only {second['stats']['pages_reused']} of {total} pages reused")
    check(second["stats"]["pages_sent"] < first["stats"]["pages_sent"] / 3, f"sent {second['stats']['pages_sent']} pages on the way home")
    return first, second


@scenario_beside_others
def a_b_a():
    with Lab() as lab:
        lab.start()
        home_and_away(lab)
        images = lab.ctl("images")
        check_equal([i["host"] for i in images if not i["in_use"]], ["host-b"], "hosts with a retained image")


@scenario_beside_others
def a_b_a_mtu_1500():
    with Lab(mtu=1500) as lab:
        lab.start()
        home_and_away(lab)


@scenario_beside_others
def a_b_a_without_offloads():
    """Interfaces that send nothing but single frames: what leaves as a super-frame the kernel takes apart."""
    with Lab(options={"offloads": False}) as lab:
        lab.start()
        home_and_away(lab)


@scenario_beside_others
def a_b_a_ipv6():
    with Lab(options={"ipv6": True}) as lab:
        lab.start()
        home_and_away(lab)


@scenario_beside_others
def memif_a_b_a():
    """Two data planes of one machine, joined by shared memory."""
    with Lab(options={"device": "net_memif"}) as lab:
        lab.start()
        home_and_away(lab)


@scenario_beside_others
def several_lcores():
    """Two lcores and queues on each host: frames land on either, whoever owns their lane."""
    with Lab(options={"lcores": 2}) as lab:
        lab.start()
        home_and_away(lab)
        moved(lab, "guest", "host-b", verify="full")


@scenario_beside_others
def several_lcores_memif_mtu_1500():
    with Lab(mtu=1500, options={"lcores": 2, "device": "net_memif"}) as lab:
        lab.start()
        home_and_away(lab)


@scenario_beside_others
def other_devices_start():
    """Any DPDK port by its own devargs: these carry nothing anywhere, but the daemon must open them and be ready."""
    for device in ("net_null0,size=64", "net_ring0"):
        with Lab(options={"device": device}) as lab:
            lab.start_controlplane()
            daemon = lab.start_dataplane("host-a")
            wait_until(f"a data plane on {device}", lambda: daemon.check_alive() or "ready:" in daemon.log(), 30)


@scenario_beside_others
def dpdk_on_hugepages():
    require_memory_for_hugepages()
    with Lab(options={"dpdk_hugepages": True, "hugepages": 300}) as lab:
        lab.start()
        home_and_away(lab)


@scenario_beside_others
def a_b_c_a():
    with guest_at_home(hosts=3) as lab:
        moved(lab, "guest", "host-b")
        moved(lab, "guest", "host-c")
        home = moved(lab, "guest", "host-a")
        check(home["stats"]["pages_reused"] > home["stats"]["pages_total"] * 0.8, "way home by another host reused little")
        again = moved(lab, "guest", "host-b")
        check(again["stats"]["pages_reused"] > again["stats"]["pages_total"] * 0.8, "second visit to host-b reused little")


def with_tracker(tracker, **lab_options):
    with Lab(tracker=tracker, **lab_options) as lab:
        lab.start()
        first, second = home_and_away(lab)
        for summary in (first, second):
            check_equal(summary["tracker"], tracker, f"tracker used ({summary.get('tracker_reason')})")


@scenario_beside_others
def tracker_pagemap_scan():
    with_tracker("pagemap-scan")


@scenario_beside_others
def tracker_write_protect_events():
    with_tracker("write-protect-events")


@scenario_beside_others
def tracker_hashes():
    with_tracker("hashes")


def require_memory_for_hugepages():
    with open("/proc/meminfo") as file:
        free_kib = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    if free_kib < 4 << 20:
        raise Skip("less than 4 GiB of memory for hugepages")


@scenario_beside_others
def hugetlbfs():
    require_memory_for_hugepages()
    with Lab(backing="hugetlbfs", options={"hugepages": 300}) as lab:
        lab.start()
        home_and_away(lab)


@scenario_beside_others
def two_regions():
    with Lab() as lab:
        lab.start()
        home_and_away(lab, regions=2)


def of_another_user(**lab_options):
    try:
        user = pwd.getpwnam("nobody").pw_name
    except KeyError as error:
        raise Skip("no user nobody") from error
    with Lab(**lab_options) as lab:
        lab.start()
        home_and_away(lab, user=user)


@scenario_beside_others
def qemu_not_root():
    of_another_user()


@scenario_beside_others
def qemu_not_root_write_protect_events():
    of_another_user(tracker="write-protect-events")


@scenario_beside_others
def qemu_not_root_as_the_units_have_it():
    """Daemons with the capabilities of their units, directories with the modes that units and daemons give them."""
    for tracker in ("auto", "write-protect-events"):
        of_another_user(tracker=tracker, options={"as_units": True})


@scenario_beside_others
def verify_full():
    with guest_at_home() as lab:
        moved(lab, "guest", "host-b", verify="full")
        moved(lab, "guest", "host-a", verify="full")


@scenario_beside_others
def attach_to_running_qemu():
    """A QEMU that someone else started moves away and comes home."""
    with Lab() as lab:
        lab.start()
        ram, qmp = f"{lab.memory_dir('host-a')}/theirs.ram", f"{lab.directory}/host-a/theirs.qmp"
        definition = lab.write_vm_definition("guest", mem_mib=256, mb=96, rate=100, vm_uuid="11111111-2222-4333-8444-555555555555")
        console = Console(f"{lab.directory}/host-a/theirs-console.log")
        command = lab.network.command(
            "host-a", "qemu-system-x86_64", "-machine", "pc,memory-backend=ram0", "-accel", "tcg", "-m", "256", "-nodefaults",
            "-no-user-config", "-object", f"memory-backend-file,id=ram0,size=256M,mem-path={ram},share=on", "-display", "none",
            "-uuid", "11111111-2222-4333-8444-555555555555", "-name", "guest", "-kernel", f"{lab.guest}/vmlinuz", "-initrd", f"{lab.guest}/initramfs.gz",
            "-append", "console=ttyS0 quiet mb=96 rate=100", "-chardev", f"file,id=con,path={console.path},append=on", "-serial", "chardev:con",
            "-monitor", "none", "-qmp", f"unix:{qmp},server=on,wait=off")
        theirs = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            wait_until("the guest to fill its memory", console.filled, 120)
            lab.ctl("attach", "-f", definition, "--host", "host-a", "--qmp", qmp)
            moved(lab, "guest", "host-b")
            home = moved(lab, "guest", "host-a")
            check(home["stats"]["pages_reused"] > home["stats"]["pages_total"] * 0.8, "way home reused little")
        finally:
            theirs.kill()
            theirs.wait()


def balloon_taken_and_given_back(**lab_options):
    """Memory that the balloon takes on B must not come back from A's image."""
    with Lab(**lab_options) as lab:
        lab.start()
        lab.start_vm(**SMALL, rate=100, arguments=["-device", "virtio-balloon-pci,id=balloon0"])
        moved(lab, "guest", "host-b")
        qmp = lab.qmp("guest", "host-b")
        try:
            for mib in (180, 256):
                qmp("balloon", value=mib << 20)
                wait_until("the balloon to move", lambda: abs(qmp("query-balloon")["actual"] - (mib << 20)) < (4 << 20), 60, 0.1)
        finally:
            qmp.close()
        moved(lab, "guest", "host-a", verify="full")


@scenario_beside_others
def balloon():
    balloon_taken_and_given_back()


@scenario_beside_others
def images_are_listed_and_dropped():
    with Lab() as lab:
        lab.start()
        lab.start_vm(**SMALL)
        moved(lab, "guest", "host-b")
        images = [i for i in lab.ctl("images") if not i["in_use"]]
        check_equal([(i["host"], i["vm_name"]) for i in images], [("host-a", "guest")], "retained images")
        lab.ctl("images", "drop", "--host", "host-a", "guest")
        wait_until("the image to go", lambda: not [i for i in lab.ctl("images") if i["host"] == "host-a"], 10, 0.1)
        home = moved(lab, "guest", "host-a")
        check_equal(home["stats"]["pages_reused"], 0, "pages reused without an image")


@scenario_beside_others
def reuse_never_and_require():
    with Lab() as lab:
        lab.start()
        lab.start_vm(**SMALL)
        try:
            lab.migrate("guest", "host-b", reuse="require")
            raise AssertionError("reuse = require moved without an image")
        except LabError as error:
            check("image" in str(error), f"the refusal does not speak of the image: {error}")
        moved(lab, "guest", "host-b")
        home = moved(lab, "guest", "host-a", reuse="never")
        check_equal(home["stats"]["pages_reused"], 0, "pages reused with reuse = never")
        moved(lab, "guest", "host-b", reuse="require")
