"""usage: python3 -m tests.integration [--list | --list-beside-others] [SCENARIO ...]

Runs scenarios (all without arguments), one after another, each in a lab of its own. A scenario also fails if a daemon
that was built with sanitizers (GODWIT_BUILD) reported anything. Exit status 0: all passed, 77: all skipped, 1: any failed.
"""

import os
import sys
import tempfile
import time
import traceback

from tests.sanitizers.options import environment, take_reports

# They register their scenarios.
from . import certificates, encryption, failures, heat, metrics, movement, operating, postcopy, postcopy_switch, postcopy_variants, pulling  # noqa: F401
from . import evaluation, kvm, main_parts, refusals, split_moves, splitting, switchover, variants  # noqa: F401
from .registry import BESIDE_OTHERS, SCENARIOS, Skip


def main(arguments):
    if arguments == ["--list"]:
        print("\n".join(SCENARIOS))
        return 0
    if arguments == ["--list-beside-others"]:
        print("\n".join(sorted(BESIDE_OTHERS)))
        return 0
    if os.geteuid() != 0:
        print("SKIP: integration needs root (network namespaces, ptrace)")
        return 77
    with tempfile.TemporaryDirectory(prefix="godwit-reports-") as reports:
        os.environ.update(environment(reports, aborts=True))
        return run(arguments or SCENARIOS, reports)


def run(names, reports):
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for name in names:
        if name not in SCENARIOS:
            print(f"no scenario {name}: see --list")
            return 1
        begin = time.monotonic()
        try:
            SCENARIOS[name]()
            outcome, text = "passed", ""
        except Skip as reason:
            outcome, text = "skipped", f": {reason}"
        except Exception:  # a scenario's failure must not hide the next one's
            traceback.print_exc()
            outcome, text = "failed", ""
        if report := take_reports(reports):
            print(report)
            outcome, text = "failed", f": a sanitizer reported{text}"
        counts[outcome] += 1
        print(f"{name}: {outcome} in {time.monotonic() - begin:.1f} s{text}", flush=True)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    if counts["failed"]:
        return 1
    return 0 if counts["passed"] else 77


sys.exit(main(sys.argv[1:]))
