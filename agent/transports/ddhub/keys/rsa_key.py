"""Our RSA key, with which others encrypt for us: how it is made, what its file holds, and how it is opened again.

Pure, but for the signer and the system's generator; agent/transports/ddhub/keys/key_folder.py has the files.

The file is encrypted with a passphrase that nobody has to keep: it is made of a signature of our own key over a fixed
text, which is the same each time (RFC 6979). So who copies the state folder or a backup of it has nothing without the
key in custody, and who has that needs nothing else. What keeps the passphrase secret: the signed digest is the SHA-256
of a text that is no Sig_structure, so no record has it; logins and messages are signed over Keccak-256; and the key
signs nothing that comes from outside. Its 256 bits cannot be guessed, so it is not stretched for long.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from Crypto.IO import PEM
from Crypto.PublicKey import RSA
from Crypto.PublicKey.RSA import RsaKey
from Crypto.Util.asn1 import DerSequence

from agent.errors import SignerError
from agent.evidence.did import did_key
from agent.ports import Signer
from agent.transports.ddhub.content.cipher import CipherError, new_key, unwrap, wrap

BITS = 4096
MOST_BYTES = 16 * 1024  # of a file; one has 3.5 kB
FORMAT = 1
_SIGNED = b"edge-agent: the passphrase of the RSA key for the Data Hub, 1"
_PROTECTION = "PBKDF2WithHMAC-SHA512AndAES256-CBC"
_HEAD = re.compile(rb"edge-agent-rsa-key: ([0-9]{1,9})\n")
_REST = re.compile(
    rb"did: (?P<did>did:[!-~]{1,200})\nmade: (?P<made>[0-9]{1,20})\n"
    rb"(?P<pem>-----BEGIN ENCRYPTED PRIVATE[ ]KEY-----\n[A-Za-z0-9+/=\n]+-----END ENCRYPTED PRIVATE[ ]KEY-----)\n"
)
_GATEWAYS = re.compile(r"\s*-----BEGIN RSA PRIVATE[ ]KEY-----.+-----END RSA PRIVATE[ ]KEY-----\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class OurKey:
    """A key of ours. ``made``: by the wall clock, ns since 1970. ``public``: as it stands in the DID document."""

    made: int
    public: str
    private: RsaKey = field(repr=False)


def generate() -> RsaKey:
    """A new key of 4096 bits with the exponent 65537. Takes seconds of CPU, a minute on a small board: call it in a
    worker thread.
    """
    return RSA.generate(BITS)


def public_pem(key: RsaKey) -> str:
    """PKCS#1 PEM with line ends at LF, as gateways publish it: 775 characters for 4096 bits."""
    der = DerSequence([key.n, key.e]).encode()
    return f"{PEM.encode(der, 'RSA PUBLIC KEY')}\n"


def write(key: RsaKey, *, made: int, signer: Signer) -> bytes:
    """The content of the key's file. Raises SignerError."""
    passphrase = _passphrase(signer)
    if passphrase != _passphrase(signer):
        raise SignerError(
            "the key in custody signs differently each time, so the RSA key could not be opened again",
            hint="use a key that signs by RFC 6979",
        )
    pem = key.export_key(passphrase=passphrase, pkcs=8, protection=_PROTECTION, prot_params={"iteration_count": 1000})
    return b"edge-agent-rsa-key: %d\ndid: %b\nmade: %d\n%b\n" % (FORMAT, signer.did.encode(), made, pem)


def read(content: bytes, *, signer: Signer, what: str) -> OurKey:
    """What ``write`` made. ``what``: the file in a message. Raises SignerError: damaged, of a newer version, another's.

    The key is used once before it is handed out: the encryption alone would not show every damage.
    """
    head = _HEAD.match(content)
    if head is None:
        raise _damaged(what)
    if int(head[1]) != FORMAT:
        hint = "a newer agent wrote it: run that one"
        raise SignerError(f"the {what} is of version {int(head[1])}, this agent knows {FORMAT}", hint=hint)
    found = _REST.fullmatch(content, head.end())
    if found is None:
        raise _damaged(what)
    did = found["did"].decode()
    if not _same(did, signer.did):
        hint = "it is another identity's state: give this one a folder of its own"
        raise SignerError(f"the {what} was made for {did}, not for {signer.did}", hint=hint)
    key = _imported(found["pem"].decode(), _passphrase(signer))
    if key is None or not works(key):
        raise _damaged(what)
    return OurKey(int(found["made"]), public_pem(key), key)


def works(key: RsaKey) -> bool:
    """Whether what is wrapped for a key can be unwrapped with it."""
    sample = new_key()
    try:
        return unwrap(wrap(sample, public_pem(key)), [key]) == sample
    except (CipherError, ValueError):
        return False


def from_gateway(pem: str, root_key: str) -> RsaKey:
    """The key of a client gateway, for who moves from one: PKCS#1 PEM encrypted as it stands in its secrets engine.

    ``root_key``: the gateway's identity, hex digits with or without ``0x``; its passphrase is made of that text as it
    was stored, so both are tried. Raises SignerError.
    """
    if len(pem) > MOST_BYTES or not _GATEWAYS.fullmatch(pem):
        hint = "expected the PEM text in the field privateKey of rsa_key, of its secrets engine"
        raise SignerError("the text is no RSA key of a client gateway", hint=hint)
    bare = root_key.strip().removeprefix("0x")
    for stored in dict.fromkeys((root_key.strip(), f"0x{bare}", bare)):
        key = _imported(pem.strip(), hashlib.sha256(stored.encode()).hexdigest())
        if key is not None and works(key):
            return key
    hint = "the root key must be that of the same gateway, as text of its secrets engine (identity/private_key)"
    raise SignerError("the RSA key of the client gateway does not open with this root key", hint=hint)


def _imported(pem: str, passphrase: str) -> RsaKey | None:
    try:
        key = RSA.import_key(pem, passphrase)
    except (ValueError, IndexError, TypeError):
        return None
    return key if key.has_private() else None


def _same(did: str, ours: str) -> bool:
    try:
        return did_key(did) == did_key(ours)
    except ValueError:
        return False


def _passphrase(signer: Signer) -> str:
    return hashlib.sha256(_SIGNED + signer.sign(hashlib.sha256(_SIGNED).digest())).hexdigest()


def _damaged(what: str) -> SignerError:
    hint = "restore it, or move it away and make a new one; what was encrypted for it is lost with it"
    return SignerError(f"the {what} is damaged", hint=hint)
