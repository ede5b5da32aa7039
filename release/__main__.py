"""``python -m release``: see release/build."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import provision
from release import deb, source, wheels
from release.target import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what the arguments name and print the paths; returns the exit status."""
    names = (*TARGETS, "wheel", "sdist")
    parser = argparse.ArgumentParser(prog="release/build", description="Make the packages of this checkout.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--into", type=Path, default=provision.ROOT / "dist", metavar="FOLDER", help="default: dist")
    parser.add_argument("--revision", type=int, default=1, metavar="N", help="of the Debian package (default: 1)")
    options = parser.parse_args(arguments)
    if unknown := {*options.names} - {*names}:
        parser.error(f"no such package: {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    try:
        for path in make(options.names or names, options.into.absolute(), revision=options.revision):
            print(path, flush=True)
    except provision.SetUpFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def make(names: Sequence[str], into: Path, *, revision: int = 1) -> list[Path]:
    """The packages of these names, in a folder. Raises SetUpFailed."""
    made = []
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edge-agent-release-") as scratch:
        sources = source.copy(Path(scratch, "source"))
        own = wheels.read(source.wheel(sources, Path(scratch, "own")))
        for name in names:
            if name == "wheel":
                made.append(Path(shutil.copy(own.path, into)))
            elif name == "sdist":
                made.append(source.sdist(source.copy(Path(scratch, "sdist")), into))
            else:
                fetched = wheels.fetch(TARGETS[name], Path(scratch, name))
                provision.say(f"{name}: packing")
                made.append(deb.build(TARGETS[name], into, own=own, wheels=fetched, revision=revision))
    return made


if __name__ == "__main__":
    sys.exit(main())
