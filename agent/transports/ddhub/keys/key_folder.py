"""The files of our RSA keys: ``rsa-1.pem``, ``rsa-2.pem``, ... in the state folder, the highest number in force.

A key file is written once, with mode 0600, whole or not at all, and never over another; so rotating is adding one. The
one before it stays and is tried when a key is unwrapped: participants use it until they read our DID document again
(an hour), and what was sent so far lives for 24 h at the broker. It is removed ``KEEP`` after the document was first
seen to hold the newest key: ``rsa-1.replaced`` says when that was.

A clock that steps removes nothing early: within one boot CLOCK_BOOTTIME counts, across boots the wall clock only if it
was synchronised both times; else the time begins anew. A crash at any moment leaves each file whole or away; without
its note (lost, damaged) a key is kept longer.

All of it blocks, so it belongs into worker threads. Raises SignerError.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from Crypto.PublicKey.RSA import RsaKey

from agent.errors import SignerError
from agent.instant import instant
from agent.model import ClockState
from agent.ports import Clock, Signer
from agent.signer.files import read_private, write_private
from agent.transports.ddhub.keys.rsa_key import MOST_BYTES, OurKey, read, write

KEEP = 25 * 3600 * 1_000_000_000  # ns: a document is cached for an hour, a message kept for 24 h
MOST_KEYS = 8
_NAME = re.compile(r"rsa-([1-9][0-9]{0,5})\.pem")
_MOST_NOTE = 1024  # bytes


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment on the machine's clocks, ns. ``boot_id``: hex, of the boot that ``boot`` belongs to."""

    wall: int
    boot: int
    boot_id: str
    synchronised: bool

    @classmethod
    def now(cls, clock: Clock, boot_id: bytes) -> Moment:
        """Now."""
        wall, boot = instant(clock)
        return cls(wall, boot, boot_id.hex(), clock.quality().state is ClockState.SYNCHRONISED)

    def since(self, earlier: Moment) -> int | None:
        """How long ago that was; None if the clocks cannot tell."""
        if self.boot_id == earlier.boot_id:
            passed = self.boot - earlier.boot
        elif self.synchronised and earlier.synchronised:
            passed = self.wall - earlier.wall
        else:
            return None
        return passed if passed >= 0 else None


@dataclass(frozen=True, slots=True)
class OurKeys:
    """Our keys, the newest first. ``refused``: older ones that cannot be read, which what was sent for them needs."""

    keys: tuple[OurKey, ...]
    refused: tuple[SignerError, ...] = ()

    @property
    def newest(self) -> OurKey | None:
        """The one to publish; None if there is none yet."""
        return self.keys[0] if self.keys else None

    @property
    def private(self) -> tuple[RsaKey, ...]:
        """All of them, for ``cipher.unwrap``."""
        return tuple(each.private for each in self.keys)


class KeyFolder:
    """The keys of one identity. The folder is made when the first key is. ``any_owner``: root may look at anybody's."""

    def __init__(self, path: Path, signer: Signer, *, any_owner: bool = False) -> None:
        self._path = path
        self._signer = signer
        self._any_owner = any_owner

    def read(self) -> OurKeys:
        """What is there: 0.2 s of CPU for each. Raises SignerError if the newest cannot be read: damaged, of a newer
        version, another identity's, another user's, open to others.
        """
        keys: list[OurKey] = []
        refused: list[SignerError] = []
        for number in reversed(self._numbers()):
            file = self._file(number)
            try:
                content = read_private(file, what="RSA key file", most=MOST_BYTES, any_owner=self._any_owner)
                keys.append(read(content, signer=self._signer, what=f"RSA key file {file}"))
            except SignerError as error:
                if not keys:
                    raise
                refused.append(error)
        return OurKeys(tuple(keys), tuple(refused))

    def add(self, key: RsaKey, *, made: int) -> OurKey:
        """Store a key as the newest, ``made`` ns since 1970, and read it back. Publish it then. Raises SignerError."""
        numbers = self._numbers()
        if len(numbers) >= MOST_KEYS:
            hint = "publish the newest: the others are removed 25 h after it is seen in the DID document"
            raise SignerError(f"there are {len(numbers)} RSA keys in {self._path} already", hint=hint)
        content = write(key, made=made, signer=self._signer)
        number = numbers[-1] + 1 if numbers else 1
        file = self._file(number)
        with self._told():
            self._make_folder()
            for each in (*numbers[-1:], number):  # in force until now, or not there: a note on it tells of other days
                self._note(each).unlink(missing_ok=True)
            write_private(file, content, what="RSA key file")
        return read(
            read_private(file, what="RSA key file", most=MOST_BYTES), signer=self._signer, what=f"RSA key file {file}"
        )

    def settle(self, *, newest_published: bool, now: Moment) -> int:
        """Say whether our DID document was seen to hold the newest key; returns how many old ones were removed.

        Raises SignerError.
        """
        removed = 0
        with self._told():
            for number in self._numbers()[:-1]:
                note = self._note(number)
                if not newest_published:
                    note.unlink(missing_ok=True)
                    continue
                earlier = _read_note(note)
                passed = None if earlier is None else now.since(earlier)
                if passed is None:
                    self._write_note(note, now)
                elif passed >= KEEP:
                    self._file(number).unlink(missing_ok=True)
                    note.unlink(missing_ok=True)
                    removed += 1
            if removed:
                _sync(self._path)
        return removed

    def _numbers(self) -> list[int]:
        with self._told():
            try:
                names = os.listdir(self._path)
            except FileNotFoundError:
                return []
        return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))

    def _file(self, number: int) -> Path:
        return self._path / f"rsa-{number}.pem"

    def _note(self, number: int) -> Path:
        return self._path / f"rsa-{number}.replaced"

    def _make_folder(self) -> None:
        if not self._path.is_dir():
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(self._path.parent)

    def _write_note(self, note: Path, now: Moment) -> None:
        draft = note.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            if os.geteuid() == 0:  # the agent's user must be able to read it
                folder = self._path.stat()
                os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
            json.dump(asdict(now), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(note)
        _sync(self._path)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the system says, as SignerError."""
        try:
            yield
        except OSError as error:
            place = error.filename or self._path
            hint = f"the folder {self._path} must be the agent's own, on a disk with room"
            raise SignerError(f"cannot keep RSA keys: {place}: {error.strerror}", hint=hint) from error


def _read_note(note: Path) -> Moment | None:
    with suppress(FileNotFoundError, ValueError, TypeError, RecursionError), note.open("rb") as file:
        found = Moment(**json.loads(file.read(_MOST_NOTE)))
        if [type(value) for value in asdict(found).values()] == [int, int, str, bool]:
            return found
    return None


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
