"""The signature over a message's text: raw ECDSA over Keccak-256, as the Data Hub's client gateways make and check it.

Pure, but for the signer. A signature covers the text alone: not topic, recipient, time or any id, and whoever has one
can make a second from it (high s), so it identifies nothing. What must hold for years stands in the signed records
inside the text.

The digest has no prefix, unlike a login's (agent/eip191.py), so ``sign_text`` takes only what we write ourselves: JSON
text or hex digits. No transaction and no personal message of Ethereum begins like those, and records are signed over
SHA-256.
"""

from __future__ import annotations

import re

from Crypto.Hash import keccak

from agent.errors import SignerError
from agent.evidence.recovery import candidates, of_address, recovered
from agent.ports import Signer

_OURS = re.compile(r"[{0-9a-f]")
_SIGNATURE = re.compile(r"0x([0-9A-Fa-f]{128})(00|01|1[BbCc])")
_RECOVERY = {"00": 0, "01": 1, "1b": 0, "1c": 1}
_WHICH_KEY = "{which key is this}"  # signed to learn our public key; no payload, and never sent
_keys: dict[str, bytes] = {}  # DID: its public key, uncompressed; a fact, and this process signs with few


def digest_of(text: str) -> bytes:
    """Keccak-256 of the UTF-8 of a text: 7 ms for 900 kB. Raises UnicodeEncodeError (a lone surrogate)."""
    return keccak.new(data=text.encode(), digest_bits=256).digest()


def sign_text(text: str, signer: Signer) -> str:
    """``0x``, r, s and v (1b or 1c): 132 characters, for the exact text that is sent.

    Raises SignerError; ValueError if it is no text that we write.
    """
    if not _OURS.match(text):
        raise ValueError("only JSON objects and hex digits are signed")
    digest = digest_of(text)
    mine, signature = _public_key(signer), signer.sign(digest)
    for recovery, key in candidates(signature, digest):
        if key.format(compressed=False) == mine:
            return f"0x{signature.hex()}{27 + recovery:02x}"
    raise _faulty()


def public_key_of(signer: Signer) -> str:
    """``0x04`` and 128 lower-case hex digits, as it stands in our DID document. Raises SignerError."""
    return f"0x{_public_key(signer).hex()}"


def is_signed_by(text: str, signature: str, public_key: str) -> bool:
    """Whether the key of a DID document signed a text; whatever is malformed is not signed.

    As gateways do it: the key is compared as text, so only ``0x04`` and lower-case hex digits can match; of the
    signature any case, v as 0 or 1, and a high s are taken.
    """
    found = _SIGNATURE.fullmatch(signature)
    if found is None:
        return False
    try:
        digest = digest_of(text)
    except UnicodeEncodeError:
        return False
    key = recovered(bytes.fromhex(found[1]), digest, _RECOVERY[found[2].lower()])
    return key is not None and f"0x{key.format(compressed=False).hex()}" == public_key


def _public_key(signer: Signer) -> bytes:
    """Recovered once per DID from a signature, for the port does not tell it, and held against its address."""
    known = _keys.get(signer.did)
    if known is None:
        digest = digest_of(_WHICH_KEY)
        found = of_address(bytes.fromhex(signer.did.rpartition(":0x")[2]), signer.sign(digest), digest)
        if found is None:
            raise _faulty()
        known = _keys[signer.did] = found[1].format(compressed=False)
    return known


def _faulty() -> SignerError:
    return SignerError("a signature just made is not that of our address", hint="suspect the hardware: memory or CPU")
