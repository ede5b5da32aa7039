"""What cryptography costs a message of the Data Hub: wrapping its key for each recipient, encrypting and signing its
text. Beside the same steps with OpenSSL, by way of ``cryptography``, which the agent does not ship.

Recipients' public keys are numbers of the right form with 4096 bits: nobody needs to unwrap, and nobody waits for a
hundred keys to be made. Keys have been read before, as in a channel that sends on.
"""

from __future__ import annotations

import hashlib
import random
import time
from base64 import b64encode
from collections.abc import Callable
from functools import partial

import coincurve
from Crypto.PublicKey import RSA
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from agent.signer import KeySigner
from agent.transports.ddhub.content.cipher import encrypt, new_key, wrap
from agent.transports.ddhub.content.payload import clear_size, encode
from agent.transports.ddhub.content.signature import sign_text
from agent.transports.ddhub.keys.rsa_key import public_pem
from bench.figure import Figure, interleaved

_SECRET = bytes(31) + b"\x01"
_KEY = bytes(range(32))
_ENVELOPE = 1500  # bytes
_TEXT = 300_000  # characters in clear
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)


def wrap_1() -> Figure:
    """Wrap a message's key for one recipient."""
    return _wrap("ddhub_wrap_1", 1, times=200)


def wrap_10() -> Figure:
    """Wrap it for ten."""
    return _wrap("ddhub_wrap_10", 10, times=20)


def wrap_100() -> Figure:
    """Wrap it for a hundred."""
    return _wrap("ddhub_wrap_100", 100, times=2)


def message() -> Figure:
    """Write, encrypt and sign a text of 300 kB."""
    chance, signer, secret = random.Random(1), KeySigner(_SECRET), coincurve.PrivateKey(_SECRET)
    envelopes: list[bytes] = []
    while clear_size([_ENVELOPE] * (len(envelopes) + 1)) <= _TEXT:
        envelopes.append(chance.randbytes(_ENVELOPE))
    text = encode(envelopes)

    def ours() -> None:
        sign_text(encrypt(encode(envelopes), new_key()), signer)

    def theirs() -> None:
        pad, cipher = PKCS7(128).padder(), Cipher(algorithms.AES256(_KEY), modes.CBC(bytes(16))).encryptor()
        sealed = cipher.update(pad.update(text.encode()) + pad.finalize()).hex()
        secret.sign_recoverable(hashlib.sha3_256(sealed.encode()).digest(), hasher=None)

    value, reference = (each * 1000 for each in interleaved([partial(_cpu, ours, 20), partial(_cpu, theirs, 20)]))
    note = f"{len(envelopes)} records of {_ENVELOPE} bytes, {value / len(envelopes):.3f} ms each"
    return Figure("ddhub_message", value, "ms", reference, "OpenSSL, SHA-3 for Keccak", None, note)


def _wrap(name: str, count: int, *, times: int) -> Figure:
    chance = random.Random(count)
    pems = [public_key(chance) for _ in range(count)]
    loaded = [serialization.load_pem_public_key(pem.encode()) for pem in pems]

    def ours() -> None:
        for pem in pems:
            wrap(_KEY, pem)

    def theirs() -> None:
        for key in loaded:
            assert isinstance(key, RSAPublicKey)
            b64encode(key.encrypt(_KEY.hex().encode(), _OAEP))

    ours()  # so that the keys have been read
    value, reference = (each * 1000 for each in interleaved([partial(_cpu, ours, times), partial(_cpu, theirs, times)]))
    return Figure(name, value, "ms", reference, "OpenSSL", None)


def public_key(chance: random.Random) -> str:
    """A public key of the right form that nobody has."""
    modulus = chance.getrandbits(4096) | 1 << 4095 | 1
    return public_pem(RSA.construct((modulus, 65537), consistency_check=False))


def _cpu(work: Callable[[], object], times: int) -> float:
    """Seconds of CPU that this process took for it, once."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times
