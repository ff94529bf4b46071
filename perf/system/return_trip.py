"""usage: python3 -m perf.system.return_trip [--json FILE] [--rates 0,200,1000,5000] [--links veth,1gbit] [--away SECONDS]

A guest of 1 GiB with 500 MiB of random data goes from A to B, writes for 10 s there, and comes home. Pages really written are counted from outside:
pages of B's RAM at departure that differ from A's retained RAM. Stock QEMU does the same trip with its own pre-copy in the same run.
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

from .report import Report

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


def one(report, link, rate, away):
    with Lab(shape_bps=SHAPES[link]) as lab:
        ours = godwit_trip(lab, rate, away)
        try:
            theirs = qemu_trip(lab, rate, away)
        except LabError as error:
            theirs = {"ok": False, "verdict": str(error)}
    key = f"{link}.{rate}"
    for system, r in (("godwit", ours), ("QEMU", theirs)):
        report.row(link=link, rate=rate, system=system, wire_MiB=r.get("wire_bytes", 0) / 2**20 if "wire_bytes" in r else None,
                   written=r.get("written"), sent=r.get("pages_sent"), total_ms=r.get("total_ms"), blackout_ms=r.get("blackout_ms"), guest=r["verdict"])
        report.metrics[f"{system.lower()}.{key}"] = r
    report.ratio(f"bytes_vs_written.{key}", max(0, ours["wire_bytes"] - ALLOWANCE_BYTES) / (4096 * max(1, ours["written"])), 1.10)
    if "wire_bytes" in theirs:
        report.ratio(f"bytes_vs_qemu.{key}", ours["wire_bytes"] / theirs["wire_bytes"])
        report.ratio(f"time_vs_qemu.{key}", ours["total_ms"] / theirs["total_ms"])
        report.ratio(f"blackout_vs_qemu.{key}", ours["blackout_ms"] / theirs["blackout_ms"], 1.0)
    if not ours["ok"]:
        report.notes.append(f"{key}: THE GUEST IS NOT WELL: {ours['verdict']}")
    return ours["ok"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--rates", default="0,200,1000,5000")
    parser.add_argument("--links", default="veth,1gbit")
    parser.add_argument("--away", type=float, default=10)
    options = parser.parse_args()
    report = Report("return-trip")
    well = [one(report, link, int(rate), options.away) for link in options.links.split(",") for rate in options.rates.split(",")]
    report.print()
    if options.json:
        report.write(options.json)
    return 0 if all(well) else 1


if __name__ == "__main__":
    raise SystemExit(main())
