"""usage: python3 -m perf.system.idle [--json FILE] [--seconds N] [--probes N]

What a data plane costs that has nothing to do, and how fast it wakes: processor time of idle daemons on veth and on memif, and the time from an ARP
request of somebody else to the reply of a daemon that sleeps. The same from a kernel that answers ARP itself stands beside it.
"""

import argparse
import json
import os
import time

from tests.lab.lab import Lab
from tests.lab.network import PEER
from tests.lab.processes import LabError, run

from .report import Report

IDLE_PERCENT_MAX = 2.0


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_percent(lab, seconds):
    """Of one core, the busiest of the hosts' data planes."""
    pids = [lab.daemons[f"dataplane {host}"].pid for host in lab.hosts]
    time.sleep(2)
    before, begin = [cpu_seconds(pid) for pid in pids], time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - begin
    return max(100 * (cpu_seconds(pid) - was) / elapsed for pid, was in zip(pids, before))


def replies_us(lab, interface, address, probes):
    """Ascending; the probe runs in host-b's namespace, whose kernel or data plane has no part in it."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = run(*lab.network.command("host-b", "python3", "-B", "-m", "perf.system.arp_probe", interface, address, str(probes)), timeout=120, cwd=root)
    return sorted(json.loads(done.stdout))


def percentile(ascending, percent):
    return ascending[min(len(ascending) - 1, len(ascending) * percent // 100)]


def measure(report, label, options, seconds, probes):
    with Lab(options=options) as lab:
        lab.start()
        percent = idle_percent(lab, seconds)
        if "device" in options:
            report.row(port=label, idle_core_percent=percent)
            return percent, None
        daemon = replies_us(lab, "data0", lab.network.data_address("host-a"), probes)
        kernel = replies_us(lab, PEER, lab.network.peer_address("host-a"), probes)
    if not daemon or not kernel:
        raise LabError("no ARP request was answered")
    report.row(port=label, idle_core_percent=percent, answered=len(daemon), wake_us_p50=percentile(daemon, 50), wake_us_p99=percentile(daemon, 99))
    report.row(port="(the kernel's own ARP)", answered=len(kernel), wake_us_p50=percentile(kernel, 50), wake_us_p99=percentile(kernel, 99))
    return percent, daemon


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--probes", type=int, default=100)
    options = parser.parse_args()
    report = Report("idle")
    percent, daemon = measure(report, "net_af_packet", {}, options.seconds, options.probes)
    memif, _ = measure(report, "net_memif", {"device": "net_memif"}, options.seconds, options.probes)
    report.metrics["idle_core_percent"] = round(percent, 3)
    report.metrics["idle_core_percent.memif"] = round(memif, 3)
    report.metrics["wake_us_p50"], report.metrics["wake_us_p99"] = percentile(daemon, 50), percentile(daemon, 99)
    for name, value in (("idle_core_percent", percent), ("idle_core_percent.memif", memif)):
        report.notes.append(f"{name} = {value:.2f} (must be < {IDLE_PERCENT_MAX}): {'ok' if value < IDLE_PERCENT_MAX else 'MISSED'}")
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
