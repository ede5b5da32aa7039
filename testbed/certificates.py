"""Certificates for tests, made by the openssl program when they are needed: an authority, and what it vouches for."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import provision
from testbed.child import ProcessError


@dataclass(frozen=True, slots=True)
class Certificate:
    """Two PEM files."""

    path: Path
    key: Path


class Authority:
    """A certificate authority of its own in ``folder``; ``path`` is what who trusts it needs.

    Raises ProcessError if there is no openssl.
    """

    def __init__(self, folder: Path, *, name: str = "ca") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        own = self._files(name)
        self.path, self._key = own.path, own.key
        subject = ["-subj", f"/CN=testbed {name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        self._openssl("req", "-x509", *_new_key(own.key), *subject, "-days", "2", "-out", own.path)

    def issue(self, name: str, *, hosts: str = "IP:127.0.0.1,DNS:localhost", days: int = 2) -> Certificate:
        """A certificate for servers at ``hosts`` and for clients called ``name``; with ``days`` 0 it is no longer
        valid.
        """
        own = self._files(name)
        request, extensions = own.path.with_suffix(".csr"), own.path.with_suffix(".ext")
        extensions.write_text(
            f"subjectAltName={hosts}\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        self._openssl("req", "-new", *_new_key(own.key), "-subj", f"/CN={name}", "-out", request)
        signing: list[str | Path] = ["-CA", self.path, "-CAkey", self._key, "-CAcreateserial", "-days", str(days)]
        self._openssl("x509", "-req", "-in", request, "-extfile", extensions, *signing, "-out", own.path)
        return own

    def _files(self, name: str) -> Certificate:
        return Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        found = provision.program("openssl")
        if found is None:
            raise ProcessError("no openssl: python3 provision.py debian makes it ready")
        done = subprocess.run(
            [found[0], *arguments], env={**os.environ, **found[1]}, capture_output=True, text=True, timeout=30
        )
        if done.returncode:
            raise ProcessError(f"openssl {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")


def _new_key(path: Path) -> list[str | Path]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", path]
