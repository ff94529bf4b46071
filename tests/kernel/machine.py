"""A machine of TCG that runs a kernel of Debian's, with KVM for guests of its own. What it says on its serial console is all that it tells."""

import os
import shutil
import subprocess

# A double fault of TCG's cmpxchg16b kills newer kernels in their boot; they do without it.
CPU = "max,-cx16"
BOOTS_MAX = 3
BOOTED = "GODWIT-BOOTED"


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

    def pack(self, init):
        with open(f"{self.root}/init", "w") as file:
            file.write(init)
        os.chmod(f"{self.root}/init", 0o755)
        subprocess.run(f"cd {self.root} && find . | cpio -o -H newc --quiet | gzip -1 > {self.folder}/initramfs.gz", shell=True, check=True)
        return f"{self.folder}/initramfs.gz"


def boot(kernel, initramfs, folder, memory_mib, command_line, seconds_max, arguments=()):
    """What the machine said, until it powered off, fell over, or its time was up. One that fell over before it said BOOTED is booted again."""
    serial = f"{folder}/serial"
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", str(memory_mib), "-nodefaults", "-display", "none",
               "-serial", f"file:{serial}", "-no-reboot", "-kernel", kernel.image, "-initrd", initramfs,
               "-append", f"console=ttyS0 quiet panic=-1 oops=panic {command_line}", *arguments]
    for _ in range(BOOTS_MAX):
        late = ""
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, timeout=seconds_max)
        except subprocess.TimeoutExpired:
            late = f"\nGODWIT-FAILED not ready after {seconds_max} s\n"
        with open(serial, errors="replace", newline="") as file:
            said = file.read().replace("\r", "") + late
        print(said, flush=True)
        if BOOTED in said:
            break
        print("the machine fell over before anything was tested: booted again", flush=True)
    return said
