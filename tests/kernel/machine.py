"""A machine of TCG that runs a kernel of Debian's, with KVM for guests of its own. What it says on its serial console is all that it tells."""

import os
import shutil
import subprocess
import sys
import tempfile
import time

from tests.kernel import kernels

# A double fault of TCG's cmpxchg16b kills newer kernels in their boot; they do without it.
CPU = "max,-cx16"
BOOTS_MAX = 3
# QEMU 7.2's TCG at times lets a processor sleep for good that has guests of its own. A machine that runs, whatever its daemons wait for, has its ticks.
STILL_S, STILL_TICKS = 120, 20
BOOTED = "GODWIT-BOOTED"
STOOD_STILL = "GODWIT-FAILED the machine stood still"
NEEDED = ["qemu-system-x86_64", "/bin/busybox", "cpio", "modprobe", "xz"]


class Initramfs:
    """Busybox, kernel modules, files and an init; packed into a file of `folder`."""

    def __init__(self, kernel, folder):
        self.kernel, self.folder, self.root, self.loaded = kernel, folder, f"{folder}/root", []
        for name in ("bin", "modules", "proc", "sys", "dev"):
            os.makedirs(f"{self.root}/{name}")
        shutil.copy("/bin/busybox", f"{self.root}/bin/busybox")

    def load(self, *modules):
        """Modules of the kernel's, with all that they need; `loaded` is the order."""
        for module in modules:
            for file in self.kernel.modules(module):
                name = os.path.basename(file).removesuffix(".xz")
                if name in self.loaded:
                    continue
                with open(f"{self.root}/modules/{name}", "wb") as out:
                    subprocess.run(["xz", "-dc", file] if file.endswith(".xz") else ["cat", file], stdout=out, check=True)
                self.loaded.append(name)

    def add_module(self, file):
        """One that the init loads by itself."""
        shutil.copy(file, f"{self.root}/modules")

    def pack(self, init):
        with open(f"{self.root}/init", "w") as file:
            file.write(init)
        os.chmod(f"{self.root}/init", 0o755)
        subprocess.run(f"cd {self.root} && find . | cpio -o -H newc --quiet | gzip -1 > {self.folder}/initramfs.gz", shell=True, check=True)
        return f"{self.folder}/initramfs.gz"


def processor_ticks(pid):
    """That the process has used so far."""
    with open(f"/proc/{pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


def watch(command, seconds_max, still_s=STILL_S):
    """Runs it to its end: "", or why it was ended before."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    began = moved = time.monotonic()
    ticks = 0
    try:
        while time.monotonic() - began < seconds_max:
            try:
                process.wait(1)
                return ""
            except subprocess.TimeoutExpired:
                now = processor_ticks(process.pid)
            if now - ticks >= STILL_TICKS:
                ticks, moved = now, time.monotonic()
            elif time.monotonic() - moved > still_s:
                return STOOD_STILL
        return f"GODWIT-FAILED not ready after {seconds_max} s"
    finally:
        process.kill()
        process.wait()


def boot(kernel, initramfs, folder, memory_mib, command_line, seconds_max, arguments=()):
    """What the machine said, until it powered off, fell over, or its time was up. One that fell over before it said BOOTED, or stood still, is booted again."""
    serial = f"{folder}/serial"
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", str(memory_mib), "-nodefaults", "-display", "none",
               "-serial", f"file:{serial}", "-no-reboot", "-kernel", kernel.image, "-initrd", initramfs,
               "-append", f"console=ttyS0 quiet panic=-1 oops=panic {command_line}", *arguments]
    for _ in range(BOOTS_MAX):
        ended = watch(command, seconds_max)
        with open(serial, errors="replace", newline="") as file:
            said = file.read().replace("\r", "") + f"\n{ended}\n"
        print(said, flush=True)
        if BOOTED in said and ended != STOOD_STILL:
            break
        print("the machine stood still, or fell over before anything was tested: booted again", flush=True)
    return said


def main(usage, run, needed, programs_max=sys.maxsize):
    """A program whose arguments are a kernel, a build folder and test programs. run(kernel, folder, programs): what is wrong, lines."""
    if not 4 <= len(sys.argv) <= 3 + programs_max or sys.argv[1] not in ("installed", "backports"):
        print(usage, file=sys.stderr)
        return 2
    which, build, *programs = sys.argv[1], *map(os.path.abspath, sys.argv[2:])
    try:
        for name in NEEDED + needed:
            if shutil.which(name) is None:
                raise kernels.Missing(f"no {name}: scripts/install-dependencies installs it")
        kernel = kernels.installed() if which == "installed" else kernels.backports(f"{build}/backports")
    except kernels.Missing as missing:
        print(f"skipped: {missing}")
        return 77
    with tempfile.TemporaryDirectory(dir=build, prefix=f"{which}.") as folder:
        found = run(kernel, folder, programs)
    for problem in found:
        print(f"FAILED {problem}")
    return 1 if found else 0
