"""usage: perf/evaluate [--quick] [--out DIR] [--only BENCHMARK]...

Measures everything that docs/evaluation.md says of the two papers' tables and figures and of the peers, on this machine, in network namespaces, and writes
DIR/report.md, a JSON file a benchmark, and plots. Needs root and the built tree (GODWIT_BUILD, build). A run that was broken off goes on when it is
started again; what was measured with other programs or options is measured again.
"""

import argparse
import fcntl
import os
import sys

from tests.lab.lab import BUILD, end_on_signals
from tests.lab.processes import LabError

from . import changing, consolidation, document, miyakodori, peers, runner, scale, smemv
from .points import Store, programs_version

MODULES = (miyakodori, smemv, peers, scale, consolidation, changing)
QUICK_LIMIT_S = 14 * 60  # of the 15 minutes; the rest is for the report and what is under way


def arguments(given):
    parser = argparse.ArgumentParser(prog="perf/evaluate", description=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="each point once, fewer points; at most 15 minutes on 2 CPUs")
    parser.add_argument("--out", metavar="DIR", help="default: evaluation, or evaluation-quick, in the build directory")
    names = [benchmark.name for module in MODULES for benchmark in module.BENCHMARKS]
    parser.add_argument("--only", metavar="BENCHMARK", action="append", choices=names, help="this one, several times for several: " + ", ".join(names))
    options = parser.parse_args(given)
    options.out = options.out or os.path.join(BUILD, "evaluation-quick" if options.quick else "evaluation")
    return options


def main(given=None):
    options = arguments(given)
    end_on_signals()
    benchmarks = [benchmark for module in MODULES for benchmark in module.BENCHMARKS if not options.only or benchmark.name in options.only]
    if os.geteuid() != 0:
        print("perf/evaluate: needs root: it makes network namespaces and attaches to QEMU", file=sys.stderr)
        return 1
    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(options.out, "lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"perf/evaluate: another run writes to {options.out}", file=sys.stderr)
            return 1
        try:
            version = programs_version()
        except (LabError, OSError) as error:
            print(f"perf/evaluate: {error}", file=sys.stderr)
            return 1
        work = runner.work_of(benchmarks, options.quick, version)
        outcome = runner.run(work, Store(options.out), runner.Progress(), QUICK_LIMIT_S if options.quick else None,
                             leave=lambda: [benchmark.leave() for benchmark in benchmarks])
        print(document.write(options.out, benchmarks, outcome, version, options.quick))
    return 1 if outcome.failed or outcome.left_out else 0
