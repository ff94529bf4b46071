"""usage: python3 -m tests.kernel.nested installed|backports BUILD_FOLDER TEST_PROGRAM...

What godwit does under real KVM: boots a kernel of Debian's under TCG with a nested KVM, loads godwit's module, and runs there the test programs, and
scenarios of tests/integration, daemons and QEMU with them. Exit status 77: not possible here, with the reason.
"""

import os
import re
import shutil
import sys

from tests.kernel import disk, kernels, machine
from tests.lab.lab import build_guest

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = ("controlplane/service/godwit-controlplane", "controlplane/ctl/godwitctl", "dataplane/daemon/godwit-dataplane", "qemu-bridge/agent/godwit-bridge")
SCENARIOS = ("kvm", "kvm_heat_by_module")
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
for m in %(modules)s godwit-ept.ko; do insmod /modules/$m || echo "GODWIT-FAILED insmod $m"; done
while [ ! -b /dev/vda ]; do sleep 0.1; done
mkdir /disk
mount -t ext4 /dev/vda /disk
for where in proc sys dev; do mount --move /$where /disk/$where; done
exec chroot /disk /bin/bash /inside
"""

INSIDE = """
export PATH=/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8 GODWIT_BUILD=%(build)s
mkdir -p /dev/shm
mkdir /disk
mount --bind / /disk
for where in /dev/shm /tmp /run; do mount -t tmpfs tmpfs $where; done
mkdir -p /run/lock
for tree in %(source)s $GODWIT_BUILD; do  # which may lie below one of these
  [ -d $tree ] || { mkdir -p $tree && mount --bind /disk$tree $tree; }
done
ip link set lo up
cd %(source)s
echo "GODWIT-BOOTED $(uname -r) after $(cut -d. -f1 /proc/uptime) s"
run() {
  name=$1; shift
  "$@"; echo "GODWIT-RUN $name $? at $(cut -d. -f1 /proc/uptime) s"
}
for program in %(programs)s; do run ${program##*/} $program --gtest_color=no --gtest_filter='%(tests)s'; done
for scenario in %(scenarios)s; do
  run $scenario python3 -B -m tests.integration $scenario
  for log in $(find $GODWIT_BUILD/lab-logs -name '*.log' 2>/dev/null); do echo "== $log"; tail -n 40 $log; done
  rm -rf $GODWIT_BUILD/lab-logs
done
echo "GODWIT-TAINTED $(cat /proc/sys/kernel/tainted)"
poweroff -f
"""


def make_disk(folder, build, programs, tests):
    build_guest(f"{build}/guest")
    made = disk.Disk(folder)
    made.add_programs(*(f"{build}/{program}" for program in PROGRAMS), *programs)
    for directory in (f"{build}/guest", f"{SOURCE}/tests", f"{SOURCE}/config"):
        made.add_directory(directory)
    with open(f"{made.root}/inside", "w") as file:
        file.write(INSIDE % {"build": build, "source": SOURCE, "programs": " ".join(programs), "tests": tests, "scenarios": " ".join(SCENARIOS)})
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
    if not tainted or int(tainted[1]) & ~kernels.EPT_TAINT:
        found.append(f"the kernel has warned or is not there any more: {tainted and tainted[0]}")
    return found


def run(kernel, folder, programs):
    build = os.path.dirname(os.path.dirname(os.path.dirname(programs[0])))
    initramfs = machine.Initramfs(kernel, folder)
    initramfs.load(*MODULES)
    initramfs.add_module(kernel.build_ept(folder, "godwit-ept"))
    # What an old kernel has as well is tested there.
    image = make_disk(folder, build, programs, "*pagemapscan*" if kernel.root else "*")
    said = machine.boot(kernel, initramfs.pack(INIT % {"modules": " ".join(initramfs.loaded)}), folder, MEMORY_MIB, COMMAND_LINE, SECONDS_MAX,
                        ["-drive", f"if=virtio,format=raw,snapshot=on,file={image}"])
    return problems(said, [os.path.basename(program) for program in programs] + list(SCENARIOS))


if __name__ == "__main__":
    sys.exit(machine.main(__doc__, run, needed=["/sbin/mke2fs", "make"]))
