#!/usr/bin/env python3
"""Each header compiles alone, with the flags of a source file of its own folder. Usage: headers_alone.py BUILD_DIRECTORY

What a source file of the build includes before anything else has been compiled so already: it is not compiled again.
"""

import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys

from tidy import ROOT, files


FIRST_INCLUDE = re.compile(r'(?:\s*//.*\n|\s*\n)*#include "([^"]+)"')


def commands_by_folder(build):
    """Folder -> (arguments without output and input, working directory); and the headers that a source file begins with."""
    result, first = {}, set()
    with open(os.path.join(build, 'compile_commands.json'), encoding='utf-8') as file:
        entries = json.load(file)
    for entry in entries:
        source = os.path.realpath(os.path.join(entry['directory'], entry['file']))
        if not source.startswith(ROOT + os.sep) or not source.endswith('.cpp') or '.pb.' in source:
            continue
        with open(source, encoding='utf-8') as file:
            if match := FIRST_INCLUDE.match(file.read()):
                first.add(match.group(1))
        arguments = shlex.split(entry['command'])
        kept, skip = [], False
        for argument in arguments:
            if skip or argument in ('-c', '-MD', entry['file']):
                skip = False
            elif argument in ('-o', '-MQ', '-MF'):
                skip = True
            else:
                kept.append(argument)
        result.setdefault(os.path.dirname(os.path.relpath(source, ROOT)), (kept, entry['directory']))
    return result, first


def command_for(header, commands):
    folder = os.path.dirname(header)
    while folder and folder not in commands:
        folder = os.path.dirname(folder)
    return commands.get(folder)


def compile_alone(header, arguments, directory):
    # Compiled as what an #include of it gives: `#pragma once` in a main file would be a warning. To an object, from a file that stays: so a
    # compiler cache makes the second run cheap, where there is one in the build's own command.
    stem = os.path.join(directory, 'headers-alone', header.replace('/', '_'))
    os.makedirs(os.path.dirname(stem), exist_ok=True)
    source = f'#include "{header}"\n'
    if not os.path.exists(stem + '.cpp'):
        with open(stem + '.cpp', 'w', encoding='utf-8') as file:
            file.write(source)
    process = subprocess.run([*arguments, '-O0', '-g0', '-c', stem + '.cpp', '-o', stem + '.o'], cwd=directory, capture_output=True, text=True)
    return process.returncode, process.stderr


def main():
    build = os.path.abspath(sys.argv[1])
    commands, compiled = commands_by_folder(build)
    jobs = {}
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for header in (path for path in files() if path.endswith('.h') and path not in compiled):
            command = command_for(header, commands)
            if command is None:
                print(f'{header}: no source file of its folder is built, so its flags are unknown: not checked')
                continue
            jobs[pool.submit(compile_alone, header, *command)] = header
        for job in concurrent.futures.as_completed(jobs):
            status, errors = job.result()
            if status != 0:
                failed += 1
                print(f'{jobs[job]}:1: does not compile alone:\n{errors[:2000]}')
    print(f'{len(jobs)} headers, {failed} do not compile alone; {len(compiled)} were compiled so by the build')
    return 1 if failed or not jobs else 0


if __name__ == '__main__':
    sys.exit(main())
