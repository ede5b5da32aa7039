"""The sources of this checkout, as wheel and sdist; which moment all packages bear.

Same sources, same bytes: whoever builds, where and when (reproducible-builds.org, SOURCE_DATE_EPOCH).
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import provision

_FILES = ("pyproject.toml", "README.md", "LICENSE")
_PACKAGES = ("agent", "adapters")


def project() -> dict[str, str]:
    """``name``, ``version`` and ``description``, as pyproject.toml says."""
    read = tomllib.loads((provision.ROOT / "pyproject.toml").read_text())["project"]
    return {key: read[key] for key in ("name", "version", "description")}


def moment() -> int:
    """The Unix time that everything bears: SOURCE_DATE_EPOCH, else that of the commit. Raises SetUpFailed."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        asked = subprocess.run(
            ["git", "log", "-1", "--format=%ct"], cwd=provision.ROOT, capture_output=True, text=True, check=False
        )
        given = asked.stdout.strip()
    if not given.isdecimal():
        raise provision.SetUpFailed("not a git checkout: set SOURCE_DATE_EPOCH to the Unix time of these sources")
    return int(given)


def copy(folder: Path) -> Path:
    """What is built from, copied: setuptools leaves traces where it works. Returns ``folder``."""
    folder.mkdir()
    for name in _PACKAGES:
        shutil.copytree(provision.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILES:
        shutil.copy(provision.ROOT / name, folder)
    for path in folder.rglob("*"):  # whatever the umask of the checkout was
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def wheel(source: Path, into: Path) -> Path:
    """Build the project's wheel. Raises SetUpFailed."""
    return _built("build_wheel", source, into)


def sdist(source: Path, into: Path) -> Path:
    """Build the source distribution. Raises SetUpFailed."""
    path = _built("build_sdist", source, into)
    with tarfile.open(path) as archive:
        members = [(each, archive.extractfile(each)) for each in archive.getmembers()]
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as out:
            for member, content in sorted(members, key=lambda each: each[0].name):
                clean = tarfile.TarInfo(member.name)
                clean.type, clean.size, clean.mtime = member.type, member.size, moment()
                clean.mode = 0o755 if member.isdir() else 0o644
                out.addfile(clean, content)
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=moment()) as packed:
        packed.write(plain.getvalue())
    return path


def _built(hook: str, source: Path, into: Path) -> Path:
    """What a hook of the build backend (PEP 517) makes in ``into``."""
    into.mkdir(parents=True, exist_ok=True)
    os.environ["SOURCE_DATE_EPOCH"] = str(moment())
    work = f"import os, sys; os.chdir({str(source)!r}); from setuptools import build_meta as backend; "
    provision.run([sys.executable, "-c", f"{work}backend.{hook}({str(into.absolute())!r})"])
    kind = "*.whl" if hook == "build_wheel" else "*.tar.gz"
    return next(into.glob(f"{project()['name'].replace('-', '_')}-{kind}"))
