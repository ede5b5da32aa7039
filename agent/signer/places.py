"""The places that a key can be kept in (agent/custody.py): opened, filled with a new key or with one from elsewhere.

The only way from the name of a place to a signer. A crash while a key is written leaves no file of its name, or a whole
one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agent.custody import Custody
from agent.errors import SecretError, SignerError
from agent.secret import Secret
from agent.signer import credential, keystore
from agent.signer.files import Owner, read_any, read_credential, read_private, taken, write_private
from agent.signer.key import DEFAULT_NETWORK, KeySigner, new_secret, secret_as_hex, secret_from_hex
from agent.signer.keystore import TO_IMPORT, TO_RUN, Bounds, Keystore
from agent.signer.memory import keep_to_ourselves
from agent.signer.unlock import encrypt, unlock

_SEALED = 64 * 1024  # bytes; a key as an encrypted credential has some hundreds
_LINE = 1024  # bytes; a key and its line end have 65, and somebody may have added blanks


def open_signer(
    custody: Custody,
    *,
    passphrase: Secret | None = None,
    did: str | None = None,
    network: str = DEFAULT_NETWORK,
    any_owner: bool = False,
) -> KeySigner:
    """The key in a place, and the process kept to itself from now on.

    ``passphrase`` is for keystores, ``network`` for the DID if ``did`` does not say it, ``any_owner`` for root, who
    only wants to look. Raises SignerError: missing, open to others, of another user, no key, not the one of ``did``,
    too costly, a wrong passphrase, a passphrase that cannot be read.
    """
    keep_to_ourselves()
    if custody.kind == "credential":
        what = f"credential {custody.where}"
        return KeySigner(_from_hex(read_credential(custody.where, most=_LINE), what), did=did, network=network)
    if custody.kind == "file":
        remedy = "`edge-agent init` makes a new key"
        text = read_private(custody.path, what="key file", most=_LINE, remedy=remedy, any_owner=any_owner)
        return KeySigner(_from_hex(text, f"key file {custody.path}"), did=did, network=network)
    remedy = "`edge-agent identity create` makes a new key"
    text = read_private(custody.path, what="keystore", most=keystore.LARGEST, remedy=remedy, any_owner=any_owner)
    secret = _from_keystore(text, custody, passphrase, TO_RUN)
    return KeySigner(secret, did=did, network=network)


def create_key(
    custody: Custody,
    *,
    passphrase: Secret | None = None,
    network: str = DEFAULT_NETWORK,
    owner: Owner | None = None,
) -> KeySigner:
    """A new key in a ``file:`` or ``keystore:``, never over another; root may give it to ``owner``.

    Raises SignerError, OSError.
    """
    _may_be_written(custody)
    keep_to_ourselves()
    secret = new_secret()
    _write(custody, secret, passphrase, owner)
    return KeySigner(secret, network=network)


def import_key(
    source: Custody | bytes,
    custody: Custody,
    *,
    source_passphrase: Secret | None = None,
    passphrase: Secret | None = None,
    did: str | None = None,
    network: str = DEFAULT_NETWORK,
) -> KeySigner:
    """A key from elsewhere, or 64 hex digits, into a ``file:`` or ``keystore:``, never over another.

    The source stays as it is, and may be open to others: that is what an import ends. Raises SignerError, also if the
    key is not the one of ``did``; OSError.
    """
    _may_be_written(custody)
    keep_to_ourselves()
    secret = _from_elsewhere(source, source_passphrase)
    signer = KeySigner(secret, did=did, network=network)
    _write(custody, secret, passphrase)
    return signer


def encrypt_key(
    source: Custody | bytes,
    path: Path,
    *,
    name: str,
    source_passphrase: Secret | None = None,
    did: str | None = None,
    network: str = DEFAULT_NETWORK,
) -> KeySigner:
    """A key from elsewhere, or 64 hex digits, as the encrypted credential ``name`` in the file ``path``, which only
    this machine's systemd can open; never over another. A file that holds it already stays as it is.

    Raises SignerError as ``import_key``, OSError.
    """
    keep_to_ourselves()
    secret = _from_elsewhere(source, source_passphrase)
    signer = KeySigner(secret, did=did, network=network)
    content = secret_as_hex(secret)
    if os.path.lexists(path):  # of a call that was interrupted, perhaps
        if credential.decrypt(read_any(path, what="credential", most=_SEALED), name=name) != content:
            raise taken(path, what="credential")
    else:
        write_private(path, credential.encrypt(content, name=name), what="credential")
    return signer


def _from_elsewhere(source: Custody | bytes, passphrase: Secret | None) -> bytes:
    if isinstance(source, bytes):
        return _from_hex(source, "input")
    if source.kind == "credential":
        return _from_hex(read_credential(source.where, most=_LINE), f"credential {source.where}")
    if source.kind == "file":
        return _from_hex(read_any(source.path, what="file", most=_LINE), f"file {source.path}")
    text = read_any(source.path, what="keystore", most=keystore.LARGEST)
    return _from_keystore(text, source, passphrase, TO_IMPORT)


def _may_be_written(custody: Custody) -> None:
    """Say early what writing would say after a long derivation. Raises SignerError."""
    if custody.kind == "credential":
        hint = "`edge-agent identity import --credential` encrypts a key for it"
        raise SignerError("a credential is given by systemd", hint=hint)
    if os.path.lexists(custody.path):
        raise taken(custody.path, what=_called(custody))


def _write(custody: Custody, secret: bytes, passphrase: Secret | None, owner: Owner | None = None) -> None:
    content = secret_as_hex(secret)
    if custody.kind == "keystore":
        content = encrypt(secret, _read(passphrase), what=f"keystore {custody.path}")
    write_private(custody.path, content, what=_called(custody), owner=owner)


def _called(custody: Custody) -> str:
    return "key file" if custody.kind == "file" else "keystore"


def _from_hex(text: bytes, what: str) -> bytes:
    secret = secret_from_hex(text)
    if secret is None:
        raise SignerError(f"the {what} does not hold a key", hint="it must be 64 hex digits on one line")
    return secret


def _from_keystore(content: bytes, custody: Custody, passphrase: Secret | None, bounds: Bounds) -> bytes:
    what = f"keystore {custody.path}"
    judged = _judged(content, what)
    if (much := judged.exceeds(bounds)) is not None:
        cheaper = "make a cheaper one of it with `edge-agent identity import`"
        hint = "make a cheaper one of it where it was made" if bounds is TO_IMPORT else cheaper
        raise SignerError(f"opening the {what} {much}", hint=hint)
    secret = unlock(judged, _read(passphrase), what=what)
    if judged.address is not None and judged.address != bytes.fromhex(KeySigner(secret).address[2:]):
        hint = "is it the right file?"
        raise SignerError(f"the {what} does not hold the key of the address that it names", hint=hint)
    return secret


def _judged(content: bytes, what: str) -> Keystore:
    try:
        return keystore.read(content)
    except ValueError as error:
        hint = "it must be web3 secret storage of version 3, as geth and eth-account write it"
        raise SignerError(f"the {what} is no keystore: {error}", hint=hint) from None


def _read(passphrase: Secret | None) -> str:
    """The passphrase. Raises SignerError."""
    if passphrase is None:
        raise SignerError("a keystore needs a passphrase", hint="say where it is")
    if passphrase.file is not None:
        _not_open_to_all(Path(passphrase.file))
    try:
        return passphrase.read()
    except SecretError as error:
        raise SignerError(f"the passphrase: {error}", hint=error.hint) from error.__cause__


def _not_open_to_all(path: Path) -> None:
    """A group may share a passphrase's file, as /etc/edge-agent is shared; others may not. Raises SignerError."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return  # reading it says why
    if mode & 0o007:
        raise SignerError(f"the passphrase's file {path} is open to others", hint=f"chmod o-rwx {path}")
