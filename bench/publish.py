"""The publisher: sends numbered JSON messages of about 100 bytes with four numbers, over MQTT 3.1.1 on a raw socket, so
that it is never what limits.

Run as ``python -m bench.publish PORT TOPIC QOS RATE FIRST``. RATE: messages a second, evenly; 0: as fast as they are
allowed. FIRST: number of the first. Each line of its standard input says how many it may send in all. At the end of
the input it waits until the broker took them all, prints ``sent N`` and ends with 0; with an error if the broker went
away or the rate cannot be kept.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

_AT_ONCE = 100  # messages in one write
_PUBACK, _PINGRESP = 4, 2  # bytes of an answer
_LATE = 1.0  # s behind the rate: more than a machine that is busy for a moment


def payload(number: int) -> bytes:
    """A message; its values have the same decimals in each."""
    power, voltage, temperature = number * 37 % 20_000 - 10_000, number * 13 % 3000, number * 7 % 1000
    return (
        f'{{"n":{number},"power":{power / 10:.1f},"voltage":{380 + voltage / 100:.2f},'
        f'"temperature":{20 + temperature / 100:.2f},"unit":"battery-1","state":"charging"}}'
    ).encode()


def publish(topic: bytes, content: bytes, *, qos: int, mid: int) -> bytes:
    """A PUBLISH packet (MQTT 3.1.1, 3.3)."""
    identifier = mid.to_bytes(2, "big") if qos else b""
    body = len(topic).to_bytes(2, "big") + topic + identifier + content
    return bytes([0x30 | qos << 1]) + _length(len(body)) + body


def _length(value: int) -> bytes:
    """A remaining length (2.2.3)."""
    found = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        found.append(low | 0x80 if value else low)
        if not value:
            return bytes(found)


def connect(port: int, client_id: bytes = b"publisher") -> socket.socket:
    """A connection with a session of its own, without keep-alive. Raises OSError, ValueError if the broker refuses."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = b"\0\4MQTT\4\2\0\0" + len(client_id).to_bytes(2, "big") + client_id
    connection.sendall(b"\x10" + _length(len(body)) + body)
    if (answer := connection.recv(4, socket.MSG_WAITALL)) != b"\x20\2\0\0":
        raise ValueError(f"the broker refuses: {answer.hex()}")
    return connection


class Publisher:
    """Sends what is allowed, when it is due."""

    def __init__(self, connection: socket.socket, topic: bytes, *, qos: int, rate: float, first: int) -> None:
        self.sent = 0
        self._connection = connection
        self._topic = topic
        self._qos = qos
        self._rate = rate
        self._first = first
        self._allowed = 0
        self._begun: float | None = None
        self._answered = 0  # bytes

    def run(self, limits: int) -> None:
        """Until the end of the input ``limits``, a file descriptor, and the broker took all that was sent."""
        listening = True
        while listening or self._answered < (_PUBACK * self.sent if self._qos else 0) + _PINGRESP:
            read = [self._connection.fileno(), *([limits] if listening else [])]
            ready, _, _ = select.select(read, [], [], self._wait() if listening else None)
            if limits in ready:
                listening = self._hear(os.read(limits, 4096))
                if not listening:
                    self._connection.sendall(b"\xc0\0")  # PINGREQ, answered behind all that it read before
            if self._connection.fileno() in ready:
                answers = self._connection.recv(65_536)
                if not answers:
                    raise SystemExit("the broker closed the connection")
                self._answered += len(answers)
            if listening:
                self._send()

    def _hear(self, lines: bytes) -> bool:
        """Take the last limit; False at the end of the input."""
        if whole := lines.rpartition(b"\n")[0].split():
            self._allowed = int(whole[-1])
        return bool(lines)

    def _wait(self) -> float | None:
        """How long until something may be sent; None: until it is allowed."""
        if self.sent >= self._allowed:
            return None
        if not self._rate or self._begun is None:
            return 0
        return max(0.0, self._begun + self.sent / self._rate - time.monotonic())

    def _send(self) -> None:
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
        due = self._allowed
        if self._rate:
            due = min(due, int((now - self._begun) * self._rate) + 1)
            if (due - self.sent) / self._rate > _LATE:
                raise SystemExit(f"{self._rate:g} messages a second cannot be kept")
        due = min(due, self.sent + _AT_ONCE)
        if due > self.sent:
            packets = [
                publish(self._topic, payload(self._first + at), qos=self._qos, mid=at % 65_535 + 1)
                for at in range(self.sent, due)
            ]
            self._connection.sendall(b"".join(packets))
            self.sent = due


def main(arguments: list[str]) -> None:
    """Publish until the end of the standard input."""
    port, topic, qos, rate, first = arguments
    with connect(int(port)) as connection:
        publisher = Publisher(connection, topic.encode(), qos=int(qos), rate=float(rate), first=int(first))
        print("ready", flush=True)
        try:
            publisher.run(sys.stdin.fileno())
            connection.sendall(b"\xe0\0")  # DISCONNECT
        except OSError as error:
            raise SystemExit(f"the broker closed the connection: {error.strerror}") from None
    print(f"sent {publisher.sent}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
