#!/usr/bin/env python3
"""The counts that run-tests ends with."""

import json
import os
import tempfile
import unittest

import summary

GTEST = '''Running main() from gtest_main.cc
[==========] Running 4 tests from 1 test suite.
[ RUN      ] A.Good
[       OK ] A.Good (0 ms)
[ RUN      ] A.Skips
../a.cpp:3: Skipped
no /dev/kvm here

[  SKIPPED ] A.Skips (0 ms)
[ RUN      ] P/A.Bad/0
../a.cpp:9: Failure
[  FAILED  ] P/A.Bad/0, where GetParam() = 4 (0 ms)
[ RUN      ] A.Last
'''
GTEST_END = '''[       OK ] A.Last (1 ms)
[==========] 4 tests from 1 test suite ran. (1 ms total)
[  PASSED  ] 2 tests.
[  SKIPPED ] 1 test, listed below:
[  SKIPPED ] A.Skips
[  FAILED  ] 1 test, listed below:
[  FAILED  ] P/A.Bad/0, where GetParam() = 4
'''


def counted(stdout, result, name='t'):
    return summary.count_test({'name': name, 'stdout': stdout, 'result': result})


class Counting(unittest.TestCase):
    def test_gtest(self):
        counts = counted(GTEST + GTEST_END, 'FAIL')
        self.assertEqual(counts.line(), '2 passed, 1 failed, 1 skipped')
        self.assertEqual(counts.failed, ['t: P/A.Bad/0'])
        self.assertEqual(counts.skipped, [('t: A.Skips', 'no /dev/kvm here')])

    def test_gtest_that_crashes_has_failed(self):
        crashed = GTEST.replace('[  FAILED  ] P/A.Bad/0, where GetParam() = 4 (0 ms)', '[       OK ] P/A.Bad/0 (0 ms)')
        for result in ('FAIL', 'ERROR', 'TIMEOUT', 'INTERRUPT'):
            self.assertEqual(counted(crashed, result).failed, ['t: A.Last'])

    def test_tap(self):
        counts = counted('TAP version 13\n1..3\nok 1 - a\nnot ok 2 - b\nok 3 - c # SKIP needs root\n', 'FAIL')
        self.assertEqual(counts.line(), '1 passed, 1 failed, 1 skipped')
        self.assertEqual(counts.skipped, [('t: c', 'needs root')])

    def test_exit_code(self):
        self.assertEqual(counted('ok', 'OK').line(), '1 passed, 0 failed, 0 skipped')
        self.assertEqual(counted('', 'TIMEOUT').failed, ['t: timeout'])
        self.assertEqual(counted('a\nskipped: no tool\n', 'SKIP').skipped, [('t', 'skipped: no tool')])
        self.assertEqual(counted('x', 'UNEXPECTEDPASS').line(), '0 passed, 1 failed, 0 skipped')

    def test_suites_and_missing_log(self):
        with tempfile.TemporaryDirectory() as directory:
            log = os.path.join(directory, 'run-unit.json')
            with open(log, 'w', encoding='utf-8') as file:
                for result in ('OK', 'OK', 'FAIL'):
                    file.write(json.dumps({'name': 'godwit:unit / n', 'result': result, 'stdout': ''}) + '\n')
            suites = summary.load([log, os.path.join(directory, 'run-kvm.json')])
        self.assertEqual(suites['unit'].passed, 2)
        self.assertEqual(suites['unit'].failed, ['n: fail'])
        self.assertEqual(len(suites['kvm'].failed), 1)


if __name__ == '__main__':
    unittest.main()
