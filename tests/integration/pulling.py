"""Blows while a guest's pages are still on the host that it came from: the guest waits where it must, all pages come, each once, and nothing else shows."""

import json
import os
import signal
import subprocess
import time

from tests.lab import metrics
from tests.lab.lab import program
from tests.lab.network import DATA
from tests.lab.processes import LabError, wait_until

from .failures import Background, everything_works_again, restart, runs_in_one_place, stray_memory
from .movement import SMALL, guest_at_home, moved
from .postcopy import SLOW
from .refusals import refused
from .registry import check, check_equal, scenario_beside_others

MANAGEMENT = "mgmt0"
PAGE_BYTES = 4096


class Pull:
    """One post-copy move of the guest to another host, from the moment in which it runs there and lacks pages."""

    def __init__(self, lab, destination=None, **plan):
        self.lab, self.source = lab, lab.where("guest")
        self.destination = destination or next(h for h in lab.hosts if h != self.source)
        before = {row["id"] for row in lab.ctl("migrations")}
        self.bytes_before = lab.network.bytes_sent(self.source)
        self.migration = Background(lab, "guest", self.destination, **{"reuse": "never", **SLOW, **plan})
        self.id = wait_until("the migration", lambda: next((r["id"] for r in lab.ctl("migrations") if r["id"] not in before), None), 30, 0.02)
        wait_until("PULLING", lambda: self.row()["state"] != "TRANSFERRING" and self.row()["state"] in ("PULLING", "COMMITTED", "ABORTED"), 30, 0.02)
        self.first = self.shown()["paging"]["pages_missing_first"]
        check(self.first > 0, "nothing is missing")

    def row(self):
        return next(row for row in self.lab.ctl("migrations") if row["id"] == self.id)

    def shown(self):
        """The VM as the operator sees it; it must still depend on the source."""
        vm = next(row for row in self.lab.ctl("vms") if row["name"] == "guest")
        check_equal((vm["host"], vm["depends_on"]), (self.destination, self.source), "where the VM is, and what it depends on")
        return vm

    def daemons(self, *sides):
        """Keys of daemons, as "dataplane source"."""
        return [side.replace("source", self.source).replace("destination", self.destination) for side in sides]

    def ended(self, watched=True):
        """All has come. Returns the migration as it is then. Not `watched`: godwitctl could not reach the control plane all the time."""
        self.migration.join()
        check(self.migration.error is None or not watched, f"the migration failed: {self.migration.error}")
        wait_until("COMMITTED", lambda: self.row()["state"] == "COMMITTED", 30, 0.1)
        row = self.row()
        check_equal(row["destination_stats"]["paging"]["pages_missing"], 0, "pages missing in the end")
        self.each_page_once()
        wait_until("the VM to depend on nobody", lambda: not any(vm["depends_on"] for vm in self.lab.ctl("vms")), 10, 0.1)
        check_equal(runs_in_one_place(self.lab, "guest"), self.destination, "host")
        check_equal(self.lab.qemu_pids(self.source), [], "QEMUs at the source")
        return row

    def each_page_once(self):
        """By what left the source's port: the pages that were missing, their headers, tables and device state, and what was in flight when a flow died."""
        sent = self.lab.network.bytes_sent(self.source) - self.bytes_before
        print(f"{sent / PAGE_BYTES / self.first:.3f} of the {self.first} missing pages left {self.source}", flush=True)
        check(sent < self.first * PAGE_BYTES * 1.1 + (4 << 20), f"{sent} bytes left {self.source} for {self.first} missing pages: some went twice")


def kill_and_restart(pull, *sides):
    keys = pull.daemons(*sides)
    check(pull.shown()["paging"]["pages_missing"] > 0, "nothing is missing any more: there is nothing to strike at")
    for key in keys:
        pull.lab.kill(key)
    time.sleep(0.3)
    for key in keys:
        restart(pull.lab, key)


def struck_one_after_another(*strikes):
    """One lab for several: the guest goes to and fro, all of its pages each time."""
    with guest_at_home(rate=200) as lab:
        for strike in strikes:
            pull = Pull(lab)
            time.sleep(0.5)
            strike(pull)
            pull.ended()
        everything_works_again(lab, "guest")


