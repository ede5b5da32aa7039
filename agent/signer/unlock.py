"""Opens and makes keystores with eth-account, and only here is it imported.

Opening is done by a process of its own that ends at once. What eth-account and scrypt take, 40 MiB that the agent would
keep for good, is given back; the kernel's reckoning for too much memory goes to that process; and one that hangs is
ended. Keystore, passphrase and key go through its pipes: they are in no argument, variable or file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from agent.errors import SignerError, Verdict
from agent.signer.keystore import WORK_FACTOR, Keystore
from agent.signer.memory import keep_to_ourselves

WITHIN = 120.0  # s; the bounds of agent/signer/keystore.py take a tenth of that on a slow gateway
_CHILD = "from agent.signer.unlock import child; child()"
_WRONG = "wrong passphrase"
_ENDED = "it ended"


def unlock(keystore: Keystore, passphrase: str, *, what: str, within: float = WITHIN) -> bytes:
    """The 32 bytes of the key, by another process. ``what``: the keystore in a message. Raises SignerError: the
    passphrase is wrong, or, with the verdict RETRY, the process did not come to an end.
    """
    question = json.dumps({"crypto": keystore.crypto, "passphrase": passphrase}).encode()
    secret, failed = _ask(question, within)
    if secret is None:
        raise _refusal(failed, what)
    return secret


def _ask(question: bytes, within: float) -> tuple[bytes | None, str]:
    """The key, or None and why not. Nothing of an exception gets out, which might hold question or answer."""
    try:
        done = subprocess.run(
            # -P: nothing from the folder that we happen to be in.
            (sys.executable, "-P", "-c", _CHILD),
            input=question,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a defect of eth-account must not print what it was given
            timeout=within,
            start_new_session=True,  # a Ctrl-C is for us
            check=False,
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {"failed": f"{_ENDED} with {done.returncode}"}
        return (bytes.fromhex(answer["secret"]), "") if "secret" in answer else (None, answer["failed"])
    except subprocess.TimeoutExpired:
        return None, f"{_ENDED} after {within:g} s"
    except OSError as error:
        return None, f"{_ENDED} before it began: {error.strerror}"
    except Exception as error:  # noqa: BLE001 - an answer that is none
        return None, f"{_ENDED} with {type(error).__name__}"


def child() -> None:
    """What that process does: one question on stdin, one answer on stdout."""
    keep_to_ourselves()
    question = json.loads(sys.stdin.buffer.read())
    secret, failed = _decrypt(question["crypto"], question["passphrase"])
    sys.stdout.write(json.dumps({"failed": failed} if secret is None else {"secret": secret.hex()}))
    sys.stdout.flush()
    os._exit(0)  # nothing is left to do, and taking eth-account down takes time


def encrypt(secret: bytes, passphrase: str, *, what: str, work_factor: int = WORK_FACTOR) -> bytes:
    """The content of a keystore file that was proven to open again. In this process. Raises SignerError."""
    content, failed = None, ""
    try:
        from eth_account import Account

        made = Account.encrypt(secret, passphrase, kdf="scrypt", iterations=work_factor)
        if _decrypt(made["crypto"], passphrase)[0] == secret:
            content = json.dumps(made).encode() + b"\n"
        failed = "it does not open again"
    except Exception as error:  # noqa: BLE001 - its text may hold what it was given
        failed = type(error).__name__
    if content is None:
        raise _refusal(failed, what)
    return content


def _decrypt(crypto: dict[str, Any], passphrase: str) -> tuple[bytes | None, str]:
    """The key, or None and why not. Raises nothing: neither text nor context of an exception gets out."""
    try:
        from eth_account import Account

        secret = bytes(Account.decrypt({"version": 3, "crypto": crypto}, passphrase))
    except ValueError:  # the other reasons for one were ruled out before
        return None, _WRONG
    except Exception as error:  # noqa: BLE001 - as above
        return None, type(error).__name__
    return secret, ""


def _refusal(failed: str, what: str) -> SignerError:
    if failed == _WRONG:
        hint = "correct the passphrase, or put the right keystore back"
        return SignerError(f"the passphrase does not open the {what}", hint=hint)
    if failed.startswith(_ENDED):  # what it lacked may be there next time
        words = failed.removeprefix(_ENDED)
        hint = "is there enough free memory?"
        return SignerError(f"the process that opens the {what} ended{words}", hint=hint, verdict=Verdict.RETRY)
    hint = "is eth-account installed as requirements.lock says?"
    return SignerError(f"eth-account could not handle the {what}: {failed}", hint=hint)
