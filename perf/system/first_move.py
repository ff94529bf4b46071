"""usage: python3 -m perf.system.first_move [--json FILE] [--repeat N]

The same guest as return-trip, idle, nothing to reuse, over veth: godwit, stock QEMU's single-stream pre-copy, and multifd with 2 and 4 channels, in
turn, N times. Total time counts from the start of the transfer until the guest runs at the destination; starting QEMU there is in nobody's time.
"""

import argparse
import time

from tests.lab.configs import kernel_line
from tests.lab.lab import Lab, total_us
from tests.lab.network import DATA
from tests.lab.peer import PeerVm

from .report import Report, median

PEERS = {"QEMU": 0, "QEMU multifd 2": 2, "QEMU multifd 4": 4}


def other(lab, host):
    return lab.hosts[1] if host == lab.hosts[0] else lab.hosts[0]


def godwit_moves(lab, repeat):
    lab.start()
    lab.start_vm(mem_mib=1024, mb=500, rate=0)
    time.sleep(2)
    moves, here = [], "host-a"
    for _ in range(repeat):
        here = other(lab, here)
        wire = lab.network.wire_bytes(DATA)
        summary = lab.migrate("guest", here, reuse="never")
        ok, text = lab.verdict("guest", here)
        moves.append({"total_ms": total_us(summary) / 1e3, "blackout_ms": summary["downtime_us"] / 1e3, "pages_sent": summary["stats"]["pages_sent"],
                      "wire_bytes": lab.network.wire_bytes(DATA) - wire, "ok": ok, "verdict": text})
        time.sleep(1)
    lab.ctl("stop", "guest")
    lab.stop_daemons()
    return moves


def qemu_moves(lab, repeat):
    moves = {name: [] for name in PEERS}
    vm, here = PeerVm(lab, 1024, kernel_line(500, 0)), "host-a"
    try:
        time.sleep(2)
        for _ in range(repeat):
            for name, channels in PEERS.items():
                here = other(lab, here)
                moves[name].append(vm.migrate(here, multifd=channels))
                time.sleep(1)
    finally:
        vm.end()
    return moves


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    report = Report("first-move")
    with Lab() as lab:
        systems = {"godwit": godwit_moves(lab, options.repeat), **qemu_moves(lab, options.repeat)}
    for name, moves in systems.items():
        totals = [m["total_ms"] for m in moves]
        report.row(system=name, total_ms=median(totals), best_ms=min(totals), worst_ms=max(totals), blackout_ms=median([m["blackout_ms"] for m in moves]),
                   wire_MiB=median([m["wire_bytes"] for m in moves]) / 2**20, pages=median([m["pages_sent"] for m in moves]),
                   Gbit_s=median([m["wire_bytes"] * 8e-6 / m["total_ms"] for m in moves]))
        report.metrics[name] = moves
    base = median([m["total_ms"] for m in systems["godwit"]])
    report.ratio("time_vs_qemu", base / median([m["total_ms"] for m in systems["QEMU"]]), 1.0)
    report.ratio("time_vs_multifd2", base / median([m["total_ms"] for m in systems["QEMU multifd 2"]]))
    report.ratio("time_vs_multifd4", base / median([m["total_ms"] for m in systems["QEMU multifd 4"]]))
    report.ratio("blackout_vs_qemu", median([m["blackout_ms"] for m in systems["godwit"]]) / median([m["blackout_ms"] for m in systems["QEMU"]]))
    report.finish(options.json)
    return 0 if all(m["ok"] for m in systems["godwit"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
