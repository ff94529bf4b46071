"""Which folder may include which. The arrows of docs/architecture.md; checked against the order of subdir() in meson.build."""

import re

API = ('dataplane/api', 'controlplane/api')

ALLOWED = {
    'base': (),
    'pki': ('base',),
    'config': ('base', 'pki'),
    'metrics': ('base',),
    'kmod-ept': (),
    'dataplane/pages': ('base', 'config'),
    'dataplane/wire': ('base', 'config', 'dataplane/pages'),
    'dataplane/transport': ('base', 'config', 'dataplane/pages', 'dataplane/wire'),
    'dataplane/placement': ('base', 'dataplane/pages'),
    'dataplane/memory': ('base', 'config', 'dataplane/pages'),
    'dataplane/memserver': ('base', 'dataplane/pages', 'dataplane/memory'),
    'dataplane/transfer': ('base', 'config', 'dataplane/pages', 'dataplane/wire', 'dataplane/transport'),
    'dataplane/split': ('base', 'dataplane/pages', 'dataplane/wire', 'dataplane/transport', 'dataplane/placement', 'dataplane/transfer'),
    'dataplane/port': ('base', 'config', 'dataplane/pages', 'dataplane/wire'),
    'dataplane/api': ('base',),
    'dataplane/daemon': ('base', 'config', 'metrics', 'dataplane/pages', 'dataplane/wire', 'dataplane/transport', 'dataplane/memory',
                         'dataplane/memserver', 'dataplane/transfer', 'dataplane/split', 'dataplane/port', 'dataplane/api'),
    'controlplane/api': ('base', 'dataplane/api'),
    'controlplane/store': ('base', 'config') + API,
    'controlplane/planner': ('base', 'config', 'controlplane/store') + API,
    'controlplane/tls': ('base', 'pki', 'config'),
    'controlplane/service': ('base', 'pki', 'config', 'metrics', 'controlplane/store', 'controlplane/planner', 'controlplane/tls') + API,
    'controlplane/ctl': ('base', 'pki', 'config', 'controlplane/tls') + API,
    'qemu-bridge/qmp': ('base', 'config') + API,
    'qemu-bridge/attach': ('base', 'config', 'kmod-ept', 'qemu-bridge/qmp') + API,
    'qemu-bridge/device-state': ('base', 'config', 'qemu-bridge/qmp', 'qemu-bridge/attach') + API,
    'simulation': ('base', 'dataplane/pages', 'dataplane/wire', 'dataplane/transport'),
    'qemu-bridge/agent': ('base', 'pki', 'config', 'metrics', 'controlplane/tls', 'qemu-bridge/qmp', 'qemu-bridge/attach', 'qemu-bridge/device-state') + API,
}

GENERATED = {
    'dataplane.pb.h': 'dataplane/api',
    'controlplane.pb.h': 'controlplane/api',
    'controlplane.grpc.pb.h': 'controlplane/api',
    'controlplane_mock.grpc.pb.h': 'controlplane/api',
}

# perf and tests look at everything.
FREE = ('perf', 'tests')


def folder_of(path):
    """The layer that a file belongs to, or None."""
    if path in GENERATED:
        return GENERATED[path]
    name = path.split('/')[-1]
    if name in GENERATED:
        return GENERATED[name]
    for folder in sorted(ALLOWED, key=len, reverse=True):
        if path.startswith(folder + '/'):
            return folder
    return path.split('/')[0] if path.split('/')[0] in FREE and '/' in path else None


def check_include(path, included):
    """What is wrong with a quoted include of one file in another, or None."""
    here, there = folder_of(path), folder_of(included)
    if here == 'kmod-ept' and '/' not in included:
        return None  # the kernel's build knows no root of ours
    if there is None:
        return f'"{included}" is no path from the repository\'s root; libraries are included with <>'
    if here is None or here in FREE:
        return None
    if there in FREE:
        return f'{here} must not include {there}'
    if there != here and there not in ALLOWED[here]:
        allowed = ', '.join(ALLOWED[here]) or 'nothing'
        return f'{here} must not include {there}; it may include {allowed}'
    return None


def check_order(meson_text):
    """Each folder may use only folders above it in the root meson.build."""
    order = re.findall(r"^subdir\('([^']+)'\)", meson_text, re.MULTILINE)
    problems = [f'{folder} is not in meson.build' for folder in ALLOWED if folder not in order]
    for folder, uses in ALLOWED.items():
        for used in uses:
            if folder in order and used in order and order.index(used) > order.index(folder):
                problems.append(f'{folder} may include {used}, which meson.build builds later')
    for folder in order:
        if folder not in ALLOWED and folder not in FREE:
            problems.append(f'{folder} has no place in tests/tidy/layers.py')
    return problems
