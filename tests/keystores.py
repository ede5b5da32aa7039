"""Keystores for tests: the published ones of web3 secret storage, and cheap ones made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent.secret import Secret
from agent.signer import unlock
from agent.signer.keystore import Keystore
from tests.runs import SECRET

# https://ethereum.org/developers/docs/data-structures-and-encoding/web3-secret-storage, test vectors
PUBLISHED_PASSPHRASE = "testpassword"
PUBLISHED_SECRET = bytes.fromhex("7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d")
PUBLISHED_PBKDF2: dict[str, Any] = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}
PUBLISHED_SCRYPT: dict[str, Any] = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
        "kdf": "scrypt",
        "kdfparams": {
            "dklen": 32,
            "n": 262144,
            "p": 8,
            "r": 1,
            "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
        },
        "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}

PASSPHRASE = "correct horse battery staple"
CHEAP = 1 << 10  # N of scrypt: 1 MiB


def cheap(secret: bytes = SECRET) -> dict[str, Any]:
    """A keystore that costs nothing to open, sealed with PASSPHRASE."""
    found: dict[str, Any] = json.loads(unlock.encrypt(secret, PASSPHRASE, what="keystore", work_factor=CHEAP))
    return found


def written(path: Path, content: bytes | str, mode: int = 0o600) -> Path:
    """A file with these rights."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def passphrase_in(folder: Path, text: str = PASSPHRASE) -> Secret:
    """A reference to a file with it."""
    return Secret(file=str(written(folder / "passphrase", f"{text}\n")))


def unlocked_here(judged: Keystore, passphrase: str, *, what: str) -> bytes:
    """Instead of ``agent.signer.unlock.unlock``: in this process, which a test need not wait for."""
    secret, failed = unlock._decrypt(dict(judged.crypto), passphrase)
    if secret is None:
        raise unlock._refusal(failed, what)
    return secret
