"""The demo's far end with Energy Web's Data Hub (testbed/ddhub): two participants, the agent and a consumer, set up as
people do it, with the agent's own commands.

Both make their keys and publish them on the chain; the agent, which has the roles for it, registers the topic; the
consumer logs in, which makes its mailbox, and reads what is encrypted for it. What is killed is the hub's program:
proxy, broker, SSI Hub and the chain's node. The NATS server behind it goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from testbed.child import Process, ProcessError
from testbed.ddhub.hub import CREATOR_ROLES, OWNER, USER_ROLE
from testbed.ddhub.process import DataHubProcess
from testbed.demo_run import SENT, Stage
from testbed.processes import NatsServer, Tail, edge_agent
from testbed.served import Json

CHANNEL, TOPIC = "market", "telemetry"
_CONFIRMATIONS = 12  # blocks until the agent believes a key
_KEYS_WITHIN = 120.0  # s; two RSA keys of 4096 bits are made at the same time
_ADMITTED_WITHIN = 60.0

_CHANNEL = """\
[[channel]]
id = "{id}"
transport = "ddhub"
url = "{url}"
topic = {{ owner = "{owner}", name = "{topic}", version = "1.0.0" }}
recipients = ["{recipient}"]
keys = {{ rpc = "{rpc}" }}
send_every = "2s"
send = {sent}
outbox = {{ size = "16MiB" }}
"""


class DataHubEnd:
    """Implements ``FarEnd``."""

    in_company = 4  # send_every, and what is on its way

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.broker: DataHubProcess
        self.tail: Tail
        self._agent = self._did = ""  # DIDs; the latter is the consumer's
        self._folder = stage.folder / "consumer"
        self._me: list[str] = []  # who the consumer is, as arguments
        self._publishing: list[Process] = []
        self._shown = 0

    def open(self, did: str) -> None:
        """Start the hub, and let both make their keys."""
        nats = self._stage.start(NatsServer(self._stage.folder))
        self.broker = self._stage.start(DataHubProcess(self._stage.folder, nats.url))
        self._stage.say(f"broker   Data Hub on port {self.broker.port}, over a nats-server on port {nats.port}")
        self._agent = did
        folder, key = self._stage.folder, f"file:{self._folder / 'key'}"
        self._folder.mkdir()
        self._did = self._stage.command("identity", "create", "--key", key, "--network", "volta").strip()
        self._me = ["--identity", key, "--network", "volta", "--state", str(self._folder)]
        self._publish(self._did, self._me, roles=(USER_ROLE,), name="consumer")
        who = ["--identity", f"file:{folder / 'key'}", "--network", "volta", "--state", str(folder / "state" / "ddhub")]
        self._publish(did, who, roles=CREATOR_ROLES, name="agent")
        self._stage.say("hub      `ddhub keys --send` twice: RSA keys of 4096 bits are made, which takes a while")

    def channel(self) -> str:
        """The channel in the agent's configuration."""
        where = {"url": self.broker.url, "rpc": self.broker.rpc_url, "owner": OWNER, "topic": TOPIC}
        return _CHANNEL.format(id=CHANNEL, recipient=self._did, sent=SENT, **where)

    def _publish(self, did: str, who: Sequence[str], *, roles: Sequence[str], name: str) -> None:
        """Let a participant make an RSA key, and write both keys into its DID document. Takes seconds."""
        self.broker.command(f"enrol {did} {' '.join(roles)}")
        self.broker.command(f"fund {did}")
        command = [*edge_agent(), "ddhub", "keys", "--send", "--rpc", self.broker.rpc_url, *who]
        self._publishing.append(self._stage.start(Process(command, name=f"keys-{name}", folder=self._stage.folder)))

    def admit(self, config: Path) -> None:
        """Keys, topic, the consumer's mailbox; then `ddhub status` must find nothing."""
        for process in self._publishing:
            if process.wait(_KEYS_WITHIN):
                raise ProcessError(f"{process.name} failed:\n{process.log()}")
        self.broker.command(f"mine {_CONFIRMATIONS}")
        self._stage.say("hub      keys of both are in their DID documents, each in a block of its own")
        told = self._stage.command("ddhub", "topic", "--register", "--config", str(config))
        self._stage.say(f"hub      `ddhub topic --register`: {told.strip()}")
        self._log_in()
        began = time.monotonic()
        while True:  # the consumer logs in meanwhile
            try:
                told = self._stage.command("ddhub", "status", "--json", "--config", str(config))
            except ProcessError:
                if time.monotonic() > began + _ADMITTED_WITHIN:
                    raise
            else:
                if json.loads(told)["recipients"][0]["logged_in"]:
                    break
        self._stage.say("hub      `ddhub status`: let in, topic and keys are there, the recipient has logged in")

    def _log_in(self) -> None:
        """Start the consumer."""
        hub = self.broker
        self.tail = self._stage.start(
            Tail(
                self._stage.folder,
                f"ddhub+{hub.url}/{OWNER}/{TOPIC}",
                *("--did", self._agent, *self._me, "--keys", f"rpc:{hub.rpc_url}", "--every", "1s"),
            )
        )

    def consume(self) -> None:
        """It is there already: nobody can be sent anything who has not logged in."""

    @property
    def processes(self) -> Sequence[Process]:
        """Consumers that must not end."""
        return (self.tail,)

    def newest_record(self) -> list[str]:
        """The largest that came since this was asked last."""
        lines = self.tail.lines()
        new, self._shown = [line for line in lines[self._shown :] if line.get("frames")], len(lines)
        return _text(max(new, key=lambda line: len(line["frames"]))) if new else []


def _text(record: Json) -> list[str]:
    """A record for people: the last values of each group."""
    last = {(frame["device"], frame["group"]): frame for frame in record["frames"]}
    head = (
        f"{record['stream'][:8]}/{record['seq']} sealed {record['sealed']['time']} data, {len(record['frames'])} frames"
    )
    values = [
        f"  {'/'.join(group):24} {point:10} {value!s:>12}"
        for group, frame in last.items()
        for point, value in frame["values"].items()
    ]
    return [f"{head}: {record['verdict'].upper()}", *values]
