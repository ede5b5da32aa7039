"""``edge-agent tail`` as its users run it: against a real nats-server, with real records; and docs/consuming.md."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nats
import pytest

from agent import cli
from agent.model import Cause, EventCode, Gap
from agent.rendering import account
from agent.rendering.objects import as_json
from agent.signer import KeySigner
from agent.transports.nats.config import NatsConfig, NatsServers
from agent.transports.nats.consumer import Source
from agent.transports.nats.transport import NatsTransport
from agent.verifier import Verifier
from testbed.broker import create_stream
from testbed.certificates import Authority
from testbed.nats_accounts import NatsAccounts, NatsKey
from testbed.processes import NatsServer, Process, Tail, edge_agent, free_port, wait_for
from tests.runs import DID, OTHER_SECRET, SECRET, Run, frame, group, simple_run

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "consuming.md"
OTHER_DID = KeySigner(OTHER_SECRET).did
numbers = itertools.count()
# Objects whose keys are names and codes of what they tell about.
_OPEN = {
    "values",
    "quality",
    "labels",
    "levels",
    "gaps",
    "unknown",
    "silent_ns",
    "clock",
    "events",
    "joins",
    "unlisted_holes",
}


@pytest.fixture
def subject(server: NatsServer) -> str:
    """The subject of a stream of its own."""
    name = f"S{next(numbers)}"
    asyncio.run(create_stream(server.url, name, [f"{name}.>"]))
    return f"{name}.dso"


def publish(server: NatsServer, subject: str, envelopes: Sequence[bytes]) -> None:
    async def send() -> None:
        async with await nats.connect(server.url) as client:
            for envelope in envelopes:
                await client.jetstream().publish(subject, envelope)

    asyncio.run(send())


def source(server: NatsServer, subject: str) -> str:
    return f"{server.url}/{subject.partition('.')[0]}?subject={subject}"


def tail(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run to its end."""
    command = [*edge_agent(), "tail", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def ids(lines: Sequence[dict[str, Any]]) -> list[int]:
    return [line["seq"] for line in lines if "seq" in line]


def reach(follower: Tail, count: int) -> None:
    wait_for(lambda: len(follower.lines()) >= count, timeout=10, what=f"{count} lines, there are {follower.lines()}")


# ---- what is stored ---------------------------------------------------------------------------------------------


def test_json_lines_and_the_report_last(server: NatsServer, subject: str) -> None:
    run = simple_run(10)
    publish(server, subject, run.sent)
    done = tail(source(server, subject), "--did", DID, "--jsonl", "--until-idle")
    *lines, last = map(json.loads, done.stdout.splitlines())
    verifier = Verifier([DID])
    expected = [as_json(judged) for envelope in run.sent for judged in verifier.feed(envelope)]
    assert lines == expected
    assert list(last) == ["report"]
    assert (last["report"]["records"], last["report"]["cycles_missing"]) == (6, 0)
    assert (done.returncode, done.stderr) == (0, "")


def test_text_and_the_report_on_stderr(server: NatsServer, subject: str) -> None:
    publish(server, subject, simple_run(2).sent)
    done = tail(source(server, subject), "--did", DID, "--until-idle")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"[0-9a-f]{8}/1 sealed 20.*Z plan of term 1, 1 devices, 1 groups, site site-1: OK", lines[0])
    assert lines[-2].split() == ["pv-1/ac", "PhVphA", "230.4", "V", "good"]
    assert done.stderr.splitlines()[-1].startswith("verified 2 records, 2 frames, 0 failed: signature ok")
    assert done.returncode == 0


def test_only_what_is_new(server: NatsServer, subject: str) -> None:
    publish(server, subject, simple_run(10).sent)
    done = tail(source(server, subject), "--did", DID, "--jsonl", "--until-idle", "--new")
    assert [list(json.loads(line)) for line in done.stdout.splitlines()] == [["report"]]
    assert done.returncode == 1  # nothing came, so nothing was verified


