"""usage: python3 -m perf.system.tracking [--json FILE] [--turns N]

How fast a guest writes its memory, with and without tracking. Two guests that write a word of every page over and over, one tracked by godwit, one under
QEMU alone on the same kind of RAM file; they take turns, the other one paused, so that drift of the machine meets both. The first sweep after a move
has every page armed: it shows what a page's first write costs.
"""

import argparse
import time

from tests.lab.configs import kernel_line
from tests.lab.lab import Lab
from tests.lab.peer import PeerVm
from tests.lab.processes import wait_until

from .report import Report, median

MIB = 256


def sweeps_during(console, seconds):
    """Rates of the whole sweeps that fell into the next seconds, one at least; the one that was under way when it began is left out."""
    before = len(console.bench_rates())
    time.sleep(seconds)
    wait_until("a whole sweep", lambda: len(console.bench_rates()) >= before + 2, 60)
    return console.bench_rates()[before + 1:]


def in_turns(turns, console, qmp, plain):
    """Rates of the guest and of the plain one while the other is paused: (guest's, plain's). The plain one is paused before and after."""
    rates = [], []
    for _ in range(turns):
        rates[0].extend(sweeps_during(console, 2))
        qmp("stop")
        plain.qemu.qmp("cont")
        rates[1].extend(sweeps_during(plain.qemu.console, 2))
        plain.qemu.qmp("stop")
        qmp("cont")
    return rates


def measure(turns, mode="bench", image=None):
    """({"tracked": rates, "untracked": rates}, rate of the first sweep after the move) of a guest that writes, or of what another one's `mode` does."""
    with Lab() as lab:
        lab.guest = image or lab.guest
        lab.start()
        lab.start_vm(mem_mib=MIB + 128, mb=MIB, mode=mode, wait=False)
        plain = PeerVm(lab, MIB + 128, kernel_line(MIB, 0, mode), ram_files=True)
        wait_until("the tracked guest to fill its memory", lab.console("guest", "host-a").filled, 240)
        plain.qemu.qmp("stop")
        before = len(lab.console("guest", "host-b").bench_rates())
        lab.migrate("guest", "host-b", on_no_convergence="stop-anyway", rounds_max=2)
        console = lab.console("guest", "host-b")
        wait_until("sweeps after the move", lambda: len(console.bench_rates()) >= before + 4, 60)
        first = console.bench_rates()[before + 1]  # the sweep in which the move fell is left out
        tracked = lab.qmp("guest", "host-b")
        rates = dict(zip(("tracked", "untracked"), in_turns(turns, console, tracked, plain)))
        tracked.close()
        plain.end()
    return rates, first


def measure_attached(mode, image, seconds):
    """({"untracked": rates, "tracked": rates}, rate of the sweep that pays most for first writes) of one guest in one QEMU, attached while it runs.

    Nothing but tracking is different then: where two QEMUs have their memory may make more of a difference to a kernel that is bound by it.
    """
    with Lab() as lab:
        lab.guest = image
        lab.start()
        definition = lab.write_vm_definition("guest", mem_mib=MIB + 128, mb=MIB, mode=mode)
        monitor = "${base}-second.qmp"
        plain = PeerVm(lab, MIB + 128, kernel_line(MIB, 0, mode), ram_files=True,
                       arguments=("-uuid", lab.uuids["guest"], "-name", "guest", "-qmp", f"unix:{monitor},server=on,wait=off"))
        console = plain.qemu.console
        wait_until("the guest's first sweeps", lambda: len(console.bench_rates()) > 4, 60)
        rates = {"untracked": sweeps_during(console, seconds)}
        before = len(console.bench_rates())
        lab.ctl("attach", "-f", definition, "--host", "host-a", "--qmp", monitor.replace("${base}", plain.qemu.base))
        rates["tracked"] = sweeps_during(console, seconds)
        first = min(console.bench_rates()[before:-len(rates["tracked"])])
        lab.ctl("stop", "guest")
        plain.end()
    return rates, first


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    report = Report("tracking")
    rates, first = measure(options.turns)
    report.rates(**rates)
    report.metrics["first_sweep_pages_per_s"] = first
    report.metrics["first_write_ns"] = 1e9 / first - 1e9 / median(rates["tracked"])
    report.row(guest="first sweep after arming", pages_per_s=first, sweeps=1)
    report.ratio("steady_state", median(rates["tracked"]) / median(rates["untracked"]), 0.99, at_most=False)
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
