"""usage: python3 -m tests.kernel.run installed|backports BUILD_FOLDER TEST_PROGRAM

Builds the module for a kernel of Debian's, boots that kernel under TCG with a nested KVM, and runs the test program in it. Judged by
what the guest says on its serial console. Exit status 77: not possible here, with the reason.
"""

import re
import shutil
import subprocess
import sys

from tests.kernel import kernels, machine

SECONDS_MAX = 480
RUN_SECONDS_MAX = 200  # of one run of the test program; usual are 45
MEMORY_MIB = 3072  # the second GiB is one huge page: neither kernel nor initramfs is in it
# slub_debug: what is used after it was freed, or written beyond its end, is found.
# maxcpus: TCG does not always see code that another processor has patched. KVM patches the scheduler with the first VM, and back with the last:
# one is held while the second processor runs.
COMMAND_LINE = "maxcpus=1 slub_debug=FZP log_buf_len=4M damon_stat.enabled=N hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=8"
# Severities up to 4 (warning) that a module of another tree brings about, or a machine whose processors wait for their turn.
EXPECTED = re.compile(r"out-of-tree module taints kernel|hrtimer: interrupt took|clocksource: |perf: interrupt took too long")
RUNS = ("tables", "newer", "newer-tables")

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for m in %(modules)s; do insmod /modules/$m || echo "GODWIT-FAILED insmod $m"; done
cp /bin/test /bin/holder
holder hold || echo "GODWIT-FAILED no VM to hold"
echo 1 > /sys/devices/system/cpu/cpu1/online
cp /proc/sys/kernel/tainted /tainted
dmesg > /log
echo "GODWIT-BOOTED $(uname -r) after $(cut -d. -f1 /proc/uptime) s"
# What hangs is told of: the stacks of this program's threads, of its VMMs' and their vCPUs'.
watch() {
  sleep %(run_seconds)d
  echo "GODWIT-FAILED $1 hangs"
  for task in /proc/[0-9]*/task/*; do grep -q '^test$' $task/comm && echo "== $task $(cat $task/wchan) $(cat $task/syscall)" && cat $task/stack; done
  echo l > /proc/sysrq-trigger
  kill -9 $(pidof test)
}
run() {
  name=$1 module=$2 parameter=$3; shift 3
  insmod /modules/$module.ko $parameter
  watch $name & watcher=$!
  /bin/test --gtest_color=no "$@"; echo "GODWIT-RUN $name $?"
  kill $watcher
  rmmod godwit_ept && echo "GODWIT-UNLOADED $name"
}
run tables godwit-ept "" --gtest_filter=-Newer.*
run newer godwit-ept-newer "" --gtest_filter=Newer.*
run newer-tables godwit-ept-newer read_tables=1 --gtest_filter=By/Exact.*/Tables:Refusals.Descriptors:Tables.AVcpu*
echo 0 > /sys/devices/system/cpu/cpu1/online
kill $(pidof holder)
sleep 1
rmmod kvm_amd && echo "GODWIT-UNLOADED kvm"
dmesg -r | tail -n +$(($(wc -l < /log) + 1)) | sed 's/^/GODWIT-LOG /'
echo "GODWIT-TAINTED $(cat /tainted) $(cat /proc/sys/kernel/tainted)"
poweroff -f
"""


def build_initramfs(kernel, folder, program):
    initramfs = machine.Initramfs(kernel, folder)
    shutil.copy(program, f"{initramfs.root}/bin/test")
    subprocess.run(["strip", f"{initramfs.root}/bin/test"], check=True)
    initramfs.load("kvm-amd")
    initramfs.add_module(kernel.build_ept(folder, "godwit-ept"))
    initramfs.add_module(kernel.build_ept(folder, "godwit-ept-newer", "GODWIT_EPT_AS_NEWER=y"))
    return initramfs.pack(INIT % {"modules": " ".join(initramfs.loaded), "run_seconds": RUN_SECONDS_MAX})


def problems(said):
    """What is wrong with a run: lines."""
    found = re.findall(r"GODWIT-FAILED (.*)", said)
    results = dict(re.findall(r"^GODWIT-RUN (\S+) (\d+)$", said, re.MULTILINE))
    unloaded = re.findall(r"^GODWIT-UNLOADED (\S+)$", said, re.MULTILINE)
    for run in RUNS:
        if results.get(run) != "0":
            found.append(f"run '{run}' ended with {results.get(run, 'nothing: the machine fell over')}")
        if run not in unloaded:
            found.append(f"the module could not be unloaded after '{run}'")
    if "kvm" not in unloaded:
        found.append("KVM could not be unloaded: a VM is still held")
    if re.search(r"\[  SKIPPED \]|^\[=+\] Running 0 tests", said, re.MULTILINE):
        found.append("a test was left out")
    for level, text in re.findall(r"^GODWIT-LOG <(\d+)>(.*)$", said, re.MULTILINE):
        if int(level) % 8 <= 4 and not EXPECTED.search(text):
            found.append(f"the kernel said: {text}")
    tainted = re.search(r"^GODWIT-TAINTED (\d+) (\d+)$", said, re.MULTILINE)
    if not tainted or int(tainted[2]) & ~int(tainted[1]) & ~kernels.EPT_TAINT:
        found.append(f"the kernel is tainted: {tainted and tainted[0]}")
    return found


def run(kernel, folder, programs):
    return problems(machine.boot(kernel, build_initramfs(kernel, folder, *programs), folder, MEMORY_MIB, COMMAND_LINE, SECONDS_MAX))


if __name__ == "__main__":
    sys.exit(machine.main(__doc__, run, needed=["make"], programs_max=1))