def test_it_goes_on_at_its_checkpoint_as_if_it_had_never_ended(
    server: NatsServer, subject: str, tmp_path: Path
) -> None:
    sent = simple_run(20).sent
    options = ["--did", DID, "--jsonl", "--until-idle", "--checkpoint", str(tmp_path / "state")]
    printed: list[list[dict[str, Any]]] = []
    for part in (sent[:4], sent[4:7], [sent[9], sent[8]], sent[7:8] + sent[10:], []):
        publish(server, subject, part)
        done = tail(source(server, subject), *options)
        printed.append([json.loads(line) for line in done.stdout.splitlines()])
    seen = [seq for lines in printed for seq in ids([line for line in lines if line.get("verdict") == "ok"])]
    assert sorted(seen) == list(range(1, 12)), "each is printed once, also those that waited for an earlier one"
    report = printed[-1][-1]["report"]
    assert (report["records"], report["cycles_expected"], report["cycles_missing"]) == (11, 20, 0)
    other = tail(f"{server.url}/X?subject=another", *options)
    assert other.returncode == 1
    assert f"is of {subject}, not of another; give each source its own file" in other.stderr


def test_tables_and_senml(server: NatsServer, subject: str) -> None:
    publish(server, subject, simple_run(2).sent)
    done = tail(source(server, subject), "--did", DID, "--until-idle", "--csv")
    assert done.stdout.splitlines()[1].startswith(
        "value,1970-01-01T00:01:40.000Z,,site-1,dso,pv-1,ac,W,100,W,good,100,"
    )
    done = tail(source(server, subject), "--did", DID, "--until-idle", "--senml")
    assert [json.loads(line)[0]["n"] for line in done.stdout.splitlines()] == ["pv-1/ac/W"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda sent: [*sent[:3], *sent[4:]],
        lambda sent: [*sent[:3], sent[3][:-1] + bytes([sent[3][-1] ^ 1]), *sent[4:]],
        lambda sent: [*sent, b"no evidence"],
        lambda sent: [*sent, b""],
    ],
    ids=["one is missing", "one is forged", "junk", "empty"],
)
def test_a_finding_is_exit_code_1(
    server: NatsServer, subject: str, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    publish(server, subject, damage(simple_run(10).sent))
    done = tail(source(server, subject), "--did", DID, "--jsonl", "--until-idle")
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["report"]["failed"] >= 1


def test_records_of_another_signer(server: NatsServer, subject: str) -> None:
    publish(server, subject, simple_run(2).sent)
    done = tail(source(server, subject), "--did", OTHER_DID, "--jsonl", "--until-idle")
    *lines, last = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1
    assert (last["report"]["foreign"], last["report"]["records"]) == (2, 0)
    assert [(line["levels"], "seq" in line) for line in lines] == [({"identity": "unknown"}, False)] * 2


def test_several_subjects_and_signers(server: NatsServer, subject: str) -> None:
    other = Run(secret=OTHER_SECRET)
    other.begin([group(100)])
    publish(server, subject, simple_run(2).sent)
    publish(server, subject.replace("dso", "aggregator"), other.sent)
    everything = source(server, subject.replace("dso", ">"))
    done = tail(everything, "--did", DID, "--did", OTHER_DID, "--jsonl", "--until-idle")
    assert json.loads(done.stdout.splitlines()[-1])["report"]["records"] == 3
    assert done.returncode == 0


def test_the_channel_of_a_configuration(server: NatsServer, tmp_path: Path) -> None:
    name = f"S{next(numbers)}"
    asyncio.run(create_stream(server.url, name, ["dx.>"]))
    key = tmp_path / "key"
    key.write_text(SECRET.hex() + "\n")
    key.chmod(0o600)
    config = tmp_path / "agent.toml"
    config.write_text(f"""
        version = 1
        site = {{ id = "site-1" }}
        identity = {{ key = "file:key", did = "{DID}" }}
        connection.plant = {{ url = "modbus+tcp://127.0.0.1" }}
        agent = {{ state = "state" }}
        [[device]]
        id = "pv-1"
        connection = "plant"
        unit = 1
        sunspec = {{}}
        groups.ac = {{ every = "1s", points = ["103.W"] }}
        [[channel]]
        id = "dso"
        transport = "nats"
        servers = ["nats://127.0.0.1:{free_port()}", "{server.url}"]
        send = ["pv-1/*"]
        outbox = {{ size = "16MiB" }}
    """)
    publish(server, "dx.site-1.dso", simple_run(4).sent)
    follower = Tail(tmp_path, "--config", str(config))
    with follower:  # the first server is away, the second is not
        reach(follower, 3)
        assert follower.stop() == 0
    assert ids(follower.lines()) == [1, 2, 3]
    assert "cannot connect" in follower.log()


# ---- what comes -------------------------------------------------------------------------------------------------


def test_it_starts_before_the_broker_follows_it_through_a_restart_and_ends_with_the_report(tmp_path: Path) -> None:
    run = simple_run(24)
    broker = NatsServer(tmp_path, free_port())
    follower = Tail(tmp_path, f"{broker.url}/S?subject=S.dso", "--did", DID)
    follower.environment["PYTHONUNBUFFERED"] = ""  # the lines come at once all the same
    with follower:
        wait_for(lambda: "trying again" in follower.log(), timeout=10, what="words on the broker that is away")
        assert follower.lines() == []
        with broker:
            asyncio.run(create_stream(broker.url, "S", ["S.>"]))
            publish(broker, "S.dso", run.sent[:5])
            reach(follower, 5)
            broker.kill()
            broker.start()
            publish(broker, "S.dso", run.sent[5:])
            reach(follower, 13)
            assert follower.stop() == 0
    assert ids(follower.lines()) == list(range(1, 14))
    report = follower.lines()[-1]["report"]
    assert (report["records"], report["repeats"], report["failed"]) == (13, 0, 0)
    words = follower.log().splitlines()
    assert len(words) == len(set(words)) <= 4  # one line per change, not one per try


def test_the_rights_that_the_document_names_are_enough(tmp_path: Path) -> None:
    rights = """permissions: {
        subscribe: ["_INBOX.>"]
        publish: ["$JS.API.CONSUMER.CREATE.S.*.S.dso", "$JS.API.CONSUMER.MSG.NEXT.S.*"]
    }"""
    users = f"{{ user: admin, password: admin }}, {{ user: reader, password: reader, {rights} }}"
    settings = f"authorization {{ users = [ {users} ] }}\nno_auth_user: reader"
    with NatsServer(tmp_path, settings=settings) as broker:
        asyncio.run(create_stream(broker.url.replace("://", "://admin:admin@"), "S", ["S.>"]))
        done = tail(f"{broker.url}/S?subject=S.dso", "--did", DID, "--until-idle")
        assert done.stderr.startswith("verified 0 records")
        other = tail(f"{broker.url}/S?subject=S.other", "--did", DID, "--until-idle")
        assert (other.returncode, "permissions violation" in other.stderr) == (69, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_report(
    server: NatsServer, subject: str, tmp_path: Path, number: signal.Signals
) -> None:
    sent = simple_run(10).sent
    publish(server, subject, [*sent[:3], *sent[4:]])  # what is missing may still come: the end is open
    follower = Process([*edge_agent(), "tail", source(server, subject), "--did", DID], name="tail", folder=tmp_path)
    with follower:
        wait_for(lambda: follower.log().count("OK") == 3, timeout=10, what="the records before the hole")
        follower.signal(number)
        assert follower.wait() == 0
    lines = [line.strip() for line in follower.log().splitlines()]
    assert [line for line in lines if re.fullmatch(r"records 4 to 4 of run [0-9a-f]{8} missing: unknown", line)]
    assert lines[-1].startswith("verified 5 records, 8 frames, 0 failed: ")


def test_a_signal_ends_it_while_the_broker_is_away(tmp_path: Path) -> None:
    follower = Tail(tmp_path, f"nats://127.0.0.1:{free_port()}/S?subject=S.dso", "--did", DID)
    with follower:
        wait_for(lambda: "trying again" in follower.log(), timeout=10, what="words")
        assert follower.stop() == 1
    assert [list(line) for line in follower.lines()] == [["report"]]


def test_whoever_reads_its_output_may_stop(server: NatsServer, subject: str) -> None:
    publish(server, subject, simple_run(10).sent)
    command = [*edge_agent(), "tail", source(server, subject), "--did", DID]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        assert follower.stdout.readline()
        follower.stdout.close()
        publish(server, subject, [b"one more line"])
        assert follower.wait(10) == 0
        assert follower.stderr.read() == ""


# ---- what it refuses --------------------------------------------------------------------------------------------


def test_until_idle_does_not_wait_for_a_broker(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    assert cli.main(["tail", f"{url}/S?subject=S.dso", "--did", DID, "--until-idle", "--jsonl"]) == 69
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"edge-agent: cannot connect to {url}: ")


def test_until_idle_does_not_wait_for_a_stream(server: NatsServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tail", f"{server.url}/NONE?subject=S.dso", "--did", DID, "--until-idle"]) == 69
    assert "no stream for S.dso" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nats://host/S", "not a source"),
        ("nats://host/S?subject=", "not the name"),
        ("nats://host/S?subject=a&subject=b", "not a source"),
        ("nats://host/S?subject=a&from=3", "not a source"),
        ("nats://host/S?subject=a#b", "not a source"),
        ("nats://host/A/B?subject=a", "no name of a stream"),
        ("nats://host/A.B?subject=a", "no name of a stream"),
        ("nats://host/S?subject=a..b", "not the name"),
        ("nats://host/S?subject=a%20b", "not the name"),
        ("nats://host:port/S?subject=a", "no URL of a server"),
        ("nats://host:70000/S?subject=a", "no URL of a server"),
        ("nats://[::1/S?subject=a", "no URL of a server"),
        ("nats:///S?subject=a", "no URL of a NATS server"),
        ("http://host/S?subject=a", "no URL of a NATS server"),
        ("DSO", "no URL of a NATS server"),
        ("ws://host/S?subject=a", "not supported yet"),
        ("nats://me:secret@host/S?subject=a", "a user or password stands in the address"),
        ("nats://secret@host:port/S?subject=a", "a user or password stands in the address"),
    ],
)
def test_a_wrong_source_is_exit_code_2(url: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tail", url, "--did", DID]) == 2
    error = capsys.readouterr().err
    assert error.startswith("edge-agent tail: ")
    assert words in error
    assert "secret" not in error


def test_logins_and_tls(tmp_path: Path) -> None:
    authority, user = Authority(tmp_path / "ca"), NatsKey("user")
    own, ours = authority.issue("server"), authority.issue("consumer")
    for name, content in [("pw", "hunter2"), ("nkey", user.seed), ("wrong", NatsKey("user", "other").seed)]:
        (tmp_path / name).write_text(content)
    settings = f"""
        authorization {{ users: [ {{ user: me, password: hunter2 }}, {{ nkey: {user.public} }} ] }}
        tls {{ cert_file: "{own.path}", key_file: "{own.key}", ca_file: "{authority.path}", verify: true }}
    """
    tls = ["--ca", str(authority.path), "--cert", str(ours.path), "--key", str(ours.key)]
    with NatsServer(tmp_path, settings=settings) as server:

        def read(*arguments: str) -> subprocess.CompletedProcess[str]:
            return tail(f"{server.tls_url}/S?subject=S.a", "--did", DID, "--until-idle", *arguments)

        create = {"servers": [server.tls_url], "stream": "S", "create": {}, "nkey": {"file": str(tmp_path / "nkey")}}
        create["tls"] = {"ca": tls[1], "cert": tls[3], "key": {"file": tls[5]}}

        async def make() -> None:
            async with NatsTransport(NatsConfig.model_validate(create), topic="S.a").session():
                pass

        asyncio.run(make())
        for login in (["--user", "me", "--password", f"file:{tmp_path}/pw"], ["--nkey", str(tmp_path / "nkey")]):
            assert "0 records" in read(*login, *tls).stderr
        for arguments, words in [
            ([*tls], "set username and password, token, nkey or creds"),
            (["--nkey", str(tmp_path / "wrong"), *tls], "not let in with nkey: Authorization Violation"),
            (["--nkey", str(tmp_path / "nkey"), *tls[2:]], "set ca of tls"),
            (["--nkey", str(tmp_path / "nkey"), *tls[:2]], "the server wants a certificate of ours"),
        ]:
            done = read(*arguments)
            assert (done.returncode, words in done.stderr) == (69, True), done.stderr


def test_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2\n")
    (tmp_path / "wrong").write_text("hunter3\n")
    with NatsServer(tmp_path, settings="authorization { token: hunter2 }") as server:
        url = f"{server.url}/S?subject=S.a"
        for name, words in [("token", "no stream for S.a"), ("wrong", "not let in with token: Authorization")]:
            done = tail(url, "--did", DID, "--until-idle", "--token", f"file:{tmp_path / name}")
            assert (done.returncode, words in done.stderr) == (69, True), done.stderr
            assert "hunter" not in done.stderr


def test_credentials(tmp_path: Path) -> None:
    accounts = NatsAccounts()
    (tmp_path / "creds").write_text(accounts.creds(publish=["$JS.API.CONSUMER.>", "$JS.API.STREAM.NAMES"]))
    (tmp_path / "admin").write_text(accounts.creds("admin"))
    with NatsServer(tmp_path, settings=accounts.settings) as server:
        create = {"servers": [server.url], "stream": "S", "create": {}, "creds": {"file": str(tmp_path / "admin")}}

        async def make() -> None:
            async with NatsTransport(NatsConfig.model_validate(create), topic="S.a").session():
                pass

        asyncio.run(make())
        for stream in ("S", ""):
            url = f"{server.url}/{stream}?subject=S.a"
            done = tail(url, "--did", DID, "--until-idle", "--creds", str(tmp_path / "creds"))
            assert (done.returncode, "0 records" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--user", "me"], "password: a username needs a password"),
        (["--user", "me", "--password", "hunter2"], "--password: a secret does not stand on a command line"),
        (["--token", "hunter2"], "--token: a secret does not stand on a command line"),
        (["--token", "env:hunter2", "--nkey", "a"], "nkey: token is a way to log in already"),
        (["--nkey", "a", "--creds", "b"], "creds: nkey is a way to log in already; keep one of the two"),
        (["--cert", "a"], "tls.key: cert needs key"),
        (["--ca", "a"], "tls: nats:// is not encrypted"),
    ],
)
def test_options_that_do_not_go_together_are_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tail", "nats://host/S?subject=a", "--did", DID, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "hunter2" not in error


def test_a_channel_says_itself_how_it_is_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = channels(tmp_path, "one")
    for option, value in [("--creds", "x"), ("--token", "env:X")]:
        assert cli.main(["tail", "--config", str(config), "--did", DID, option, value]) == 2
        assert "leave these options out" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--did", "did:ethr:volta:0x12"], ["--did", "did:web:example.com"]])
def test_a_wrong_signer_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tail", "nats://host/S?subject=a", *arguments]) == 2
    assert "did:ethr:" in capsys.readouterr().err


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    assert cli.main(["tail", "--config", str(tmp_path / "none.toml")]) == 78


def channels(folder: Path, *ids: str) -> Path:
    """A configuration with these channels."""
    made = folder / "agent.toml"
    assert cli.main(["init", str(folder)]) == 0
    before, mark, channel = made.read_text().partition("[[channel]]")
    table, agent, rest = channel.partition("[agent]")
    made.write_text(before + "".join(mark + table.replace('"telemetry"', f'"{name}"') for name in ids) + agent + rest)
    return made


def test_a_channel_of_a_configuration(server: NatsServer, tmp_path: Path) -> None:
    asyncio.run(create_stream(server.url, "OWN", ["own.*"]))
    config = channels(tmp_path, "one", "two")
    text = config.read_text().replace("nats://192.0.2.50:4222", server.url).replace("dx.{site}.", "own.")
    config.write_text(text)
    publish(server, "own.two", simple_run(2).sent)
    arguments = ("--config", str(config), "--did", DID, "--until-idle", "--jsonl")
    assert json.loads(tail(*arguments, "--channel", "two").stdout.splitlines()[-1])["report"]["records"] == 2
    assert json.loads(tail(*arguments, "--channel", "one").stdout.splitlines()[-1])["report"]["records"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one with --channel: one, two"),
        (["--channel", "three"], "there are: one, two"),
        (["nats://host/S?subject=a", "--channel", "one"], "not both"),
    ],
)
def test_a_channel_that_is_not_clear_is_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = channels(tmp_path, "one", "two")
    assert cli.main(["tail", "--config", str(config), "--did", DID, *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://host/S?subject=a.b", Source(NatsServers(servers=("nats://host:4222",)), "S", "a.b")),
        ("nats://host:1?subject=a.>", Source(NatsServers(servers=("nats://host:1",)), None, "a.>")),
        ("tls://host:443/S?subject=a", Source(NatsServers(servers=("tls://host:443",)), "S", "a")),
        ("nats://host/?subject=*.b", Source(NatsServers(servers=("nats://host:4222",)), None, "*.b")),
        ("nats://[::1]:1/S?subject=a%3E", Source(NatsServers(servers=("nats://[::1]:1",)), "S", "a>")),
    ],
)
def test_sources(url: str, expected: Source) -> None:
    assert Source.parse(url) == expected


