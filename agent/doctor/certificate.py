"""When certificates are valid, read from their bytes (RFC 5280, section 4.1); nothing else of them is read, and nothing
is verified. Pure.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

_PEM = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----(.*?)-----END", re.DOTALL)
_SEQUENCE, _CONTEXT_0, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


@dataclass(frozen=True, slots=True)
class Validity:
    """First and last moment, s since 1970."""

    begins: float
    ends: float


def validities(pem: bytes) -> Iterator[Validity]:
    """Of each certificate in a PEM file, in order. Raises ValueError: there is none, or one that cannot be read."""
    found = _PEM.findall(pem)
    if not found:
        raise ValueError("no certificate in PEM form")
    for each in found:
        try:
            der = b64decode(b"".join(each.split()), validate=True)
        except binascii.Error:
            raise ValueError("a certificate that is not base64") from None
        yield validity(der)


def validity(der: bytes) -> Validity:
    """Of a certificate. Raises ValueError."""
    _, certificate, _ = _item(der, _SEQUENCE)
    _, rest, _ = _item(certificate, _SEQUENCE)  # TBSCertificate
    tag, _, behind = _item(rest)
    if tag == _CONTEXT_0:  # version
        rest = behind
    for _ in range(3):  # serialNumber, signature, issuer
        _, _, rest = _item(rest)
    _, times, _ = _item(rest, _SEQUENCE)
    tag, begins, times = _item(times)
    begin = _time(tag, begins)
    tag, ends, _ = _item(times)
    return Validity(begin, _time(tag, ends))


def _item(data: bytes, expected: int | None = None) -> tuple[int, bytes, bytes]:
    """Tag, content and what is behind it, of an item in DER."""
    if len(data) < 2 or (expected is not None and data[0] != expected):
        raise ValueError("a certificate that cannot be read")
    length, at = data[1], 2
    if length & 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if at + length > len(data):
        raise ValueError("a certificate that is cut off")
    return data[0], data[at : at + length], data[at + length :]


def _time(tag: int, content: bytes) -> float:
    """RFC 5280, section 4.1.2.5: always UTC and with seconds; years of two digits are 1950 to 2049."""
    text = content.decode("ascii", "replace")
    if tag == _UTC_TIME and re.fullmatch(r"\d{12}Z", text):
        text = ("19" if text >= "5" else "20") + text
    elif tag != _GENERALIZED_TIME or not re.fullmatch(r"\d{14}Z", text):
        raise ValueError("a certificate with a time that cannot be read")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
