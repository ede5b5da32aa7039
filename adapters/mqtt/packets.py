"""Packets of MQTT (3.1.1 and 5.0): cuts what comes from a broker into packets and reads those that carry messages.

Pure: bytes in, messages out. Everything that is not about a message is passed on untouched in ``others`` for the
library that keeps the session. PUBLISH is read here because the library answers it before it is on disk, because it
would take in a packet of 256 MiB, and because this is several times cheaper.

A PUBLISH larger than ``LARGEST`` is read and thrown away; only its length and digest are kept, so that it can be
stated and acknowledged: one that ended the connection would be sent again for ever. What is no MQTT raises
``Malformed``; what came before it stays in ``messages``, and nothing more can be read.
"""

from __future__ import annotations

import hashlib

from adapters.mqtt.message import Message, Skipped

LARGEST = 1 << 20  # bytes of a packet
_LARGEST_OTHER = 1 << 16
_CONNACK, _PUBLISH, _PUBREL = 0x20, 0x30, 0x62
_HEAD = 2 + 0xFFFF + 2 + 4  # the most bytes before the properties' content: topic, identifier, length of properties


class Malformed(Exception):
    """Bytes that are no packet that a broker sends."""


class _Skip:
    """A PUBLISH that is too large, on its way past."""

    def __init__(self, header: int, length: int) -> None:
        self.header = header
        self.left = length
        self._head = bytearray()
        self._head_size = min(_HEAD, length)
        self._publish: _Publish | None = None
        self._digest = hashlib.sha256()
        self._before = 0  # bytes of properties still to come before the payload
        self._size = 0

    def feed(self, data: bytes, version5: bool) -> None:
        self.left -= len(data)
        if self._publish is None:
            self._head += data
            if len(self._head) < self._head_size:
                return
            data = bytes(self._head)
            self._publish = _Publish(self.header, data, version5)
            data = data[self._publish.stop :]
            self._before = self._publish.properties
        cut = min(self._before, len(data))
        self._before -= cut
        payload = data[cut:]
        self._digest.update(payload)
        self._size += len(payload)

    def message(self) -> Message:
        publish = self._publish
        if publish is None or self._before:
            raise Malformed("a PUBLISH ends within its properties")
        skipped = Skipped(self._size, self._digest.digest(), f"larger than {LARGEST} bytes")
        return publish.message(b"", skipped)


class _Publish:
    """The variable header of a PUBLISH; ``stop``: where the content of the properties begins, ``properties`` its
    length.
    """

    __slots__ = ("header", "mid", "properties", "stop", "topic")

    def __init__(self, header: int, body: bytes, version5: bool) -> None:
        try:
            stop = 2 + (body[0] << 8 | body[1])
            topic = body[2:stop]
            self.mid = 0
            if header & 0x06:
                self.mid = body[stop] << 8 | body[stop + 1]
                stop += 2
            self.properties = 0
            if version5:
                self.properties = body[stop]
                stop += 1
                if self.properties & 0x80:
                    self.properties, stop = _length(body, stop - 1)
        except IndexError:
            raise Malformed("a PUBLISH is too short") from None
        if stop > len(body):
            raise Malformed("a PUBLISH is shorter than its topic")
        if header & 0x06 == 0x06:
            raise Malformed("a PUBLISH of QoS 3")
        if header & 0x06 and not self.mid:
            raise Malformed("a PUBLISH with identifier 0")
        if not topic:
            raise Malformed("a PUBLISH without topic")  # topic aliases are not offered
        self.header = header
        self.stop = stop
        # Brokers refuse other topics; if one does not, the message is stated under what can be written.
        self.topic = topic.decode("utf-8", "backslashreplace")

    def message(self, payload: bytes, skipped: Skipped | None = None) -> Message:
        header = self.header
        qos = header >> 1 & 3
        return Message(self.topic, payload, qos, self.mid, header & 8 != 0 and qos > 0, header & 1 != 0, skipped)


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A variable byte integer (1.5.5) and where it ends. Raises IndexError if it is not all there, and Malformed."""
    value = shift = 0
    for index in range(at, at + 4):
        value |= (data[index] & 0x7F) << shift
        if not data[index] & 0x80:
            return value, index + 1
        shift += 7
    raise Malformed("a length of more than four bytes")


class Packets:
    """Reads what a broker sends, from its first byte."""

    def __init__(self, *, version5: bool) -> None:
        self.messages: list[Message] = []
        self.released: list[int] = []
        """Identifiers of PUBREL packets, to be answered with PUBCOMP."""
        self.others = bytearray()
        """Whole packets of other kinds."""
        self._version5 = version5
        self._connected = False
        self._rest = bytearray()  # the beginning of a packet
        self._wanted = 0  # bytes of it, as far as known
        self._skip: _Skip | None = None

    def feed(self, data: bytes) -> None:
        """Take what came, in any pieces. Raises Malformed."""
        if self._skip is not None:
            data = self._go_past(self._skip, data)
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:  # a large packet in small pieces is joined once
                return
            data = bytes(self._rest)
            self._rest.clear()
        if not data:
            return
        if not self._connected:
            if data[0] != _CONNACK:
                raise Malformed("the answer is not MQTT")
            self._connected = True
        at, end = 0, len(data)
        while at < end:
            header = data[at]
            try:
                length = data[at + 1]
                start = at + 2
                if length & 0x80:
                    length, start = _length(data, at + 1)
            except IndexError:
                self._wanted = 0
                break
            stop = start + length
            if length > (LARGEST if header & 0xF0 == _PUBLISH else _LARGEST_OTHER):
                at = self._too_large(header, length, data, start)
                continue
            if stop > end:
                self._wanted = stop - at
                break
            if header & 0xF0 == _PUBLISH:
                self.messages.append(self._message(header, data[start:stop]))
            elif header == _PUBREL:
                if length < 2:
                    raise Malformed("a PUBREL without identifier")
                self.released.append(data[start] << 8 | data[start + 1])
            else:
                self.others += data[at:stop]
            at = stop
        if at < end:
            self._rest += data[at:]

    def _message(self, header: int, body: bytes) -> Message:
        publish = _Publish(header, body, self._version5)
        begin = publish.stop + publish.properties
        if begin > len(body):
            raise Malformed("a PUBLISH ends within its properties")
        return publish.message(body[begin:])

    def _too_large(self, header: int, length: int, data: bytes, start: int) -> int:
        if header & 0xF0 != _PUBLISH:
            raise Malformed(f"a packet of {length} bytes that is no PUBLISH")
        self._skip = _Skip(header, length)
        return len(data) - len(self._go_past(self._skip, data[start:]))

    def _go_past(self, skip: _Skip, data: bytes) -> bytes:
        """Feed a packet that is thrown away; what is behind it."""
        part = data[: skip.left]
        skip.feed(part, self._version5)
        if not skip.left:
            self.messages.append(skip.message())
            self._skip = None
        return data[len(part) :]


def acknowledgement(kind: int, mid: int) -> bytes:
    """A packet that holds an identifier only."""
    return bytes((kind, 2, mid >> 8, mid & 0xFF))
