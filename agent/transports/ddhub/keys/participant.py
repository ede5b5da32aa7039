"""The two keys with which a participant of the Data Hub is written to and believed, as its DID document has them.

A document lists them under ids that end in ``#dsb-signature-key`` (secp256k1) and ``#dsb-symmetric-encryption`` (RSA,
in PEM). What stands there is judged here: a key that cannot be used counts as none, and why is a remark. A key in a
form that only we take is used and remarked on, for client gateways compare keys as text. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import coincurve

from agent.errors import AgentError, Verdict
from agent.evidence.did import did_key
from agent.printable import printable
from agent.transports.ddhub.content.cipher import CipherError, read_public_key
from agent.transports.ddhub.keys.network import Network, Participant

SIGNATURE_TAG = "dsb-signature-key"
ENCRYPTION_TAG = "dsb-symmetric-encryption"
TAGS = (SIGNATURE_TAG, ENCRYPTION_TAG)
_GATEWAY_FORM = re.compile(r"0x04[0-9a-f]{128}")
_ANY_FORM = re.compile(r"(?:0[xX])?(04[0-9A-Fa-f]{128}|0[23][0-9A-Fa-f]{64})")
_REPUBLISH = "its owner has to publish it again"


class ParticipantError(AgentError):
    """A participant has no key that could be used for what is wanted. It may publish one later."""

    verdict = Verdict.RETRY


def judge_network(who: Participant, ours: Network) -> None:
    """Raises ParticipantError (REJECT) if a participant is on another chain than we are."""
    if who.network != ours:
        what = f"{who.did} is on another chain than we are ({ours.name})"
        raise ParticipantError(what, hint="a Data Hub serves one chain: correct the DID", verdict=Verdict.REJECT)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about a participant's keys that somebody should see to. ``tag``: which of ``TAGS``; "": the DID."""

    tag: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.tag}: {self.what}; {self.remedy}" if self.tag else f"{self.what}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class ParticipantKeys:
    """``signature``: ``0x04`` and 128 small hex digits; ``encryption``: an RSA key in PEM, PKCS#1 or SPKI, of 2048 bits
    or more. None: there is none that can be used.
    """

    signature: str | None
    encryption: str | None
    remarks: tuple[Remark, ...] = field(default=(), compare=False)

    def to_verify(self, did: str) -> str:
        """The key that proves what ``did`` sent. Raises ParticipantError."""
        if self.signature is None:
            raise self._without(SIGNATURE_TAG, f"{did} has no signature key: what it sends proves nothing")
        return self.signature

    def to_encrypt(self, did: str) -> str:
        """The key with which something is kept secret for ``did``. Raises ParticipantError."""
        if self.encryption is None:
            raise self._without(ENCRYPTION_TAG, f"{did} has no RSA key: nothing can be encrypted for it")
        return self.encryption

    def of(self, did: str) -> ParticipantKeys:
        """The same, if there is any key. Raises ParticipantError."""
        if self.signature is None and self.encryption is None:
            raise self._without("", f"{did} has published no key for the Data Hub")
        return self

    def _without(self, tag: str, what: str) -> ParticipantError:
        why = "; ".join(str(remark) for remark in self.remarks if not tag or remark.tag in ("", tag))
        publish = "its owner has to publish it in the DID document: a client gateway does, or `edge-agent ddhub keys`"
        return ParticipantError(what, hint=why or publish)


def judged(texts: Mapping[str, str], remarks: Iterable[Remark] = ()) -> ParticipantKeys:
    """The keys that stand somewhere as text, by tag; ``remarks``: what is known about them already."""
    noted = list(remarks)
    signature = encryption = None
    if (text := texts.get(SIGNATURE_TAG)) is not None:
        signature = _signature(text, noted)
    if (text := texts.get(ENCRYPTION_TAG)) is not None:
        encryption = _encryption(text, noted)
    return ParticipantKeys(signature, encryption, tuple(dict.fromkeys(noted)))  # a document may repeat itself at length


