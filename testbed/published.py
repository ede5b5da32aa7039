"""What a publisher sent: its journal (testbed/battery.py writes it), and the values that its messages stand for.

Parses on its own, sharing nothing with the adapters, so that it can judge them. Numbers are exact decimals.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from testbed.journal import Json, json_lines

_DIGEST = re.compile(r"\b[0-9a-f]{8,64}\b")
_KINDS = {"integer": "number", "float": "number", "text": "text", "boolean": "boolean"}  # by the plan's types


@dataclass(frozen=True)
class Message:
    """What was published at ``boot``; ``acked``: when the broker said that it has it (boot times, ns).

    ``again``: the publisher may have sent it twice, for a connection was lost before it was acknowledged. ``online``:
    the publisher was connected.
    """

    n: int
    boot: int
    topic: str
    qos: int
    retain: bool
    payload: bytes
    acked: int | None = None
    again: bool = False
    online: bool = True

    @cached_property
    def document(self) -> Any:
        """The payload as JSON, its numbers int or Decimal; None: it is not JSON."""
        try:
            return json.loads(self.payload, parse_float=Decimal, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the payload, in hex."""
        return hashlib.sha256(self.payload).hexdigest()

    def at(self, pointer: str) -> Any:
        """What stands at a JSON pointer (RFC 6901); None: nothing, or null."""
        found = self.document
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(name)
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                return None
        return found

    def judge(self, pointer: str, value: object, *, quality: str | None, kind: str | None) -> str:
        """What is wrong with a delivered value; "" if it is right. ``kind``: type of the point, as the plan says."""
        sent = self.at(pointer)
        if sent is None:
            right = value is None and quality == "no_value"
        elif _kind(sent) != _KINDS.get(kind or "", _kind(sent)) or _kind(sent) is None:
            right = value is None and quality == "bad_encoding"
        elif isinstance(sent, (bool, str)):
            right = type(value) is type(sent) and value == sent
        elif isinstance(value, bool) or not isinstance(value, (int, float, str)):
            right = False
        else:
            right = float(value) == float(sent) if kind == "float" else _decimal(value) == sent
        return "" if right else f"published was {sent}"

    def fits(self, detail: str) -> bool:
        """Whether the detail of a gap speaks of this message: of its topic, its length and its digest."""
        lengths = re.findall(r"\b[0-9]+\b", detail)
        digests = _DIGEST.findall(detail)
        return (
            self.topic in detail
            and str(len(self.payload)) in lengths
            and any(self.digest.startswith(digest) for digest in digests)
        )


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _kind(sent: object) -> str | None:
    if isinstance(sent, bool):
        return "boolean"
    return "number" if isinstance(sent, (int, Decimal)) else "text" if isinstance(sent, str) else None


def _decimal(value: float | str) -> Decimal | None:
    try:
        return Decimal(str(value))
    except ArithmeticError:
        return None


@dataclass(slots=True)
class Topic:
    """What stands behind an MQTT device: the messages of its topic, and where its points stand in them.

    ``points``: JSON pointer of each point, by name. ``time``: pointer of the source's own time, and its unit in ns.
    ``silent_after`` ns without a message must be stated (None: need not). ``broker_loses``: spans of boot time; what
    the broker took in one of them it may have lost itself, or forgotten that it delivered it. ``owed_from``,
    ``owed_until`` (boot times): what the broker took of what was published between them must be there; None: from the
    first message that is, until shortly before the evidence ends. ``at_most_once``: QoS 0 is judged, too.
    """

    points: Mapping[str, str]
    messages: Sequence[Message]
    time: tuple[str, int] | None = None
    silent_after: int | None = None
    broker_loses: Sequence[tuple[int, int]] = ()
    owed_from: int | None = None
    owed_until: int | None = None
    at_most_once: bool = False
    by_number: Mapping[int, Message] = field(init=False)

    def __post_init__(self) -> None:
        self.by_number = {message.n: message for message in self.messages}

    def wrong(self, message: Message, frame: Json, kinds: Mapping[str, str | None]) -> list[str]:
        """What is wrong with a frame if it is of this message; ``kinds``: the types of its points in the plan."""
        found, quality = [], frame.get("quality", {})
        for name, kind in kinds.items():
            value = frame["values"][name]
            text = (
                message.judge(self.points[name], value, quality=quality.get(name), kind=kind)
                if name in self.points
                else "nobody knows of this point"
            )
            if text:
                found.append(f"{name} is {value} {quality.get(name, '')}: {text}")
        if self.time is not None:
            sent = message.at(self.time[0])
            expected = sent * self.time[1] if isinstance(sent, int) and not isinstance(sent, bool) else None
            if frame.get("source_time") != expected:
                found.append(f"source time is {frame.get('source_time')}: published was {expected}")
        return found

    def of(self, frame: Json, received: int, taken: Mapping[int, object]) -> Message | None:
        """The message that a frame is of: by its number, else by its time, else the first that fits and is not
        ``taken``.
        """
        for name, pointer in self.points.items():
            number = frame["values"].get(name)
            if pointer == "/n" and isinstance(number, int) and number in self.by_number:
                return self.by_number[number]
        sent = [message for message in self.messages if message.boot <= received and message.document is not None]
        if self.time is not None and frame.get("source_time") is not None:
            at = frame["source_time"] / self.time[1]
            for message in sent:
                if message.at(self.time[0]) == at:
                    return message
        kinds = dict.fromkeys(frame["values"])
        fitting = [message for message in sent if not self.wrong(message, frame, kinds)]
        return next((message for message in fitting if message.n not in taken), next(iter(fitting), None))


def read_messages(*paths: Path) -> list[Message]:
    """The messages of a publisher's journal, in order; it may have been started several times."""
    return messages(line for path in paths for line in json_lines(path))


def messages(lines: Iterable[Json]) -> list[Message]:
    """The messages that a journal's lines tell of."""
    found: dict[int, Message] = {}
    waiting: dict[int, bool] = {}  # not acknowledged; whether a connection was lost meanwhile
    online = False
    for line in lines:
        if "started" in line:
            waiting, online = {}, False
        elif "connected" in line:
            online = line["connected"]
            if not online:
                waiting = dict.fromkeys(waiting, True)
        elif "acked" in line and line["acked"] in waiting:
            n = line["acked"]
            found[n] = replace(found[n], acked=line["t_boot"], again=waiting.pop(n))
        elif "payload" in line or "payload_hex" in line:
            raw = line["payload"].encode() if "payload" in line else bytes.fromhex(line["payload_hex"])
            n, where = line["n"], line["topic"]
            found[n] = Message(n, line["t_boot"], where, line["qos"], line["retain"], raw, online=online)
            if line["qos"]:
                waiting[n] = False
    for n, lost in waiting.items():
        found[n] = replace(found[n], again=lost)
    return list(found.values())
