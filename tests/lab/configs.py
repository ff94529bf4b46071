"""The configuration files of a lab: the samples of config/samples, with a lab's names and addresses. Each function returns TOML text."""

import json
import os
import re

SAMPLES = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "config/samples")
TABLE = re.compile(r"\[\[?([\w.]+)\]\]?")
KEY = re.compile(r"(\w+) = ")


def text(value):
    """A TOML basic string is a JSON string as far as the lab's values go."""
    return json.dumps(value)


def sections(name):
    """A sample as [table, header line, {key: value}]; the first is the top level. A value may have several lines."""
    found = [["", "", {}]]
    key = None
    with open(os.path.join(SAMPLES, name)) as file:
        for line in file.read().splitlines():
            if match := TABLE.fullmatch(line):
                found.append([match.group(1), line, {}])
            elif match := KEY.match(line):
                key = match.group(1)
                found[-1][2][key] = line[match.end():]
            elif line and not line.startswith("#"):
                found[-1][2][key] += "\n" + line
    return found


def from_sample(name, changes, without=()):
    """`changes` by "table.key" (None: take it away). `without`: tables that are left out."""
    lines, tables = [], sections(name)
    unknown = [key for key in changes if key.rpartition(".")[0] not in [table for table, _, _ in tables]]
    if unknown:
        raise ValueError(f"{name} has no table for {unknown}")
    for table, header, keys in tables:
        if table in without:
            continue
        keys.update({key.rpartition(".")[2]: value for key, value in changes.items() if key.rpartition(".")[0] == table})
        lines += ([header] if header else []) + [f"{key} = {value}" for key, value in keys.items() if value is not None] + [""]
    return "\n".join(lines)


METRICS_PORTS = {"dataplane": 9464, "bridge": 9465, "controlplane": 9466}


def metrics(lab, program):
    """Each daemon's endpoint, if the lab was asked for metrics."""
    return f'\n[metrics]\nlisten = "127.0.0.1:{METRICS_PORTS[program]}"\n' if lab.options.get("metrics") else ""


def tls(directory, name):
    return f"[tls]\nca = {text(directory + '/ca.crt')}\ncertificate = {text(f'{directory}/{name}.crt')}\nkey = {text(f'{directory}/{name}.key')}\n"


def secured(lab, name, without_security):
    """With who `name` is to the others. Option insecure: nobody has certificates; option security: the text for some names."""
    usual = "insecure = true\n" if lab.options.get("insecure") else tls(lab.directory + "/pki", name)
    security = lab.options.get("security", {}).get(name, usual)
    return without_security + "\n" + security if security.startswith("[") else security + without_security


def ctl(lab):
    return secured(lab, "operator", from_sample("godwitctl.toml", {"server": text("127.0.0.1:7300")}, without=("tls",)))


def controlplane(lab):
    listen = ["127.0.0.1:7300"] + [f"{lab.network.control_address(host)}:7300" for host in lab.hosts]
    return secured(lab, "controlplane", from_sample("controlplane.toml", {
        "listen": text(listen), "database": text(lab.directory + "/controlplane/controlplane.db"), "timeouts.host_heartbeat": text(lab.options.get("host_heartbeat", "4s")), "log.level": '"debug"'},
        without=("tls", "metrics")) + metrics(lab, "controlplane"))


def port(lab, host):
    """What the data plane sends through; net_memif joins two hosts without the data network."""
    device = lab.options.get("device", "net_af_packet")
    keys = {"port.device": text(device), "port.interface": None, "port.addresses": f"[{text(lab.network.data_prefix(host))}]",
            "port.mtu": str(lab.options.get("mtu", {}).get(host, lab.network.mtu))}
    if device == "net_memif":
        keys |= {"port.socket": text(lab.directory + "/memif.sock"), "port.role": text("server" if host == lab.hosts[0] else "client")}
    elif device == "net_af_packet":
        keys["port.interface"] = '"data0"'
    return keys


