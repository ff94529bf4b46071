"""What a person at a terminal sees and does: a migration's progress, Ctrl-C, a quickstart that is not awaited."""

import os
import re
import signal

from tests.lab.lab import BUILD, ROOT, program
from tests.lab.processes import processes_naming, run, wait_until
from tests.lab.terminal import CTRL_C, Terminal

from .movement import guest_at_home
from .registry import Skip, check, check_equal, scenario_beside_others

PROGRESS = r"\[#*\.*\] +\d+ %  [\d.]+ .?bit/s  round \d+  [\d.]+( [kM])? pages left  about [\d.]+ \w+ left"
QUESTION = r"cancel the migration\? \[y\]es, \[n\]o; Ctrl-C again leaves it running: "
SLOW = ("--bandwidth-limit", "100Mbit/s")  # the guest's data take seconds


def godwitctl(lab, *arguments):
    return Terminal(*lab.network.command("controlplane", program("ctl"), "--config", f"{lab.directory}/controlplane/godwitctl.toml", *arguments))


def state_of_newest(lab):
    return lab.ctl("migrations")[0]["state"]


@scenario_beside_others
def migrate_on_a_terminal():
    """Progress; Ctrl-C asks: no goes on, a second Ctrl-C leaves the migration running, yes cancels it."""
    with guest_at_home() as lab:
        with godwitctl(lab, "migrate", "--vm", "guest", "--to", "host-b", *SLOW) as terminal:
            terminal.expect(PROGRESS)
            terminal.type(CTRL_C)
            terminal.expect(QUESTION)
            terminal.type("n\n")
            terminal.expect(PROGRESS)
            check_equal(state_of_newest(lab), "TRANSFERRING", "state after no")
            terminal.type(CTRL_C)
            terminal.expect(QUESTION)
            terminal.type("y\n")
            terminal.expect("not moved: cancelled by the operator")
            check_equal(terminal.end(), 1, "exit status of a cancelled migration")
        check_equal(lab.where("guest"), "host-a", "owner after yes")
        ok, text = lab.verdict("guest", "host-a")
        check(ok, text)

        with godwitctl(lab, "migrate", "--vm", "guest", "--to", "host-b", *SLOW) as terminal:
            terminal.expect(PROGRESS)
            terminal.type(CTRL_C)
            terminal.expect(QUESTION)
            terminal.type(CTRL_C)
            watch = terminal.expect(r"goes on: godwitctl watch (\S+)")
            check_equal(terminal.end(), 1, "exit status of a migration that was not awaited")
        with godwitctl(lab, "watch", watch.group(1)) as terminal:
            terminal.expect("COMMITTED")
            check_equal(terminal.end(), 0, "exit status of watch")
        check_equal(lab.where("guest"), "host-b", "owner after the second Ctrl-C")
        ok, text = lab.verdict("guest", "host-b")
        check(ok, text)


def nothing_left_of(lab_directory):
    lab_id = re.search(r"godwit-lab-(gw\w+)-", lab_directory).group(1)
    wait_until("the lab's processes to be gone", lambda: not processes_naming(lab_directory), 20)
    check(lab_id not in run("ip", "netns", "list").stdout, f"namespaces of {lab_id} are left")
    for directory in (lab_directory, f"/dev/shm/{os.path.basename(lab_directory)}"):
        check(not os.path.exists(directory), f"{directory} is left")
    with open("/proc/self/mounts") as mounts:
        check(lab_id not in mounts.read(), f"mounts of {lab_id} are left")


@scenario_beside_others
def quickstart_interrupted():
    """At each of its steps, by Ctrl-C (and once more while it takes things down) and by SIGTERM: nothing stays, and it can be run again."""
    if os.path.realpath(BUILD) != os.path.realpath(os.path.join(ROOT, "build")):
        raise Skip("quickstart builds and runs build/, this is another build directory")
    by_terminal = lambda terminal: (terminal.type(CTRL_C), terminal.expect("interrupted"), terminal.type(CTRL_C))  # noqa: E731
    by_signal = lambda terminal: terminal.process.send_signal(signal.SIGTERM)  # noqa: E731
    for moment, interrupt, status in (("booting the guest", by_terminal, 130), ("moving A to B", by_terminal, 130),
                                      ("moving A to B with stock QEMU", by_signal, 143)):
        with Terminal("./quickstart", "--no-install", "--mem-mib", "256", "--mb", "96", "--away", "1", cwd=ROOT) as terminal:
            directory = terminal.expect(r"(/tmp/godwit-lab-\S+)", 120).group(1)
            terminal.expect(moment, 120)
            interrupt(terminal)
            check_equal(terminal.end(), status, f"exit status when interrupted at: {moment}")
        nothing_left_of(directory)
