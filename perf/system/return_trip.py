"""usage: python3 -m perf.system.return_trip [--json FILE] [--rates 0,200,1000,5000] [--links veth,1gbit] [--away SECONDS]
                                           [--trips N]

A guest of 1 GiB with 500 MiB of random data goes from A to B, writes for 10 s there, and comes home. Pages really written are counted from outside:
pages of B's RAM at departure that differ from A's retained RAM. Stock QEMU does the same trip with its own pre-copy in the same run. Each point is N trips (3 unless told); times are their
medians, blackouts also from the shortest to the longest.
"""

import argparse
import glob
import mmap
import os
import time

from tests.lab.lab import Lab, total_us
from tests.lab.network import DATA
from tests.lab.peer import PeerVm
from tests.lab.processes import LabError, run

from .report import Report, median

SHAPES = {"veth": None, "1gbit": 1_000_000_000}
ALLOWANCE_BYTES = 2 << 20


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


def godwit_trip(lab, rate, away):
    lab.start()
    lab.start_vm(mem_mib=1024, mb=500, rate=rate)
    time.sleep(3)
    lab.migrate("guest", "host-b")
    begin = time.monotonic()
    kept = f"{lab.shm}/kept.ram"
    run("cp", "--sparse=always", ram_file(lab, "host-a"), kept)
    ok_there, verdict_there = lab.verdict("guest", "host-b")
    time.sleep(max(0.0, away - (time.monotonic() - begin)))
    wire = lab.network.wire_bytes(DATA)
    summary = lab.migrate("guest", "host-a")
    wire = lab.network.wire_bytes(DATA) - wire
    ok, verdict = lab.verdict("guest", "host-a")
    written = pages_that_differ(kept, ram_file(lab, "host-b"))
    lab.ctl("stop", "guest")
    lab.stop_daemons()
    os.unlink(kept)
    return {"wire_bytes": wire, "written": written, "total_ms": total_us(summary) / 1e3, "blackout_ms": summary["downtime_us"] / 1e3,
            "pages_sent": summary["stats"]["pages_sent"], "reused": summary["stats"]["pages_reused"], "ok": ok and ok_there,
            "verdict": verdict if ok_there else verdict_there}


def qemu_trip(lab, rate, away):
    vm = PeerVm(lab, 1024, f"console=ttyS0 quiet mb=500 rate={rate}")
    try:
        time.sleep(3)
        vm.migrate("host-b")
        begin = time.monotonic()
        ok_there, verdict_there = vm.healthy()
        if not ok_there:
            return {"ok": False, "verdict": "lost on the way out: " + verdict_there}
        time.sleep(max(0.0, away - (time.monotonic() - begin)))
        result = vm.migrate("host-a")
        result["ok"], result["verdict"] = vm.healthy()
        return result
    finally:
        vm.end()


def one_trip(link, rate, away):
    """The same trip by godwit and by stock QEMU, each in hosts of its own; a trip that QEMU does not survive has no figures."""
    with Lab(shape_bps=SHAPES[link]) as lab:
        ours = godwit_trip(lab, rate, away)
        try:
            return ours, qemu_trip(lab, rate, away)
        except LabError as error:
            return ours, {"ok": False, "verdict": str(error)}


def middle(trips, key):
    values = [trip[key] for trip in trips if key in trip]
    return median(values) if values else None


def spread(trips, key):
    values = [trip[key] for trip in trips if key in trip]
    return f"{min(values):.1f}-{max(values):.1f}" if values else "-"


def one(report, link, rate, options):
    pairs = [one_trip(link, rate, options.away) for _ in range(options.trips)]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    key = f"{link}.{rate}"
    for system, trips in (("godwit", ours), ("QEMU", theirs)):
        wire = middle(trips, "wire_bytes")
        ill = [trip["verdict"] for trip in trips if not trip["ok"]]
        report.row(link=link, rate=rate, system=system, wire_MiB=wire / 2**20 if wire is not None else None, written=middle(trips, "written"),
                   sent=middle(trips, "pages_sent"), total_ms=middle(trips, "total_ms"), blackout_ms=middle(trips, "blackout_ms"),
                   blackouts=spread(trips, "blackout_ms"), guest=f"lost in {len(ill)} of {len(trips)}: {ill[0]}" if ill else trips[0]["verdict"])
        report.metrics[f"{system.lower()}.{key}"] = trips
    # The worst of the trips must keep the bound on bytes; times are medians, for a machine shared with others has outliers.
    report.ratio(f"bytes_vs_written.{key}", max(max(0, t["wire_bytes"] - ALLOWANCE_BYTES) / (4096 * max(1, t["written"])) for t in ours), 1.10)
    if middle(theirs, "wire_bytes") is not None:
        report.ratio(f"bytes_vs_qemu.{key}", middle(ours, "wire_bytes") / middle(theirs, "wire_bytes"))
        report.ratio(f"time_vs_qemu.{key}", middle(ours, "total_ms") / middle(theirs, "total_ms"))
        report.ratio(f"blackout_vs_qemu.{key}", middle(ours, "blackout_ms") / middle(theirs, "blackout_ms"), 1.0)
    report.notes += [f"{key}: THE GUEST IS NOT WELL: {trip['verdict']}" for trip in ours if not trip["ok"]]
    return all(trip["ok"] for trip in ours)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--rates", default="0,200,1000,5000")
    parser.add_argument("--links", default="veth,1gbit")
    parser.add_argument("--away", type=float, default=10)
    parser.add_argument("--trips", type=int, default=3)
    options = parser.parse_args()
    report = Report("return-trip")
    well = [one(report, link, int(rate), options) for link in options.links.split(",") for rate in options.rates.split(",")]
    report.print()
    if options.json:
        report.write(options.json)
    return 0 if all(well) else 1


if __name__ == "__main__":
    raise SystemExit(main())
