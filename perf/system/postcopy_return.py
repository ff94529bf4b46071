"""usage: python3 -m perf.system.postcopy_return [--json FILE] [--rates 200] [--links veth] [--away SECONDS] [--trips N]

The trip of return-trip, but home by post-copy: what the destination lacks is what was written since. Stock QEMU does it by its own post-copy, out plain
and home with postcopy-preempt: it has nothing to reuse, so both are whole moves, and the faster of the two is what godwit is held against.
"""

import functools

from tests.lab.peer import PeerVm

from . import trips
from .report import run_points

LIMITS = {"pages_vs_written": 1.05, "total_vs_qemu": 0.2}


def theirs_home(lab, rate, away):
    out_totals = []

    def out(vm, destination):
        out_totals.append(vm.migrate_postcopy(destination)["total_ms"])

    trip = trips.peer_trip_home(lab, rate, away, out, functools.partial(PeerVm.migrate_postcopy, preempt=True))
    return {**trip, "best_total_ms": min(out_totals + [trip["total_ms"]])} if "total_ms" in trip else trip


def one(report, link, rate, options):
    ours_home = functools.partial(trips.trip_home, rate=rate, away=options.away, figures=trips.postcopy_figures, mode="postcopy")
    ours, theirs = zip(*[trips.in_a_lab(link, ours_home, functools.partial(theirs_home, rate=rate, away=options.away)) for _ in range(options.trips)])
    key = f"{link}.{rate}"
    for system, made in (("godwit", ours), ("QEMU", theirs)):
        wire = trips.middle(made, "wire_bytes")
        report.row(link=link, rate=rate, system=system, wire_MiB=wire / 2**20 if wire is not None else None, written=trips.middle(made, "written"),
                   pages=trips.middle(made, "pages_sent"), total_ms=trips.middle(made, "total_ms"), blackout_ms=trips.middle(made, "blackout_ms"),
                   blocked_ms=trips.middle(made, "blocked_ms"), faults=trips.middle(made, "faults"), guest=trips.fate(made))
        report.metrics[f"{system.lower()}.{key}"] = made
    found = {"pages_vs_written": max(t["pages_sent"] / max(1, t["written"]) for t in ours)}
    if trips.middle(theirs, "best_total_ms") is not None:
        found["total_vs_qemu"] = trips.middle(ours, "total_ms") / trips.middle(theirs, "best_total_ms")
    for name, value in found.items():
        report.ratio(f"{name}.{key}", value, LIMITS[name])
        report.ratios[name] = max(report.ratios.get(name, 0), report.ratios[f"{name}.{key}"])
    return trips.warn_of_lost_guests(report, key, ours)


if __name__ == "__main__":
    raise SystemExit(run_points("postcopy-return", one, rates="200", links="veth", away=10))
