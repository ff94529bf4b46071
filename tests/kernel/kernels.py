"""Debian's kernels with their headers: the one that is installed, and that of bookworm-backports, unpacked beside."""

import glob
import os
import re
import shutil
import subprocess

EPT = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "kmod-ept")
EPT_TAINT = 1 << 12 | 1 << 13  # what it makes of a kernel: out of tree, and unsigned
CLOUD = "cloud-amd64"
BACKPORTS = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main\n"


class Missing(Exception):
    """Why there is no such kernel here: a skip."""


class Kernel:
    def __init__(self, root, release):
        """root: of a file system that has the kernel's packages, "" for this machine's."""
        self.root, self.release = root, release
        self.image = f"{root}/boot/vmlinuz-{release}"
        self.headers = f"{root}/usr/src/linux-headers-{release}"

    def modules(self, name):
        """Files of a module and of what it needs, in the order of loading."""
        command = ["modprobe", "--show-depends", "--set-version", self.release, name]
        if self.root:
            command[1:1] = ["--dirname", self.root]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")]

    def build_ept(self, folder, name, *variables):
        """godwit's module as a file NAME.ko of `folder`."""
        shutil.copytree(EPT, f"{folder}/{name}")
        # pahole would be needed for type information that nobody reads here.
        subprocess.run(["make", "-C", self.headers, f"M={folder}/{name}", "CONFIG_DEBUG_INFO_BTF_MODULES=", *variables, "modules"],
                       check=True, stdin=subprocess.DEVNULL)
        os.rename(f"{folder}/{name}/godwit-ept.ko", f"{folder}/{name}.ko")
        return f"{folder}/{name}.ko"


def installed():
    images = glob.glob(f"/boot/vmlinuz-*-{CLOUD}")
    if not images:
        raise Missing("no kernel: apt-get install linux-image-cloud-amd64")
    by_version = sorted(images, key=lambda path: [int(number) for number in re.findall(r"\d+", path)])
    kernel = Kernel("", by_version[-1].removeprefix("/boot/vmlinuz-"))
    if not os.path.exists(kernel.headers):
        raise Missing(f"no {kernel.headers}: apt-get install linux-headers-cloud-amd64")
    return kernel


class Archive:
    """bookworm-backports, with lists and cache of its own: the machine's apt sees nothing of it."""

    def __init__(self, folder):
        self.folder = folder
        os.makedirs(f"{folder}/lists/partial", exist_ok=True)
        os.makedirs(f"{folder}/cache/archives/partial", exist_ok=True)
        with open(f"{folder}/sources.list", "w") as file:
            file.write(BACKPORTS)
        self.options = [f"-oDir::Etc::sourcelist={folder}/sources.list", "-oDir::Etc::sourceparts=/dev/null", f"-oDir::State::lists={folder}/lists",
                        f"-oDir::Cache={folder}/cache", "-oAPT::Sandbox::User=root", "-oAcquire::http::Timeout=20"]

    def run(self, program, *arguments):
        done = subprocess.run([program, *self.options, *arguments], cwd=self.folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise Missing(f"bookworm-backports cannot be reached: {program} {arguments[0]}: {done.stderr.strip().splitlines()[-1:]}")
        return done.stdout

    def dependencies(self, package):
        return re.findall(r"^ +\|?Depends: (\S+)$", self.run("apt-cache", "depends", package), re.MULTILINE)


def unpacked(root):
    images = glob.glob(f"{root}/boot/vmlinuz-*-{CLOUD}")
    return Kernel(root, images[0].rsplit("vmlinuz-", 1)[1]) if images else None


def backports(folder):
    """Fetched once; a newer one is fetched when `folder` is emptied."""
    root = f"{folder}/root"
    if kernel := unpacked(root):
        return kernel
    archive = Archive(folder)
    archive.run("apt-get", "update", "--error-on=any")
    headers = archive.dependencies("linux-headers-cloud-amd64")[0]
    release = headers.removeprefix("linux-headers-")
    common = [name for name in archive.dependencies(headers) if name.startswith(("linux-headers-", "linux-kbuild-"))]
    packages = [f"linux-image-{release}-unsigned", headers, *common]
    archive.run("apt-get", "download", *packages)
    unfinished = f"{root}.new"
    for package in glob.glob(f"{folder}/*.deb"):
        subprocess.run(["dpkg", "-x", package, unfinished], check=True)
        os.unlink(package)
    # The one absolute path in it.
    makefile = f"{unfinished}/usr/src/{headers}/Makefile"
    with open(makefile) as file:
        text = file.read()
    with open(makefile, "w") as file:
        file.write(text.replace("/usr/src/", f"{root}/usr/src/"))
    subprocess.run(["depmod", "-b", unfinished, release], check=True)
    os.rename(unfinished, root)  # last: who finds it takes all as made
    return unpacked(root)
