"""usage: python3 -m tests.kernel.kvm installed|backports BUILD_FOLDER TEST_PROGRAM...

Boots a kernel of Debian's under TCG with a nested KVM, whose guests are real ones of KVM's page tables, and runs the tests of tests/kvm in it. Judged by what
the machine says on its serial console. Exit status 77: not possible here, with the reason.
"""

import os
import re
import shutil
import subprocess
import sys

from tests.kernel import run as kernel_run

# By kernel: what may be left out there, and nothing else. PAGEMAP_SCAN came with 6.7; before 6.4 no write-protection of a hole that a KVM guest may fill.
LEFT_OUT = {"6.1": re.compile(r"/pagemapscan"), "6.12": None}

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /tmp
mount -t tmpfs shm /dev/shm
for m in %(modules)s; do insmod /modules/$m || echo "GODWIT-FAILED insmod $m"; done
dmesg > /log
echo "GODWIT-BOOTED $(uname -r) after $(cut -d. -f1 /proc/uptime) s"
for name in %(programs)s; do
  timeout %(run_seconds)d /bin/$name --gtest_color=no
  echo "GODWIT-RUN $name $?"
done
dmesg -r | tail -n +$(($(wc -l < /log) + 1)) | sed 's/^/GODWIT-LOG /'
poweroff -f
"""


def copy_program(program, root):
    """With the libraries that it wants."""
    name = os.path.basename(program)
    shutil.copy(program, f"{root}/bin/{name}")
    subprocess.run(["strip", f"{root}/bin/{name}"], check=True)
    wanted = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"(/\S+) \(0x", wanted):
        os.makedirs(root + os.path.dirname(library), exist_ok=True)
        shutil.copy(library, root + library)
    return name


def problems(said, programs):
    found = re.findall(r"GODWIT-FAILED (.*)", said)
    results = dict(re.findall(r"^GODWIT-RUN (\S+) (\d+)$", said, re.MULTILINE))
    found += [f"{name} ended with {results.get(name, 'nothing: the machine fell over')}" for name in programs if results.get(name) != "0"]
    release = re.search(r"GODWIT-BOOTED (\d+\.\d+)", said)
    may_be_left_out = LEFT_OUT.get(release[1]) if release else None
    for test in re.findall(r"^\[  SKIPPED \] (\S+) \(", said, re.MULTILINE):
        if may_be_left_out is None or not may_be_left_out.search(test):
            found.append(f"{test} was left out")
    for level, text in re.findall(r"^GODWIT-LOG <(\d+)>(.*)$", said, re.MULTILINE):
        if int(level) % 8 <= 4 and not kernel_run.EXPECTED.search(text):
            found.append(f"the kernel said: {text}")
    return found


def run(kernel, folder, programs):
    root, modules = kernel_run.begin_root(kernel, folder)
    names = [copy_program(program, root) for program in programs]
    init = INIT % {"modules": " ".join(modules), "programs": " ".join(names), "run_seconds": kernel_run.RUN_SECONDS_MAX}
    # One processor: KVM patches the scheduler with the first VM, and TCG does not always see code that another has patched.
    return kernel_run.judged(kernel, kernel_run.pack(root, folder, init), folder, lambda said: problems(said, names), processors=1)


if __name__ == "__main__":
    sys.exit(kernel_run.main(__doc__, run))