def dies(*sides):
    return lambda pull: kill_and_restart(pull, *sides)


@scenario_beside_others
def pulling_bridges_killed():
    struck_one_after_another(dies("bridge source"), dies("bridge destination"), dies("bridge source", "bridge destination"))


@scenario_beside_others
def pulling_dataplanes_killed():
    def destination_twice(pull):
        for _ in range(2):
            kill_and_restart(pull, "dataplane destination")
            wait_until("pages to flow again", lambda: pull.shown()["connected"], 30, 0.05)

    struck_one_after_another(dies("dataplane source", "dataplane destination"), destination_twice)


@scenario_beside_others
def pulling_all_daemons_killed():
    struck_one_after_another(dies("dataplane source", "dataplane destination", "bridge source", "bridge destination", "controlplane"))


@scenario_beside_others
def pulling_host_away():
    """A host without any network, whose data plane dies meanwhile: it cannot be told anything until it is back."""

    def away(side):
        def strike(pull):
            host = pull.daemons(side)[0]
            for link in (DATA, MANAGEMENT):
                pull.lab.network.cut(host, link)
            pull.lab.kill(f"dataplane {host}")
            wait_until("the control plane to miss the host", lambda: not pull.row()["connected"] and f"{host}" in pull.row()["note"]
                       and "not connected" in pull.row()["note"], 20, 0.1)
            restart(pull.lab, f"dataplane {host}")
            for link in (DATA, MANAGEMENT):
                pull.lab.network.heal(host, link)
        return strike

    struck_one_after_another(away("source"), away("destination"))


def missing_at(lab, host):
    """What the host's bridge says that its guest lacks; None: nothing of the kind."""
    rows = metrics.scrape(lab, host, "bridge").of("godwit_bridge_pages_missing")
    return next((value for labels, value in rows if labels["role"] == "destination"), None)


@scenario_beside_others
def pulling_without_control_plane():
    """It is away until all has come, and longer: its word is needed for the end, not for the pages. Whoever dies then has nothing missing, and must find that."""
    with guest_at_home(rate=200, options={"metrics": True}) as lab:
        pull = Pull(lab)
        lab.kill("controlplane")
        wait_until("all pages to come", lambda: missing_at(lab, pull.destination) == 0, 60, 0.1)
        check_equal([lab.qemu_pids(h) != [] for h in (pull.source, pull.destination)], [False, True], "where a QEMU is")
        kill_and_restart_blind(lab, *pull.daemons("dataplane source", "dataplane destination", "bridge destination"))
        restart(lab, "controlplane")
        pull.ended(watched=False)
        home = moved(lab, "guest", pull.source, verify="full")
        check(home["stats"]["pages_reused"] > home["stats"]["pages_total"] * 0.8, f"only {home['stats']['pages_reused']} pages reused ({home['reuse_reason']})")


def kill_and_restart_blind(lab, *keys):
    for key in keys:
        lab.kill(key)
    for key in keys:
        restart(lab, key)


@scenario_beside_others
def pulled_then_dataplanes_killed():
    """Nothing is missing: data planes that die then cost neither image nor history."""
    with guest_at_home() as lab:
        Pull(lab).ended()
        kill_and_restart_blind(lab, "dataplane host-a", "dataplane host-b")
        wait_until("all hosts to be connected", lab._all_registered, 30, 0.1)
        home = moved(lab, "guest", "host-a", mode="postcopy", verify="full")
        check(home["stats"]["pages_reused"] > home["stats"]["pages_total"] * 0.8, f"only {home['stats']['pages_reused']} pages reused ({home['reuse_reason']})")


# ---- what is refused meanwhile, and how it may end otherwise ---------------------------------------------------------


