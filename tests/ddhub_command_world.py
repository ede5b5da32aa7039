"""A Data Hub with a participant and an agent's folder, for tests of the commands that ask it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from agent.cli import main
from agent.signer import KeySigner
from agent.transports.ddhub.content.schema import telemetry_schema
from agent.transports.ddhub.keys.key_folder import KeyFolder
from testbed.ddhub.hub import OWNER, USER_ROLE, DataHub, in_thread
from testbed.ddhub.settings import Settings
from tests.ddhub_keys import SMALL, SMALL_PUBLIC
from tests.ddhub_registry import ALICE, BOB, DID, KEY
from tests.leaks import holds
from tests.test_config_refusals import GOOD

RECIPIENT: str = ALICE["did"]
SECRET = bytes.fromhex(BOB["privateKey"][2:])
CHANNEL = """\
[[channel]]
id = "market"
transport = "ddhub"
url = "{url}"
topic = {{ owner = "{owner}", name = "telemetry", version = "1.0.0" }}
{who}
keys = {{ rpc = "{rpc}", confirmations = 1 }}
send = ["*"]
outbox = {{ size = "8MiB" }}
{more}
[agent]
state = "state"
socket = "agent.sock"
"""


class CommandWorld:
    """All is well at first: enrolled, keys published, the topic registered, the recipient has logged in."""

    def __init__(self, folder: Path, hub: DataHub, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.hub = hub
        self.config = folder / "agent.toml"
        self.socket = folder / "agent.sock"
        self._capfd = capfd
        (folder / "state").mkdir()
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_text(BOB["privateKey"])
        hub.enrol(DID)
        hub.chain.publish_keys(DID, signature=KEY, encryption=SMALL_PUBLIC)
        hub.chain.publish_keys(RECIPIENT, signature=ALICE["publicKeyUncompressed"], encryption=SMALL_PUBLIC)
        hub.chain.mine(2)
        hub.state.role_index[RECIPIENT] = [USER_ROLE]  # as its first login notes it
        hub.add_topic("telemetry", telemetry_schema())
        self.configure()

    def configure(self, *, who: str = f'recipients = ["{RECIPIENT}"]', more: str = "", url: str = "") -> None:
        text = GOOD[: GOOD.index("[[channel]]")]
        text = text.replace('key = "file:key"', f'key = "file:key"\ndid = "{DID}"')
        places = {"url": url or self.hub.url, "rpc": self.hub.rpc_url, "owner": OWNER}
        self.config.write_text(text + CHANNEL.format(who=who, more=more, **places))

    def have_rsa_key(self) -> None:
        """Ours, that is published."""
        folder = self.folder / "state" / "ddhub"
        folder.mkdir(mode=0o700)
        (folder / "rsa-1.pem").touch(mode=0o600)
        (folder / "rsa-1.pem").write_bytes(_rsa_file())

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self._capfd.readouterr()
        try:
            code = main(["ddhub", *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = self._capfd.readouterr()
        assert not holds((said.out + said.err).encode(), SECRET)
        return code, said.out, said.err

    def shown(self, *arguments: str) -> tuple[int, Any]:
        """Exit code, and what is told as JSON."""
        code, out, _ = self.run(*arguments, "--config", str(self.config), "--json")
        return code, json.loads(out)


@cache
def _rsa_file() -> bytes:
    """Made once: what protects it takes its time."""
    with TemporaryDirectory() as folder:
        KeyFolder(Path(folder) / "ddhub", KeySigner(SECRET, network="volta")).add(SMALL, made=1)
        return (Path(folder) / "ddhub" / "rsa-1.pem").read_bytes()


@contextmanager
def command_world(
    folder: Path, capfd: pytest.CaptureFixture[str], *, settings: Settings | None = None
) -> Iterator[CommandWorld]:
    """While the block runs."""
    hub = DataHub("nats://127.0.0.1:1", settings=settings)  # nothing is sent
    with in_thread(hub):
        yield CommandWorld(folder, hub, capfd)
