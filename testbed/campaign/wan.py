"""A bad line within one network namespace: ``python -m testbed.campaign.wan``.

A TUN device that reflects: what is sent to ``THERE`` comes back to ``HERE`` from ``THERE``, late or not at all. So a
client that connects to a port of ``THERE`` reaches the server that listens on ``HERE``, and all that they say goes
through here. Swapping two addresses changes no checksum.

stdin: ``line DELAY_MS JITTER_MS LOSS_PERCENT`` (each way), answered with ``done COMMAND``. Ends when stdin ends.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import sys
import time

HERE, THERE = "198.51.100.1", "198.51.100.2"  # of TEST-NET-2 (RFC 5737)
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_IPV4 = 4


def _device() -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"wan", _IFF_TUN | _IFF_NO_PI))
    subprocess.run(["ip", "address", "add", f"{HERE}/24", "dev", "wan"], check=True)
    subprocess.run(["ip", "link", "set", "wan", "up"], check=True)
    return device


def main() -> None:
    """Carry packets until stdin ends."""
    device, chance = _device(), random.Random(1)
    on_the_way: list[tuple[float, int, bytes]] = []
    numbers = itertools.count()
    delay = jitter = loss = 0.0
    poll = select.poll()
    poll.register(device, select.POLLIN)
    poll.register(0, select.POLLIN)
    print("ready wan", flush=True)
    while True:
        wait = max(0.0, on_the_way[0][0] - time.monotonic()) * 1000 if on_the_way else None
        for descriptor, _ in poll.poll(wait):
            if descriptor == 0:
                text = os.read(0, 4096).decode()
                if not text:
                    return
                for line in text.splitlines():
                    delay, jitter, loss = (float(number) for number in line.split()[1:])
                    print(f"done {line}", flush=True)
                continue
            try:
                while packet := os.read(device, 65536):
                    if packet[0] >> 4 == _IPV4 and chance.random() * 100 >= loss:
                        late = (delay + jitter * chance.random()) / 1000
                        swapped = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                        heapq.heappush(on_the_way, (time.monotonic() + late, next(numbers), swapped))
            except BlockingIOError:
                pass
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            try:
                os.write(device, heapq.heappop(on_the_way)[2])
            except OSError as error:
                print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
