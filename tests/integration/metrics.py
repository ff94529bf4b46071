"""Figures for operators: Prometheus endpoints of all daemons and DPDK's telemetry, read while a guest moves."""

import os
import re
import threading

from tests.lab import metrics
from tests.lab.configs import METRICS_PORTS
from tests.lab.lab import ROOT, Lab
from tests.lab.processes import run, wait_until

from .movement import guest_at_home
from .registry import check, check_equal, scenario_beside_others

DATAPLANES = (("host-a", "source"), ("host-b", "destination"))
DAEMONS = (("host-a", "dataplane"), ("host-b", "dataplane"), ("host-a", "bridge"), ("controlplane", "controlplane"))

OF_SPLIT_VMS = ("godwit_controlplane_split_bytes", "godwit_controlplane_split_connected")  # here none is split; splitting.py looks at them


def documented():
    """Name: (type, labels) of docs/operating.md's tables."""
    rows = {}
    with open(os.path.join(ROOT, "docs/operating.md")) as file:
        for line in file:
            match = re.match(r"^\| `((?:godwit|exposer)_[a-z_]+)` \| (\w+) \| ([^|]*) \|", line)
            if match:
                rows[match[1]] = (match[2], tuple(sorted(re.findall(r"`([a-z_]+)`", match[3]))))
    return rows


def check_documented(scrapes):
    """What is exported is documented with its type and labels, and the other way round."""
    rows, seen, labelled = documented(), set(), set()
    for shown in scrapes:
        for name, kind in shown.types.items():
            check(name in rows, f"{name} is not in docs/operating.md")
            check_equal(kind, rows[name][0], f"type of {name}")
            seen.add(name)
            for labels in shown.labels(name) or ():
                labelled.add(name)
                own = tuple(label for label in labels if kind != "summary" or label != "quantile")  # a summary's is the format's
                check_equal(own, rows[name][1], f"labels of {name}")
    check_equal(seen, set(rows), "metrics")
    check_equal(labelled | set(OF_SPLIT_VMS), set(rows), "metrics that had a sample")


def check_metrics_of_split(lab, main, subs):
    """Of the only VM, split with those hosts and connected."""
    rows, shown = documented(), metrics.scrape(lab, "controlplane", "controlplane")
    hosts = {}
    for name in OF_SPLIT_VMS:
        check_equal(set(shown.labels(name)), {rows[name][1]}, f"labels of {name}")
        hosts[name] = {labels["host"]: value for labels, value in shown.of(name)}
    sizes, flows = (hosts[name] for name in OF_SPLIT_VMS)
    check_equal((set(sizes), min(sizes.values()) > 0), ({main, *subs}, True), f"what lies where: {sizes}")
    check_equal(flows, dict.fromkeys(subs, 1), "flows")


def everyone(lab):
    return [metrics.scrape(lab, where, program) for where, program in DAEMONS]


def check_telemetry(lab, host, role):
    """The commands answer, and agree with each other."""
    def ask(command):
        return metrics.telemetry(lab, host, command)[command.split(",")[0]]
    flows = ask("/godwit/list")
    check_equal(len(flows), 1, f"flows of {host}")
    (flow_id, text), = flows.items()
    vm = lab.uuids["guest"]
    check_equal(text, f"{role} of VM {vm}", "the flow's description")
    flow = ask(f"/godwit/flow,{flow_id}")
    check_equal((flow["role"], flow["vm"], flow["lanes"]), (role, vm, 2), "the flow")
    check(flow["round"] >= 1 and flow["pages_sent"] > 0, f"round {flow['round']}, {flow['pages_sent']} pages")
    bulk = ask(f"/godwit/lane,{flow_id},1")
    check(bulk["pages_sent" if role == "source" else "pages_received"] > 0, f"no pages on the bulk lane: {bulk}")
    check(bulk["window_packets"] > 0, f"no window: {bulk}")
    if role == "source":
        check(bulk["rtt_us"] > 0, f"pages have arrived, but no round trip was measured: {bulk}")
    guest = ask(f"/godwit/vm,{vm}")
    check_equal((guest["migration"], ask("/godwit/vm")), (flow["migration"], [vm]), "the guest")
    check("lane_bad_tag" in ask("/godwit/drops"), "no drops by reason")
    loop = ask("/godwit/loop")
    check(loop["transmit_cycles_a_page" if role == "source" else "receive_cycles_a_page"] > 0, f"no cycles a page: {loop}")
    for nonsense in ("/godwit/flow", "/godwit/flow,0", "/godwit/flow,x", f"/godwit/lane,{flow_id}", f"/godwit/lane,{flow_id},99",
                     f"/godwit/lane,{flow_id},-1", "/godwit/vm,nobody"):
        check_equal(ask(nonsense), None, nonsense)


def attack(lab, where, program):
    """What no HTTP client would send; the endpoint must be there afterwards."""
    script = "import socket, sys\nfor text in (b'\\0' * 100000, b'GET /' + b'A' * 100000, b'GET /metrics HTTP/9\\r\\nHost\\r\\n\\r\\n', " \
             "b'POST /metrics HTTP/1.1\\r\\nContent-Length: 99999999999999999999\\r\\n\\r\\n'):\n" \
             "  s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)\n" \
             "  try:\n    s.sendall(text); s.shutdown(socket.SHUT_WR)\n    while s.recv(65536): pass\n  except OSError: pass\n"
    run(*lab.network.command(where, "python3", "-c", script, str(METRICS_PORTS[program])), timeout=60)


