"""The encryption of the Data Hub's client gateways: AES-256-CBC over a text, its key wrapped with RSA per recipient.

Pure: texts and keys in, texts and keys out. A message's key is used once. Nothing here proves who wrote a text or that
it was not changed (CBC has no tag): the signature over the encrypted text does, so check that before ``decrypt``.

Answers to forged texts teach nothing. Whatever is wrong with a text or a wrapped key, the error is the same one. CBC's
padding is judged only behind a good signature. A wrapped key is taken only if 64 lower-case hex digits come out, in the
place that their number leaves: a forger who does not know them already meets that once in 2^256 tries, so neither
Bleichenbacher's attack nor one across the two paddings gets a first answer to go on from. (pycryptodome compares
padding without branches and blinds RSA.)
"""

from __future__ import annotations

import binascii
import functools
import hashlib
import re
import secrets
from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from Crypto.Cipher import AES, PKCS1_OAEP, PKCS1_v1_5
from Crypto.Hash import SHA1
from Crypto.PublicKey import RSA
from Crypto.PublicKey.RSA import RsaKey as RsaKey
from Crypto.Util.Padding import pad, unpad

from agent.errors import AgentError, Verdict

if TYPE_CHECKING:
    from Crypto.Cipher._mode_cbc import CbcMode

Padding = Literal["oaep", "pkcs1v15"]
"""How a key is wrapped: RSAES-OAEP with SHA-1 and MGF1-SHA-1, or RSAES-PKCS1-v1_5 for gateways up to 1.9.1."""

KEY_BYTES = 32
IV_BYTES = AES.block_size
_DIGITS = re.compile(rb"[0-9a-f]{64}")
_MOST_PEM = 16 * 1024  # characters; of 8192 bits it has 2.8 kB
_MODULUS = range(2048, 8193)  # bits
_MOST_EXPONENT = 1 << 32  # everybody's is 65537; what is larger costs time and gains nothing
_MOST_WRAPPED = 2048  # characters; of 8192 bits it has 1368
_PUBLIC = re.compile(
    r"\s*-----BEGIN (RSA )?PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END (RSA )?PUBLIC KEY-----\s*", re.ASCII
)


class CipherError(AgentError):
    """A text or a wrapped key that cannot be decrypted, or a public key that is none. Says nothing secret."""

    verdict = Verdict.REJECT


def new_key() -> bytes:
    """A key for one message: 32 bytes from the system's generator."""
    return secrets.token_bytes(KEY_BYTES)


def encrypt(text: str, key: bytes, *, iv: bytes | None = None) -> str:
    """``hex(iv) + ":" + hex(ciphertext)`` of the UTF-8 of a text, AES-256-CBC with PKCS#7.

    ``iv`` is for known answers; by default it is random, as it must be. Raises CipherError if the text holds half a
    character (a lone surrogate), which UTF-8 cannot say.
    """
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise CipherError("the text holds half a character") from None
    iv = secrets.token_bytes(IV_BYTES) if iv is None else iv
    sealed = _aes(key, iv).encrypt(pad(content, AES.block_size))
    return f"{iv.hex()}:{sealed.hex()}"


def decrypt(payload: str, key: bytes) -> str:
    """The text in what ``encrypt`` made; hex digits of either case. Check the payload's signature first.

    Raises CipherError.
    """
    head, _, body = payload.partition(":")
    iv, sealed = _from_hex(head), _from_hex(body)
    if len(iv) != IV_BYTES or not sealed or len(sealed) % AES.block_size:
        raise CipherError("not an encrypted text: expected 32 hex digits, a colon, and whole blocks of 32 hex digits")
    aes = _aes(key, iv)
    try:
        return unpad(aes.decrypt(sealed), AES.block_size).decode()
    except ValueError:  # of padding or of UTF-8; not told apart, and not shown: they hold the text
        pass
    raise CipherError(
        "the text does not decrypt with its key",
        hint="the sender wrapped another key than it encrypted with; ask who runs it",
    )


