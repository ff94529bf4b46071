"""mTLS between control plane, bridges and godwitctl: who is refused, with which line, and that guests do not notice."""

import os
import subprocess
import time

from tests.lab import configs
from tests.lab.lab import Lab, program
from tests.lab.processes import LabError, run, wait_until

from .failures import runs_in_one_place
from .movement import SMALL, guest_at_home, moved
from .registry import check, check_equal, scenario_beside_others


def connected(lab, host):
    rows = lab.ctl("hosts", check=False) or []
    return any(row["name"] == host and row["connected"] for row in rows)


def restart_bridge(lab, host, security=None):
    """A bridge with another [tls] (None: its own); returns what it logs from now on."""
    lab.kill(f"bridge {host}")
    wait_until(f"{host} to be lost", lambda: not connected(lab, host), 20)
    lab.options.setdefault("security", {}).pop(host, None)
    if security is not None:
        lab.options["security"][host] = security
    before = len(log_of(lab, host))
    daemon = lab.start_bridge(host)
    return lambda: daemon.log()[before:]


def log_of(lab, host):
    with open(f"{lab.directory}/{host}/bridge.log") as file:
        return file.read()


def guest_runs_on_and_comes_back(lab, host):
    """The guest on `host` has not noticed; with its own certificates the host is there again, and the guest can leave."""
    check_equal(runs_in_one_place(lab, "guest"), host, "host of the guest")
    restart_bridge(lab, host)
    wait_until(f"{host} to be connected", lambda: connected(lab, host), 20)
    moved(lab, "guest", "host-b" if host == "host-a" else "host-a")


@scenario_beside_others
def insecure_everywhere():
    """Without certificates all works, and says what that means."""
    with Lab(options={"insecure": True}) as lab:
        lab.start()
        check(not os.path.exists(f"{lab.directory}/pki"), "this lab has certificates")
        for key in ("controlplane", "bridge host-a"):
            check("insecure = true: whoever" in lab.daemons[key].log(), f"{key} does not warn")
        lab.start_vm(**SMALL)
        moved(lab, "guest", "host-b")


@scenario_beside_others
def foreign_ca():
    with guest_at_home() as lab:
        lab.pki("init", "host-a", "host-b", directory="foreign")
        foreign = f"{lab.directory}/foreign"
        log = restart_bridge(lab, "host-a", configs.tls(foreign, "host-a"))
        wait_until("the bridge to say why", lambda: "not signed by our CA" in log(), 20)
        log = restart_bridge(lab, "host-a", configs.tls(foreign, "host-a").replace("foreign/ca.crt", "pki/ca.crt"))
        wait_until("the bridge to refuse", lambda: "tls.certificate: " in log() and "is not signed by the CA" in log(), 20)
        check(not connected(lab, "host-a"), "host-a is connected by a certificate of another CA")
        guest_runs_on_and_comes_back(lab, "host-a")


@scenario_beside_others
def another_hosts_certificate():
    with guest_at_home() as lab:
        log = restart_bridge(lab, "host-a", configs.tls(f"{lab.directory}/pki", "host-b"))
        wait_until("the bridge to say why", lambda: "is a certificate for host host-b, not for host host-a" in log(), 20)
        wait_until("the bridge to end", lambda: not lab.daemons["bridge host-a"].alive(), 20)
        checked = run(program("bridge"), "--check-config", "--config", f"{lab.directory}/host-a/bridge.toml", check=False)
        check_equal((checked.returncode, checked.stderr.count("\n")), (1, 1), f"--check-config: {checked.stderr}")
        check("bridge.toml:" in checked.stderr and ": tls.certificate: " in checked.stderr, f"no file, line and key: {checked.stderr}")
        guest_runs_on_and_comes_back(lab, "host-a")


