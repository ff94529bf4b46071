"""usage: python3 -m perf.system.arp_probe INTERFACE IPV4_ADDRESS COUNT

Asks COUNT times who has the address, with pauses in which whoever answers falls asleep; prints the microseconds from each request to its reply as JSON.
"""

import json
import socket
import struct
import sys
import time

ETH_P_ARP = 0x0806
PAUSE_S = 0.05
PATIENCE_S = 1.0


def main(interface, address, count):
    probe = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
    probe.bind((interface, ETH_P_ARP))
    probe.settimeout(PATIENCE_S)
    mac, target = probe.getsockname()[4], socket.inet_aton(address)
    sender = socket.inet_aton(address.rpartition(".")[0] + ".250")  # nobody's
    request = b"\xff" * 6 + mac + struct.pack("!HHHBBH", ETH_P_ARP, 1, 0x0800, 6, 4, 1) + mac + sender + bytes(6) + target
    latencies = []
    for _ in range(count):
        time.sleep(PAUSE_S)
        begin = time.perf_counter_ns()
        probe.send(request)
        try:
            while True:
                frame = probe.recv(128)
                if frame[20:22] == b"\x00\x02" and frame[28:32] == target and frame[:6] == mac:
                    latencies.append((time.perf_counter_ns() - begin) / 1000)
                    break
        except socket.timeout:
            continue
    print(json.dumps(latencies))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
