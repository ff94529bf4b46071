#!/usr/bin/env python3
"""Makes the corpora anew: corpus.py BUILD_FOLDER [TARGET...]

Each target's corpus becomes the smallest set of inputs that reaches what these reach: its seeds (made by our own
encoders), its corpus of before, and what runs of run.py have found since. Inputs in keep/TARGET are regressions and
stay as they are; every run begins with both.
"""

import os
import shutil
import subprocess
import sys
import tempfile

FOLDER = os.path.dirname(os.path.abspath(__file__))
INPUT_BYTES_MAX = 4096


def renew(program, target):
    corpus = os.path.join(FOLDER, 'corpus', target)
    found = os.path.join(os.path.dirname(program), 'new', target)
    with tempfile.TemporaryDirectory() as work:
        seeds, merged = os.path.join(work, 'seeds'), os.path.join(work, 'merged')
        os.makedirs(seeds)
        os.makedirs(merged)
        subprocess.run([program, '--write-seeds', seeds], check=True)
        folders = [seeds, *(folder for folder in (corpus, found) if os.path.isdir(folder))]
        subprocess.run([program, '-set_cover_merge=1', '-use_counters=0', f'-max_len={INPUT_BYTES_MAX}', merged, *folders], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Seeds stay under their names: they show what valid input looks like.
        for name in os.listdir(seeds):
            shutil.copy(os.path.join(seeds, name), merged)
        shutil.rmtree(corpus, ignore_errors=True)
        shutil.copytree(merged, corpus)
    names = os.listdir(corpus)
    print(f'{target}: {len(names)} inputs, {sum(os.path.getsize(os.path.join(corpus, name)) for name in names)} bytes')


def main():
    folder = os.path.join(os.path.abspath(sys.argv[1]), 'tests', 'fuzz')
    programs = sorted(name for name in os.listdir(folder)
                      if name.startswith('fuzz-') and os.access(os.path.join(folder, name), os.X_OK)
                      and os.path.isfile(os.path.join(folder, name)))
    for name in programs:
        target = name.removeprefix('fuzz-')
        if not sys.argv[2:] or target in sys.argv[2:]:
            renew(os.path.join(folder, name), target)


if __name__ == '__main__':
    main()