def same_totals(lab, summary, source, destination, before):
    """What the operator's summary says is what the data planes and the control plane have counted."""
    stats, far = summary["stats"], summary["destination_stats"]
    for kind, key in (("raw", "pages_sent"), ("zero", "pages_zero"), ("reused", "pages_reused")):
        name = "godwit_dataplane_pages_total"
        check_equal(source.get(name, role="source", kind=kind) - before.get(name, role="source", kind=kind), stats[key], f"{kind} pages at the source")
    check_equal(destination.get("godwit_dataplane_pages_total", role="destination", kind="raw"), far["pages_sent"], "raw pages at the destination")
    check_equal(source.get("godwit_dataplane_goodput_bytes_total", role="source"), stats["pages_sent"] * 4096, "goodput at the source")
    check_equal(source.get("godwit_dataplane_rounds_total", role="source"), stats["round"], "rounds")
    check_equal(source.get("godwit_dataplane_migrations_ended_total", role="source", outcome="committed"), 1, "committed at the source")
    check_equal(source.of("godwit_dataplane_migration_round"), [], "rounds of migrations that have ended")
    cluster = metrics.scrape(lab, "controlplane", "controlplane")
    check_equal(cluster.get("godwit_controlplane_migrations_ended_total", outcome="committed"), 1, "committed")
    check_equal(cluster.get("godwit_controlplane_migration_downtime_seconds_count"), 1, "downtimes")
    down = cluster.get("godwit_controlplane_migration_downtime_seconds_sum")
    check_equal(round(down * 1e6), summary["downtime_us"], "downtime")
    check_equal(cluster.get("godwit_controlplane_migration_duration_seconds_count", outcome="committed"), 1, "durations")
    check_equal(cluster.get("godwit_controlplane_migration_pages_total", kind="raw"), stats["pages_sent"], "raw pages in the control plane")
    for key in ("packets_sent", "packets_lost", "probe_timeouts", "spurious_losses", "rtt_us", "window_packets"):
        check(key in stats, f"the summary has no {key}")
    check(stats["rtt_us"] > 0 and stats["packets_sent"] > 0, f"the transport's figures: {stats}")


def while_pulling(lab):
    """What is shown while the guest, back on host-a, lacks pages."""
    result = {}
    mover = threading.Thread(target=lambda: result.update(lab.migrate("guest", "host-a", mode="postcopy", reuse="never", bandwidth_limit="200Mbit/s")))
    mover.start()
    try:
        wait_until("pages to be missing", lambda: any(
            value > 0 for _, value in metrics.scrape(lab, "host-a", "bridge").of("godwit_bridge_pages_missing")))
        during = everyone(lab)
        (_, missing), = during[0].of("godwit_dataplane_missing_pages")
        check(missing > 0, "the data plane shows no missing pages")
        vm = lab.uuids["guest"]
        paging = metrics.telemetry(lab, "host-a", f"/godwit/paging,{vm}")["/godwit/paging"]
        check(0 < paging["pages_missing"] <= paging["pages_missing_first"], f"telemetry: {paging}")
        check(paging["faults"] >= paging["faults_waiting"], f"telemetry: {paging}")
    finally:
        mover.join()
    check_equal(result["state"], "COMMITTED", "state")
    return during


@scenario_beside_others
def metrics_of_a_migration():
    with guest_at_home(options={"metrics": True}) as lab:
        before = everyone(lab)
        check_equal(before[0].get("godwit_dataplane_goodput_bytes_total", role="source"), 0, "goodput before")
        result = {}
        mover = threading.Thread(target=lambda: result.update(lab.migrate("guest", "host-b", bandwidth_limit="200Mbit/s")))
        mover.start()
        try:
            for host, role in DATAPLANES:
                wait_until(f"goodput at {host}", lambda: metrics.scrape(lab, host, "dataplane").get("godwit_dataplane_goodput_bytes_total", role=role) > 0)
            during = everyone(lab)
            for index, (host, role) in enumerate(DATAPLANES):
                check_telemetry(lab, host, role)
                check_equal(during[index].get("godwit_dataplane_migrations", role=role), 1, f"migrations at {host}")
                rtts = {labels["lane"]: value for labels, value in during[index].of("godwit_dataplane_lane_rtt_seconds")}
                check_equal(sorted(rtts), ["0", "1"], f"lanes of {host}")
        finally:
            mover.join()
        check_equal(result["state"], "COMMITTED", "state")
        ok, text = lab.verdict("guest", "host-b")
        check(ok, text)
        wait_until("the image to be told of", lambda: metrics.scrape(lab, "host-a", "dataplane").get("godwit_dataplane_retained_images") == 1)
        after = everyone(lab)
        same_totals(lab, result, after[0], after[1], before[0])
        check(after[0].get("godwit_dataplane_retained_image_bytes") > 0, "no bytes of the retained image")
        check_documented(before + during + after + while_pulling(lab))


@scenario_beside_others
def metrics_endpoints_bear_abuse():
    """Garbage changes nothing, and an idle data plane that is watched still sleeps."""
    with Lab(options={"metrics": True}) as lab:
        lab.start()
        for where, program in DAEMONS:
            attack(lab, where, program)
            check(metrics.scrape(lab, where, program).types, f"{program} shows nothing after abuse")
        first = metrics.scrape(lab, "host-a", "dataplane")
        sleeps, asleep = (first.get("godwit_dataplane_lcore_sleeps_total", lcore="0"), first.get("godwit_dataplane_lcore_seconds_total", lcore="0", state="asleep"))

        def slept():
            now = metrics.scrape(lab, "host-a", "dataplane")
            return (now.get("godwit_dataplane_lcore_sleeps_total", lcore="0") > sleeps + 5
                    and now.get("godwit_dataplane_lcore_seconds_total", lcore="0", state="asleep") > asleep)
        wait_until("the lcore to sleep between scrapes", slept)