@scenario_beside_others
def pulling_refusals():
    """Nothing that an operator orders takes a page away that the guest still needs; what he orders again, when all is there, is done."""
    with guest_at_home(hosts=3, options={"memory_budget": {"host-a": "300MiB"}}) as lab:
        pull = Pull(lab)
        refused(lab, ["host-a", "pages"], lambda: lab.migrate("guest", "host-a"))
        refused(lab, ["host-a", "pages"], lambda: lab.migrate("guest", "host-a", mode="postcopy"))
        refused(lab, ["host-a", "pages"], lambda: lab.migrate("guest", "host-c"))
        refused(lab, ["PULLING", "no way back"], lambda: lab.ctl("cancel", pull.id))
        refused(lab, ["PULLING"], lambda: lab.ctl("switch-to-postcopy", pull.id))
        refused(lab, ["guest", "host-b", "pages"], lambda: lab.ctl("images", "drop", "--host", "host-a", "guest"))
        refused(lab, ["budget"], lambda: lab.start_vm("other", **SMALL, wait=False))  # host-a has room for it, but for the image
        check(pull.shown()["paging"]["pages_missing"] > 0, "it was over before all had been asked: nothing was tested")
        pull.ended()
        lab.start_vm("other", **SMALL, wait=False, vm_uuid=lab.uuids["other"])
        check_equal(lab.migrate("guest", "host-c")["state"], "COMMITTED", "the move that was refused before")
        ok, text = lab.verdict("guest", "host-c")
        check(ok, text)


@scenario_beside_others
def pulling_qemu_dies():
    """The guest ends before it is whole: INCOMPLETE, and the source lets go."""
    with guest_at_home() as lab:
        pull = Pull(lab)
        for pid in lab.qemu_pids(pull.destination):
            os.kill(pid, signal.SIGKILL)
        ended_incomplete(pull)


# ---- what is seen ----------------------------------------------------------------------------------------------------


def quantiles(scrape):
    return {labels["quantile"]: value for labels, value in scrape.of("godwit_bridge_fault_latency_seconds")}


def cut_under_one_vcpu(lab, pull):
    """Cuts the network so that the vCPU of the checked pages waits for one of them, and the other goes on.

    What the other needs comes when it first asks for it, so a cut in which it waits, too, is ended, and another tried.
    """
    console, vm = lab.console("guest", pull.destination), lab.uuids["guest"]
    for _ in range(8):
        beats = console.beats()
        wait_until("pages that the other vCPU needs to come", lambda b=beats: console.beats() >= b + 15, 30)
        lab.network.cut(pull.source, DATA)
        wait_until("a vCPU to wait for a page", lambda: metrics.scrape(lab, pull.destination, "dataplane").get("godwit_dataplane_faults_waiting", vm=vm), 10, 0.05)
        beats, last = console.beats(), console.last()
        try:
            wait_until("the other vCPU to go on", lambda b=beats: console.beats() >= b + 10, 4)
        except LabError:
            lab.network.heal(pull.source, DATA)
            continue
        check_equal(console.last(), last, "the last word of the thread that waits")
        return
    raise AssertionError("whenever one vCPU waited for a page, the other stood still")


@scenario_beside_others
def pulling_is_shown_and_the_rest_of_the_guest_runs():
    """A vCPU that waits for a page over a cut network stops nobody else; operators see what depends on whom, that nothing flows, and how long vCPUs wait.

    Stopped then, as if the source had gone for good, it says what it lacked, and the source lets go.
    """
    with guest_at_home(rate=200, options={"metrics": True}, vcpus=2, mode="beat") as lab:
        pull = Pull(lab, bandwidth_limit="30Mbit/s")
        check(pull.shown()["connected"], "pages do not flow")
        cut_under_one_vcpu(lab, pull)
        wait_until("the operator to see that nothing flows", lambda: not pull.shown()["connected"], 30, 0.1)
        vm, row = pull.shown(), pull.row()
        check("pages" in row["note"] and "host-a" in row["note"], f"while nothing flows: {row['note']}")
        check(0 < vm["paging"]["pages_missing"] < pull.first, f"while nothing flows: {vm}")
        check(vm["paging"]["fault_max_us"] > 0 and vm["paging"]["blocked_us"] > 1e6, f"a vCPU waited for seconds: {vm}")
        check_figures(lab, vm["paging"]["pages_missing"])
        lab.ctl("stop", "guest")  # though a vCPU waits for what may never come
        lab.network.heal("host-a", DATA)
        ended_incomplete(pull)