def public_key(text: str | bytes) -> str | None:
    """A secp256k1 key, compressed or not, as ``0x04`` and 128 small hex digits; None if it is none."""
    if isinstance(text, str):
        match = _ANY_FORM.fullmatch(text)
        if match is None:
            return None
        text = bytes.fromhex(match[1])
    try:
        return f"0x{coincurve.PublicKey(text).format(compressed=False).hex()}"
    except Exception:  # noqa: BLE001 - whatever coincurve says: it is no point of the curve
        return None


def _signature(text: str, remarks: list[Remark]) -> str | None:
    key = public_key(text.strip())
    if key is None:
        remarks.append(Remark(SIGNATURE_TAG, "this is no secp256k1 key", _REPUBLISH))
    elif not _GATEWAY_FORM.fullmatch(text):
        what = "client gateways compare it as text, and take no message that it proves"
        remedy = f"{_REPUBLISH}, uncompressed: 0x04 and 128 small hex digits"
        remarks.append(Remark(SIGNATURE_TAG, what, remedy))
    return key


def _encryption(text: str, remarks: list[Remark]) -> str | None:
    what = ""
    if "PRIVATE KEY" in text:
        what = "a PRIVATE key stands there, which everybody can read now"
    else:
        try:
            read_public_key(text)
        except CipherError as error:
            what = str(error)
    if what:
        remarks.append(Remark(ENCRYPTION_TAG, what, "its owner has to make another RSA key and publish it"))
        return None
    return text.lstrip()


# ---- DID documents ----------------------------------------------------------------------------------------------


def read_document(document: Any, did: str) -> ParticipantKeys:
    """The keys in a DID document, as an SSI Hub gives it (``publicKey``) or as the standard has it
    (``verificationMethod``). Raises ValueError if it is none, or that of another DID.
    """
    if not isinstance(document, dict):
        raise ValueError("this is no DID document: it is no JSON object")
    wanted = did_key(did)
    if not _names(document.get("id"), wanted):
        raise ValueError(f"this is not the DID document of {did}")
    texts: dict[str, str] = {}
    remarks: list[Remark] = []
    for tag, text in _entries(document, wanted):
        if text is None:
            remarks.append(Remark(tag, "the entry in the DID document holds no key", _REPUBLISH))
        elif texts.setdefault(tag, text) != text:
            remarks.append(Remark(tag, "the DID document holds two of them, and the first is used", _REPUBLISH))
    return judged(texts, remarks)


def _entries(document: Mapping[str, Any], wanted: tuple[str, bytes]) -> Iterator[tuple[str, str | None]]:
    """The entries under our tags. What else stands there is not looked at."""
    for name in ("publicKey", "verificationMethod"):
        listed = document.get(name)
        for entry in listed if isinstance(listed, list) else []:
            place = entry.get("id") if isinstance(entry, dict) else None
            if not isinstance(place, str):
                continue
            owner, _, tag = place.partition("#")
            if tag not in TAGS or (owner and not _names(owner, wanted)):
                continue
            texts = [entry.get(key) for key in ("publicKeyHex", "publicKeyPem")]
            yield tag, next((text for text in texts if isinstance(text, str)), None)


def _names(text: Any, wanted: tuple[str, bytes]) -> bool:
    try:
        return isinstance(text, str) and did_key(text) == wanted
    except ValueError:
        return False


def short(key: str) -> str:
    """A key as a line for people: enough of it to tell two apart."""
    body = "".join(line for line in key.splitlines() if not line.startswith("-----"))
    return printable(body if len(body) <= 40 else f"{body[:16]}...{body[-16:]}")


def same_rsa(one: str, other: str) -> bool:
    """Whether two texts hold one RSA key; PEM has several forms. Both were judged."""
    return read_public_key(one) == read_public_key(other)
