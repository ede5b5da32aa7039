"""A battery that publishes its state over MQTT and journals what it published: ``python -m testbed.battery --broker
mqtt://127.0.0.1:1883 --journal FILE``.

A message is ``{"ts", "n", "soc", "power": {"w"}, "v", "temp": [4 cells], "state", "on"}``: ms since 1970 (they rise
from message to message), its number (from 1, going on after a restart), %, W (positive: discharging), V, degrees C, a
word, a boolean. While the broker is away it goes on: QoS 1 and 2 wait and are sent when it is back, again with DUP if
they were under way; QoS 0 is lost.

stdout: ``ready BROKER`` once, ``connected`` and ``disconnected``, and a line per command. stdin: commands, one a line,
each answered with ``done COMMAND`` or ``refused COMMAND: REASON``: ``silence``, ``resume``, ``rate HZ``, ``qos N`` (of
what comes), and, published at once, ``burst N``, ``retain`` (a retained one), ``missing FIELD`` and ``null FIELD``
(``soc``, ``power/w``), ``garbage [KIND]`` (no JSON; of the kinds in ``GARBAGE``, by turns if none is named). Ends on
SIGTERM, SIGINT, and when stdin ends.

Journal, JSON lines, appended: ``{"t_boot", "t_wall", "started": n}`` at every start, n the first number; ``{"t_boot",
"t_wall", "n", "topic", "qos", "retain", "payload"}`` before a message is handed to the client library (``payload_hex``
if it is not UTF-8), ``{"acked": n, "t_boot"}`` when the broker took it (PUBACK, PUBCOMP; QoS 0 never), ``{"refused": n,
"reason", "t_boot"}`` when it did not, ``{"t_boot", "t_wall", "connected": bool}`` and ``{"t_boot", "t_wall",
"command"}``. A message that was not acknowledged when the connection was lost may come twice: the broker may have taken
it. What was not acknowledged when the battery was killed is not sent again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from testbed.journal import JournalFile, boot_time, json_lines

GARBAGE: Mapping[str, Callable[[int], bytes]] = {  # from a message's number, so that no two are alike
    "words": lambda n: b"battery is fine, thank you %d" % n,
    "cut": lambda n: b'{"n": %d, "soc": 53.' % n,
    "bytes": lambda n: bytes(range(256)) + b"%d" % n,
    "latin": lambda n: '{{"n": {}, "state": "gedrückt"}}'.format(n).encode("latin-1"),  # noqa: UP032
    "deep": lambda n: b'{"n": %d, "soc": ' % n + b"[" * 50_000,
    "empty": lambda n: b"",
}
_WH, _TURN_S, _DEPTH = 1000.0, 1800.0, 40.0  # capacity, charging and discharging once, +- % of it
_RECONNECT_S, _KEEPALIVE_S, _SESSION_S = 0.2, 10, 3600


class Course:
    """The battery as a function of the time since it began, in s; ``seed`` moves its phase and draws what is noise."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self._phase = draw.random() * 2.0 * math.pi
        self._noise = random.Random(draw.random())

    def shown(self, t: float) -> dict[str, Any]:
        """What a message holds beside time and number. Power is what moves the charge."""
        turn, noise = self._phase + 2.0 * math.pi * t / _TURN_S, self._noise.gauss
        soc = 50.0 + _DEPTH * math.sin(turn)
        watts = -_DEPTH / 100.0 * _WH * 3600.0 * 2.0 * math.pi / _TURN_S * math.cos(turn)
        return {
            "soc": round(soc, 1),
            "power": {"w": round(watts + noise(0.0, 3.0), 1)},
            "v": round(48.0 + 0.08 * soc - watts / 8000.0 + noise(0.0, 0.02), 2),
            "temp": [round(24.0 + abs(watts) / 1000.0 + cell / 5 + noise(0.0, 0.1), 1) for cell in range(4)],
            "state": "idle" if abs(watts) < 200.0 else "discharging" if watts > 0.0 else "charging",
            "on": True,
        }


