"""The wheels of a package: fetched for its target, hashes checked against the lock, and laid out as pip would.

They are unpacked as they are, without what only their own tests need. Nothing of them is run.
"""

from __future__ import annotations

import email.parser
import hashlib
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath

import provision
from release.target import Target

_LEFT_OUT = {"tests", "SelfTest"}  # folders; a sixth of all modules, which would be compiled on the device
_SOURCE_ONLY = "sdnotify"  # has no wheel


@dataclass(frozen=True, slots=True)
class Wheel:
    """A distribution as it is shipped."""

    path: Path
    name: str
    version: str
    metadata: Message

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def license(self) -> str:
        """What it says of its licence: an SPDX expression where it gives one, else its own few words."""
        said = str(self.metadata.get("License-Expression") or self.metadata.get("License") or "")
        if said and "\n" not in said and len(said) < 60:
            return said
        classified = [each for each in self.metadata.get_all("Classifier", []) if each.startswith("License :: ")]
        return classified[0].rpartition(" :: ")[2] if classified else "see its own files"


def fetch(target: Target, into: Path, *, entries: Mapping[str, str] | None = None) -> list[Wheel]:
    """The wheels of ``entries`` of the lock, left out: of its runtime part; sorted by name. Raises SetUpFailed."""
    needed = target.needs(provision.runtime(provision.locked()) if entries is None else entries)
    source_only = {_SOURCE_ONLY: needed.pop(_SOURCE_ONLY)}
    python = Path(sys.executable)
    provision.say(f"{target.name}: fetching {len(needed) + 1} packages")
    provision.pip(python, "download", f"--dest={into}", *target.wheels, entries=needed)
    provision.pip(python, "wheel", f"--wheel-dir={into}", entries=source_only)
    found = sorted((read(path) for path in into.glob("*.whl")), key=lambda each: each.name)
    if (names := {each.name for each in found}) != {*needed, _SOURCE_ONLY}:
        raise provision.SetUpFailed(f"expected {sorted((*needed, _SOURCE_ONLY))}, got {sorted(names)}")
    return found


def read(path: Path) -> Wheel:
    """What a wheel says of itself."""
    with zipfile.ZipFile(path) as archive:
        place = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(archive.read(place).decode())
    name = re.sub(r"[-_.]+", "-", str(metadata["Name"])).lower()
    return Wheel(path, name, str(metadata["Version"]), metadata)


def unpack(wheel: Wheel, site: Path) -> None:
    """Lay a wheel's modules and metadata out in ``site``; its scripts are left out."""
    with zipfile.ZipFile(wheel.path) as archive:
        for name in archive.namelist():
            parts = PurePosixPath(name).parts
            if parts[0].endswith(".data"):
                if parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            if name.endswith("/") or _LEFT_OUT & {*parts[:-1]} or {"/", ".."} & {*parts}:
                continue
            place = site.joinpath(*parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(archive.read(name))
