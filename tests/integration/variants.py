"""Guests that move in less usual company: several at once, short of memory, over unequal networks, with RAM that cannot be retained, under KVM."""

import array
import os
import subprocess
import threading
import time

from tests.lab.console import Console
from tests.lab.lab import Lab
from tests.lab.processes import LabError, wait_until
from tests.lab.slow_disk import SlowReads

from .movement import SMALL, balloon_taken_and_given_back, home_and_away, moved, require_memory_for_hugepages
from .refusals import UUID, refused
from .registry import Skip, check, check_equal, scenario, scenario_beside_others


def retained(lab, host):
    return sorted(i["vm_name"] for i in lab.ctl("images") if i["host"] == host and not i["in_use"])


def arrived(lab, vm, destination, **plan):
    """As moved(), where hosts run other guests, too."""
    summary = lab.migrate(vm, destination, **plan)
    check_equal(summary["state"], "COMMITTED", f"state of {vm} ({summary.get('reason')})")
    check_equal(lab.where(vm), destination, f"owner of {vm}")
    ok, text = lab.verdict(vm, destination)
    check(ok, f"{vm} on {destination}: {text}")
    return summary


@scenario_beside_others
def opposite_directions_at_once():
    """Two guests change places, twice, each over the other's way."""
    with Lab() as lab:
        lab.start()
        homes = {"one": "host-a", "two": "host-b"}
        for vm, host in homes.items():
            lab.start_vm(name=vm, host=host, **SMALL, rate=100)
        errors, summaries = [], {}

        def move(vm, destination):
            try:
                summaries[vm] = arrived(lab, vm, destination)
            except (LabError, AssertionError) as error:
                errors.append(error)

        for places in ({"one": "host-b", "two": "host-a"}, homes):
            threads = [threading.Thread(target=move, args=item) for item in places.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            check(not errors, f"{errors}")
        for vm, summary in summaries.items():
            stats = summary["stats"]
            check(stats["pages_reused"] > stats["pages_total"] * 0.8, f"{vm} reused only {stats['pages_reused']} pages on its way home")


@scenario_beside_others
def least_recently_used_image_goes():
    """A host keeps within its memory budget: for a guest that starts, the image that was used longest ago goes, and no other."""
    with Lab(options={"memory_budget": {"host-a": "450MiB"}}) as lab:
        lab.start()
        for vm in ("one", "two"):
            lab.start_vm(name=vm, **SMALL)
            arrived(lab, vm, "host-b")
        check_equal(retained(lab, "host-a"), ["one", "two"], "images while there is room")
        home = arrived(lab, "one", "host-a")
        check(home["stats"]["pages_reused"] > 0, "the image of one was not reused")
        arrived(lab, "one", "host-b")
        check_equal(retained(lab, "host-a"), ["one", "two"], "images after one was home")
        lab.start_vm(name="three", **SMALL)
        check_equal(retained(lab, "host-a"), ["one"], "images beside a third guest")
        refused(lab, ["memory"], lambda: lab.migrate("two", "host-a"))
        ok, text = lab.verdict("two", "host-b")
        check(ok, text)


@scenario_beside_others
def mtu_differs_between_hosts():
    """The larger packets of one host would not reach the other."""
    with Lab(options={"mtu": {"host-b": 1500}}) as lab:
        lab.start()
        home_and_away(lab)


def hugetlbfs_with(tracker):
    require_memory_for_hugepages()
    with Lab(backing="hugetlbfs", tracker=tracker, options={"hugepages": 300}) as lab:
        lab.start()
        home_and_away(lab)


@scenario_beside_others
def hugetlbfs_write_protect_events():
    hugetlbfs_with("write-protect-events")


@scenario_beside_others
def hugetlbfs_hashes():
    hugetlbfs_with("hashes")


@scenario_beside_others
def free_page_reporting():
    """The guest gives free memory back by itself: what was in it is not to come back from an image."""
    with Lab() as lab:
        lab.start()
        lab.start_vm(**SMALL, rate=100, arguments=["-device", "virtio-balloon-pci,id=balloon0,free-page-reporting=on"])
        time.sleep(3)  # the guest reports about every two seconds
        for destination in ("host-b", "host-a", "host-b"):
            moved(lab, "guest", destination, verify="full")
            time.sleep(2)


@scenario_beside_others
def balloon_with_write_protect_events():
    balloon_taken_and_given_back(tracker="write-protect-events")


@scenario_beside_others
def balloon_with_hashes():
    balloon_taken_and_given_back(tracker="hashes")


def ram_without_a_name(**lab_options):
    with Lab(**lab_options) as lab:
        lab.start()
        qmp = f"{lab.directory}/host-a/theirs.qmp"
        definition = lab.write_vm_definition("guest", **SMALL, rate=100, vm_uuid=UUID)
        console = Console(f"{lab.directory}/host-a/theirs-console.log")
        theirs = subprocess.Popen(lab.network.command(
            "host-a", "qemu-system-x86_64", "-machine", "pc,memory-backend=ram0", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config",
            "-object", "memory-backend-memfd,id=ram0,size=256M,share=on", "-display", "none", "-uuid", UUID, "-name", "guest",
            "-kernel", f"{lab.guest}/vmlinuz", "-initrd", f"{lab.guest}/initramfs.gz", "-append", "console=ttyS0 quiet mb=96 rate=100",
            "-chardev", f"file,id=con,path={console.path},append=on", "-serial", "chardev:con", "-monitor", "none",
            "-qmp", f"unix:{qmp},server=on,wait=off"), stdin=subprocess.DEVNULL)
        try:
            wait_until("the guest to fill its memory", console.filled, 120)
            lab.ctl("attach", "-f", definition, "--host", "host-a", "--qmp", qmp)
            moved(lab, "guest", "host-b")
            check_equal(retained(lab, "host-a"), [], "images of RAM without a name")
            home = moved(lab, "guest", "host-a")
            check_equal(home["stats"]["pages_reused"], 0, "pages reused without an image")
        finally:
            theirs.kill()
            theirs.wait()


@scenario_beside_others
def memfd_moves_but_keeps_no_image():
    """RAM without a name cannot wait for its guest's return: said so, and the way home carries everything."""
    ram_without_a_name()


@scenario_beside_others
def memfd_under_the_units_capabilities():
    """The way to such RAM is through /proc: what the bridge's unit may do is enough."""
    ram_without_a_name(options={"as_units": True})


@scenario_beside_others
def direct_io_is_tracked_by_hashes():
    """A disk without host cache reads into pages that write protection does not see: only hashes may track such a guest."""
    with Lab() as lab:
        lab.start()
        disk = f"{lab.directory}/disk.img"
        with open(disk, "wb") as file:
            file.truncate(16 << 20)
        lab.start_vm(**SMALL, rate=100, arguments=["-drive", f"file={disk},format=raw,if=virtio,cache=none"])
        for destination, mode in (("host-b", "precopy"), ("host-a", "postcopy"), ("host-b", "postcopy"), ("host-a", "precopy")):
            summary = moved(lab, "guest", destination, verify="full", mode=mode)
            check_equal(summary["tracker"], "hashes", "tracker of a guest with cache=none")
            # Without hashes of what came after the guest the last way would bring everything.
        check(summary["stats"]["pages_reused"] > summary["stats"]["pages_total"] * 0.8, f"only {summary['stats']['pages_reused']} pages reused")


def disk_with_known_content(path, mib):
    """As the guest's workload expects: word i is (i + 1) times its constant."""
    words = mib << 17
    with open(path, "wb") as file:
        file.write(array.array("Q", ((i + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF for i in range(words))).tobytes())
        os.fsync(file.fileno())


@scenario_beside_others
def direct_io_reads_under_way_arrive():
    """Disk reads that began before a page was looked at and land after it: the guest finds them on the other side."""
    if SlowReads.missing():
        raise Skip(SlowReads.missing())
    with SlowReads("/tmp", 4 << 20) as disk_group, Lab() as lab:
        lab.start()
        disk = f"{lab.directory}/disk.img"
        disk_with_known_content(disk, 16)
        lab.start_vm(**SMALL, rate=100, mode="disk", arguments=["-drive", f"file={disk},format=raw,if=virtio,cache=none,readonly=on"])
        for source, destination in (("host-a", "host-b"), ("host-b", "host-a"), ("host-a", "host-b")):
            wait_until("the guest to read its disk", lambda s=source: lab.console("guest", s).disk_reads() > 200, 60)
            disk_group.slow_down(lab.qemu_pids(source)[0])
            time.sleep(1)  # until reads of the slow kind are under way
            # A busy machine sends fewer pages than the disk brings; what is tested is what arrives.
            moved(lab, "guest", destination, on_no_convergence="stop-anyway")
            before = lab.console("guest", destination).disk_reads()
            wait_until("the guest to read on", lambda d=destination, b=before: lab.console("guest", d).disk_reads() > b + 200, 60)
            ok, text = lab.verdict("guest", destination)
            check(ok, f"guest on {destination}: {text}")
