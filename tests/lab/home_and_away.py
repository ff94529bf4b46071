"""usage: python3 -m tests.lab.home_and_away [--mem-mib N] [--mb N] [--rate PAGES_PER_S] [--away SECONDS] [--shape BITS_PER_S] [--json FILE]

The main job on one machine: a real guest moves from host-a to host-b, works there, and comes home; then stock QEMU's own pre-copy does the same
with the same guest. Prints both side by side, with the guest's own verdict.
"""

import argparse
import json
import sys
import time

from .configs import kernel_line
from .lab import Lab, end_on_signals, total_us
from .network import DATA
from .peer import PeerVm
from .processes import LabError

ROWS = ("A to B", "B to A")


def say(text):
    print(text, flush=True)


def godwit_moves(lab, options):
    say(f"starting a control plane and {len(lab.hosts)} hosts, each a data plane and a bridge in a network namespace of its own; their certificates are\n"
        f"made by godwitctl pki init; their files are in {lab.directory} until the end")
    lab.start()
    say(f"booting the guest on host-a under godwit: {options.mem_mib} MiB, {options.mb} MiB of random data, {options.rate} pages written a second")
    lab.start_vm(mem_mib=options.mem_mib, mb=options.mb, rate=options.rate)
    moves = []
    for index, destination in enumerate(("host-b", "host-a")):
        time.sleep(3 if index == 0 else options.away)
        say(f"moving {ROWS[index]}")
        wire = lab.network.wire_bytes(DATA)
        summary = lab.migrate("guest", destination)
        stats = summary["stats"]
        ok, text = lab.verdict("guest", destination)
        moves.append({"wire_bytes": lab.network.wire_bytes(DATA) - wire, "total_ms": total_us(summary) / 1e3,
                      "blackout_ms": summary["downtime_us"] / 1e3, "pages_sent": stats["pages_sent"], "pages_reused": stats["pages_reused"],
                      "pages_zero": stats["pages_zero"], "rounds": stats["round"], "ok": ok, "verdict": text, "reuse": summary["reuse_reason"]})
        if not ok:
            break
    lab.ctl("stop", "guest")
    return moves


def qemu_moves(lab, options):
    say("booting the same guest under stock QEMU alone")
    vm = PeerVm(lab, options.mem_mib, kernel_line(options.mb, options.rate))
    moves = []
    try:
        for index, destination in enumerate(("host-b", "host-a")):
            time.sleep(3 if index == 0 else options.away)
            say(f"moving {ROWS[index]} with stock QEMU's pre-copy")
            try:
                move = vm.migrate(destination)
                move["ok"], move["verdict"] = vm.healthy()
            except LabError as error:  # stock QEMU may lose the guest; that is a result, not a reason to stop
                move = {"ok": False, "verdict": str(error)}
            moves.append(move)
            if not move["ok"]:
                break
    finally:
        vm.end()
    return moves


def table(results):
    head = ("", "", "wire MiB", "total s", "downtime ms", "pages sent", "pages reused", "guest")
    rows = [head]
    for index, direction in enumerate(ROWS):
        for system, moves in results.items():
            if index >= len(moves):
                rows.append((direction, system, "-", "-", "-", "-", "-", "not moved: see above"))
                continue
            m = moves[index]
            cells = [f"{m['wire_bytes'] / 2**20:.1f}", f"{m['total_ms'] / 1e3:.2f}", f"{m['blackout_ms']:.1f}", str(m["pages_sent"]),
                     str(m.get("pages_reused", 0))] if "wire_bytes" in m else ["-"] * 5
            rows.append((direction, system, *cells, m["verdict"]))
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    lines = []
    for number, row in enumerate(rows):
        lines.append("  ".join(c.ljust(w) if i in (0, 1, 7) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip())
        if number == 0:
            lines.append("-" * (sum(widths) + 2 * len(widths)))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="quickstart", description="the main job on one machine")
    parser.add_argument("--mem-mib", type=int, default=1024)
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--away", type=float, default=10)
    parser.add_argument("--shape", type=int, default=None, help="bits a second that the data network carries")
    parser.add_argument("--mtu", type=int, default=9000)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--without-peer", action="store_true", help="godwit alone")
    options = parser.parse_args()
    with Lab(mtu=options.mtu, shape_bps=options.shape, options={"as_units": True}) as lab:
        results = {"godwit": godwit_moves(lab, options)}
        lab.stop_daemons()
        if not options.without_peer:
            results["QEMU pre-copy"] = qemu_moves(lab, options)
    say("\n" + table(results) + "\n")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "results": results}, file, indent=2)
    return 0 if len(results["godwit"]) == 2 and all(m["ok"] for m in results["godwit"]) else 1


if __name__ == "__main__":
    end_on_signals()
    try:
        sys.exit(main())
    except LabError as error:
        print(f"home and away: {error}", file=sys.stderr)
        sys.exit(1)
