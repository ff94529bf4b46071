#!/usr/bin/env python3
"""Counts what meson's test runs did, test case by test case.

Usage: summary.py run-SUITE.json...   (meson test --logbase run-SUITE; one JSON object a line)

Lists failures, and skipped cases with their reasons; a line a suite; last the one line 'N passed, N failed, N skipped'.
A GoogleTest or TAP program counts by its cases, any other test as one. Exit status: 1 if anything failed, or nothing ran.
"""

import json
import os
import re
import sys

GTEST_CASE = re.compile(r'^\[ +(OK|FAILED|SKIPPED) +\] ([\w/]+\.[\w/]+)(?:, where .*?)? \(\d+ ms\)$', re.MULTILINE)
GTEST_RUN = re.compile(r'^\[ RUN +\] ([\w/]+\.[\w/]+)$', re.MULTILINE)
TAP_CASE = re.compile(r'^(not ok|ok)\b *\d*(?: *- *)?([^#\n]*)(?:# *(SKIP|TODO)\S* *(.*))?$', re.MULTILINE | re.IGNORECASE)
GOOD = {'OK', 'EXPECTEDFAIL'}


class Counts:
    def __init__(self):
        self.passed = 0
        self.failed = []   # names
        self.skipped = []  # (name, reason)

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def line(self):
        return f'{self.passed} passed, {len(self.failed)} failed, {len(self.skipped)} skipped'


def skip_reason(output, case):
    """What GTEST_SKIP() << ... said, between the case's RUN and SKIPPED lines."""
    start = output.find(f'] {case}\n')
    end = output.find(f'[  SKIPPED ] {case}', start)
    said = output[start + len(case) + 3:end].strip().splitlines() if start >= 0 and end > start else []
    # The first line is "file:line: Skipped".
    return ' '.join(line.strip() for line in said if not re.search(r': Skipped$', line)) or 'no reason given'


def count_gtest(name, output, good):
    counts = Counts()
    for result, case in GTEST_CASE.findall(output):
        if result == 'OK':
            counts.passed += 1
        elif result == 'FAILED':
            counts.failed.append(f'{name}: {case}')
        else:
            counts.skipped.append((f'{name}: {case}', skip_reason(output, case)))
    if not good and not counts.failed:
        # It crashed or ran out of time: in the case that began and did not end.
        ended = {case for _, case in GTEST_CASE.findall(output)}
        unfinished = [case for case in GTEST_RUN.findall(output) if case not in ended]
        counts.failed.append(f'{name}: {unfinished[-1] if unfinished else "ended badly"}')
    return counts


def count_tap(name, output, good):
    counts = Counts()
    for result, case, directive, reason in TAP_CASE.findall(output):
        label = f'{name}: {case.strip()}'
        if directive.upper() == 'SKIP':
            counts.skipped.append((label, reason.strip() or 'no reason given'))
        elif result.lower() == 'ok':
            counts.passed += 1
        else:
            counts.failed.append(label)
    if not good and not counts.failed:
        counts.failed.append(f'{name}: ended badly')
    return counts


def count_test(test):
    """Counts of one meson test."""
    # Meson's name is "project:suite / test".
    name, output = test['name'].split(' / ')[-1], test.get('stdout') or ''
    result = test['result']
    good = result in GOOD or result == 'SKIP'
    if GTEST_RUN.search(output) or '[==========]' in output:
        return count_gtest(name, output, good)
    if re.search(r'^(?:TAP version|1\.\.\d+)', output, re.MULTILINE):
        return count_tap(name, output, good)
    counts = Counts()
    if result == 'SKIP':
        counts.skipped.append((name, (output.strip().splitlines() or ['no reason given'])[-1]))
    elif good:
        counts.passed = 1
    else:
        counts.failed.append(f'{name}: {result.lower()}')
    return counts


def load(paths):
    """Suite -> counts; a log is named run-<suite>.json."""
    suites = {}
    for path in paths:
        suite = os.path.basename(path).removeprefix('run-').removesuffix('.json')
        counts = suites.setdefault(suite, Counts())
        if not os.path.exists(path):
            counts.failed.append(f'{path} is not there: the test run did not start')
            continue
        with open(path, encoding='utf-8', errors='replace') as file:
            for line in file:
                counts.add(count_test(json.loads(line)))
    return suites


def main():
    suites = load(sys.argv[1:])
    total = Counts()
    for counts in suites.values():
        total.add(counts)
    for name, reason in total.skipped:
        print(f'skipped  {name}: {reason}')
    for name in total.failed:
        print(f'FAILED   {name}')
    for suite, counts in suites.items():
        print(f'{suite + ":":<13}{counts.line()}')
    print(total.line())
    return 1 if total.failed or total.passed + len(total.skipped) == 0 else 0


if __name__ == '__main__':
    sys.exit(main())
