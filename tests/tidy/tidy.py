#!/usr/bin/env python3
"""What a reviewer would otherwise have to look for. `tidy.py rules` checks the whole tree; `tidy.py format` runs clang-format.

Every finding is path:line: what, and what to do instead. Exit status: 0 clean, 1 findings, 77 not possible here (a skip).
"""

import os
import re
import shutil
import subprocess
import sys

import cxx_source
import layers

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CXX = ('.h', '.cpp', '.cc', '.c')
TEXT = CXX + ('.py', '.md', '.toml', '.service', '.proto', '.build', '.sh', '')
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
SKIPPED_FOLDERS = {'.git', '.cache', '__pycache__', '.clangd', 'corpus', 'keep'}  # the last two: inputs of tests/fuzz, any bytes
SKIPPED_FILES = {'.git'}  # of a work tree

HOT = ('dataplane/transport/', 'dataplane/wire/', 'dataplane/pages/')
SANS_IO = HOT + ('dataplane/transfer/',)
DAEMONS = ('dataplane/', 'qemu-bridge/', 'controlplane/store/', 'controlplane/planner/', 'controlplane/tls/', 'controlplane/service/')
PRODUCTION = ('base/', 'pki/', 'config/', 'dataplane/', 'qemu-bridge/', 'controlplane/')
UNTIMED_TESTS = ('tests/unit/', 'tests/simulation/')

# (name, pattern over code without comments and literals, in which folders, not in which files, what to do instead)
BANNED = [
    ('assert', r'(?<![\w.>])assert\s*\(|<cassert>|<assert\.h>', (), r'$^', 'use GW_ASSERT (base/check.h): it stays in release builds'),
    ('if-0', r'^\s*#\s*if\s+0\b', (), r'$^', 'delete dead code: git keeps it'),
    ('print', r'\b(?:printf|fprintf|puts|fputs)\s*\(|std::c(?:out|err)\b', DAEMONS, r'/main\.c(?:pp|c)$', 'daemons log through spdlog (base/log.h)'),
    ('sleep', r'\b(?:usleep|nanosleep|sleep|sleep_for|sleep_until)\s*\(', UNTIMED_TESTS, r'$^', 'wait for the event, or give a clock as argument'),
    ('shared-ptr', r'\bstd::(?:shared_ptr|make_shared)\b', HOT, r'$^', 'one owner (unique_ptr, value) and plain references'),
    ('function', r'\bstd::function\b', HOT, r'executor', 'a template parameter or an interface: no allocation in the hot path'),
    ('clock', r'\b(?:steady_clock|system_clock|high_resolution_clock)\b|\bclock_gettime\s*\(', SANS_IO, r'executor', 'time is an argument (base/time.h)'),
    ('throw', r'\bthrow\b(?!\s+std::bad_alloc)', PRODUCTION, r'$^', 'errors are values: std::expected'),
    ('rte', r'\brte_\w+|\bRTE_\w+', PRODUCTION + ('perf/', 'tests/'), r'^(?:dataplane/port|tests/unit/port)/', 'DPDK appears only in dataplane/port: use its interface'),
]
COMMENT_BANNED = [
    ('todo', r'\b(?:TODO|FIXME|XXX)\b(?!\([\w-]+\))', 'name an owner, TODO(name), or do it'),
]
# On the line itself, with a reason: `usleep(100);  // tidy-allow(sleep): the pace of a writer`.
ALLOWED_HERE = re.compile(r'//.*\btidy-allow\((?P<name>[\w-]+)\): \S')
# Put together here so that this file does not find itself.
BUILD_MACHINE = re.compile('|'.join(['/wo' + 'rk/', '/ro' + r'ot/\w', '/ho' + r'me/[a-z]']))