def _aes(key: bytes, iv: bytes) -> CbcMode:
    if len(key) != KEY_BYTES:  # a shorter one would do for AES-128
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return AES.new(key, AES.MODE_CBC, iv=iv)


def _from_hex(text: str) -> bytes:
    try:
        return binascii.unhexlify(text)  # takes no blanks, unlike bytes.fromhex
    except ValueError:
        return b""


def wrap(key: bytes, public_key: str, *, padding: Padding = "oaep") -> str:
    """A message's key for one recipient, in base64: 684 characters for a key of 4096 bits.

    ``public_key``: PEM, PKCS#1 or SubjectPublicKeyInfo, as the recipient's DID document has it. What is wrapped is not
    the 32 bytes but their 64 hex digits, for that is what gateways unwrap. Raises CipherError if it is no such key.
    """
    rsa = read_public_key(public_key)
    digits = key.hex().encode()
    if padding == "oaep":
        wrapped = PKCS1_OAEP.new(rsa, hashAlgo=SHA1, mgfunc=_mgf1).encrypt(digits)
    else:
        wrapped = PKCS1_v1_5.new(rsa).encrypt(digits)
    return b64encode(wrapped).decode()


@functools.lru_cache(maxsize=256)
def read_public_key(pem: str) -> RsaKey:
    """A recipient's key: RSA, 2048 to 8192 bits, public. Anybody may have written it. Raises CipherError."""
    key = _read(pem) if len(pem) <= _MOST_PEM and _PUBLIC.fullmatch(pem) else None
    if key is None:
        hint = "expected -----BEGIN RSA PUBLIC KEY----- or -----BEGIN PUBLIC KEY-----; the participant must publish one"
        raise CipherError("the text is no RSA public key", hint=hint)
    bits = key.size_in_bits()
    if bits not in _MODULUS or not 3 <= key.e < _MOST_EXPONENT or not key.e % 2:
        raise CipherError(
            f"an RSA key of {bits} bits, or its exponent, is not fit for use",
            hint="expected 2048 to 8192 bits and the exponent 65537; the participant must publish another one",
        )
    return key


def _read(pem: str) -> RsaKey | None:
    try:
        key = RSA.import_key(pem.strip())
    except (ValueError, IndexError, TypeError):
        return None
    return None if key.has_private() else key


def unwrap(wrapped: str, private_keys: Sequence[RsaKey]) -> bytes:
    """The 32 bytes of a message's key, with whichever of our keys it was wrapped for, in whichever padding.

    There is no mark of either on the wire. A gateway's old padding cannot be mistaken for the new one: only 64
    lower-case hex digits count. Raises CipherError, without saying how far it came.
    """
    try:
        content = binascii.a2b_base64(wrapped, strict_mode=True) if len(wrapped) <= _MOST_WRAPPED else b""
    except ValueError:
        content = b""
    for key in private_keys:
        if len(content) != key.size_in_bytes():
            continue
        for digits in (_oaep(content, key), _pkcs1v15(content, key)):
            if _DIGITS.fullmatch(digits):
                return bytes.fromhex(digits.decode())
    raise CipherError(
        "the key of a message cannot be unwrapped",
        hint="the sender has another public key of ours, or an old one: compare the DID document with `ddhub keys`",
    )


def _mgf1(seed: bytes, length: int) -> bytes:
    """MGF1 with SHA-1 (RFC 8017, appendix B.2.1): with hashlib a wrap takes half as long as with the library's own."""
    count = -(-length // 20)
    return b"".join(hashlib.sha1(seed + i.to_bytes(4), usedforsecurity=False).digest() for i in range(count))[:length]


def _oaep(content: bytes, key: RsaKey) -> bytes:
    try:
        return PKCS1_OAEP.new(key, hashAlgo=SHA1, mgfunc=_mgf1).decrypt(content)
    except ValueError:
        return b""


def _pkcs1v15(content: bytes, key: RsaKey) -> bytes:
    try:
        found: bytes = PKCS1_v1_5.new(key).decrypt(content, bytes(2 * KEY_BYTES), expected_pt_len=2 * KEY_BYTES)
    except ValueError:
        return b""
    return found