class Battery:
    """The device: its messages, its session with the broker, its commands."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._journal = JournalFile(options.journal)
        self._course = Course(options.seed)
        self._since = options.since if options.since is not None else boot_time()
        first = _last_number(Path(options.journal)) + 1
        self._numbers = itertools.count(first)
        self._journal.now({"started": first})
        self._garbage = itertools.cycle(GARBAGE)
        self._interval, self._qos, self._silent, self._last_ts = 1.0 / options.rate, options.qos, options.silent, 0
        self._sent: dict[int, int] = {}  # message ids of MQTT, and our numbers
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._client = self._make_client()

    # ---- the session ----

    def _make_client(self) -> mqtt.Client:
        broker, name = urlsplit(self._options.broker), self._options.client_id
        five = parse_qs(broker.query).get("version") == ["5"]
        if five:
            client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        else:
            client = mqtt.Client(CallbackAPIVersion.VERSION2, name, clean_session=False)
        if self._options.username:
            client.username_pw_set(self._options.username, Path(self._options.password_file).read_text().strip())
        if broker.scheme == "mqtts":
            client.tls_set(ca_certs=self._options.ca)
        client.max_queued_messages_set(0)
        client.connect_timeout = 2.0
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_publish = self._published
        self._drive(client)
        more: dict[str, Any] = {}
        if five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = _SESSION_S
            more = {"clean_start": False, "properties": properties}
        client.connect_async(broker.hostname or "", broker.port or 1883, keepalive=_KEEPALIVE_S, **more)
        return client

    def _drive(self, client: mqtt.Client) -> None:
        """Let our event loop do what a thread of the library would."""

        def opened(_: object, __: object, sock: Any) -> None:
            self._loop.add_reader(sock, client.loop_read)

        def closed(_: object, __: object, sock: Any) -> None:
            self._loop.remove_reader(sock)

        def writes(_: object, __: object, sock: Any) -> None:
            self._loop.add_writer(sock, client.loop_write)

        def wrote(_: object, __: object, sock: Any) -> None:
            self._loop.remove_writer(sock)

        client.on_socket_open, client.on_socket_close = opened, closed
        client.on_socket_register_write, client.on_socket_unregister_write = writes, wrote

    def _connect(self) -> None:
        """Try; what comes of it is seen at the next look."""
        with suppress(OSError):
            self._client.reconnect()

    def _look(self) -> None:
        """Keep the session alive, or get a new one."""
        if self._client.socket() is None:
            self._connect()
        else:
            self._client.loop_misc()
        self._loop.call_later(_RECONNECT_S, self._look)

    def _connected(self, client: object, user: object, flags: object, reason: Any, properties: object) -> None:
        if not reason.is_failure:
            self._journal.now({"connected": True})
            print("connected", flush=True)

    def _disconnected(self, client: object, user: object, flags: object, reason: Any, properties: object) -> None:
        self._journal.now({"connected": False})
        print("disconnected", flush=True)

    def _published(self, client: object, user: object, mid: int, reason: Any, properties: object) -> None:
        number = self._sent.pop(mid, None)
        if number is not None and reason.is_failure:
            self._journal.line(json.dumps({"refused": number, "reason": str(reason), "t_boot": boot_time()}))
        elif number is not None:
            self._journal.line(f'{{"acked": {number}, "t_boot": {boot_time()}}}')

    # ---- messages ----

    def _state(self) -> dict[str, Any]:
        """The next message; it takes its number with it."""
        self._last_ts = max(time.time_ns() // 1_000_000, self._last_ts + 1)
        shown = self._course.shown((boot_time() - self._since) / 1e9)
        return {"ts": self._last_ts, "n": next(self._numbers), **shown}

    def _publish(self, payload: bytes, number: int, *, retain: bool = False) -> None:
        qos, topic = self._qos, self._options.topic
        try:
            text = {"payload": payload.decode()}
        except UnicodeDecodeError:
            text = {"payload_hex": payload.hex()}
        self._journal.now({"n": number, "topic": topic, "qos": qos, "retain": retain, **text})
        mid = self._client.publish(topic, payload, qos, retain).mid
        if qos:
            self._sent[mid] = number

    def _publish_state(self, *, retain: bool = False) -> None:
        state = self._state()
        self._publish(json.dumps(state).encode(), state["n"], retain=retain)

    def _publish_spoilt(self, field: str, *, null: bool) -> None:
        """A message whose field is not there, or null. Raises KeyError if it has no such field."""
        state = self._state()
        number, holder = state["n"], state
        *path, name = field.split("/")
        for each in path:
            holder = holder[each]
        if null:
            holder[name] = None if name in holder else holder[name]
        else:
            del holder[name]
        self._publish(json.dumps(state).encode(), number)

    def _publish_garbage(self, kind: str) -> None:
        number = next(self._numbers)
        self._publish(GARBAGE[kind](number), number)

    def _tick(self) -> None:
        if not self._silent:
            self._publish_state()
        self._due = self._loop.call_later(self._interval, self._tick)

    # ---- commands ----

    def command(self, text: str) -> str:
        """Do what one line of stdin says; returns the line to answer with."""
        try:
            match text.split():
                case ["silence"]:
                    self._silent = True
                case ["resume"]:
                    self._silent = False
                case ["rate", hertz]:
                    self._interval = 1.0 / float(hertz)
                    if self._due:
                        self._due.cancel()
                    self._tick()
                case ["qos", ("0" | "1" | "2") as qos]:
                    self._qos = int(qos)
                case ["burst", count]:
                    for _ in range(int(count)):
                        self._publish_state()
                case ["retain"]:
                    self._publish_state(retain=True)
                case ["missing" | "null" as what, field]:
                    self._publish_spoilt(field, null=what == "null")
                case ["garbage"]:
                    self._publish_garbage(next(self._garbage))
                case ["garbage", kind] if kind in GARBAGE:
                    self._publish_garbage(kind)
                case _:
                    return f"refused {text}: unknown command"
        except (ValueError, ZeroDivisionError, LookupError, TypeError) as error:
            return f"refused {text}: {error!r}"
        self._journal.now({"command": text})
        return f"done {text}"

    async def run(self) -> None:
        """Publish until told to end."""
        stop, waiting = asyncio.Event(), b""

        def listen() -> None:
            nonlocal waiting
            data = os.read(sys.stdin.fileno(), 4096)
            if not data:
                self._loop.remove_reader(sys.stdin.fileno())
                stop.set()
                return
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                print(self.command(line.decode("ascii", "replace")), flush=True)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        self._loop.add_reader(sys.stdin.fileno(), listen)
        print(f"ready {self._options.broker}", flush=True)
        self._look()
        self._tick()
        await stop.wait()
        self._client.disconnect()


def _last_number(journal: Path) -> int:
    """Of the messages in a journal; 0 if there is none."""
    return max((line["n"] for line in json_lines(journal) if "n" in line), default=0) if journal.exists() else 0


async def _serve(options: argparse.Namespace) -> None:
    await Battery(options).run()


def main(arguments: list[str] | None = None) -> None:
    """Publish until told to end."""
    parser = argparse.ArgumentParser(prog="testbed.battery", description="A battery that publishes over MQTT")
    parser.add_argument("--broker", required=True, metavar="URL", help="mqtt or mqtts; ?version=5 for MQTT 5")
    parser.add_argument("--journal", required=True, metavar="FILE")
    parser.add_argument("--topic", default="site/battery/state")
    parser.add_argument("--rate", type=float, default=2.0, metavar="HZ")
    parser.add_argument("--qos", type=int, choices=(0, 1, 2), default=1)
    parser.add_argument("--silent", action="store_true", help="publish nothing before the command resume")
    parser.add_argument("--client-id", default="battery")
    parser.add_argument("--username")
    parser.add_argument("--password-file", metavar="FILE")
    parser.add_argument("--ca", metavar="FILE", help="whom to trust, for mqtts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--since", type=int, metavar="NS", help="CLOCK_BOOTTIME of the first start, for a restart")
    asyncio.run(_serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