def files():
    """Paths below the root, with '/' as separator."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not (folder == ROOT and f.startswith('build')))
        for name in sorted(set(names) - SKIPPED_FILES):
            yield os.path.relpath(os.path.join(folder, name), ROOT)


def read(path):
    with open(os.path.join(ROOT, path), encoding='utf-8', errors='replace') as file:
        return file.read()


def load_ratchet(text):
    """Lines '<what> <path>[:<function>] <lines>': what is too long today, and may only shrink."""
    ratchet = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith('#'):
            what, where, lines = line.split()
            ratchet[(what, where)] = int(lines)
    return ratchet


def length_problem(what, where, lines, limit, ratchet):
    allowed = ratchet.pop((what, where), None)
    if allowed is not None and lines < allowed:
        return f'{what} has shrunk to {lines} lines: write that into tests/tidy/ratchet.txt (or remove the line at {limit} or fewer)'
    if lines > (allowed if allowed is not None else limit):
        return f'{what} has {lines} lines, at most {allowed or limit}: split it by responsibility'
    return None


def check_lengths(path, text, ratchet):
    problem = length_problem('file', path, text.count('\n'), FILE_LINES_MAX, ratchet)
    if problem:
        yield 1, problem
    for line, name, lines in cxx_source.functions(text):
        problem = length_problem('function', f'{path}:{name.replace(" ", "")}', lines, FUNCTION_LINES_MAX, ratchet)
        if problem:
            yield line, f'{name}: {problem}'


def check_cxx(path, text, ratchet):
    """Yields (line, problem) of one C++ file."""
    code = cxx_source.without_literals(text)
    lines = text.split('\n')
    for name, pattern, folders, exempt, instead in BANNED:
        if (folders and not path.startswith(tuple(folders))) or re.search(exempt, path):
            continue
        if name == 'assert' and path == 'base/check.h':
            continue
        for match in re.finditer(pattern, code, re.MULTILINE):
            allowed = ALLOWED_HERE.search(lines[cxx_source.line_of(code, match.end()) - 1])
            if allowed and allowed.group('name') == name:
                continue
            yield cxx_source.line_of(code, match.start()), f'{match.group(0).strip()}: {instead} ({name})'
    with_comments = cxx_source.without_literals(text, keep_comments=True)
    for name, pattern, instead in COMMENT_BANNED:
        for match in re.finditer(pattern, with_comments):
            yield cxx_source.line_of(with_comments, match.start()), f'{match.group(0)}: {instead} ({name})'
    for line, included, quoted in cxx_source.includes(text):
        problem = layers.check_include(path, included) if quoted else None
        if problem:
            yield line, problem + ' (layers)'
    if path.endswith('.h') and '#pragma once' not in text:
        yield 1, 'a header starts with #pragma once'
    yield from check_lengths(path, text, ratchet)


def check_text(path, text):
    for match in BUILD_MACHINE.finditer(text):
        yield cxx_source.line_of(text, match.start()), f'{match.group(0)}...: a path of one machine has no place here'
    for number, line in enumerate(text.splitlines(), 1):
        if line.endswith((' ', '\t')) and not path.endswith('.md'):
            yield number, 'white space at the end of the line'


def check_packages():
    """Every package that is installed has its reason in docs/dependencies.md."""
    documented = read('docs/dependencies.md')
    packages = re.search(r'^packages=\(\n(.*?)^\)', read('scripts/install-dependencies'), re.MULTILINE | re.DOTALL)
    if packages is None:
        yield 1, 'has no list packages=(...)'
        return
    for package in packages.group(1).split():
        if f'`{package}`' not in documented:
            yield 1, f'{package} has no line in docs/dependencies.md: say what it is for'


def findings():
    ratchet = load_ratchet(read('tests/tidy/ratchet.txt'))
    for path in files():
        extension = os.path.splitext(path)[1]
        if extension not in TEXT or os.path.islink(os.path.join(ROOT, path)):
            continue
        text = read(path)
        yield from ((path, line, problem) for line, problem in check_text(path, text))
        if extension in CXX:
            yield from ((path, line, problem) for line, problem in check_cxx(path, text, ratchet))
    yield from (('meson.build', 1, problem) for problem in layers.check_order(read('meson.build')))
    yield from (('scripts/install-dependencies', line, problem) for line, problem in check_packages())
    for what, where in ratchet:
        yield 'tests/tidy/ratchet.txt', 1, f'{what} {where} is not there any more: remove the line'


def run_rules():
    count = 0
    for path, line, problem in findings():
        print(f'{path}:{line}: {problem}')
        count += 1
    print(f'{count} findings')
    return 1 if count else 0


def run_format():
    clang_format = shutil.which('clang-format')
    if clang_format is None:
        print('skipped: clang-format is not installed')
        return 77
    paths = [path for path in files() if os.path.splitext(path)[1] in CXX]
    result = subprocess.run([clang_format, '--dry-run', '-Werror', '--style=file', *paths], cwd=ROOT, capture_output=True, text=True)
    bad = sorted(set(re.findall(r'^(\S+?):\d+:\d+: (?:error|warning): code should be clang-formatted', result.stderr, re.MULTILINE)))
    for path in bad:
        print(f'{path}:1: not formatted: clang-format -i {path}')
    if result.returncode != 0 and not bad:
        print(result.stderr)
    return 1 if result.returncode != 0 else 0


def main():
    commands = {'rules': run_rules, 'format': run_format}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    return commands[sys.argv[1]]()


if __name__ == '__main__':
    sys.exit(main())
