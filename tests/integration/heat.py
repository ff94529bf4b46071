"""Which pages of a guest are hot, as godwitctl tells."""

import os
import xml.etree.ElementTree

from tests.lab.processes import wait_until

from .movement import guest_at_home, moved
from .registry import check, check_equal, scenario_beside_others

PAGE = 4096
SCANS_KEPT = 8


def ram_file(lab, host="host-a"):
    directory = lab.memory_dir(host)
    [name] = [name for name in os.listdir(directory) if name.endswith(".ram")]
    return os.path.join(directory, name)


def pages_of(lab):
    """The guest's RAM as it lies, page by page."""
    with open(ram_file(lab), "rb") as file:
        data = file.read()
    return [data[at:at + PAGE] for at in range(0, len(data), PAGE)]


def heat(lab):
    return lab.ctl("vm", "heat", "guest")


def scans_after(lab, scans, more):
    wait_until(f"{more} more scans", lambda: heat(lab)["scans"] >= scans + more)
    return heat(lab)


def written_between_scans(lab):
    """Pages whose content changed, and the heat map of a scan after that; fewer scans lie in between than are kept."""
    for _ in range(10):
        first = heat(lab)["scans"]
        before = pages_of(lab)
        scans_after(lab, first, 2)
        after = pages_of(lab)
        known = scans_after(lab, heat(lab)["scans"], 2)  # the first of them may have begun before the last look
        if known["scans"] - first < SCANS_KEPT:
            return [page for page, (a, b) in enumerate(zip(before, after)) if a != b], known
    raise AssertionError("the machine is too slow: more scans went by than are kept")


@scenario_beside_others
def heat_of_writes():
    """Under TCG there is no VM of KVM's: what the guest writes is hot, the rest is not, and the reason is told. It moves all the same, and is right."""
    with guest_at_home(rate=200) as lab:
        scans_after(lab, 0, 2)
        written, known = written_between_scans(lab)
        check_equal(known["source"], "writes", "source")
        check("no VM of KVM's" in known["source_reason"], f"reason: {known['source_reason']}")
        check(len(written) > 100, f"only {len(written)} pages changed")
        cells = known["cells"]
        cell_of = lambda page: page * len(cells) // known["page_count"]  # noqa: E731
        cold = [page for page in written if cells[cell_of(page)] == 0]
        check(not cold, f"{len(cold)} of {len(written)} pages that were written are cold, {cold[:5]}")
        check(sum(1 for cell in cells if cell == 0) > len(cells) / 4, "hardly a part of the guest's memory is cold")

        drawing = os.path.join(lab.directory, "heat.svg")
        lab.ctl("vm", "heat", "guest", "--svg", drawing)
        squares = [rect for rect in xml.etree.ElementTree.parse(drawing).getroot() if list(rect)]
        check_equal(len(squares), len(cells), "squares of the drawing")
        # What the scans took from the tracker must not be missing where the guest goes.
        moved(lab, "guest", "host-b")
        moved(lab, "guest", "host-a")
