"""Verified values as SenML JSON (RFC 8428): names below the signer's DID, exact decimals. Pure.

SenML has neither gaps nor quality: a null has no record, and a value that is not good carries ``quality``, a label that
readers may ignore (RFC 8428 section 4.4). Whether something is missing is told by the evidence alone.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from decimal import Decimal

from agent.model import Value
from agent.rendering.readings import Reading, readings
from agent.rendering.words import exact, quality_name
from agent.verifier import Judged

_NO_NAME = re.compile(r"[^A-Za-z0-9\-:./_]")  # what RFC 8428 section 4.5.1 does not allow


def records(judged: Judged) -> Iterator[str]:
    """The JSON objects of a record's values. The first one carries base name and base time for those behind it."""
    base: Decimal | None = None
    for each in readings(judged):
        if each.value is None:
            continue
        name = json.dumps(_name(f"{each.device}/{each.group}/{each.point.name}"))
        time = _seconds(each.wall)
        fields = []
        if base is None:
            base = time
            fields += [f'"bn":{json.dumps(_name(f"{judged.signer}/"))}', f'"bt":{time:f}']
        fields.append(f'"n":{name}')
        if each.point.unit:
            fields.append(f'"u":{json.dumps(each.point.unit)}')
        fields.append(_value(each))
        if time != base:
            fields.append(f'"t":{time - base:f}')
        if each.quality is not None:
            fields.append(f'"quality":{json.dumps(quality_name(each.quality))}')
        yield "{" + ",".join(fields) + "}"


def _value(reading: Reading) -> str:
    value: Value = reading.value
    if isinstance(value, bool):
        return f'"vb":{json.dumps(value)}'
    if isinstance(value, str):
        return f'"vs":{json.dumps(value)}'
    if isinstance(value, int | float):
        return f'"v":{exact(reading.point, value)}'
    return f'"vd":"{base64.urlsafe_b64encode(value or b"").decode().rstrip("=")}"'


def _seconds(wall: int) -> Decimal:
    """With at most 6 fraction digits (docs/evidence.md section 7)."""
    return (Decimal(wall // 1000) / 1_000_000).normalize()


def _name(text: str) -> str:
    return _NO_NAME.sub("_", text)
