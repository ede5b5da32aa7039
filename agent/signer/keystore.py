"""What a keystore file is (web3 secret storage, version 3), and what opening it costs. Pure.

The file says itself how much memory and time its key derivation takes, so it is judged before anything is derived, and
only what was judged is handed on. No message repeats what stands in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 64 * 1024  # bytes of a file; they have 500
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that opening may cost. ``memory`` in bytes; ``mixed``: bytes that scrypt mixes, in all (128 N r p)."""

    memory: int
    mixed: int = 512 * MIB  # 1 to 3 s on a PC of 2020, ten times that on a slow gateway
    iterations: int = 2_000_000  # of PBKDF2; as long


TO_RUN = Bounds(memory=128 * MIB)  # beside the agent itself below MemoryMax=256M of its unit
TO_IMPORT = Bounds(memory=256 * MIB)  # what geth and eth-account make unless told otherwise
WORK_FACTOR = 1 << 16  # N of keystores that we make: 64 MiB


@dataclass(frozen=True, slots=True)
class Keystore:
    """A keystore that was judged. ``crypto``: its encryption, nothing more and nothing else than the format's fields.

    ``address``: 20 bytes that it says it holds the key of, which nothing protects; None if it does not say.
    ``memory`` in bytes, ``mixed`` and ``iterations`` as in ``Bounds``.
    """

    crypto: Mapping[str, Any]
    address: bytes | None
    memory: int
    mixed: int
    iterations: int

    def exceeds(self, bounds: Bounds) -> str | None:
        """What is too much, in words; None if nothing is."""
        if self.memory > bounds.memory:
            return f"takes {_mib(self.memory)} of memory, at most {_mib(bounds.memory)} are allowed"
        if self.mixed > bounds.mixed:
            return f"takes scrypt over {_mib(self.mixed)}, at most {_mib(bounds.mixed)} are allowed"
        if self.iterations > bounds.iterations:
            return f"takes {self.iterations} rounds of PBKDF2, at most {bounds.iterations} are allowed"
        return None


def read(content: bytes) -> Keystore:
    """Judge the content of a file. Raises ValueError that says which field is wrong."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    table = _lower(found)
    if type(table.get("version")) is not int or table["version"] != 3:
        raise ValueError("version is not 3")
    crypto = _table(table, "crypto")
    kdf, params = crypto.get("kdf"), _table(crypto, "kdfparams")
    if crypto.get("cipher") != "aes-128-ctr":
        raise ValueError("cipher is not aes-128-ctr")
    derive = _KDFS.get(kdf) if isinstance(kdf, str) else None
    if derive is None:
        raise ValueError("kdf is neither scrypt nor pbkdf2")
    derivation, memory, mixed, iterations = derive(params)
    if params.get("dklen") != 32 or type(params["dklen"]) is not int:
        raise ValueError("dklen is not 32")
    judged = {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": _hex(_table(crypto, "cipherparams"), "iv", 16)},
        "ciphertext": _hex(crypto, "ciphertext", 32),
        "kdf": kdf,
        "kdfparams": derivation | {"dklen": 32, "salt": _hex(params, "salt", None)},
        "mac": _hex(crypto, "mac", 32),
    }
    address = bytes.fromhex(_hex(table, "address", 20)) if table.get("address") else None
    return Keystore(judged, address, memory, mixed, iterations)


def _scrypt(params: Mapping[str, Any]) -> tuple[dict[str, Any], int, int, int]:
    n, r, p = (_count(params, name, most) for name, most in (("n", 1 << 30), ("r", 64), ("p", 64)))
    if n < 2 or n & (n - 1):
        raise ValueError("n is no power of 2")
    return {"n": n, "r": r, "p": p}, 128 * n * r, 128 * n * r * p, 0  # RFC 7914 section 2; its other buffers are small


def _pbkdf2(params: Mapping[str, Any]) -> tuple[dict[str, Any], int, int, int]:
    if params.get("prf") != "hmac-sha256":
        raise ValueError("prf is not hmac-sha256")
    count = _count(params, "c", 1 << 60)
    return {"prf": "hmac-sha256", "c": count}, 0, 0, count


_KDFS: Mapping[str, Callable[[Mapping[str, Any]], tuple[dict[str, Any], int, int, int]]] = {
    "scrypt": _scrypt,
    "pbkdf2": _pbkdf2,
}


def _lower(table: Mapping[str, Any]) -> dict[str, Any]:
    """Names in lower case: some programs write "Crypto". Two that differ in case only would be read by chance."""
    lower = {name.lower(): value for name, value in table.items()}
    if len(lower) != len(table):
        raise ValueError("a field stands twice")
    return lower


def _table(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(table.get(name), dict):
        raise ValueError(f"{name} is no object")
    return _lower(table[name])


def _count(params: Mapping[str, Any], name: str, most: int) -> int:
    value = params.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} is no whole number from 1 to {most}")
    return value


def _hex(table: Mapping[str, Any], name: str, size: int | None) -> str:
    value = table.get(name)
    digits = re.fullmatch(r"(?:0[xX])?((?:[0-9A-Fa-f]{2}){1,256})", value) if isinstance(value, str) else None
    if digits is None or size not in (None, len(digits[1]) // 2):
        raise ValueError(f"{name} is not {'' if size is None else f'{size} bytes '}in hex digits")
    return digits[1].lower()


def _mib(count: int) -> str:
    return f"{count / MIB:.0f} MiB"
