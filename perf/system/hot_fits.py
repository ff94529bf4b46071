"""usage: python3 -m perf.system.hot_fits [--json FILE] [--turns N]

The speed of a guest that is split and whose working set fits the budget: of its memory it writes a quarter over and over, and half may be on the main
host. Beside it the same guest under QEMU alone, whole; they take turns, the other one paused, so that drift of the machine meets both. What counts is
after the working set has come back.
"""

import argparse

from tests.lab.configs import kernel_line
from tests.lab.lab import Lab
from tests.lab.peer import PeerVm
from tests.lab.processes import wait_until

from .report import Report, median
from .tracking import in_turns

MIB = 512
BUDGET_MIB = 256
WARM_UP_SWEEPS = 20


def split_of(lab):
    return lab.ctl("vm", "show", "guest")["split"]


def measure(turns):
    """((rates split, rates whole), pages refetched while they were measured, what `vm show` said last)."""
    with Lab(hosts=3, options={"lend": "768MiB"}) as lab:
        lab.start()
        lab.start_vm(mem_mib=MIB + 128, mb=MIB, mode="hot")
        plain = PeerVm(lab, MIB + 128, kernel_line(MIB, 0, "hot"), ram_files=True)
        plain.qemu.qmp("stop")
        lab.ctl("vm", "split", "guest", "--budget", f"{BUDGET_MIB}MiB", "--sub", "host-b", "--sub", "host-c")
        budget = BUDGET_MIB << 20
        wait_until("the guest to be within its budget", lambda: 0 < (split_of(lab) or {"resident_bytes": 0})["resident_bytes"] <= budget, 120, 0.2)
        console = lab.console("guest", "host-a")
        before = len(console.bench_rates())
        wait_until("the working set to be back", lambda: len(console.bench_rates()) >= before + WARM_UP_SWEEPS, 120)
        refetched = split_of(lab)["refetched_pages"]
        qmp = lab.qmp("guest", "host-a")
        rates = in_turns(turns, console, qmp, plain)
        qmp.close()
        split = split_of(lab)
        plain.end()
    return rates, split["refetched_pages"] - refetched, split


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    report = Report("hot-fits")
    rates, refetched, split = measure(options.turns)
    report.rates(split=rates[0], whole=rates[1])
    report.metrics["refetched_pages"] = refetched
    report.metrics["resident_bytes"] = split["resident_bytes"]
    report.row(guest="split: of its memory here, MiB", pages_per_s=split["resident_bytes"] >> 20)
    report.row(guest="split: refetched meanwhile, pages", pages_per_s=refetched)
    report.ratio("hot_fits", median(rates[0]) / median(rates[1]), 0.98, at_most=False)
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
