"""Whose records are accepted: DIDs, or an allow-list file that gives each a name and the channels it may write.

The file (docs/consuming.md) is TOML::

    version = 1

    [[signer]]
    did      = "did:ethr:ewc:0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"
    name     = "Solar park 7"
    channels = ["dso"]          # left out: any
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agent.evidence.did import DidKey, did_key

_KEYS = {"did", "name", "channels"}


@dataclass(frozen=True, slots=True)
class Signer:
    """An accepted signer. ``channels`` None: it may write any."""

    did: str
    name: str | None = None
    channels: frozenset[str] | None = None


class Accepted:
    """The accepted signers, by chain and address of their DIDs."""

    def __init__(self, signers: Iterable[Signer | str]) -> None:
        """Raises ValueError: something is no did:ethr DID."""
        self._signers: dict[DidKey, Signer] = {}
        for each in signers:
            signer = Signer(each) if isinstance(each, str) else each
            self._signers[did_key(signer.did)] = signer

    def find(self, key: DidKey) -> Signer | None:
        """The signer, if it is accepted."""
        return self._signers.get(key)


def read_allow_list(text: str) -> list[Signer]:
    """The signers of an allow-list. Raises ValueError with all that is wrong, a line each."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from None
    problems = [f"{key}: not a key of an allow-list; there are version and signer" for key in table.keys() - _TOP]
    if table.get("version") != 1 or type(table.get("version")) is not int:
        problems.append("version: expected 1; write version = 1")
    entries = table.get("signer")
    if not isinstance(entries, list) or not entries:
        problems.append("signer: nobody is listed; write [[signer]] and a did for each")
        entries = []
    signers: dict[DidKey, Signer] = {}
    for number, entry in enumerate(entries):
        place = f"signer[{number}]"
        found = _signer(entry, place, problems)
        if found is not None:
            key = did_key(found.did)
            if key in signers:
                problems.append(f"{place}.did: listed twice; give one entry all its channels")
            signers[key] = found
    if problems:
        raise ValueError("\n".join(problems))
    return list(signers.values())


_TOP = {"version", "signer"}


def _signer(entry: Any, place: str, problems: list[str]) -> Signer | None:
    if not isinstance(entry, dict):
        problems.append(f"{place}: expected a table; write [[signer]]")
        return None
    problems += [f"{place}.{key}: not a key of a signer; there are did, name, channels" for key in entry.keys() - _KEYS]
    did, name, channels = entry.get("did"), entry.get("name"), entry.get("channels")
    if name is not None and not isinstance(name, str):
        problems.append(f"{place}.name: expected text in quotes")
        name = None
    if channels is not None and (
        not isinstance(channels, list) or not channels or not all(isinstance(each, str) for each in channels)
    ):
        problems.append(f'{place}.channels: expected names in quotes, like ["dso"]; leave it out to accept all')
        channels = None
    if not isinstance(did, str):
        problems.append(f"{place}.did: missing, or not text; it is told by `edge-agent identity show` on the device")
        return None
    try:
        did_key(did)
    except ValueError as error:
        problems.append(f"{place}.did: {error}")
        return None
    return Signer(did, name, None if channels is None else frozenset(channels))
