"""The whole way over the Data Hub, with real processes: devices, the agent, the hub over a NATS server, and at the
other end a participant who shares no code with the agent. What is killed meanwhile loses nothing that is not stated.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from agent.evidence.record import link_of
from agent.transports.ddhub.content import payload
from agent.transports.ddhub.content.schema import telemetry_schema
from testbed.child import wait_for
from testbed.ddhub.gateway import Gateway
from testbed.ddhub.hub import OWNER
from testbed.ddhub.process import DataHubProcess
from testbed.processes import edge_agent
from testbed.rig import Rig, command
from tests.ddhub_keys import SMALL

Json = dict[str, Any]
OK = {"structure": "ok", "signature": "ok", "identity": "ok", "continuity": "ok", "completeness": "ok"}
BOB, LATE = f"0x{'22' * 32}", f"0x{'33' * 32}"
PRIVATE = serialization.load_pem_private_key(SMALL.export_key(), None)


class MarketRig(Rig):
    """A rig whose channel goes to a Data Hub; ``hub`` runs over the rig's own NATS server."""

    def __init__(self, folder: Path, *recipients: str, send_every: str = "1s", more: str = "") -> None:
        super().__init__(folder)
        self.hub = DataHubProcess(folder, self.broker.url)
        self._processes.append(self.hub)
        self.hub.start()
        schema = folder / "schema.json"
        schema.write_text(telemetry_schema())
        people = [self.person(key) for key in recipients]
        keys = folder / "participants.json"
        keys.write_text(json.dumps({each.did: {"encryption": each.encryption_key} for each in people}))
        for line in (
            f"topic {OWNER} telemetry {schema}",
            f"enrol {self.did}",
            *(f"enrol {each.did}" for each in people),
        ):
            self.hub.command(line)
        text, _, _ = self.config.read_text().partition("[[channel]]")
        self.config.write_text(
            f"""{text}
[[channel]]
id = "{self.CHANNEL}"
transport = "ddhub"
url = "{self.hub.url}"
topic = {{ owner = "{OWNER}", name = "telemetry", version = "1.0.0" }}
recipients = {json.dumps([each.did for each in people])}
keys = {{ file = "{keys}" }}
send_every = "{send_every}"
send = ["*"]
seal_within = "200ms"
outbox = {{ size = "16MiB" }}
drain = {{ spread = "0s" }}
{more}
"""
        )
        self.got: dict[str, list[bytes]] = {}
        self.resent = False  # of one run, then

    def person(self, key: str) -> Gateway:
        """A participant."""
        assert isinstance(PRIVATE, rsa.RSAPrivateKey)
        return Gateway(self.hub.url, key, rsa_key=PRIVATE)

    def log_in(self, key: str) -> None:
        """From now on this participant can be written to."""

        async def once() -> None:
            async with self.person(key) as who:
                await who.login()

        asyncio.run(once())

    def status(self) -> Json:
        """What the agent says of itself."""
        found: Json = json.loads(command("status", "--config", self.config, "--json"))
        return found

    def read(self, key: str) -> list[Json]:
        """What a participant has received, as ``edge-agent decode`` prints it."""

        async def once() -> list[bytes]:
            async with self.person(key) as who:
                await who.login()
                topics = (await who.get("/topics", owner=OWNER))["records"]
                senders = {self.did: signature_key(self.folder / "key")}
                found = list[bytes]()
                while messages := await who.receive([topics[0]["id"]], senders):
                    for each in messages:
                        assert each.verified
                        assert each.text is not None, each.problem
                        found += payload.decode(each.text).envelopes
                return found

        self.got.setdefault(key, []).extend(asyncio.run(once()))
        file = self.folder / "received.cbor"
        file.write_bytes(b"".join(self.kept(key)))
        lines = command("decode", file, "--did", self.did, "--jsonl").splitlines()
        return [json.loads(line) for line in lines]

    def kept(self, key: str) -> list[bytes]:
        """What a participant has received, as it came; once something was sent again by order, as it keeps it."""
        got = self.got[key]
        return sorted(set(got), key=lambda each: link_of(each).seq) if self.resent else got

    def connected(self) -> None:
        """Return once the hub takes what is sent. Something always waits for company."""
        wait_for(lambda: self.state()[1], timeout=20, what="the agent to deliver")

    def conclude(self, *keys: str) -> None:
        """Stop the agent in order, and see that each participant has all and that nothing is wrong with it."""
        self.connected()
        self.stop()
        for key in keys:
            lines = self.read(key)
            account = self.judge(lines)
            assert account.problems == []
            assert account.good
            assert lines[-1]["report"]["levels"] == OK


