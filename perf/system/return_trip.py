"""usage: python3 -m perf.system.return_trip [--json FILE] [--rates 0,200,1000,5000] [--links veth,1gbit] [--away SECONDS]
                                           [--trips N]

A guest of 1 GiB with 500 MiB of random data goes from A to B, writes for 10 s there, and comes home. Pages really written are counted from outside:
pages of B's RAM at departure that differ from A's retained RAM. Stock QEMU does the same trip with its own pre-copy in the same run. Each point is N trips (3 unless told); times are their
medians, blackouts also from the shortest to the longest.
"""

import functools

from tests.lab.lab import total_us
from tests.lab.peer import PeerVm

from . import trips
from .report import run_points

ALLOWANCE_BYTES = 2 << 20


def figures(summary):
    return {"total_ms": total_us(summary) / 1e3, "blackout_ms": summary["downtime_us"] / 1e3, "pages_sent": summary["stats"]["pages_sent"],
            "reused": summary["stats"]["pages_reused"]}


def one(report, link, rate, options):
    ours_home = functools.partial(trips.trip_home, rate=rate, away=options.away, figures=figures)
    theirs_home = functools.partial(trips.peer_trip_home, rate=rate, away=options.away, out=PeerVm.migrate, home=PeerVm.migrate)
    ours, theirs = zip(*[trips.in_a_lab(link, ours_home, theirs_home) for _ in range(options.trips)])
    key = f"{link}.{rate}"
    for system, made in (("godwit", ours), ("QEMU", theirs)):
        wire = trips.middle(made, "wire_bytes")
        report.row(link=link, rate=rate, system=system, wire_MiB=wire / 2**20 if wire is not None else None, written=trips.middle(made, "written"),
                   sent=trips.middle(made, "pages_sent"), total_ms=trips.middle(made, "total_ms"), blackout_ms=trips.middle(made, "blackout_ms"),
                   blackouts=trips.spread(made, "blackout_ms"), guest=trips.fate(made))
        report.metrics[f"{system.lower()}.{key}"] = made
    # The worst of the trips must keep the bound on bytes; times are medians, for a machine shared with others has outliers.
    report.ratio(f"bytes_vs_written.{key}", max(max(0, t["wire_bytes"] - ALLOWANCE_BYTES) / (4096 * max(1, t["written"])) for t in ours), 1.10)
    if trips.middle(theirs, "wire_bytes") is not None:
        for name, figure, limit in (("bytes", "wire_bytes", None), ("time", "total_ms", None), ("blackout", "blackout_ms", 1.0)):
            report.ratio(f"{name}_vs_qemu.{key}", trips.middle(ours, figure) / trips.middle(theirs, figure), limit)
    return trips.warn_of_lost_guests(report, key, ours)


if __name__ == "__main__":
    raise SystemExit(run_points("return-trip", one, rates="0,200,1000,5000", links="veth,1gbit", away=10))
