"""What crosses the network is encrypted, in the way that the plan says; clear text only where both hosts allow it."""

import time

from tests.lab import metrics
from tests.lab.lab import Lab

from .movement import guest_at_home, home_and_away, moved, require_memory_for_hugepages
from .registry import check, check_equal, scenario_beside_others


@scenario_beside_others
def aes_256():
    with guest_at_home() as lab:
        moved(lab, "guest", "host-b", encryption="aes-256-gcm")
        time.sleep(1)
        moved(lab, "guest", "host-a")


def clear_text_refused(lab):
    """The guest runs on; the reason names the key of the plan, the key of the host and its file."""
    lab.migrate("guest", "host-b", check=False, encryption="none")
    summary = lab.ctl("migrations")[0]
    check_equal(summary["state"], "ABORTED", "state")
    check_equal(summary["plan"]["encryption"], "ENCRYPTION_NONE", "encryption of the plan")
    for word in ("encryption", "allow_clear_text", "dataplane.toml"):
        check(word in summary["reason"], f"the reason does not name {word}: {summary['reason']}")
    check_equal(lab.where("guest"), "host-a", "owner")
    ok, text = lab.verdict("guest", "host-a")
    check(ok, text)
    return summary["reason"]


@scenario_beside_others
def clear_text_needs_both_hosts():
    for allowed, refuses in (({}, "source"), ({"host-a": True}, "destination"), ({"host-b": True}, "source")):
        with guest_at_home(options={"allow_clear_text": allowed}) as lab:
            reason = clear_text_refused(lab)
            check(refuses in reason, f"not the {refuses} refused: {reason}")
            moved(lab, "guest", "host-b")


@scenario_beside_others
def clear_text_where_both_allow_it():
    for device in "net_af_packet", "net_memif":  # both read pages where the guest writes them
        options = {"allow_clear_text": {"host-a": True, "host-b": True}, "device": device, "lcores": 2}
        with guest_at_home(options=options) as lab:
            moved(lab, "guest", "host-b", encryption="none")
            moved(lab, "guest", "host-a", encryption="none", verify="full")


def huge_pages_in_place(device, **lab):
    """Of a guest whose written pages are found by comparing content, nearly all pages leave in place, and the way home is as cheap."""
    require_memory_for_hugepages()
    options = {"allow_clear_text": {"host-a": True, "host-b": True}, "device": device, "hugepages": 300, "metrics": True}
    with Lab(backing="hugetlbfs", options=options, **lab) as lab:
        lab.start()
        moves = home_and_away(lab, {"encryption": "none", "verify": "full"})
        for host, summary in zip(("host-a", "host-b"), moves, strict=True):
            sent = summary["stats"]["pages_sent"]
            in_place = sum(value for _, value in metrics.scrape(lab, host, "dataplane").of("godwit_dataplane_in_place_pages_total"))
            check(in_place > sent * 0.8, f"{host} sent {sent} pages, {in_place} of them in place")


@scenario_beside_others
def huge_pages_in_place_af_packet():
    huge_pages_in_place("net_af_packet")


@scenario_beside_others
def huge_pages_in_place_memif_hashes():
    huge_pages_in_place("net_memif", tracker="hashes")
