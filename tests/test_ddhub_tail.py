"""``edge-agent tail`` of a Data Hub as its users run it, and the library call of docs/consuming.md."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal

from agent.cli import main
from agent.commands.ddhub_participant import _keys
from agent.signer import KeySigner
from agent.transports.ddhub.content import payload
from agent.transports.ddhub.content.records import rendered
from agent.transports.ddhub.content.schema import telemetry_schema
from agent.transports.ddhub.keys.key_folder import KeyFolder
from agent.transports.ddhub.keys.rsa_key import public_pem
from agent.transports.ddhub.receiving.mailbox import mailbox
from agent.transports.ddhub.receiving.source import Source
from agent.verifier import Verifier
from testbed.ddhub.gateway import Gateway
from testbed.ddhub.hub import OWNER, DataHub, in_thread
from testbed.ddhub.settings import Settings
from testbed.processes import Agent, NatsServer, Process, Site, edge_agent, wait_for
from tests.ddhub_keys import SMALL
from tests.ddhub_receiving import ANYTHING
from tests.runs import DID, SECRET, simple_run

ROOT = Path(__file__).resolve().parent.parent
OURS = bytes(31) + b"\x11"


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


class World:
    """A hub in a thread, an agent's records, a gateway that sends them, and us with a folder of our own."""

    def __init__(self, hub: DataHub, portal: BlockingPortal, folder: Path) -> None:
        self.hub, self.portal, self.folder = hub, portal, folder
        self.signer = KeySigner(OURS, network="volta")
        self.topic_id = hub.add_topic("telemetry", ANYTHING)
        portal.call(hub.open_channel, self.signer.did)
        self.sender = portal.call(self._sender)
        (folder / "key").write_text(OURS.hex())
        (folder / "key").chmod(0o600)
        (folder / "participants.json").write_text(json.dumps({DID: {"signature": self.sender.signature_key}}))
        self.state = folder / "state"
        KeyFolder(self.state, self.signer).add(SMALL, made=1)
        self.read("telemetry")

    def read(self, topic: str) -> None:
        """A topic by a URL."""
        url = f"ddhub+{self.hub.url}/{OWNER}/{topic}"
        who = ["--identity", f"file:{self.folder / 'key'}", "--network", "volta", "--state", str(self.state)]
        self.arguments = ["tail", url, *who, "--keys", f"file:{self.folder / 'participants.json'}", "--did", DID]

    async def _sender(self) -> Gateway:
        sender = Gateway(self.hub.url, "0x" + SECRET.hex())
        self.hub.enrol(sender.did)
        await sender.login()
        return sender

    def close(self) -> None:
        self.portal.call(self.sender.__aexit__, None, None, None)

    def send(self, *envelopes: bytes, records: Sequence[str] | None = None) -> None:
        """One message."""
        recipients = {self.signer.did: public_pem(SMALL)}
        self.portal.call(self.sender.send, self.topic_id, payload.encode(envelopes, records), recipients)

    @property
    def command(self) -> list[str]:
        """To read it all."""
        return [*edge_agent(), *self.arguments]

    def tail(self, *arguments: str) -> Done:
        """Until nothing more is to be expected; log lines are not on its stderr."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([*self.arguments, "--until-idle", "--jsonl", *arguments])
        return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def world(server: NatsServer, tmp_path: Path) -> Iterator[World]:
    hub = DataHub(server.url, settings=Settings(fetch_wait_s=0.3, ack_wait_s=1.0))
    with in_thread(hub) as portal:
        portal.call(clean, hub)
        made = World(hub, portal, tmp_path)
        yield made
        made.close()


async def clean(hub: DataHub) -> None:
    """The server is one for all tests of the module."""
    jetstream = (await hub.streams.connection()).jetstream()
    for each in await jetstream.streams_info():
        await jetstream.delete_stream(str(each.config.name))


def printed(done: Done | subprocess.CompletedProcess[str]) -> tuple[list[int], dict[str, Any]]:
    """The numbers of the records, and the report."""
    *lines, last = map(json.loads, done.stdout.splitlines())
    return [line["seq"] for line in lines], last["report"]


def test_what_came_is_printed_once_over_several_calls_and_senders(world: World) -> None:
    run = simple_run(8)
    world.send(*run.sent[:2])
    world.send(run.sent[2])
    first = world.tail()
    assert (first.stderr, first.returncode) == ("", 0)
    assert printed(first)[0] == [1, 2, 3]
    world.send(*run.sent[3:])
    other = "did:ethr:volta:0x1563915e194D8CfBA1943570603F7606A3115508"
    second = world.tail("--sender", other, "--sender", DID)
    numbers, report = printed(second)
    assert numbers == [4, 5], "with other senders nothing comes twice"
    assert (report["records"], report["cycles_expected"], report["cycles_missing"]) == (5, 8, 0)
    assert second.stderr == "1 client ids of other senders or topics are left at the broker: --remove-old-ids\n"
    third = world.tail("--remove-old-ids")
    numbers, report = printed(third)
    assert (numbers, report["records"]) == ([], 5)
    assert third.stderr == "the broker has forgotten 1 client ids\n"
    assert sorted(path.name for path in world.state.iterdir() if path.suffix in (".checkpoint", ".db")) == [
        f"mailbox.{OWNER}.telemetry.db",
        f"tail.{OWNER}.telemetry.checkpoint",
    ]


def test_a_channel_of_a_configuration_with_the_agents_own_folder(world: World) -> None:
    config = world.folder / "agent.toml"
    config.write_text(f"""
        version = 1
        site = {{ id = "site-1" }}
        identity = {{ key = "file:key", did = "{world.signer.did}" }}
        agent = {{ state = "var", socket = "" }}
        connection.plant = {{ url = "modbus+tcp://127.0.0.1" }}
        [[device]]
        id = "pv"
        connection = "plant"
        unit = 1
        sunspec = {{}}
        groups.ac = {{ every = "1s", points = ["103.W"] }}
        [[channel]]
        id = "market"
        transport = "ddhub"
        url = "{world.hub.url}"
        topic = {{ owner = "{OWNER}", name = "telemetry", version = "1.0.0" }}
        recipients = ["{DID}"]
        keys = {{ file = "participants.json" }}
        send = ["pv/*"]
        """)
    KeyFolder(world.folder / "var" / "ddhub", world.signer).add(SMALL, made=1)
    world.send(*simple_run(2).sent)
    (world.folder / "allow.toml").write_text(f'version = 1\n[[signer]]\ndid = "{DID.lower()}"\nname = "Solar park 7"\n')
    world.arguments = ["tail", "--config", str(config), "--allow", str(world.folder / "allow.toml")]
    done = world.tail()
    assert (done.stderr, done.returncode) == ("", 0)
    numbers, report = printed(done)
    assert (numbers, report["channels"][0]["name"]) == ([1, 2], "Solar park 7")


def test_what_is_wrong_around_the_records_is_told(world: World) -> None:
    """Readable values are held against the signed ones, and a text that a broker rewrote is told."""
    run, verifier = simple_run(10), Verifier([DID])
    judged = [judged for envelope in run.sent for judged in verifier.feed(envelope)]
    world.send(*run.sent[:3], records=rendered(judged[:3]))
    world.send(run.sent[3], records=[each.replace('"v":', '"v":9') for each in rendered(judged[3:4])])
    text = payload.encode(run.sent[4:])
    body = {
        "fqcns": [world.signer.did],
        "payload": text.replace("-", "&#45;"),
        "topicId": world.topic_id,
        "topicVersion": "1.0.0",
        "signature": world.sender.sign(text),
        "clientGatewayMessageId": "0b271eb8-1e21-4817-95af-7951649360ed",
        "payloadEncryption": False,
    }
    world.portal.call(world.sender.post, "/messages", body)
    command = [*world.command, "--until-idle", "--jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    altered, differ, last = done.stderr.splitlines()
    assert "altered in transport" in altered
    assert re.fullmatch(f"message [0-9a-f]+ of {DID}: its readable values are not those of its signed .*", differ)
    assert last == "messages: 3 delivered, 1 flawed"
    assert (printed(done)[0], done.returncode) == ([1, 2, 3, 4, 5, 6], 0)


def test_what_could_not_be_opened_is_a_finding(world: World) -> None:
    run = simple_run(8)
    world.send(run.sent[0])
    world.hub.faults.put("key-lost", path="/messages/internal")
    world.send(run.sent[1])
    done = world.tail()
    assert (printed(done)[0], done.returncode) == ([1], 1)
    assert (
        done.stderr == "messages: 1 delivered, 1 parked\n1 messages wait to be opened; the next call tries them again\n"
    )


def test_the_longest_name_of_a_topic_is_short_enough_for_a_file(world: World) -> None:
    name = "t" * 255
    world.topic_id = world.hub.add_topic(name, ANYTHING)
    world.read(name)
    world.send(*simple_run(2).sent)
    assert world.tail().returncode == 0


def test_after_a_bad_beginning_and_kills_nothing_is_missing(world: World) -> None:
    run = simple_run(40, per_record=1)
    output, command = world.folder / "lines", [*world.command, "--jsonl"]

    def lines() -> int:
        return output.read_bytes().count(b"\n") if output.exists() else 0

    world.hub.faults.put("502", path="/auth/login")
    for part in (run.sent[:3], run.sent[3:30]):
        for envelope in part:
            world.send(envelope)
        before = lines()
        with Process(command, name="tail", folder=world.folder, output=output) as tail:
            wait_for(lambda before=before: lines() > before, timeout=30, what="a line")  # type: ignore[misc]
            tail.signal(signal.SIGKILL)
    world.send(*run.sent[30:])
    with Process(command, name="tail", folder=world.folder, output=output) as tail:
        wait_for(lambda: seqs(output) == set(range(1, 42)), timeout=30, what="every record")
        tail.signal(signal.SIGTERM)
        assert tail.wait(20) == 0
    report = json.loads(output.read_text().splitlines()[-1])["report"]
    assert (report["records"], report["cycles_missing"], report["failed"]) == (41, 0, 0)


def seqs(output: Path) -> set[int]:
    """Of all records that were printed, also of those whose line a kill cut short."""
    return {int(each) for each in re.findall(r'"seq": ([0-9]+), "sealed"', output.read_text())}


def test_what_expired_at_the_broker_is_named_and_comes_when_it_is_resent(world: World) -> None:
    config = sending_agent(world)
    with Site(world.folder) as site:
        config.write_text(config.read_text().replace("PORT", str(site.port)))
        with Agent(world.folder, config) as agent:
            agent.wait_ready()
            messages(world, 1)
            numbers, report = live(world, lambda seen: 2 in seen)
            assert (report["failed"], report["channels"][0]["holes"]) == (0, [])
            before = max(numbers)
            messages(world, 2)
            world.portal.call(forget, world.hub, world.signer.did)
            messages(world, 1)
            acknowledged = len(world.hub.calls("/messages/ack"))
            numbers, report = live(world, lambda seen: len(world.hub.calls("/messages/ack")) > acknowledged + 1)
            (hole,) = report["channels"][0]["holes"]
            assert (hole["first"], hole["state"]) == (before + 1, "unknown")
            assert not {*range(hole["first"], hole["last"] + 1)} & numbers
            which = ["--run", hole["stream"], "--from", str(hole["first"]), "--to", str(hole["last"])]
            command = [*edge_agent(), "outbox", "resend", "--config", str(config), *which]
            subprocess.run(command, check=True, timeout=30, capture_output=True)
            numbers, report = live(world, lambda seen: {*range(hole["first"], hole["last"] + 1)} <= seen)
            assert {each["state"] for each in report["channels"][0]["holes"]} <= {"filled"}
            assert (report["failed"], report["cycles_missing"]) == (0, 0)
            assert numbers >= {*range(before + 1, max(numbers) + 1)}
            agent.signal(signal.SIGTERM)
            assert agent.wait(20) == 0


def live(world: World, enough: Callable[[set[int]], bool]) -> tuple[set[int], dict[str, Any]]:
    """The numbers that one call prints until that is enough, and its report."""
    output = world.folder / "live"
    output.unlink(missing_ok=True)
    with Process([*world.command, "--jsonl"], name="live", folder=world.folder, output=output) as tail:
        wait_for(lambda: output.exists() and enough(seqs(output)), timeout=30, what="enough records")
        tail.signal(signal.SIGTERM)
        tail.wait(20)
    return seqs(output), json.loads(output.read_text().splitlines()[-1])["report"]


def sending_agent(world: World) -> Path:
    """The configuration of an agent that sends to us each second; PORT is to be replaced."""
    (world.folder / "agent.key").write_text(SECRET.hex())
    (world.folder / "agent.key").chmod(0o600)
    keys = json.loads((world.folder / "participants.json").read_text())
    keys[world.signer.did] = {"encryption": public_pem(SMALL)}
    (world.folder / "agents.json").write_text(json.dumps(keys))
    world.hub.add_topic("signed", telemetry_schema())
    world.read("signed")
    config = world.folder / "agent.toml"
    config.write_text(f"""
        version = 1
        site = {{ id = "rig" }}
        identity = {{ key = "file:agent.key", did = "{DID}" }}
        agent = {{ state = "var", socket = "agent.sock" }}
        clock = {{ wait = "0s" }}
        connection.plant = {{ url = "modbus+tcp://127.0.0.1:PORT" }}
        [[device]]
        id = "pv-1"
        connection = "plant"
        unit = 1
        sunspec = {{}}
        groups.power = {{ every = "200ms", points = ["103.W"] }}
        [[channel]]
        id = "market"
        transport = "ddhub"
        url = "{world.hub.url}"
        topic = {{ owner = "{OWNER}", name = "signed", version = "1.0.0" }}
        recipients = ["{world.signer.did}"]
        keys = {{ file = "agents.json" }}
        send = ["*"]
        send_every = "1s"
        seal_within = "200ms"
        outbox = {{ size = "16MiB" }}
        drain = {{ spread = "0s" }}
        """)
    return config


def messages(world: World, more: int) -> None:
    """Wait for more messages to us, and for the second half of the last to be on its way."""
    before = len(world.hub.calls("/messages"))
    wait_for(lambda: len(world.hub.calls("/messages")) >= before + more, timeout=30, what="messages")


async def forget(hub: DataHub, did: str) -> None:
    """As the broker does after 24 h."""
    jetstream = (await hub.streams.connection()).jetstream()
    for name in (did, f"keys_{did}"):
        await jetstream.purge_stream(name)


def test_a_hub_that_is_not_there(world: World) -> None:
    world.hub.faults.put("502", path="/auth/login", times=None)
    done = world.tail()
    assert done.returncode == 69
    assert "the proxy is there and the broker behind it is not" in done.stderr
    assert done.stdout == ""


def test_a_topic_is_read_by_one_process(world: World) -> None:
    world.hub.add_topic("other", ANYTHING)
    with mailbox(world.state / f"mailbox.{OWNER}.telemetry.db", did=world.signer.did):
        done = world.tail()
        assert done.returncode == 1
        assert "is in use by another process; one process receives a topic with a folder" in done.stderr
        world.send(*simple_run(2).sent)
        world.read("other")
        assert printed(world.tail())[0] == [], "another topic can be read beside it"


URL = "ddhub+https://hub.example/a.ewc/b"
WHO = ["--identity", "file:/nowhere", "--state", "/nowhere"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([URL, *WHO], "say whose records are to be accepted"),
        ([URL, "--did", DID, "--state", "x"], "say who we are: --identity"),
        ([URL, "--did", DID, "--identity", "file:x"], "--state FOLDER"),
        ([URL, "--did", DID, *WHO, "--new"], "the Data Hub has no use for --new"),
        ([URL, "--did", DID, *WHO, "--creds", "x", "--tls-first"], "has no use for --creds, --tls-first"),
        ([URL, "--did", DID, *WHO, "--channel", "x"], "give SOURCE or --channel, not both"),
        ([URL, "--did", "did:ethr:0x" + "11" * 20, *WHO], "--sender"),
        ([URL, "--did", DID, *WHO, "--sender", "x"], "name the participants that send with --sender"),
        ([URL, "--did", "x", "--sender", DID, "--identity", "file:KEY", "--state", "x"], "not a did:ethr DID"),
        (["ddhub+ftp://hub.example/a.ewc/b", "--did", DID, *WHO], "ddhub+https://HOST/OWNER/TOPIC"),
        (["ddhub+https://hub.example/b", "--did", DID, *WHO], "ddhub+https://HOST/OWNER/TOPIC"),
        (["ddhub+https://hub.example/a/b", "--did", DID, *WHO], "is no owner of a topic"),
        (["ddhub+https://hub.example/a.ewc/b-c", "--did", DID, *WHO], "is no name that every broker"),
        (["ddhub+https://u:secret@hub.example/a.ewc/b", "--did", DID, *WHO], "a user or password stands in"),
        (["ddhub+http://hub.example/a.ewc/b", "--did", DID, *WHO, "--ca", "x"], "http:// is not encrypted"),
        ([URL, "--did", DID, *WHO, "--every", "100ms"], "--every is too short"),
        ([URL, "--did", DID, *WHO, "--every", "often"], "often"),
        ([URL, "--did", DID, *WHO, "--keys", "secret"], "--keys: write file:PATH"),
        ([URL, "--did", DID, *WHO, "--keys", "hub:https://x/?secret"], "--keys: what stands behind the ?"),
        ([URL, "--did", DID, *WHO, "--keys", "rpc:secret"], "--keys rpc: a secret does not stand on a command line"),
        (["nats://localhost/S?subject=a", "--did", DID, "--keys", "x", "--sender", "y"], "no use for --sender, --keys"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(OURS.hex())
    (tmp_path / "key").chmod(0o600)
    arguments = [each.replace("file:KEY", f"file:{tmp_path}/key") for each in arguments]
    assert main(["tail", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "secret@" not in said
    assert "?secret" not in said


@pytest.mark.parametrize(
    ("url", "server", "topic"),
    [
        ("ddhub+https://hub.example/a.ewc/b", "https://hub.example", "a.ewc/b"),
        ("ddhub+https://hub.example:8443/base/path/a.b.ewc/b_c", "https://hub.example:8443/base/path", "a.b.ewc/b_c"),
        ("ddhub+http://[::1]:9000/a.ewc/b", "http://[::1]:9000", "a.ewc/b"),
    ],
)
def test_sources(url: str, server: str, topic: str) -> None:
    found = Source.parse(url)
    assert (found.server.url, str(found.topic)) == (server, topic)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        (None, lambda keys: (keys.file, keys.hub, keys.rpc) == (None, None, None)),
        ("file:a:b", lambda keys: keys.file == Path("a:b")),
        ("hub:https://hub.example", lambda keys: keys.hub == "https://hub.example/v1"),
        ("rpc:https://node.example/x", lambda keys: keys.rpc == ("https://node.example/x",)),
        ("rpc:file:/etc/node", lambda keys: str(keys.rpc[0].file) == "/etc/node"),
    ],
)
def test_where_keys_come_from(text: str | None, is_right: Callable[[Any], bool]) -> None:
    assert is_right(_keys(text))


def test_the_documented_program_receives(world: World) -> None:
    document = (ROOT / "docs" / "consuming.md").read_text()
    (program,) = (each for each in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "receiving(" in each)
    (world.folder / "receive.py").write_text(program)
    world.send(*simple_run(2).sent)
    hub, files = world.hub.url, [str(world.folder / "key"), str(world.folder / "participants.json")]
    command = [sys.executable, "receive.py", f"ddhub+{hub}/{OWNER}/telemetry", *files, str(world.state), DID]
    output = world.folder / "lines"
    with Process(command, name="receive", folder=world.folder, output=output):
        wait_for(lambda: "'values': {'W'" in output.read_text(), timeout=30, what="a value")