@scenario_beside_others
def no_certificate():
    with guest_at_home() as lab:
        log = restart_bridge(lab, "host-a", "")
        wait_until("the bridge to say what to do", lambda: "godwitctl pki init host-a" in log(), 20)
        log = restart_bridge(lab, "host-a", "insecure = true\n")
        wait_until("the bridge to say why", lambda: "it may ask for certificates" in log(), 20)
        wait_until("the control plane to say so", lambda: "TLS handshake refused" in lab.daemons["controlplane"].log(), 20)
        there = lab.network.command("controlplane", program("ctl"), "--server", "127.0.0.1:7300")
        for flags, status, words in (([], 2, "godwitctl pki init"), (["--insecure"], 1, "may ask for certificates")):
            asked = subprocess.run([*there, *flags, "hosts"], capture_output=True, text=True, check=False)
            check_equal((asked.returncode, asked.stderr.count("\n")), (status, 1), f"godwitctl {flags}: {asked.stderr}")
            check(words in asked.stderr, f"godwitctl {flags}: {asked.stderr}")
        guest_runs_on_and_comes_back(lab, "host-a")


@scenario_beside_others
def expired_then_renewed_without_restart():
    with guest_at_home() as lab:
        lab.pki("issue", "host-a", "--days", "0.00003", "--force")  # under 3 s
        end_unix_us = next(entry for entry in lab.pki("show") if entry["name"] == "host-a")["not_after_unix_us"]
        wait_until("the certificate to expire", lambda: time.time() * 1e6 > end_unix_us + 1e6, 20)
        log = restart_bridge(lab, "host-a", configs.tls(f"{lab.directory}/pki", "host-a"))
        wait_until("the bridge to say why", lambda: "our own certificate" in log() and "has expired on" in log(), 20)
        check(not connected(lab, "host-a"), "host-a is connected by an expired certificate")
        try:
            lab.migrate("guest", "host-b")
            raise AssertionError("a guest of a host that is not there was moved")
        except LabError as error:
            check("host-a" in str(error) and "not connected" in str(error), f"what was said: {error}")
        check_equal(runs_in_one_place(lab, "guest"), "host-a", "host of the guest")
        lab.pki("issue", "host-a", "--force")
        wait_until("host-a to be connected by its new certificate", lambda: connected(lab, "host-a"), 20)
        wait_until("the bridge to say so", lambda: "renewed: certificate" in log(), 20)
        moved(lab, "guest", "host-b")


@scenario_beside_others
def all_certificates_renewed_while_a_guest_moves():
    """Who is connected stays so, and the next connections are made with the new ones; near their end there are warnings."""
    with guest_at_home() as lab:
        for name in ("controlplane", "host-a", "host-b", "operator"):
            lab.pki("issue", name, "--days", "10", "--force")
        moved(lab, "guest", "host-b")
        wait_until("all to say so", lambda: all("expires in 9 days" in lab.daemons[key].log() for key in ("controlplane", "bridge host-a", "bridge host-b")), 20)
        hosts = lab.network.command("controlplane", program("ctl"), "--config", f"{lab.directory}/controlplane/godwitctl.toml", "hosts")
        for whose in ("the control plane expires", "host host-a expires", "host host-b expires"):  # a host tells with its next sign of life
            wait_until(f"godwitctl hosts to say that the certificate of {whose}",
                       lambda whose=whose: f"the certificate of {whose} in 9 days" in run(*hosts).stderr, 20)
        before = lab.daemons["controlplane"].log().count("is connected")
        for host in lab.hosts:
            lab.network.cut(host, "mgmt0")
        wait_until("both to be lost", lambda: not any(connected(lab, host) for host in lab.hosts), 30)
        for host in lab.hosts:
            lab.network.heal(host, "mgmt0")
        wait_until("both to be back", lambda: all(connected(lab, host) for host in lab.hosts), 30)
        check(lab.daemons["controlplane"].log().count("is connected") > before, "nobody has connected again")
        moved(lab, "guest", "host-a")
