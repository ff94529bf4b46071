#!/usr/bin/env python3
"""Fuzzes one target: run.py PROGRAM [SECONDS]; SECONDS from FUZZ_SECONDS, or 30.

Starts from the target's corpus (tests/fuzz/corpus/TARGET) and its former findings (keep/TARGET), and keeps what it finds beside the program, in new/TARGET, so
that the next run goes on from there. Exit status: 0 nothing found, 1 a finding, with the command that replays it.
"""

import os
import re
import shutil
import subprocess
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
# Larger inputs say nothing more of most targets and are slow; messages and pieces have up to 64 KiB.
INPUT_BYTES_MAX = 16384
INPUT_SECONDS_MAX = 25  # longer than any waiting inside of a target
MEMORY_MIB_MAX = 2048
LINES_SHOWN = 60


def environment():
    options = dict(os.environ)
    options['ASAN_OPTIONS'] = 'detect_leaks=1:detect_stack_use_after_return=1:allocator_may_return_null=0'
    options['UBSAN_OPTIONS'] = 'print_stacktrace=1:halt_on_error=1'
    # binutils are there in any case, llvm-symbolizer may not be.
    options['ASAN_SYMBOLIZER_PATH'] = shutil.which('llvm-symbolizer') or shutil.which('addr2line') or ''
    return options


def command_line(program, target, seconds, new):
    dictionary = os.path.join(FOLDER, 'dictionaries', target + '.dict')
    folders = [folder for folder in (os.path.join(FOLDER, kind, target) for kind in ('corpus', 'keep')) if os.path.isdir(folder)]
    return [program, new, *folders, f'-max_total_time={seconds}',
            f'-max_len={INPUT_BYTES_MAX}', f'-timeout={INPUT_SECONDS_MAX}', f'-rss_limit_mb={MEMORY_MIB_MAX}',
            '-print_final_stats=1', '-verbosity=1', f'-artifact_prefix={new}-finding-',
            *([f'-dict={dictionary}'] if os.path.exists(dictionary) else [])]


def main():
    program = os.path.abspath(sys.argv[1])
    seconds = int(sys.argv[2] if len(sys.argv) > 2 else os.environ.get('FUZZ_SECONDS', '30'))
    target = os.path.basename(program).removeprefix('fuzz-')
    new = os.path.join(os.path.dirname(program), 'new', target)
    os.makedirs(new, exist_ok=True)
    done = subprocess.run(command_line(program, target, seconds, new), env=environment(), text=True, errors='replace',
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode == 0:
        runs = re.search(r'number_of_executed_units: (\d+)', done.stdout)
        print(f'{target}: {runs.group(1) if runs else "?"} inputs in {seconds} s, nothing found')
        return 0
    kept = re.search(r'Test unit written to (\S+)', done.stdout)
    start = re.search(r'^.*(?:property broken|ERROR: |runtime error|assertion failed).*$', done.stdout, re.MULTILINE)
    print('\n'.join(done.stdout[start.start() if start else -4000:].splitlines()[:LINES_SHOWN]))
    print(f'{target}: a finding; replay it with: {program} {kept.group(1) if kept else new}')
    return 1


if __name__ == '__main__':
    sys.exit(main())
