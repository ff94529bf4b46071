"""The lab's networks: one namespace a host, a data network between them, a management network to the control plane.

Data: with two hosts and no shaping a plain veth pair; otherwise every host has a veth to a bridge in a namespace of its own, which shapes
(so a host that bypasses its own queueing discipline is shaped all the same). Management: one veth a host to the control plane's namespace.
"""

from .processes import LabError, run

DATA = "data0"
PEER = "peer0"  # like DATA, for a system that is compared: the hosts' data planes do not listen on it


class Network:
    def __init__(self, lab_id, hosts, mtu=9000, shape_bps=None, ipv6=False, offloads=True):
        self.lab_id, self.hosts, self.mtu, self.shape_bps, self.ipv6 = lab_id, hosts, mtu, shape_bps, ipv6
        self.offloads = offloads
        self.control = f"{lab_id}-cp"
        self.switch = f"{lab_id}-sw"
        self.made = []

    def namespace(self, host):
        return f"{self.lab_id}-{host}"

    def data_address(self, host):
        """Of the host's data plane, which answers for it itself: the kernel does not have it."""
        return f"{'fd00::' if self.ipv6 else '10.77.0.'}{self.hosts.index(host) + 1}"

    def data_prefix(self, host):
        return f"{self.data_address(host)}/{64 if self.ipv6 else 24}"

    def peer_address(self, host):
        return f"10.78.0.{self.hosts.index(host) + 1}"

    def control_address(self, host):
        """The control plane's address as this host sees it."""
        return f"10.79.{self.hosts.index(host)}.1"

    def up(self):
        for name in [self.control] + [self.namespace(h) for h in self.hosts]:
            self._namespace(name)
        for index, host in enumerate(self.hosts):
            self._veth(self.namespace(host), "mgmt0", self.control, f"m{index}", 1500)
            self._address(self.namespace(host), "mgmt0", f"10.79.{index}.2/24")
            self._address(self.control, f"m{index}", f"10.79.{index}.1/24")
        for link in (DATA, PEER):
            self._connect(link)
        for host in self.hosts:
            self._address(self.namespace(host), PEER, f"{self.peer_address(host)}/24")

    def _connect(self, link):
        if len(self.hosts) == 2 and not self.shape_bps:
            self._veth(self.namespace(self.hosts[0]), link, self.namespace(self.hosts[1]), link, self.mtu)
            return
        if self.switch not in self.made:
            self._namespace(self.switch)
        bridge = f"br-{link}"
        self._in(self.switch, "ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0", "stp_state", "0")
        self._in(self.switch, "ip", "link", "set", bridge, "mtu", str(self.mtu), "up")
        for index, host in enumerate(self.hosts):
            port = f"{link}-{index}"
            self._veth(self.namespace(host), link, self.switch, port, self.mtu)
            self._in(self.switch, "ip", "link", "set", port, "master", bridge)
            if self.shape_bps:
                self._in(self.switch, "tc", "qdisc", "add", "dev", port, "root", "tbf", "rate", f"{self.shape_bps}bit",
                         "burst", "1m", "latency", "50ms")

    def _namespace(self, name):
        self.made.append(name)  # first: what is half made is taken away, too
        run("ip", "netns", "add", name)
        self._in(name, "ip", "link", "set", "lo", "up")
        run("ip", "netns", "exec", name, "sh", "-c",
            "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6", check=False)

    def _veth(self, a, a_name, b, b_name, mtu):
        run("ip", "-n", a, "link", "add", a_name, "mtu", str(mtu), "type", "veth", "peer", "name", b_name, "mtu", str(mtu), "netns", b)
        for namespace, name in ((a, a_name), (b, b_name)):
            self._in(namespace, "ip", "link", "set", name, "up")
            if name == DATA and not self.offloads:  # as on a network whose devices have none
                self._in(namespace, "ethtool", "-K", name, "tx", "off")

    def _address(self, namespace, link, address):
        self._in(namespace, "ip", "addr", "add", address, "dev", link)

    @staticmethod
    def _in(namespace, *command):
        return run("ip", "netns", "exec", namespace, *command)

    def command(self, where, *command):
        """The command line that runs `command` in a host's namespace (or the control plane's)."""
        name = self.control if where == "controlplane" else self.namespace(where)
        return ["ip", "netns", "exec", name, *command]

    def bytes_sent(self, host, link=DATA):
        path = f"/sys/class/net/{link}/statistics/tx_bytes"
        return int(run(*self.command(host, "cat", path)).stdout)

    def wire_bytes(self, link=DATA):
        """Bytes that all hosts have sent on a network so far, both directions, with Ethernet headers."""
        return sum(self.bytes_sent(h, link) for h in self.hosts)

    def cut(self, host, link=DATA):
        self._in(self.namespace(host), "ip", "link", "set", link, "down")

    def heal(self, host, link=DATA):
        self._in(self.namespace(host), "ip", "link", "set", link, "up")

    def processes(self):
        """Pids of what runs in our namespaces."""
        found = set()
        for name in self.made:
            found.update(int(pid) for pid in run("ip", "netns", "pids", name, check=False).stdout.split())
        return found

    def down(self):
        for name in reversed(self.made):
            try:
                run("ip", "netns", "del", name, check=False)
            except LabError:
                pass
        self.made = []
