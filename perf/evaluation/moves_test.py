"""What perf/evaluate moves and counts with, on guests so small that it takes no time. Real daemons and real QEMU: needs root."""

import os
import sys
import unittest

from tests.lab.lab import end_on_signals

from .document import WIRE_MAY_DIFFER, wire_check
from .guests import SYSTEMS, Guest, hosts_with, there_and_back
from .terminal import TERMINAL


class Moves(unittest.TestCase):
    def test_both_guests_there_and_back(self):
        """Each at the rate that it is told; of godwit's both counters of its bytes agree. Stock QEMU may lose its guest: it says so."""
        made = {}
        with hosts_with("veth", SYSTEMS, Guest(mode="told", mem_mib=256, mb=64, arguments=TERMINAL)) as guests:
            for system, running in guests.items():
                running.write_at(500)
                made[system] = there_and_back(running, {}, 1)
                self.assertTrue(running.well or system == "qemu", made[system])
        out, home = (made["godwit"][leg] for leg in ("out", "home"))
        self.assertEqual(out["pages_reused"], 0)
        self.assertGreater(home["pages_reused"], 10000)
        self.assertLess(home["pages_sent"], out["pages_sent"] / 4)
        counted = wire_check([made["godwit"]])
        self.assertEqual(len(counted), 2)
        self.assertLess(max(deviation for deviation, _ in counted), WIRE_MAY_DIFFER)
        self.assertTrue("wire_bytes" in made["qemu"]["out"] or not made["qemu"]["out"]["ok"], made["qemu"])


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("SKIP: needs root (network namespaces, ptrace)")
        sys.exit(77)
    end_on_signals()
    unittest.main()
