"""A Debian package, made by dpkg-deb from a folder: for any target, on any machine that has it, without root.

The same commit, revision and dpkg-deb give the same bytes.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from email.utils import format_datetime
from pathlib import Path

import provision
from release.bill import bill
from release.source import moment, project
from release.target import NEEDS_GLIBC, Target
from release.tree import DOC, HERE, lay_out, packed, settle
from release.wheels import Wheel

_SCRIPTS = ("postinst", "prerm", "postrm")
_WHO = "Edge Agent Maintainers"
_WHERE = "maintainers@edge-agent.example"
_CONTROL = """\
Package: edge-agent
Version: {version}
Section: net
Priority: optional
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: {depends}
Recommends: ca-certificates
Description: reads telemetry at the edge, signs it at capture, delivers it
 Reads Modbus and MQTT devices on site, signs what it reads when it reads it,
 keeps it in a file on disk, and delivers it so that anybody who gets it can
 check, offline, who measured what and that nothing is missing unsaid.
 .
 All Python libraries that it needs are inside, apart from those of the system.
 The service is not started before it is configured: edge-agent init begins.
"""


def version_of(target: Target, *, revision: int) -> str:
    """``0.1.0-1~deb12``: the next release of Debian counts as newer, and so does what replaces a pre-release."""
    upstream = re.sub(r"\.?(a|b|rc|dev)(\d+)", r"~\1\2", project()["version"])
    return f"{upstream}-{revision}~deb{target.release}"


def build(
    target: Target, into: Path, *, own: Wheel, wheels: Sequence[Wheel], revision: int = 1, level: int = 6
) -> Path:
    """The package from wheels that were fetched, and beside it its bill of materials. ``level``: of the compression.

    Raises SetUpFailed.
    """
    version = version_of(target, revision=revision)
    name = f"edge-agent_{version}_{target.architecture}"
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edge-agent-deb-") as scratch:
        root = Path(scratch, "root")
        root.mkdir()
        lay_out(root, target, own=own, wheels=wheels)
        packed(root / DOC / "changelog.Debian.gz", _changelog(target, version))
        material = bill(name, version, wheels, provision.locked())
        (root / DOC / "edge-agent.cdx.json").write_text(material)
        _describe(root, target, version)
        settle(root, moment())
        package = into / f"{name}.deb"
        os.environ["SOURCE_DATE_EPOCH"] = str(moment())
        provision.run(["dpkg-deb", "--root-owner-group", "-Zxz", f"-z{level}", "--build", root, package])
    (into / f"{name}.cdx.json").write_text(material)
    return package


def _describe(root: Path, target: Target, version: str) -> None:
    """The package's own part: control, checksums, scripts."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]  # noqa: S324
    next_python = re.sub(r"\d+$", lambda minor: str(int(minor[0]) + 1), target.python)
    control = _CONTROL.format(
        version=version,
        architecture=target.architecture,
        maintainer=_maintainer(),
        size=sum(-(-path.stat().st_size // 1024) for path in files),
        depends=", ".join(
            (
                f"python3 (>= {target.python}~)",
                f"python3 (<< {next_python})",
                f"libc6 (>= {NEEDS_GLIBC})",
                "libgcc-s1 (>= 4.2)",
                "systemd | systemd-standalone-sysusers | systemd-sysusers",
                "systemd | systemd-standalone-tmpfiles | systemd-tmpfiles",
            )
        ),
    )
    own = root / "DEBIAN"
    own.mkdir()
    (own / "control").write_text(control)
    (own / "md5sums").write_text("".join(sums))
    for name in _SCRIPTS:
        (own / name).write_bytes((HERE / name).read_bytes())


def _changelog(target: Target, version: str) -> str:
    when = format_datetime(datetime.datetime.fromtimestamp(moment(), datetime.UTC))
    return (
        f"edge-agent ({version}) {target.codename}; urgency=medium\n\n"
        f"  * What changed stands in changelog.gz.\n\n -- {_maintainer()}  {when}\n"
    )


def _maintainer() -> str:
    """Who signs for the package, as Debian's own tools are told."""
    return f"{os.environ.get('DEBFULLNAME', _WHO)} <{os.environ.get('DEBEMAIL', _WHERE)}>"