def lcores(lab):
    """All on any CPU: a lab has fewer than it has lcores."""
    cpus = text(f"0-{os.cpu_count() - 1}")
    return "".join(f"\n[[eal.lcores]]\nlcore = {number}\ncpus = {cpus}\n" for number in range(lab.options.get("lcores", 0)))


def dataplane(lab, host):
    directory = f"{lab.directory}/{host}"
    memory = [lab.memory_dir(host)] + ([lab.memory_dir(host) + "/huge"] if lab.backing == "hugetlbfs" else [])
    return from_sample("dataplane-trial.toml", {
        "control_socket": text(directory + "/dataplane.sock"), "run_dir": text(directory), "memory_dirs": text(memory),
        "memory_budget": text(lab.options.get("memory_budget", {}).get(host, "8GiB")),
        "allow_clear_text": "true" if lab.options.get("allow_clear_text", {}).get(host) else "false",
        "eal.hugepages": "true" if lab.options.get("dpdk_hugepages") else "false", **port(lab, host)}) + lcores(lab) + tracking_and_log(lab) \
        + metrics(lab, "dataplane") + (f'\n[eviction]\norder = {text(lab.options["eviction_order"])}\n' if "eviction_order" in lab.options else "") \
        + ("\n[telemetry]\ndpdk = true\n" if lab.options.get("metrics") else "")


def tracking_and_log(lab):
    return f'\n[tracking]\ntracker = {text(lab.tracker)}\n\n[log]\nlevel = "debug"\n'


def bridge(lab, host):
    directory = f"{lab.directory}/{host}"
    return secured(lab, host, from_sample("bridge.toml", {
        "host": text(host), "dataplane_socket": text(directory + "/dataplane.sock"), "controlplane": text(lab.network.control_address(host) + ":7300"),
        "run_dir": text(directory), "state_dir": text(directory + "/state"), "memory_dir_tmpfs": text(lab.memory_dir(host)),
        "memory_dir_hugetlbfs": text(lab.memory_dir(host) + "/huge") if lab.backing == "hugetlbfs" else None,
        "memory.lend": text(lab.options.get("lend", "0")),
        "heat.period": text("1s"), "heat.core_percent": str(lab.options.get("heat_core_percent", {}).get(host, 1))},
        without=("tls", "tracking", "log", "metrics")) + tracking_and_log(lab) + metrics(lab, "bridge"))


def kernel_line(mb, rate, mode=""):
    """Of a guest, whoever runs it. Without the kernel's tests of its own ciphers, an eighth of what it takes to boot."""
    return f"console=ttyS0 quiet cryptomgr.notests mb={mb} rate={rate} mode={mode}"


def vm(lab, name, mem_mib, regions, arguments, user, append, vcpus=1, vm_uuid="", machine="pc", accel="tcg"):
    base = ["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-kernel", f"{lab.guest}/vmlinuz", "-initrd",
            f"{lab.guest}/initramfs.gz", "-append", append, "-chardev", "file,id=con,path=${run_dir}/${name}-console.log,append=on", "-serial",
            "chardev:con", "-qmp", "unix:${run_dir}/${name}-people.qmp,server=on,wait=off"]
    definition = from_sample("vm.toml", {
        "name": text(name), "uuid": text(vm_uuid), "machine": text(machine), "accel": text(accel), "cpu": None, "vcpus": str(vcpus),
        "arguments": text(base + arguments), "user": text(user)}, without=("region",))
    for index in range(regions):
        definition += f'\n[[region]]\nname = "ram{index}"\nsize = "{mem_mib // regions}MiB"\nbacking = {text(lab.backing)}\n'
    return definition


def plan(vm_name, destination, **keys):
    changes = {key: text(value) for key, value in keys.items()}
    return from_sample("plan.toml", {"vm": text(vm_name), "destination": text(destination), **changes})
