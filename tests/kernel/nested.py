"""usage: python3 -m tests.kernel.nested installed|backports BUILD_FOLDER TEST_PROGRAM...

What godwit does under real KVM: boots a kernel of Debian's under TCG with a nested KVM, and runs there the test programs, and scenarios of
tests/integration, daemons and QEMU with them. Exit status 77: not possible here, with the reason.
"""

import os
import re
import shutil
import sys
import tempfile

from tests.kernel import disk, kernels, machine
from tests.lab.lab import build_guest

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = ("controlplane/service/godwit-controlplane", "controlplane/ctl/godwitctl", "dataplane/daemon/godwit-dataplane", "qemu-bridge/agent/godwit-bridge")
SCENARIOS = ("kvm", "kvm_pulled_and_split")
MODULES = ("virtio_pci", "virtio_blk", "kvm-amd", "veth")
# One processor: TCG does not always see code that another one has patched.
COMMAND_LINE = "maxcpus=1 loglevel=4"
MEMORY_MIB = 4096
SECONDS_MAX = 1500

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for m in %(modules)s; do insmod /modules/$m || echo "GODWIT-FAILED insmod $m"; done
while [ ! -b /dev/vda ]; do sleep 0.1; done
mkdir /disk
mount -t ext4 /dev/vda /disk
for where in proc sys dev; do mount --move /$where /disk/$where; done
exec chroot /disk /bin/bash /inside
"""

INSIDE = """
export PATH=/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8 GODWIT_BUILD=%(build)s
mkdir -p /dev/shm
for where in /dev/shm /tmp /run; do mount -t tmpfs tmpfs $where; done
mkdir -p /run/lock
ip link set lo up
cd %(source)s
echo "GODWIT-BOOTED $(uname -r) after $(cut -d. -f1 /proc/uptime) s"
run() {
  name=$1; shift
  "$@"; echo "GODWIT-RUN $name $? at $(cut -d. -f1 /proc/uptime) s"
}
for program in %(programs)s; do run ${program##*/} $program --gtest_color=no; done
for scenario in %(scenarios)s; do
  run $scenario python3 -B -m tests.integration $scenario
  for log in $(find $GODWIT_BUILD/lab-logs -name '*.log' 2>/dev/null); do echo "== $log"; tail -n 40 $log; done
  rm -rf $GODWIT_BUILD/lab-logs
done
echo "GODWIT-TAINTED $(cat /proc/sys/kernel/tainted)"
poweroff -f
"""


def make_disk(folder, build, programs):
    build_guest(f"{build}/guest")
    made = disk.Disk(folder)
    made.add_programs(*(f"{build}/{program}" for program in PROGRAMS), *programs)
    for directory in (f"{build}/guest", f"{SOURCE}/tests", f"{SOURCE}/config"):
        made.add_directory(directory)
    with open(f"{made.root}/inside", "w") as file:
        file.write(INSIDE % {"build": build, "source": SOURCE, "programs": " ".join(programs), "scenarios": " ".join(SCENARIOS)})
    image = made.pack()
    shutil.rmtree(made.root)
    return image


def problems(said, runs):
    """What is wrong with a run: lines."""
    found = re.findall(r"GODWIT-FAILED (.*)", said)
    results = dict(re.findall(r"^GODWIT-RUN (\S+) (\d+) at", said, re.MULTILINE))
    for run in runs:
        if results.get(run) != "0":
            found.append(f"'{run}' ended with {results.get(run, 'nothing: the machine fell over')}")
    if re.search(r"^skipped |[1-9]\d* skipped$|^\[=+\] Running 0 tests", said, re.MULTILINE):
        found.append("a scenario was left out")
    tainted = re.search(r"^GODWIT-TAINTED (\d+)$", said, re.MULTILINE)
    if not tainted or tainted[1] != "0":
        found.append(f"the kernel has warned or is not there any more: {tainted and tainted[0]}")
    return found


def run(kernel, folder, programs):
    build = os.path.dirname(os.path.dirname(os.path.dirname(programs[0])))
    initramfs = machine.Initramfs(kernel, folder)
    initramfs.load(*MODULES)
    image = make_disk(folder, build, programs)
    said = machine.boot(kernel, initramfs.pack(INIT % {"modules": " ".join(initramfs.loaded)}), folder, MEMORY_MIB, COMMAND_LINE, SECONDS_MAX,
                        ["-drive", f"if=virtio,format=raw,snapshot=on,file={image}"])
    found = problems(said, [os.path.basename(program) for program in programs] + list(SCENARIOS))
    for problem in found:
        print(f"FAILED {problem}")
    return 1 if found else 0


def main():
    if len(sys.argv) < 4 or sys.argv[1] not in ("installed", "backports"):
        print(__doc__, file=sys.stderr)
        return 2
    which, build, *programs = sys.argv[1], *map(os.path.abspath, sys.argv[2:])
    try:
        for needed in ("qemu-system-x86_64", "/bin/busybox", "/sbin/mke2fs", "cpio", "modprobe", "xz"):
            if shutil.which(needed) is None:
                raise kernels.Missing(f"no {needed}: scripts/install-dependencies installs it")
        kernel = kernels.installed() if which == "installed" else kernels.backports(f"{build}/backports")
    except kernels.Missing as missing:
        print(f"skipped: {missing}")
        return 77
    with tempfile.TemporaryDirectory(dir=build, prefix=f"nested-{which}.") as folder:
        return run(kernel, folder, programs)


if __name__ == "__main__":
    sys.exit(main())
