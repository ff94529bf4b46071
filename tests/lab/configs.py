"""The configuration files of a lab, as an operator would write them. Each function returns TOML text."""

import json
import os


def text(value):
    """A TOML basic string is a JSON string as far as the lab's values go."""
    return json.dumps(value)


def controlplane(lab):
    listen = ["127.0.0.1:7300"] + [f"{lab.network.control_address(host)}:7300" for host in lab.hosts]
    return f"""\
listen = {text(listen)}
database = {text(lab.directory + "/controlplane/controlplane.db")}
insecure = true

[timeouts]
host_heartbeat = "4s"

[log]
level = "debug"
"""


def port(lab, host):
    """What the data plane sends through; net_memif joins two hosts without the data network."""
    device = lab.options.get("device", "net_af_packet")
    lines = [f"device = {text(device)}"]
    if device == "net_memif":
        lines += [f'socket = {text(lab.directory + "/memif.sock")}', f'role = "{"server" if host == lab.hosts[0] else "client"}"']
    elif device == "net_af_packet":
        lines.append('interface = "data0"')
    lines += [f"addresses = [{text(lab.network.data_prefix(host))}]", f"mtu = {lab.options.get('mtu', {}).get(host, lab.network.mtu)}", 'idle = "adaptive"']
    return "\n".join(lines)


def lcores(lab):
    """All on any CPU: a lab has fewer than it has lcores."""
    cpus = text(f"0-{os.cpu_count() - 1}")
    return "".join(f"[[eal.lcores]]\nlcore = {number}\ncpus = {cpus}\n" for number in range(lab.options.get("lcores", 0)))


def dataplane(lab, host):
    directory = f"{lab.directory}/{host}"
    memory = [lab.memory_dir(host)]
    if lab.backing == "hugetlbfs":
        memory.append(lab.memory_dir(host) + "/huge")
    budget = lab.options.get("memory_budget", {}).get(host, "8GiB")
    return f"""\
control_socket = {text(directory + "/dataplane.sock")}
run_dir = {text(directory)}
memory_dirs = {text(memory)}
memory_budget = {text(budget)}
allow_clear_text = {"true" if lab.options.get("allow_clear_text", {}).get(host) else "false"}

[eal]
hugepages = {"true" if lab.options.get("dpdk_hugepages") else "false"}
memory = "256MiB"
{lcores(lab)}
[[port]]
{port(lab, host)}

[tracking]
tracker = {text(lab.tracker)}

[log]
level = "debug"
"""


def bridge(lab, host):
    directory = f"{lab.directory}/{host}"
    huge = f'memory_dir_hugetlbfs = {text(lab.memory_dir(host) + "/huge")}\n' if lab.backing == "hugetlbfs" else ""
    return f"""\
host = {text(host)}
dataplane_socket = {text(directory + "/dataplane.sock")}
controlplane = {text(lab.network.control_address(host) + ":7300")}
run_dir = {text(directory)}
state_dir = {text(directory + "/state")}
memory_dir_tmpfs = {text(lab.memory_dir(host))}
{huge}insecure = true

[tracking]
tracker = {text(lab.tracker)}

[log]
level = "debug"
"""


def vm(lab, name, mem_mib, regions, arguments, user, append, vcpus=1, vm_uuid="", machine="pc", accel="tcg"):
    base = ["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-kernel", f"{lab.guest}/vmlinuz", "-initrd",
            f"{lab.guest}/initramfs.gz", "-append", append, "-chardev", "file,id=con,path=${run_dir}/${name}-console.log,append=on", "-serial",
            "chardev:con", "-qmp", "unix:${run_dir}/${name}-people.qmp,server=on,wait=off"]
    lines = [f"name = {text(name)}", f"uuid = {text(vm_uuid)}", f"machine = {text(machine)}", f"accel = {text(accel)}", f"vcpus = {vcpus}",
             f"arguments = {text(base + arguments)}"]
    if user:
        lines.append(f"user = {text(user)}")
    for index in range(regions):
        lines += ["", "[[region]]", f'name = "ram{index}"', f'size = "{mem_mib // regions}MiB"', f"backing = {text(lab.backing)}"]
    return "\n".join(lines) + "\n"


def plan(vm_name, destination, **keys):
    lines = [f"vm = {text(vm_name)}", f"destination = {text(destination)}"]
    lines += [f"{key} = {text(value) if isinstance(value, str) else value}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"
