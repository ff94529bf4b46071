"""A laboratory on one machine: hosts as network namespaces, the real daemons, real QEMU, real guests.

Used by ./quickstart, the integration tests and the system benchmarks. Everything that a lab makes (namespaces, processes, files, hugepages) is
named after the lab and goes when it closes, also after an exception, SIGINT or SIGTERM.
"""
