"""A disk with programs of this machine, with all the libraries and data that they need at run time, for a machine of machine.py."""

import glob
import os
import re
import shutil
import subprocess

PLUGINS = ("/usr/lib/x86_64-linux-gnu/dpdk/pmds-*/*", "/usr/lib/python3.*/lib-dynload/*.so", "/usr/lib/x86_64-linux-gnu/qemu/*.so")
DATA = ("/usr/lib/python3.*", "/usr/share/seabios", "/usr/share/qemu")
FILES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ssl/openssl.cnf")
COMMANDS = ("/bin/bash", "/sbin/ip", "/sbin/tc", "/usr/sbin/ethtool", "/usr/bin/python3", "/usr/bin/setpriv", "/usr/bin/qemu-system-x86_64")
DISK_MIB = 1536


class Disk:
    def __init__(self, folder):
        self.folder, self.root = folder, f"{folder}/disk"
        for name in ("bin", "sbin", "lib", "lib64"):  # as Debian has them
            os.makedirs(f"{self.root}/usr/{name}")
            os.symlink(f"usr/{name}", f"{self.root}/{name}")
        for name in ("proc", "sys", "dev", "tmp", "run", "root", "var/tmp"):
            os.makedirs(f"{self.root}/{name}")
        for file in FILES:
            self.add_file(file)
        plugins = [file for pattern in PLUGINS for file in glob.glob(pattern)]
        self.add_programs(*COMMANDS, *plugins)
        for pattern in DATA:
            for directory in glob.glob(pattern):
                self.add_directory(directory)
        shutil.copy("/bin/busybox", f"{self.root}/usr/bin/busybox")
        for command in subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split():
            if not any(os.path.lexists(f"{self.root}/usr/{where}/{command}") for where in ("bin", "sbin")):
                os.symlink("busybox", f"{self.root}/usr/bin/{command}")

    def add_file(self, path):
        """It, and the file that it links to: a library that is there under two names must not be loaded twice."""
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        to = self.root + path
        if os.path.lexists(to):
            return
        os.makedirs(os.path.dirname(to), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), to)
            self.add_file(os.path.join(os.path.dirname(path), os.readlink(path)))
        else:
            shutil.copy2(path, to)

    def add_programs(self, *paths):
        """Programs and shared objects, with their libraries."""
        for path in paths:
            self.add_file(path)
            libraries = subprocess.run(["ldd", path], capture_output=True, text=True).stdout  # fails for what is static
            for library in re.findall(r"(/\S+) \(0x", libraries):
                self.add_file(library)

    def add_directory(self, path):
        leave_out = shutil.ignore_patterns("__pycache__", "test", "idlelib", "corpus")
        shutil.copytree(path, self.root + path, ignore_dangling_symlinks=True, dirs_exist_ok=True, ignore=leave_out)

    def pack(self):
        image = f"{self.folder}/disk.img"
        with open(image, "wb") as file:
            file.truncate(DISK_MIB << 20)
        subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", self.root, image], check=True)
        return image
