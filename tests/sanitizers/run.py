#!/usr/bin/env python3
"""Builds and runs tests with sanitizers: run.py BUILD_FOLDER asan|tsan [--core | --all | TEST...]

Unit tests and simulations. --core: few, and small to build, for CI. With --all also those that link gRPC, whose generated code alone takes minutes to build, and
the integration scenarios. A test fails also for what any process reports that it started.

Simulations run fewer seeds: what a sanitizer finds, it finds in the first ones. Those that show that the simulation
itself bites are left out: they say nothing of memory. Writes BUILD_FOLDER/meson-logs/run-KIND.json as meson does, for
tests/report/summary.py. Exit status 0: all passed.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time

from options import environment, take_reports

SEEDS_SHARE = 50   # one seed in so many
SEEDS_MIN = 20
SLOWER = 6         # the time that a test may take, in times of its own limit
CORE = {'pages', 'wire', 'transport', 'transfer', 'memory', 'generations', 'lane-sim-from-1', 'transfer-sim-from-1'}
LINK_GRPC = ('bridge_', 'controlplane_', 'godwitctl_')
# Under TSan: those with threads of their own. Not here: pages, whose only threads are oneTBB's; controlplane_service,
# controlplane_tls, bridge_agent and the integration, whose threads are gRPC's; dataplane-smoke and the daemons, for both
# and for DPDK's buffers. These synchronise by atomics in libraries that TSan cannot see into, so it takes every task,
# call and buffer for a race.
THREADED = {'base', 'port', 'memory', 'demand-pager', 'evictor', 'dataplane', 'transfer', 'bridge_qmp_client', 'bridge_device_state',
            'bridge_switchover-1', 'bridge_switchover-2', 'bridge_never_given_up-1', 'bridge_never_given_up-2', 'bridge_never_given_up-3'}


def fewer_seeds(command):
    command = list(command)
    for i, argument in enumerate(command[:-1]):
        if argument == '--seeds':
            command[i + 1] = str(max(SEEDS_MIN, int(command[i + 1]) // SEEDS_SHARE))
    return command


def chosen(test, build, kind, names):
    suites = {suite.split(':')[-1] for suite in test['suite']}
    of_build = test['cmd'][0].startswith(os.path.abspath(build) + os.sep)
    is_scenario = 'integration' in suites and not of_build
    if not of_build and not is_scenario:
        return False  # a script
    if names == ['--core']:
        return test['name'] in CORE
    if names and names != ['--all']:
        return test['name'] in names
    if not names and (test['name'].startswith(LINK_GRPC) or is_scenario):
        return False
    if '--expect-caught' in test['cmd'] or not suites & {'unit', 'simulation', 'integration'}:
        return False
    return test['name'] in THREADED if kind == 'tsan' else True


def run(test):
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='godwit-reports-') as reports:
        try:
            done = subprocess.run(fewer_seeds(test['cmd']), cwd=test['workdir'],
                                  env={**os.environ, **environment(reports), **test['env']}, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
                                  timeout=SLOWER * test['timeout'], check=False)
            result, output = {0: 'OK', 77: 'SKIP'}.get(done.returncode, 'FAIL'), done.stdout
        except subprocess.TimeoutExpired as expired:
            result, output = 'TIMEOUT', (expired.stdout or b'').decode(errors='replace')
        if report := take_reports(reports):
            result, output = 'FAIL' if result == 'OK' else result, output + report
    print(f'{result:<8}{test["name"]:<28}{time.monotonic() - started:6.1f} s', flush=True)
    if result not in ('OK', 'SKIP'):
        print(output[-6000:], flush=True)
    return {'name': test['name'], 'result': result, 'stdout': output}


def introspect(build, what):
    listed = subprocess.run(['meson', 'introspect', what, build], stdout=subprocess.PIPE, check=True)
    return json.loads(listed.stdout)


def build_programs(build, tests):
    """The tests, and the programs that they start."""
    wanted = {identity for test in tests for identity in test['depends']}
    paths = [path for target in introspect(build, '--targets') if target['id'] in wanted for path in target['filename']]
    root = os.path.abspath(build) + os.sep
    programs = {os.path.relpath(path, root) for path in paths + [test['cmd'][0] for test in tests] if path.startswith(root)}
    return subprocess.run(['ninja', '-C', build, *sorted(programs)], check=False).returncode == 0


def main():
    build, kind, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    tests = [test for test in introspect(build, '--tests') if chosen(test, build, kind, names)]
    if not build_programs(build, tests):
        print(f'error: the build in {build} failed')
        return 1
    results = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results += pool.map(lambda test: run(test), [test for test in tests if test['is_parallel']])
    results += [run(test) for test in tests if not test['is_parallel']]
    with open(os.path.join(build, 'meson-logs', f'run-{kind}.json'), 'w', encoding='utf-8') as log:
        for result in results:
            log.write(json.dumps(result) + '\n')
    return 0 if all(result['result'] in ('OK', 'SKIP') for result in results) else 1


if __name__ == '__main__':
    sys.exit(main())