def signature_key(file: Path) -> str:
    """The public key of an agent."""
    return Gateway("http://127.0.0.1:9", f"0x{file.read_text().strip()}").signature_key


def pause(seconds: float) -> None:
    """Let the agent work: what it does in that time is what the test is about."""
    time.sleep(seconds)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[MarketRig]:
    with MarketRig(tmp_path, BOB) as running:
        running.log_in(BOB)
        yield running


def test_hub_and_nats_and_agent_are_killed_and_nothing_is_lost(rig: MarketRig, chance: random.Random) -> None:
    """Also what was sealed last leaves, when the agent stops in order."""
    rig.agent.start().wait_ready()
    for victims in ([rig.hub], [rig.broker], [rig.agent], [rig.broker, rig.hub, rig.agent]):
        pause(chance.uniform(0.3, 1.2))
        for each in victims:
            each.kill()
        pause(chance.uniform(0.0, 0.5))
        for each in victims:
            each.start()
    rig.agent.wait_ready()
    rig.conclude(BOB)


def test_who_is_skipped_finds_the_hole_and_has_it_filled(tmp_path: Path) -> None:
    with MarketRig(tmp_path, BOB, LATE, more='on_recipient_failure = "skip"') as rig:
        rig.log_in(BOB)
        rig.agent.start().wait_ready()

        def late() -> dict[str, Any]:
            (channel,) = rig.status()["channels"]
            nobody = {"skipped": 0, "delivered": 0}
            return next((each for each in channel["recipients"] if each["did"] == rig.person(LATE).did), nobody)

        wait_for(lambda: late()["skipped"] > 0, timeout=20, what="a recipient without a mailbox to be skipped")
        rig.log_in(LATE)
        wait_for(lambda: late()["delivered"] > 0, timeout=20, what="it to be sent something")
        lines = rig.read(LATE)
        (run,) = lines[-1]["report"]["channels"][0]["runs"]
        assert lines[-1]["report"]["levels"]["completeness"] != "ok"
        found = late()
        assert found["trouble"] == ""
        assert 0 <= found["last_s"] < 60
        rig.resent = True
        done = command("outbox", "resend", "--config", rig.config, "--run", run["stream"], "--json", timeout=30)
        assert json.loads(done)["stored"] >= found["skipped"]
        rig.conclude(BOB, LATE)


def test_status_says_who_is_waited_for_and_why(tmp_path: Path) -> None:
    with MarketRig(tmp_path, BOB, LATE) as rig:
        rig.log_in(BOB)
        rig.agent.start().wait_ready()
        refusing = [(False, "recipient")]
        wait_for(
            lambda: [(each["connected"], each["reason"]) for each in rig.status()["channels"]] == refusing,
            timeout=20,
            what="the channel to wait for who has no mailbox",
        )
        (channel,) = rig.status()["channels"]
        assert rig.person(LATE).did in channel["state"]
        wait_for(lambda: "broker refusing (recipient)" in rig.agent.status, timeout=20, what="STATUS to say so")
        asked = [*edge_agent(), "ddhub", "status", "--json", "--config", str(rig.config)]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        recipients = {each["did"]: each for each in json.loads(done.stdout)["recipients"]}
        bob, late = recipients[rig.person(BOB).did], recipients[rig.person(LATE).did]
        assert (done.returncode, bob["good"], late["good"]) == (1, True, False)
        assert "no mailbox" in late["words"]
        assert (bob["logged_in"], late["logged_in"], late["last_s"]) == (True, None, None)
        rig.log_in(LATE)
        rig.conclude(BOB, LATE)


def test_check_online_says_what_is_there(rig: MarketRig) -> None:
    found = json.loads(command("check", "--online", "--json", rig.config))
    (words,) = [each["words"] for each in found["online"] if each["what"] == f"channel {rig.CHANNEL}"]
    assert words == f"{OWNER}/telemetry/1.0.0 is taken; recipients: 1"