# ---- the document -----------------------------------------------------------------------------------------------


def lively_run() -> Run:
    """All kinds of records, and what they may hold."""
    run = Run()
    run.begin([group(100)])
    run.event(EventCode.START, "0.1.0", True)
    run.data([frame(100), frame(103)], [Gap(0, 101, 102, Cause.DEVICE_TIMEOUT, "no answer")])
    return run


def keys(value: object) -> Iterator[str]:
    """The names of all keys at any depth, but not those that the site chose and those that are levels and causes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if not (isinstance(inner, dict) and key in _OPEN):
                yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def test_every_key_is_documented() -> None:
    verifier, run = Verifier([DID]), lively_run()
    second = Run(after=run)
    second.begin([group(110)])
    second.withdraw(1, 2, Cause.OVERFLOW)
    second.plan()
    printed = [as_json(judged) for envelope in run.sent + second.sent for judged in verifier.feed(envelope)]
    printed += [as_json(judged) for judged in verifier.finish()]
    rows = re.findall(r"^\| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    documented = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    found = set(keys([*printed, account.as_json(verifier.report)]))
    assert {"from_boot", "anchor", "length_known", "resumes", "details"} <= found
    assert found - documented == set()


@pytest.mark.parametrize(
    ("missing", "code", "frames", "words"),
    [(None, 0, 6, "6 frames, 0 failed"), (2, 1, 4, "continuity failed")],
)
def test_the_example_program(tmp_path: Path, missing: int | None, code: int, frames: int, words: str) -> None:
    text, _ = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    program, file = tmp_path / "consume.py", tmp_path / "evidence"
    program.write_text(text)
    file.write_bytes(b"".join(sent for i, sent in enumerate(simple_run(6).sent) if i != missing))
    command = [sys.executable, str(program), DID, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=20)
    assert (done.returncode, done.stderr) == (code, "")
    *values, last = done.stdout.splitlines()
    assert len(values) == frames
    assert all("pv-1/ac {'W': " in line for line in values)
    assert words in last
