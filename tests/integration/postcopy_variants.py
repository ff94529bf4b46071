"""Post-copy of guests in less usual company: under device I/O, on huge pages, with every tracker, a balloon, several processors, lcores and regions; and
many round trips in any mode."""

import os
import random
import time

from tests.lab.lab import Lab
from tests.lab.processes import wait_until

from .failures import Background, wait_state
from .movement import SMALL, guest_at_home, moved, require_memory_for_hugepages
from .postcopy import paging, pulled
from .registry import check, check_equal, scenario_beside_others
from .variants import disk_with_known_content

ROUND_TRIPS = int(os.environ.get("GODWIT_ROUND_TRIPS", "50"))


def there_and_back(lab, **guest):
    """By post-copy both ways. Home come the pages that were written away, and hardly another: what was placed here counts as unwritten."""
    lab.start_vm(**{**SMALL, "rate": 100, **guest})
    pulled(lab, "guest", "host-b", mode="postcopy")
    wait_until("two seconds' writes on host-b", lambda: lab.console("guest", "host-b").written() >= 200)
    home = pulled(lab, "guest", "host-a", mode="postcopy")
    total = home["stats"]["pages_total"]
    check(home["stats"]["pages_reused"] > total * 0.8, f"only {home['stats']['pages_reused']} of {total} pages reused")
    # In the file of a retained image the tracker's marks would not show what a wrong one costs: a third way does.
    moved(lab, "guest", "host-b", verify="full")
    return home


@scenario_beside_others
def postcopy_under_device_io():
    """Packets, disk reads past every cache and random numbers while pages are missing: devices and the host's kernel wait for pages, too."""
    with Lab() as lab:
        lab.start()
        disk = f"{lab.directory}/disk.img"
        disk_with_known_content(disk, 16)
        lab.start_vm(**SMALL, rate=500, mode="devices", arguments=[
            "-drive", f"file={disk},format=raw,if=virtio,readonly=on", "-netdev", "user,id=net0,restrict=on",
            "-device", "virtio-net-pci,netdev=net0,romfile=", "-object", "rng-random,id=rng0,filename=/dev/urandom",
            "-device", "virtio-rng-pci,rng=rng0"])
        for source, destination, mode in (("host-a", "host-b", "postcopy"), ("host-b", "host-a", "hybrid"), ("host-a", "host-b", "postcopy")):
            at_home = lab.console("guest", source)
            wait_until("the guest to use its devices", lambda c=at_home: c.disk_reads() > 100 and min(c.device_counts()) > 20, 60)
            moved(lab, "guest", destination, mode=mode, bandwidth_limit="400Mbit/s")
            away = lab.console("guest", destination)
            reads, echoes, draws = away.disk_reads(), *away.device_counts()
            wait_until("the guest to go on using its devices", lambda c=away, r=reads, e=echoes, d=draws:
                       c.disk_reads() > r + 100 and c.device_counts()[0] > e + 20 and c.device_counts()[1] > d + 20, 60)
            ok, text = lab.verdict("guest", destination)
            check(ok, f"guest on {destination}: {text}")


def _register_trackers():
    for tracker in ("write-protect-events", "hashes"):

        def body(tracker=tracker):
            with Lab(tracker=tracker) as lab:
                lab.start()
                check_equal(there_and_back(lab)["tracker"], tracker, "tracker")

        body.__name__ = f"postcopy_{tracker.replace('-', '_')}"
        scenario_beside_others(body)


_register_trackers()


@scenario_beside_others
def postcopy_hugetlbfs():
    require_memory_for_hugepages()
    with Lab(backing="hugetlbfs", options={"hugepages": 300}) as lab:
        lab.start()
        there_and_back(lab)


@scenario_beside_others
def postcopy_hugetlbfs_write_protect_events():
    require_memory_for_hugepages()
    with Lab(backing="hugetlbfs", tracker="write-protect-events", options={"hugepages": 300}) as lab:
        lab.start()
        there_and_back(lab)


@scenario_beside_others
def postcopy_several_of_everything():
    """Processors, memory regions, lcores; over memif in small packets."""
    with Lab(mtu=1500, options={"lcores": 2, "device": "net_memif"}) as lab:
        lab.start()
        there_and_back(lab, vcpus=2, regions=2)


@scenario_beside_others
def postcopy_several_userfaultfds():
    """More processors than one userfaultfd is to serve: the pages are divided among two."""
    with Lab() as lab:
        lab.start()
        there_and_back(lab, vcpus=9)


@scenario_beside_others
def postcopy_several_lcores():
    with Lab(options={"lcores": 2}) as lab:
        lab.start()
        there_and_back(lab, rate=2000)


