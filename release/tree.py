"""The files of the Debian package, laid out below a folder as they lie below / on the device.

/usr/lib/edge-agent is a virtual environment: Debian's interpreter sees in it our modules and those of the lock, and
nothing that other packages bring. It is written by hand, three files, since the interpreter of the target may not run
here. There is no conffile: ``edge-agent init`` writes the configuration, with the site's own DID, and no upgrade has
anything to ask about it.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import provision
from release.target import Target
from release.wheels import Wheel, unpack

HERE = Path(__file__).parent / "debian"
HOME = "usr/lib/edge-agent"
DOC = "usr/share/doc/edge-agent"
_MANUAL = (
    "README.md", "SECURITY.md", "docs/adapters.md", "docs/configuration.md", "docs/consuming.md", "docs/evidence.cddl",
    "docs/evidence.md", "docs/operating.md", "docs/outbox.md", "docs/performance.md", "docs/reliability.md",
)  # fmt: skip
_COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: dataexchange-edge-agent

Files: *
Copyright: the authors of the edge agent
License: Apache-2.0
"""
_APACHE = """\

License: Apache-2.0
 On Debian systems the text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
"""


def lay_out(root: Path, target: Target, *, own: Wheel, wheels: Sequence[Wheel]) -> None:
    """Everything but what names the version of the package."""
    home, site = root / HOME, root / HOME / f"lib/python{target.python}/site-packages"
    for wheel in (own, *wheels):
        unpack(wheel, site)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(f"../../../bin/python{target.python}")
    _put(HERE / "edge-agent", home / "bin" / "edge-agent")
    _write(home / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {target.python}\n")
    (root / "usr/bin").mkdir()
    (root / "usr/bin/edge-agent").symlink_to("../lib/edge-agent/bin/edge-agent")

    systemd = provision.ROOT / "systemd"
    _put(systemd / "edge-agent.service", root / "usr/lib/systemd/system/edge-agent.service")
    _put(systemd / "edge-agent.sysusers.conf", root / "usr/lib/sysusers.d/edge-agent.conf")
    _put(systemd / "edge-agent.tmpfiles.conf", root / "usr/lib/tmpfiles.d/edge-agent.conf")

    doc = root / DOC
    for name in _MANUAL:
        _put(provision.ROOT / name, doc / Path(name).name)
    _put(provision.ROOT / "config" / "agent.toml", doc / "examples" / "agent.toml")
    packed(doc / "changelog.gz", (provision.ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    _write(doc / "copyright", _copyright(wheels, site.relative_to(root)))
    packed(root / "usr/share/man/man1/edge-agent.1.gz", (HERE / "edge-agent.1").read_text(encoding="utf-8"))
    _put(HERE / "edge-agent.lintian-overrides", root / "usr/share/lintian/overrides/edge-agent")


def packed(path: Path, text: str) -> None:
    """A file as Debian wants manuals and changelogs: compressed as far as it goes, without name and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as out:
        out.write(text.encode())


def settle(root: Path, moment: int) -> None:
    """Give every file the mode that it needs, whatever it had here, and the same time."""
    for path in sorted((root, *root.rglob("*"))):
        if not path.is_symlink():
            runs = path.is_dir() or (path.read_bytes()[:2] == b"#!" and path.parent.name in ("bin", "DEBIAN"))
            path.chmod(0o755 if runs else 0o644)
        os.utime(path, (moment, moment), follow_symlinks=False)


def _put(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copyright(wheels: Sequence[Wheel], site: Path) -> str:
    """Whose is what: each distribution's licence as it says, with its text where it brings one."""
    stanzas = [_COPYRIGHT]
    names = set()
    for wheel in wheels:
        place = f"/{site}/{wheel.path.name.partition('-')[0]}-{wheel.version}.dist-info"
        author = wheel.metadata.get("Author") or wheel.metadata.get("Author-email") or "its authors"
        author = " ".join(str(author).split())
        names.add(short := re.sub(r"[^A-Za-z0-9.+()-]+", "-", wheel.license).strip("-"))
        stanzas.append(
            f"\nFiles: {place.removeprefix('/').rpartition('/')[0]}/{wheel.path.name.partition('-')[0]}*\n"
            f"Copyright: {author}\nLicense: {short}\nComment: {wheel.name} {wheel.version}, as {place} says.\n"
        )
    stanzas.append(_APACHE)
    stanzas += [
        f"\nLicense: {name}\n The text is with the distributions that are under it.\n"
        for name in sorted(names - {"Apache-2.0"})
    ]
    return "".join(stanzas)
