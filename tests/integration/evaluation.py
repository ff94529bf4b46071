"""What perf/evaluate moves and counts with, on guests so small that it takes no time."""

from perf.evaluation.document import WIRE_MAY_DIFFER, wire_check
from perf.evaluation.guests import SYSTEMS, Guest, hosts_with, there_and_back
from perf.evaluation.terminal import TERMINAL

from .registry import check, check_equal, scenario_beside_others


@scenario_beside_others
def the_evaluation_moves_both_guests():
    """Each at the rate that it is told, there and back; of godwit's both counters of its bytes agree. Stock QEMU may lose its guest: it says so."""
    with hosts_with("veth", SYSTEMS, Guest(mode="told", mem_mib=256, mb=64, arguments=TERMINAL)) as guests:
        made = {}
        for system, running in guests.items():
            running.write_at(500)
            made[system] = there_and_back(running, {}, 1)
            check(running.well or system == "qemu", f"{system}: {made[system]}")
    out, home = (made["godwit"][leg] for leg in ("out", "home"))
    check_equal(out["pages_reused"], 0, "pages reused on the way out")
    check(home["pages_reused"] > 10000 and home["pages_sent"] < out["pages_sent"] / 4, f"nothing was reused: {home}")
    counted = wire_check([made["godwit"]])
    check(len(counted) == 2 and max(deviation for deviation, _ in counted) < WIRE_MAY_DIFFER, f"bytes on the wire: {counted}")
    check("wire_bytes" in made["qemu"]["out"] or not made["qemu"]["out"]["ok"], f"stock QEMU: {made['qemu']}")
