"""What the benchmarks have in common that take a guest of 1 GiB with 500 MiB of random data from host to host: godwit's guest, stock QEMU's, their figures."""

import glob
import mmap
import os
import time

from tests.lab.configs import kernel_line
from tests.lab.lab import Lab
from tests.lab.network import DATA
from tests.lab.peer import PeerVm
from tests.lab.processes import LabError, run

from .report import median

SHAPES = {"veth": None, "1gbit": 1_000_000_000}
MEM_MIB, MB = 1024, 500


def ram_file(lab, host):
    return glob.glob(f"{lab.memory_dir(host)}/*.ram")[0]


def pages_that_differ(path_a, path_b):
    with open(path_a, "rb") as a, open(path_b, "rb") as b:
        size = os.fstat(a.fileno()).st_size
        with mmap.mmap(a.fileno(), size, prot=mmap.PROT_READ) as x, mmap.mmap(b.fileno(), size, prot=mmap.PROT_READ) as y:
            count = 0
            for at in range(0, size, 1 << 20):
                if x[at:at + (1 << 20)] != y[at:at + (1 << 20)]:
                    count += sum(x[p:p + 4096] != y[p:p + 4096] for p in range(at, at + (1 << 20), 4096))
            return count


def start_guest(lab, rate):
    lab.start_vm(mem_mib=MEM_MIB, mb=MB, rate=rate)


def start_peer(lab, rate):
    return PeerVm(lab, MEM_MIB, kernel_line(MB, rate))


def drop_images(lab):
    """What the guest has left on hosts where it was: the next move finds nothing to reuse, and nobody counts it as the guest's memory."""
    for image in lab.ctl("images"):
        if not image["in_use"]:
            lab.ctl("images", "drop", "--host", image["host"], "guest")


def postcopy_figures(summary):
    """Of a migration by post-copy, as the destination counted: what came, what waited for it, and until when.

    The total counts from the start of the transfer until all memory is there; that it was compared and all traces of the move are gone is settled_ms.
    """
    stats = summary["destination_stats"]
    paging = stats["paging"]
    if not paging["pages_missing_first"]:
        raise LabError(f"no page was missing when the guest went on: {summary}")
    latency = {f"fault_{name}_ms": paging[f"fault_{field}_us"] / 1e3
               for name, field in (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99_9", "p999"), ("max", "max"))}
    return {"total_ms": paging["all_there_us"] / 1e3, "settled_ms": stats["elapsed_us"] / 1e3, "blackout_ms": summary["downtime_us"] / 1e3, "blocked_ms": paging["blocked_us"] / 1e3,
            "faults": paging["faults"], "pages_sent": paging["pages_demand"] + paging["pages_background"], "pages_demand": paging["pages_demand"],
            "asked_again": paging["pages_asked_again"], **latency}


def trip_home(lab, rate, away, figures, **plan):
    """godwit's guest goes away by pre-copy, writes, and comes home by `plan`, of which `figures` takes what it wants."""
    lab.start()
    start_guest(lab, rate)
    time.sleep(3)
    lab.migrate("guest", "host-b")
    begin = time.monotonic()
    kept = f"{lab.shm}/kept.ram"
    run("cp", "--sparse=always", ram_file(lab, "host-a"), kept)
    ok_there, verdict_there = lab.verdict("guest", "host-b")
    time.sleep(max(0.0, away - (time.monotonic() - begin)))
    wire = lab.network.wire_bytes(DATA)
    summary = lab.migrate("guest", "host-a", **plan)
    wire = lab.network.wire_bytes(DATA) - wire
    ok, verdict = lab.verdict("guest", "host-a")
    written = pages_that_differ(kept, ram_file(lab, "host-b"))
    lab.ctl("stop", "guest")
    lab.stop_daemons()
    os.unlink(kept)
    return {"wire_bytes": wire, "written": written, **figures(summary), "ok": ok and ok_there, "verdict": verdict if ok_there else verdict_there}


def peer_trip_home(lab, rate, away, out, home):
    """The same under stock QEMU; `out` and `home` move it. A trip that it does not survive has no figures."""
    try:
        vm = start_peer(lab, rate)
        try:
            time.sleep(3)
            out(vm, "host-b")
            begin = time.monotonic()
            ok_there, verdict_there = vm.healthy()
            if not ok_there:
                return {"ok": False, "verdict": "lost on the way out: " + verdict_there}
            time.sleep(max(0.0, away - (time.monotonic() - begin)))
            result = home(vm, "host-a")
            result["ok"], result["verdict"] = vm.healthy()
            return result
        finally:
            vm.end()
    except LabError as error:
        return {"ok": False, "verdict": str(error)}


def in_a_lab(link, *trips):
    """Each trip in turn in hosts of its own network."""
    with Lab(shape_bps=SHAPES[link]) as lab:
        return [trip(lab) for trip in trips]


def middle(trips, key):
    values = [trip[key] for trip in trips if key in trip]
    return median(values) if values else None


def spread(trips, key):
    values = [trip[key] for trip in trips if key in trip]
    return f"{min(values):.1f}-{max(values):.1f}" if values else "-"


def fate(trips):
    ill = [trip["verdict"] for trip in trips if not trip["ok"]]
    return f"lost in {len(ill)} of {len(trips)}: {ill[0]}" if ill else trips[0]["verdict"]


def warn_of_lost_guests(report, key, trips):
    """Of godwit's; True if there is none."""
    report.notes += [f"{key}: THE GUEST IS NOT WELL: {trip['verdict']}" for trip in trips if not trip["ok"]]
    return all(trip["ok"] for trip in trips)
