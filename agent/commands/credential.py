"""The key as an encrypted credential: what `edge-agent identity import --credential` changes on this machine.

Three files, each written whole, in this order, so that the service has a key at every moment: the encrypted key beside
the configuration; a drop-in by which systemd decrypts it for the service; the configuration, which names it. A crash in
between leaves the old place in force, and the same command, given again, goes on. The place that the key came from
stays as it is.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from agent.commands import GOOD, NO_PERMISSION, say
from agent.commands.whole_file import replacing
from agent.config.identity_lines import with_credential
from agent.custody import Custody
from agent.errors import SignerError
from agent.secret import Secret
from agent.signer import encrypt_key

NAME = "agent-key"
DROP_IN = Path("/etc/systemd/system/edge-agent.service.d/credential.conf")
_RUNNING = Path("/run/systemd/system")  # sd_booted(3)
_DROP_IN_TEXT = """\
# Made by `edge-agent identity import --credential`: the key, encrypted for this machine (systemd-creds(1)).
[Service]
LoadCredentialEncrypted={name}:{path}
"""


def to_credential(
    config: Path,
    source: Custody | bytes,
    *,
    name: str = NAME,
    passphrase: Secret | None,
    did: str | None,
    network: str,
) -> int:
    """Encrypt the key and have unit and configuration use it; prints the DID and returns the exit code.

    ``passphrase``: of the source; ``did``: the one that the configuration names. Raises SignerError, ConfigError,
    OSError.
    """
    if os.geteuid() != 0:
        say("edge-agent identity import: only root can encrypt a credential and change the unit; run it as root")
        return NO_PERMISSION
    if not isinstance(source, bytes) and source.kind == "credential":
        raise SignerError(f"the key is {source} already", hint="name the SOURCE to take it from, as file:PATH or -")
    config = Path(os.path.realpath(config))
    path = config.with_name(f"{name}.cred")
    text = config.read_bytes().decode("utf-8-sig")
    # Whether it can be changed is known before anything is; of the DID only its form counts.
    with_credential(text, file=config, name=name, did=did or f"did:ethr:{network}:0x{'0' * 40}")

    signer = encrypt_key(source, path, name=name, source_passphrase=passphrase, did=did, network=network)
    say(f"{path} holds the key, encrypted: only this machine can open it")
    DROP_IN.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with replacing(DROP_IN) as out:
        os.fchmod(out.fileno(), 0o644)
        out.write(_DROP_IN_TEXT.format(name=name, path=path).encode())
    say(f"{DROP_IN} written")
    # Before the configuration: should the service start again just now, the key is there.
    if _RUNNING.is_dir() and subprocess.run(("systemctl", "daemon-reload"), check=False).returncode != 0:
        hint = "`systemctl daemon-reload` says why; then give the command again"
        raise SignerError(f"systemd did not take up {DROP_IN}, and the configuration stays as it was", hint=hint)
    before = config.stat()
    with replacing(config) as out:
        os.fchown(out.fileno(), before.st_uid, before.st_gid)
        os.fchmod(out.fileno(), stat.S_IMODE(before.st_mode))
        out.write(with_credential(text, file=config, name=name, did=signer.did).encode())
    say(f"{config} names it: key = credential:{name}")
    say("`systemctl restart edge-agent` takes it up; keep a copy of the key in a safe place: this machine may die")
    print(signer.did)
    return GOOD
