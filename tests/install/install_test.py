#!/usr/bin/env python3
"""usage: install_test.py BUILD PREFIX

Installs the built tree below a temporary directory and looks at it as an operator would: what is there, whether the units' own commands
run, whether they accept the samples, what systemd says of them. TAP; needs no root.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

DAEMONS = ("bridge", "controlplane", "dataplane")
PROGRAMS = [f"godwit-{daemon}" for daemon in DAEMONS] + ["godwitctl"]
MODULE = ("COPYING", "Kbuild", "Makefile", "dkms.conf", "godwit_ept.h", "internal.h", "main.c", "scan.c", "table_walk.h", "vm.c")
SAMPLES = ("bridge.toml", "controlplane.toml", "dataplane.toml", "godwitctl.toml", "plan.toml", "vm.toml")


class Skip(Exception):
    pass


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)


class Installed:
    def __init__(self, root, prefix):
        self.root, self.prefix = root, prefix

    def path(self, name):
        return f"{self.root}{self.prefix}/{name}"

    def unit(self, daemon):
        with open(self.path(f"lib/systemd/system/godwit-{daemon}.service")) as file:
            return file.read()

    def commands(self, daemon):
        return re.findall(r"^(Exec\w+)=(.*)$", self.unit(daemon), re.MULTILINE)


def everything_is_there(installed):
    for name in [f"bin/{p}" for p in PROGRAMS] + [f"lib/systemd/system/godwit-{d}.service" for d in DAEMONS] + [f"share/godwit/samples/{s}" for s in SAMPLES]:
        check(os.path.isfile(installed.path(name)), f"{name} is not installed")
    check(not os.path.exists(f"{installed.root}/etc"), "an operator's own configuration would be overwritten")


def the_kernel_module_is_dkms_source(installed):
    found = [name for name in os.listdir(installed.path("src")) if name.startswith("godwit-ept-")]
    check(len(found) == 1 and sorted(os.listdir(installed.path(f"src/{found[0]}"))) == sorted(MODULE), f"src has {found}")
    with open(installed.path(f"src/{found[0]}/dkms.conf")) as file:
        conf = dict(re.findall(r'^(\w+)(?:\[0\])?="(.*)"$', file.read(), re.MULTILINE))
    check(f'{conf["PACKAGE_NAME"]}-{conf["PACKAGE_VERSION"]}' == found[0], f"dkms.conf is of another version: {conf}")
    kernels = re.compile(conf["BUILD_EXCLUSIVE_KERNEL"])
    for release, built in (("5.10.0-30-amd64", False), ("6.0.0", False), ("6.1.0-56-cloud-amd64", True), ("6.12.95+deb12-amd64", True), ("7.3.4", True)):
        check(bool(kernels.search(release)) == built, f"BUILD_EXCLUSIVE_KERNEL and {release}")


def programs_say_their_version(installed):
    for program in PROGRAMS:
        done = run(installed.path(f"bin/{program}"), "--version")
        check(done.returncode == 0 and re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout), f"{program} --version: {done}")


def units_run_what_is_installed(installed):
    for daemon in DAEMONS:
        commands = dict(installed.commands(daemon))
        check(set(commands) == {"ExecStartPre", "ExecStart"}, f"{daemon} runs {commands}")
        for command in commands.values():
            program = command.split()[0]
            check(program == f"{installed.prefix}/bin/godwit-{daemon}" and os.access(installed.root + program, os.X_OK), f"{daemon}: no {program}")
        check(commands["ExecStart"].endswith(f" --config /etc/godwit/{daemon}.toml"), f"{daemon}: {commands['ExecStart']}")


def units_check_the_configuration_that_they_run(installed):
    with tempfile.TemporaryDirectory() as directory:
        made = run(installed.path("bin/godwitctl"), "pki", "init", "--directory", f"{directory}/tls", "host-a")
        check(made.returncode == 0, f"no certificates: {made}")
        for daemon in DAEMONS:
            program, *arguments = dict(installed.commands(daemon))["ExecStartPre"].split()
            sample, wrong = f"{directory}/{daemon}.toml", f"{directory}/wrong.toml"
            with open(installed.path(f"share/godwit/samples/{daemon}.toml")) as of, open(sample, "w") as to:
                to.write(of.read().replace("/etc/godwit/tls/", f"{directory}/tls/"))
            done = run(installed.root + program, *[sample if a.startswith("/etc/") else a for a in arguments])
            check(done.returncode == 0, f"{daemon}: the sample is refused: {done}")
            with open(wrong, "w") as file:
                file.write("nonsense = 1\nhost = 2\n")
            done = run(installed.root + program, *[wrong if a.startswith("/etc/") else a for a in arguments])
            check(done.returncode == 1 and f"{wrong}:1:" in done.stderr and ": nonsense: " in done.stderr, f"{daemon}: mistakes are not reported: {done}")


def systemd_accepts_the_units(installed):
    if shutil.which("systemd-analyze") is None:
        raise Skip("no systemd-analyze")
    with tempfile.TemporaryDirectory() as directory:
        for daemon in DAEMONS:  # verify looks for the programs where the unit says
            with open(f"{directory}/godwit-{daemon}.service", "w") as file:
                file.write(installed.unit(daemon).replace(f"{installed.prefix}/bin/", installed.path("bin/")))
        done = run("systemd-analyze", "verify", *[f"{directory}/godwit-{daemon}.service" for daemon in DAEMONS])
        check(done.returncode == 0 and done.stderr == "", f"systemd-analyze verify: {done.stderr}")


def a_restart_hurts_no_guest(installed):
    bridge = installed.unit("bridge")
    for line in ("KillMode=process", "OOMPolicy=continue", "TasksMax=infinity", "StartLimitIntervalSec=0"):
        check(f"\n{line}\n" in bridge, f"the bridge's unit has no {line}")
    for daemon in ("bridge", "dataplane"):
        text = installed.unit(daemon)
        check("\nRuntimeDirectoryPreserve=yes\n" in text and "\nRuntimeDirectoryMode=0711\n" in text, f"{daemon}: /run/godwit as guests need it")
        check(not re.search(r"^(ProtectClock|PrivateDevices|DeviceAllow|DevicePolicy)=", text, re.MULTILINE), f"{daemon}: a device list, for /dev/kvm or /dev/vfio to be missing in")
    namespaces = re.findall(r"^((?:Private|Protect|ReadOnly|Inaccessible|NoNew|MountFlags|RootDirectory)\w*)=", bridge, re.MULTILINE)
    check(not namespaces, f"QEMU would inherit {namespaces}")


def main(build, prefix):
    checks = (everything_is_there, the_kernel_module_is_dkms_source, programs_say_their_version, units_run_what_is_installed, units_check_the_configuration_that_they_run,
              systemd_accepts_the_units, a_restart_hurts_no_guest)
    with tempfile.TemporaryDirectory() as root:
        done = run("meson", "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", root)
        if done.returncode != 0:
            print(f"Bail out! meson install: {done.stdout}{done.stderr}")
            return 1
        print(f"1..{len(checks)}")
        for number, each in enumerate(checks, 1):
            try:
                each(Installed(root, prefix))
                print(f"ok {number} - {each.__name__}")
            except Skip as reason:
                print(f"ok {number} - {each.__name__} # SKIP {reason}")
            except (AssertionError, OSError) as error:
                print(f"not ok {number} - {each.__name__}")
                print(f"# {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