@scenario_beside_others
def postcopy_in_clear_text():
    with Lab(options={"allow_clear_text": {"host-a": True, "host-b": True}}) as lab:
        lab.start()
        lab.start_vm(**SMALL, rate=500)
        for destination in ("host-b", "host-a"):
            pulled(lab, "guest", destination, mode="postcopy", encryption="none")


@scenario_beside_others
def postcopy_under_write_load():
    """A guest that writes half of its memory each second; the network takes two seconds for all of it."""
    with guest_at_home(rate=12000) as lab:
        for destination, mode in (("host-b", "postcopy"), ("host-a", "hybrid"), ("host-b", "postcopy")):
            moved(lab, "guest", destination, mode=mode, bandwidth_limit="400Mbit/s")


@scenario_beside_others
def postcopy_with_a_balloon():
    """Memory is given back while it is missing: it is zero then, whatever the source still has of it, and does not come.
    (A kernel that clears what it allocates would have it come before the balloon takes it.)"""
    with Lab() as lab:
        lab.start()
        lab.start_vm(**SMALL, rate=100, mode="freed init_on_alloc=0", arguments=["-device", "virtio-balloon-pci,id=balloon0"])
        given_back = 0
        for destination, mib in (("host-b", 180), ("host-a", 256), ("host-b", 180)):
            before = len(lab.ctl("migrations"))
            migration = Background(lab, "guest", destination, mode="postcopy", bandwidth_limit="200Mbit/s", reuse="never")
            wait_until("the migration to be known", lambda b=before: len(lab.ctl("migrations")) > b)
            check_equal(wait_state(lab, "PULLING"), "PULLING", "state")
            qmp = lab.qmp("guest", destination)
            qmp("balloon", value=mib << 20)
            wait_until(f"a guest of {mib} MiB", lambda q=qmp, m=mib: abs(q("query-balloon")["actual"] - (m << 20)) < 4 << 20, 60)
            qmp.close()
            migration.join()
            check(migration.error is None, f"the migration failed: {migration.error}")
            check_equal(migration.summary["state"], "COMMITTED", "state")
            given_back += paging(migration.summary).get("pages_given_back", 0)
            ok, text = lab.verdict("guest", destination)
            check(ok, f"guest on {destination}: {text}")
        check(given_back > 0, "the balloon took no page that was missing")


@scenario_beside_others
def postcopy_asks_for_no_empty_page():
    """Of a guest whose memory is mostly empty nothing crosses that is zero, neither as a fault nor in the background; what is reused neither."""
    with Lab() as lab:
        lab.start()
        lab.start_vm(mem_mib=1024, mb=64, rate=100)
        first = paging(pulled(lab, "guest", "host-b", mode="postcopy"))
        crossed = first["pages_demand"] + first["pages_background"]
        check(crossed < 1024 * 256 * 0.6, f"{crossed} pages crossed, most of 262144 are empty")
        check_equal(crossed + first["pages_given_back"], first["pages_missing_first"], "pages that crossed, of those that were missing")
        home = paging(pulled(lab, "guest", "host-a", mode="postcopy"))
        check(home["pages_missing_first"] < crossed / 2, f"{home['pages_missing_first']} pages were missing on the way home")
        check(home["faults"] <= home["pages_missing_first"], f"{home['faults']} faults for {home['pages_missing_first']} missing pages")


@scenario_beside_others
def round_trips_in_any_mode():
    """Seeded; GODWIT_SEED repeats the choices of a run, GODWIT_ROUND_TRIPS asks for more."""
    seed = int(os.environ.get("GODWIT_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"GODWIT_SEED={seed}", flush=True)
    choose = random.Random(seed)
    with Lab(options={"allow_clear_text": {"host-a": True, "host-b": True}}) as lab:
        lab.start()
        lab.start_vm(mem_mib=128, mb=32, rate=400)
        for trip in range(ROUND_TRIPS):
            for destination in ("host-b", "host-a"):
                plan = {"mode": choose.choice(("precopy", "postcopy", "hybrid")), "encryption": choose.choice(("aes-128-gcm", "aes-256-gcm", "none")),
                        "verify": choose.choice(("off", "sent", "full")), "on_no_convergence": "stop-anyway"}
                if choose.random() < 0.3:
                    plan["bandwidth_limit"] = choose.choice(("200Mbit/s", "1Gbit/s"))
                if plan["mode"] != "precopy":
                    plan["background_order"] = choose.choice(("around-faults", "sequential", "hottest-first"))
                try:
                    moved(lab, "guest", destination, **plan)
                except Exception as error:
                    raise AssertionError(f"seed {seed}, trip {trip} to {destination} by {plan}: {error}") from error
                time.sleep(choose.random() * 0.2)
