"""What a daemon shows of itself, as Prometheus and dpdk-telemetry.py ask for it."""

import json
import os
import re
import socket
import sys

from .configs import METRICS_PORTS
from .processes import LabError, run

SAMPLE = re.compile(r'^([a-z_]+)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"(?:,|$)')
ASK = """
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
sys.stdout.buffer.write(opener.open("http://127.0.0.1:" + sys.argv[1] + "/metrics", timeout=10).read())
"""


class Scrape:
    """One answer of an endpoint. Anything that is not the text format raises."""

    def __init__(self, text):
        self.types, self.values = {}, {}
        family = None
        for line in text.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ")[2]
            elif line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                if name != family or name in self.types:
                    raise LabError(f"metrics: {line!r} does not follow its HELP, or is there twice")
                self.types[name] = kind
            elif line:
                self._sample(line, family)

    def _sample(self, line, family):
        match = SAMPLE.match(line)
        if not match or not match[1].startswith(family) or match[1][len(family):] not in ("", "_bucket", "_count", "_sum"):
            raise LabError(f"metrics: {line!r} is no sample of {family}")
        labels = dict(LABEL.findall(match[2] or ""))
        key = (match[1], tuple(sorted(labels.items())))
        if key in self.values:
            raise LabError(f"metrics: {line!r} is there twice")
        self.values[key] = float(match[3])

    def get(self, name, **labels):
        return self.values[(name, tuple(sorted(labels.items())))]

    def of(self, name):
        """All samples of a metric: their labels as dicts, and values."""
        return [(dict(labels), value) for (each, labels), value in self.values.items() if each == name]

    def labels(self, family):
        """The label names that its samples have, or None if there is no sample."""
        found = {tuple(sorted(set(dict(labels)) - {"le"})) for (name, labels) in self.values
                 if name == family or name in (f"{family}_bucket", f"{family}_count", f"{family}_sum")}
        return found or None


def scrape(lab, where, program):
    command = lab.network.command(where, sys.executable, "-c", ASK, str(METRICS_PORTS[program]))
    return Scrape(run(*command, timeout=30).stdout)


def telemetry(lab, host, command):
    """What DPDK's telemetry of the host's data plane answers: {"/command": ...}."""
    directory = f"{lab.directory}/{host}/dpdk/rte"
    names = [name for name in os.listdir(directory) if name.startswith("dpdk_telemetry.v2")]
    if len(names) != 1:
        raise LabError(f"telemetry sockets in {directory}: {names}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(f"{directory}/{names[0]}")
        greeting = json.loads(connection.recv(1024))
        connection.send(command.encode())
        return json.loads(connection.recv(greeting["max_output_len"]))
