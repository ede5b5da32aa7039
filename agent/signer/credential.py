"""A key as an encrypted credential of systemd (systemd-creds(1)): only this machine opens it, with a key of its own on
its disk, and its TPM if there is one.

systemd-creds does it, as root; the key goes to it through a pipe. Nothing is kept.
"""

from __future__ import annotations

import subprocess

from agent.errors import SignerError

_WITHIN = 60.0  # s; a TPM takes some


def encrypt(content: bytes, *, name: str) -> bytes:
    """``content`` as the encrypted credential ``name``, which was proven to open again. Raises SignerError."""
    sealed = _ask("encrypt", content, name)
    if decrypt(sealed, name=name) != content:
        raise SignerError("the encrypted credential does not open again", hint="see systemd-creds(1)")
    return sealed


def decrypt(sealed: bytes, *, name: str) -> bytes:
    """What the encrypted credential ``name`` holds. Raises SignerError."""
    return _ask("decrypt", sealed, name)


def _ask(verb: str, given: bytes, name: str) -> bytes:
    failed = f"systemd-creds could not {verb} the credential {name}"
    try:
        done = subprocess.run(
            ("systemd-creds", verb, f"--name={name}", "-", "-"),
            input=given,
            capture_output=True,
            timeout=_WITHIN,
            check=False,
        )
    except FileNotFoundError:
        raise SignerError(
            f"{failed}: it is not there", hint="it comes with systemd 250 and newer; else LoadCredential= in a drop-in"
        ) from None
    except subprocess.TimeoutExpired:  # whose text has what it was given
        raise SignerError(f"{failed} within {_WITHIN:g} s", hint="does its TPM answer?") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise SignerError(f"{failed}: {said}", hint="run it as root, on the machine that is to open it")
    return done.stdout
