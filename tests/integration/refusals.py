"""What is refused before anything is touched, in words that say what to do."""

import socket
import struct
import subprocess
import threading

from tests.lab.lab import Lab
from tests.lab.processes import LabError, wait_until

from .movement import SMALL, guest_at_home, moved
from .registry import check, check_equal, scenario_beside_others

UUID = "11111111-2222-4333-8444-555555555555"


def refused(lab, words, action):
    try:
        action()
    except LabError as error:
        for word in words:
            check(word in str(error), f"the refusal does not say {word!r}: {error}")
        return
    raise AssertionError(f"was not refused; expected a refusal naming {words}")


class Theirs:
    """A QEMU started by someone else, paused at its first instruction."""

    def __init__(self, lab, *arguments):
        self.qmp = f"{lab.directory}/host-a/theirs.qmp"
        command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-uuid", UUID, "-S",
                   "-qmp", f"unix:{self.qmp},server=on,wait=off", *arguments]
        self.process = subprocess.Popen(lab.network.command("host-a", *command), stdin=subprocess.DEVNULL)
        wait_until("QMP", lambda: subprocess.run(["test", "-S", self.qmp], check=False).returncode == 0, 20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def attach(lab, theirs, **definition):
    lab.write_vm_definition("guest", **{"mem_mib": 256, "mb": 96, "rate": 0, "vm_uuid": UUID, **definition})
    lab.ctl("attach", "-f", f"{lab.directory}/guest.toml", "--host", "host-a", "--qmp", theirs.qmp)


def ram(lab, share):
    return ["-machine", "pc,memory-backend=ram0", "-object",
            f"memory-backend-file,id=ram0,size=256M,mem-path={lab.memory_dir('host-a')}/theirs.ram,share={share}"]


@scenario_beside_others
def ram_not_shared():
    with Lab() as lab:
        lab.start()
        with Theirs(lab, *ram(lab, "off")) as theirs:
            refused(lab, ["ram0", "share=on"], lambda: attach(lab, theirs))
            check(theirs.process.poll() is None, "the QEMU that was refused has ended")


@scenario_beside_others
def ram_size_differs():
    with Lab() as lab:
        lab.start()
        with Theirs(lab, *ram(lab, "on")) as theirs:
            refused(lab, ["ram0"], lambda: attach(lab, theirs, mem_mib=512))


@scenario_beside_others
def machine_type_differs():
    with Lab() as lab:
        lab.start()
        with Theirs(lab, *ram(lab, "on")) as theirs:
            refused(lab, ["q35"], lambda: attach(lab, theirs, machine="q35"))


class VhostUserBackend:
    """The other end of a vhost-user device, as far as QEMU needs it to start: it says what it has, and takes whatever it is told."""

    ANSWERS = {1: 1 << 26, 15: 0, 17: 1}  # GET_FEATURES: VHOST_F_LOG_ALL, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        connection, _ = self.listener.accept()
        with connection:
            while header := connection.recv(12, socket.MSG_WAITALL):
                request, _, size = struct.unpack("<III", header)
                if size:
                    connection.recv(size, socket.MSG_WAITALL)
                if request in self.ANSWERS:
                    connection.sendall(struct.pack("<IIIQ", request, 5, 8, self.ANSWERS[request]))

    def close(self):
        self.listener.close()


@scenario_beside_others
def vhost_user_device():
    with Lab() as lab:
        lab.start()
        path = f"{lab.directory}/host-a/vu.sock"
        backend = VhostUserBackend(path)
        with Theirs(lab, *ram(lab, "on"), "-chardev", f"socket,id=vu,path={path}", "-netdev", "vhost-user,id=net0,chardev=vu",
                    "-device", "virtio-net-pci,netdev=net0,id=nic0") as theirs:
            refused(lab, ["vhost-user", "net0"], lambda: attach(lab, theirs))
        backend.close()


@scenario_beside_others
def destination_without_memory():
    with Lab(options={"memory_budget": {"host-b": "128MiB"}}) as lab:
        lab.start()
        lab.start_vm(**SMALL)
        refused(lab, ["memory", "host-b"], lambda: lab.migrate("guest", "host-b"))
        ok, text = lab.verdict("guest", "host-a")
        check(ok, text)


@scenario_beside_others
def unknown_names():
    with Lab() as lab:
        lab.start()
        lab.start_vm(**SMALL)
        refused(lab, ["nowhere"], lambda: lab.migrate("guest", "nowhere"))
        refused(lab, ["nobody"], lambda: lab.migrate("nobody", "host-b"))
        refused(lab, ["host-a"], lambda: lab.migrate("guest", "host-a"))
        moved(lab, "guest", "host-b")


@scenario_beside_others
def image_that_does_not_match():
    """A damaged table makes the move a full one, and says why."""
    with guest_at_home() as lab:
        moved(lab, "guest", "host-b")
        damage_image(lab, "host-a")
        home = moved(lab, "guest", "host-a")
        check_equal(home["stats"]["pages_reused"], 0, "pages reused from a damaged image")
        check("checksum" in home["reuse_reason"], f"the reason given: {home['reuse_reason']}")


def damage_image(lab, host):
    import glob

    paths = glob.glob(f"{lab.memory_dir(host)}/*.image")
    check_equal(len(paths), 1, "image files")
    with open(paths[0], "r+b") as file:
        file.seek(-100, 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))
