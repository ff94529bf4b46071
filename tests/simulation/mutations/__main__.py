"""Does the simulation bite? Each mutation breaks one rule of the source; a simulation must fail and say which rule was broken.

    python3 -m tests.simulation.mutations [--only NAME] [--seeds N] [--keep]

Works on a copy of the tree in a temporary directory, builds only the simulations there, one mutation after the other,
and prints a table for docs/evaluation.md. Exit status 1: a mutation was not caught, or no longer fits the source.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from tests.simulation.mutations.catalogue import MUTATIONS, SPLIT

ROOT = pathlib.Path(__file__).resolve().parents[3]
SIMULATIONS = ('lane-sim', 'transfer-sim', 'split-sim')
# So few that a machine that is busy does not take them for a hang.
SEEDS_AT_ONCE = 100


def copy_tree(to):
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split('\0')
    for name in filter(None, names):
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)


def build(tree):
    targets = [f'tests/simulation/{name}' for name in SIMULATIONS]
    return subprocess.run(['ninja', '-C', 'build', '-j2', *targets], cwd=tree, capture_output=True, text=True, check=False)


def caught_by(tree, simulations, seeds):
    """(simulation, seed, rule) of the first failure, or None."""
    for name, first in ((name, first) for name in simulations for first in range(1, seeds + 1, SEEDS_AT_ONCE)):
        command = [tree / 'build/tests/simulation' / name, '--first', str(first), '--seeds', str(min(SEEDS_AT_ONCE, seeds + 1 - first))]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        except subprocess.TimeoutExpired:
            return name, '?', 'progress (it hangs)'
        if run.returncode == 0:
            continue
        found = re.search(r'^seed (\d+): ([\w-]+)', run.stdout, re.MULTILINE)
        if found:
            return name, found[1], found[2]
        assertion = re.search(r'assertion failed: (.*) \(', run.stderr)
        return name, '?', f'assertion {assertion[1]}' if assertion else f'status {run.returncode}'
    return None


def apply(tree, mutation):
    path = tree / mutation.path
    text = path.read_text()
    if text.count(mutation.old) != 1:
        return None
    path.write_text(text.replace(mutation.old, mutation.new))
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', help='the mutation of this name')
    parser.add_argument('--seeds', type=int, default=3000, help='of each simulation, at most')
    parser.add_argument('--keep', action='store_true', help='leave the copy of the tree')
    arguments = parser.parse_args()
    tree = pathlib.Path(tempfile.mkdtemp(prefix='godwit-mutations-'))
    failed = False
    try:
        copy_tree(tree)
        subprocess.run(['meson', 'setup', 'build'], cwd=tree, check=True, stdout=subprocess.DEVNULL)
        print('| mutation | rule that caught it | simulation, seed |\n|---|---|---|')
        for mutation in MUTATIONS:
            if arguments.only not in (None, mutation.name):
                continue
            original = apply(tree, mutation)
            if original is None:
                print(f'{mutation.name}: its text is not once in {mutation.path}', file=sys.stderr)
                failed = True
                continue
            built = build(tree)
            # Only one of them has what is in dataplane/split.
            simulations = ('split-sim',) if mutation.path.startswith(SPLIT) else SIMULATIONS
            result = caught_by(tree, simulations, arguments.seeds) if built.returncode == 0 else None
            (tree / mutation.path).write_text(original)
            if built.returncode != 0:
                print(f'{mutation.name}: does not build\n{built.stdout[-2000:]}', file=sys.stderr)
            failed = failed or result is None
            row = (f'`{result[2]}`', f'{result[0]}, {result[1]}') if result else ('**not caught**', '')
            print(f'| {mutation.what} | {row[0]} | {row[1]} |', flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(tree)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