def ended_incomplete(pull):
    pull.migration.join()
    check(pull.migration.error is not None, "a guest that ended half-way was reported as moved")
    row = wait_until("the end", lambda: (r := pull.row())["ended"] and r, 20, 0.1)
    check_equal(row["state"], "INCOMPLETE", "state")
    check("pages" in row["reason"] and pull.source in row["reason"], f"the reason does not say what was missing: {row['reason']}")
    wait_until("the source to let go", lambda: not pull.lab.ctl("images") and not stray_memory(pull.lab, "guest"), 20, 0.2)
    check_equal([pull.lab.qemu_pids(h) for h in pull.lab.hosts], [[], []], "QEMUs left")


def check_figures(lab, missing):
    """Endpoints of the hosts and of the control plane, while nothing flows."""
    vm = lab.uuids["guest"]
    bridge, source = metrics.scrape(lab, "host-b", "bridge"), metrics.scrape(lab, "host-a", "bridge")
    cluster, pager = metrics.scrape(lab, "controlplane", "controlplane"), metrics.scrape(lab, "host-b", "dataplane")
    check_equal(pager.get("godwit_dataplane_missing_pages", vm=vm), missing, "missing pages, by the data plane")
    check_equal(bridge.get("godwit_bridge_pages_missing", vm=vm, role="destination"), missing, "missing pages, by the bridge")
    for scrape, role in ((bridge, "destination"), (source, "source")):  # it comes and goes with each attempt
        check(scrape.get("godwit_bridge_pull_connected", vm=vm, role=role) in (0, 1), f"connected, by the {role}")
    check_equal(cluster.get("godwit_controlplane_vm_pages_missing", vm=vm, host="host-a"), missing, "missing pages, by the control plane")
    check_equal(cluster.get("godwit_controlplane_pull_connected", vm=vm, host="host-a"), 0, "connected, by the control plane")
    shares = quantiles(bridge)
    check_equal(sorted(shares), ["0.5", "0.9", "0.99", "0.999", "1"], "quantiles of the fault latency")
    check(0 < shares["0.5"] <= shares["0.9"] <= shares["0.99"] <= shares["0.999"] <= shares["1"], f"quantiles: {shares}")
    origins = {labels["origin"]: value for labels, value in bridge.of("godwit_bridge_pulled_pages") if labels["role"] == "destination"}
    check_equal(sorted(origins), ["background", "demand", "zero"], "origins of pages")
    check(origins["demand"] > 0, f"pages by origin: {origins}")  # the guest may have asked for all that the limit let through
    check(bridge.get("godwit_bridge_vcpu_blocked_seconds", vm=vm) > 0, "no time of waiting vCPUs")


@scenario_beside_others
def pulled_pages_are_accounted():
    """What was missing is what came, by what brought it; nothing is asked for that is not missing, and what comes twice is counted."""
    with guest_at_home(rate=200) as lab:
        pull = Pull(lab)
        watched = watch_lines(lab, pull.id)
        row = pull.ended()
        here, there = row["destination_stats"]["paging"], row["stats"]["paging"]
        print(f"destination {here}; source {there}", flush=True)
        placed = here["pages_demand"] + here["pages_background"] + here["pages_given_back"]
        check_equal(placed, here["pages_missing_first"], "pages that came, of those that were missing")
        check(here["pages_demand"] <= here["faults"], f"pages came on demand without a fault: {here}")
        went = there["pages_demand"] + there["pages_background"]
        twice = went - here["pages_demand"] - here["pages_background"]
        check(0 <= twice <= here["pages_asked_again"], f"{twice} pages went twice; only those that are asked for once more may: {here}")
        pulling = [line for line in watched if line["state"] == "PULLING"]
        lacking = [line["destination_stats"]["paging"]["pages_missing"] for line in pulling]
        check(len(pulling) >= 3 and lacking == sorted(lacking, reverse=True), f"what watch showed: {lacking}")
        check(any(line["destination_stats"]["paging"]["faults_per_s"] > 0 for line in pulling), "watch never showed faults a second")


def watch_lines(lab, migration):
    """What `godwitctl watch --json` says until the end of the migration."""
    command = lab.network.command("controlplane", program("ctl"), "--config", f"{lab.directory}/controlplane/godwitctl.toml", "watch", migration, "--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and line.endswith("}")]
