#!/usr/bin/env python3
"""Builds and runs the unit tests and simulations with sanitizers: run.py BUILD_FOLDER asan|tsan [--all | TEST...]

Without --all those are left out that link gRPC, whose generated code alone takes minutes to build.

Simulations run fewer seeds: what a sanitizer finds, it finds in the first ones. Those that show that the simulation
itself bites are left out: they say nothing of memory. Writes BUILD_FOLDER/meson-logs/run-KIND.json as meson does, for
tests/report/summary.py. Exit status 0: all passed.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import time

FOLDER = os.path.dirname(os.path.abspath(__file__))
SEEDS_SHARE = 50   # one seed in so many
SEEDS_MIN = 20
SLOWER = 6         # the time that a test may take, in times of its own limit
LINK_GRPC = ('bridge_', 'controlplane_', 'godwitctl_')
# Those with threads of their own.
THREADED = {'base', 'pages', 'memory', 'demand-pager', 'dataplane', 'transfer', 'controlplane_service', 'bridge_qmp_client',
            'bridge_device_state', 'bridge_agent', 'bridge_switchover', 'bridge_never_given_up', 'transfer_share'}


def environment(kind):
    options = dict(os.environ)
    options['ASAN_OPTIONS'] = 'detect_leaks=1:detect_stack_use_after_return=1'
    options['LSAN_OPTIONS'] = f'suppressions={FOLDER}/lsan.supp:print_suppressions=0'
    options['UBSAN_OPTIONS'] = 'print_stacktrace=1:halt_on_error=1'
    options['TSAN_OPTIONS'] = f'suppressions={FOLDER}/tsan.supp:halt_on_error=0:second_deadlock_stack=1'
    return options


def fewer_seeds(command):
    command = list(command)
    for i, argument in enumerate(command[:-1]):
        if argument == '--seeds':
            command[i + 1] = str(max(SEEDS_MIN, int(command[i + 1]) // SEEDS_SHARE))
    return command


def chosen(test, build, kind, names):
    suites = {suite.split(':')[-1] for suite in test['suite']}
    if not test['cmd'][0].startswith(os.path.abspath(build) + os.sep):
        return False  # a script
    if names and names != ['--all']:
        return test['name'] in names
    if not names and test['name'].startswith(LINK_GRPC):
        return False
    if '--expect-caught' in test['cmd'] or not suites & {'unit', 'simulation'}:
        return False
    return kind == 'asan' or test['name'] in THREADED


def run(test, kind):
    started = time.monotonic()
    try:
        done = subprocess.run(fewer_seeds(test['cmd']), cwd=test['workdir'], env={**environment(kind), **test['env']},
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors='replace', timeout=SLOWER * test['timeout'], check=False)
        result, output = {0: 'OK', 77: 'SKIP'}.get(done.returncode, 'FAIL'), done.stdout
    except subprocess.TimeoutExpired as expired:
        result, output = 'TIMEOUT', (expired.stdout or b'').decode(errors='replace')
    print(f'{result:<8}{test["name"]:<28}{time.monotonic() - started:6.1f} s', flush=True)
    if result not in ('OK', 'SKIP'):
        print(output[-6000:], flush=True)
    return {'name': test['name'], 'result': result, 'stdout': output}


def build_programs(build, tests):
    programs = {os.path.relpath(test['cmd'][0], os.path.abspath(build)) for test in tests}
    return subprocess.run(['ninja', '-C', build, *sorted(programs)], check=False).returncode == 0


def main():
    build, kind, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    listed = subprocess.run(['meson', 'introspect', '--tests', build], stdout=subprocess.PIPE, check=True)
    tests = [test for test in json.loads(listed.stdout) if chosen(test, build, kind, names)]
    if not build_programs(build, tests):
        print(f'error: the build in {build} failed')
        return 1
    results = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results += pool.map(lambda test: run(test, kind), [test for test in tests if test['is_parallel']])
    results += [run(test, kind) for test in tests if not test['is_parallel']]
    with open(os.path.join(build, 'meson-logs', f'run-{kind}.json'), 'w', encoding='utf-8') as log:
        for result in results:
            log.write(json.dumps(result) + '\n')
    return 0 if all(result['result'] in ('OK', 'SKIP') for result in results) else 1


if __name__ == '__main__':
    sys.exit(main())
