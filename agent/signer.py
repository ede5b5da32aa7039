"""The device's key in custody: a file that only its owner can read, a 32-byte secp256k1 secret as 64 hex digits.

Signs digests with libsecp256k1 (RFC 6979, low-S) and verifies each signature before it is handed out. The secret
never reaches a log, an exception text or a file that others can read. A crash while a key is being created leaves
either no file or a whole one.
"""

from __future__ import annotations

import os
import pwd
import secrets
import stat
from pathlib import Path

import coincurve

from agent.errors import SignerError
from agent.evidence.did import did_key
from agent.evidence.envelope import verify
from agent.evidence.keccak import address_of, checksum_address

DEFAULT_NETWORK = "ewc"


class KeySigner:
    """A secp256k1 key held in memory; implements the ``Signer`` port."""

    def __init__(self, secret: bytes, *, did: str | None = None, network: str = DEFAULT_NETWORK) -> None:
        """Raises SignerError if the secret is no key, or not the key of ``did``."""
        try:
            self._key = coincurve.PrivateKey(secret)
        except ValueError:
            raise SignerError("the key is not a number that secp256k1 allows", hint="create a new key") from None
        self._public = self._key.public_key
        mine = did_of(self._public, did.split(":")[2] if did else network)
        if did is not None and did_key(did) != did_key(mine):
            raise SignerError(f"the key is that of {mine}, not of {did}", hint="correct identity.did or identity.key")
        self.did = mine

    def sign(self, digest: bytes) -> bytes:
        """r || s over a 32-byte digest. Raises SignerError if the signature does not verify (a fault of memory or
        CPU).
        """
        signature = self._key.sign_recoverable(digest, hasher=None)[:64]
        if not verify(self._public, signature, digest):
            raise SignerError("a signature just made does not verify", hint="suspect the hardware: memory or CPU")
        return signature


def did_of(public: coincurve.PublicKey, network: str) -> str:
    """``did:ethr:<network>:<EIP-55 address>``."""
    return f"did:ethr:{network}:{checksum_address(address_of(public.format(compressed=False)))}"


def open_key_file(path: Path, *, did: str | None = None, network: str = DEFAULT_NETWORK) -> KeySigner:
    """The key in a file; ``network``: of its DID unless ``did`` says it.

    Raises SignerError if it is missing, open to others, owned by somebody else or not a key.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read(200)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)  # a key that is only out of reach must not get a successor
        hint = "check identity.key; `edge-agent init` makes a new key" if missing else "check identity.key"
        raise SignerError(f"cannot read the key file {path}: {error.strerror}", hint=hint) from error
    if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077:
        raise SignerError(f"the key file {path} is open to others", hint=f"chmod 600 {path}")
    if status.st_uid not in (os.geteuid(), 0):
        raise SignerError(
            f"the key file {path} belongs to another user",
            hint=f"the key must belong to the user that runs the agent, or to root; this is user {_user()}",
        )
    digits = text.strip().removeprefix(b"0x")
    try:
        secret = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise SignerError(f"the key file {path} does not hold a key", hint="it must be 64 hex digits on one line")
    return KeySigner(secret, did=did, network=network)


def create_key_file(path: Path, *, network: str = DEFAULT_NETWORK) -> KeySigner:
    """Make a new key and its file, mode 0600, never over another. Raises SignerError if there is one, OSError."""
    while True:
        secret = secrets.token_bytes(32)
        try:
            key = coincurve.PrivateKey(secret)
            break
        except ValueError:  # zero or not below the order: once in 2^128
            continue
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                os.write(descriptor, secret.hex().encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.link(draft, path)  # unlike rename this fails if the name is taken
        finally:
            os.unlink(draft)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise SignerError(
            f"cannot write the key file {path}: {error.strerror}", hint="a key is never overwritten; move it away first"
        ) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file
    return KeySigner(secret, did=did_of(key.public_key, network))


def _user() -> str:
    """Who this process is: NAME/UID."""
    try:
        return f"{pwd.getpwuid(os.geteuid()).pw_name}/{os.geteuid()}"
    except KeyError:
        return str(os.geteuid())
