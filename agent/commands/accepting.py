"""Whose records a command accepts, and where it keeps how far it came: ``--did``, ``--allow``, ``--checkpoint``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from agent.commands.whole_file import replacing
from agent.errors import CheckpointError, EvidenceError
from agent.evidence import cbor
from agent.verifier import Signer, Verifier, read_allow_list

_LARGEST_LIST = 16 * 1024 * 1024
_HINT = "move the file away to begin anew"


def accepted(options: argparse.Namespace) -> list[Signer | str]:
    """Who was named. Raises ValueError with all that is wrong with an allow-list, OSError."""
    named: list[Signer | str] = list(options.did)
    if options.allow is None:
        return named
    with options.allow.open("rb") as file:
        content = file.read(_LARGEST_LIST + 1)
    if len(content) > _LARGEST_LIST:
        raise ValueError(f"{options.allow}: larger than {_LARGEST_LIST} bytes; is it the right file?")
    try:
        return [*named, *read_allow_list(content.decode())]
    except ValueError as error:
        raise ValueError("\n".join(f"{options.allow}: {line}" for line in str(error).splitlines())) from None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a command came: its ``place`` in the source, in words and numbers of the source's own, and the verifier's
    state.
    """

    source: str
    place: list[int] | None
    state: bytes

    @classmethod
    def read(cls, path: Path | None, source: str) -> Checkpoint | None:
        """What stands in the file; None if there is none. Raises CheckpointError, OSError."""
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            written, place, state = cbor.decode(content)
            found = cls(str(written), None if place is None else [int(each) for each in place], bytes(state))
        except (EvidenceError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: not a checkpoint: {error}", hint=_HINT) from error
        if found.source != source:
            raise CheckpointError(f"{path} is of {found.source}, not of {source}", hint="give each source its own file")
        return found

    def write(self, path: Path) -> None:
        """Replace the file; a crash leaves the old one or the new one. Raises OSError."""
        with replacing(path) as file:
            file.write(cbor.encode([self.source, self.place, self.state]))


def begun(options: argparse.Namespace, accept: list[Signer | str], source: str) -> tuple[Verifier, list[int] | None]:
    """A verifier that goes on where the checkpoint says, and the place in the source behind which it does.

    Raises ValueError, CheckpointError, OSError.
    """
    kept = Checkpoint.read(options.checkpoint, source)
    try:
        return Verifier(accept, saved=kept.state if kept else None), kept.place if kept else None
    except CheckpointError as error:
        raise CheckpointError(f"{options.checkpoint}: {error}", hint=error.hint) from error
