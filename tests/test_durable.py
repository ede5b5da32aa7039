"""``edge-agent tail --durable`` against a real nats-server: a crash repeats and never skips, one name has one reader,
and readers that share the work by partition find all of it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo

from agent.commands.accepting import Checkpoint
from agent.errors import CheckpointError, TransportError
from agent.signer import KeySigner
from agent.transports.nats import durable
from agent.transports.nats.config import judged_servers
from agent.transports.nats.consumer import Source
from agent.transports.nats.durable import DurableConsumer
from testbed.broker import create_stream
from testbed.processes import NatsServer, Tail, edge_agent, wait_for
from tests.runs import DID, Run, frame, group, simple_run

ROOT = Path(__file__).resolve().parent.parent
numbers = itertools.count()
T = TypeVar("T")


@pytest.fixture
def subject(server: NatsServer) -> str:
    """The subject of a stream of its own."""
    name = f"D{next(numbers)}"
    asyncio.run(create_stream(server.url, name, [f"{name}.>"]))
    return f"{name}.dso"


@pytest.fixture
def tails() -> Iterator[list[Tail]]:
    started: list[Tail] = []
    yield started
    for tail in started:
        tail.kill()


def at(server: NatsServer, do: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    async def main() -> T:
        client = await nats.connect(server.url)
        try:
            return await do(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(main())


def publish(server: NatsServer, subject: str, envelopes: Sequence[bytes]) -> None:
    async def send(jetstream: JetStreamContext) -> None:
        for envelope in envelopes:
            await jetstream.publish(subject, envelope)

    at(server, send)


def info(server: NatsServer, subject: str) -> ConsumerInfo:
    """Of the durable consumer ``desk``."""

    async def ask(jetstream: JetStreamContext) -> ConsumerInfo:
        found: ConsumerInfo = await jetstream.consumer_info(subject.partition(".")[0], "desk")
        return found

    return at(server, ask)


def arguments(server: NatsServer, subject: str, checkpoint: Path, name: str = "desk") -> list[str]:
    url = f"{server.url}/{subject.partition('.')[0]}?subject={subject}"
    return [url, "--did", DID, "--checkpoint", str(checkpoint), "--durable", name]


def once(*options: str) -> subprocess.CompletedProcess[str]:
    command = [*edge_agent(), "tail", *options, "--jsonl"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def ids(lines: Sequence[dict[str, Any]], verdict: str = "ok") -> list[int]:
    return [line["seq"] for line in lines if line.get("verdict") == verdict]


def reach(tail: Tail, count: int, timeout: float = 20) -> None:
    """So many records were printed, repeats not counted."""
    wait_for(
        lambda: len(ids(tail.lines())) >= count,
        timeout=timeout,
        what=f"{count} lines, there are {tail.lines()} {tail.log()}",
    )


# ---- acknowledged once it is on disk --------------------------------------------------------------------------------


def test_what_was_printed_is_acknowledged_and_the_next_call_goes_on(
    server: NatsServer, subject: str, tmp_path: Path
) -> None:
    sent = simple_run(20).sent
    options = arguments(server, subject, tmp_path / "state")
    lines: list[dict[str, Any]] = []
    for part in (sent[:4], [], sent[4:]):
        publish(server, subject, part)
        done = once(*options, "--until-idle")
        assert done.returncode == 0, done.stderr
        lines += map(json.loads, done.stdout.splitlines())
        assert info(server, subject).num_ack_pending == 0
    assert [line["seq"] for line in lines if "seq" in line] == list(range(1, 12))
    assert (lines[-1]["report"]["records"], lines[-1]["report"]["cycles_missing"]) == (11, 0)


def test_nothing_is_acknowledged_before_the_checkpoint_that_holds_it_is_on_disk(
    server: NatsServer, subject: str, tmp_path: Path, tails: list[Tail]
) -> None:
    checkpoint, early = tmp_path / "state", list[str]()
    acknowledged = 0

    async def watch() -> None:
        nonlocal acknowledged
        async with await nats.connect(server.url) as client:
            acks = await client.subscribe("$JS.ACK.*.desk.>")
            for envelope in simple_run(20).sent:
                await client.jetstream().publish(subject, envelope)
            tails.append(Tail(tmp_path, *arguments(server, subject, checkpoint)).start())
            while acknowledged < 11:
                message = await acks.next_msg(timeout=20)
                kept = Checkpoint.read(checkpoint, subject)
                if kept is None or kept.place is None or kept.place[0] < int(message.subject.split(".")[5]):
                    early.append(message.subject)
                acknowledged += 1

    asyncio.run(watch())
    assert (acknowledged, early) == (11, [])


@pytest.mark.anyio
async def test_what_cannot_be_kept_is_not_acknowledged(server: NatsServer) -> None:
    name = f"D{next(numbers)}"
    await create_stream(server.url, name, [f"{name}.>"])
    source = Source(judged_servers(servers=(server.url,)), name, f"{name}.a")
    keeps = 0

    def full() -> None:
        nonlocal keeps
        keeps += 1
        if keeps > 1:
            raise CheckpointError("the disk is full")

    consumer = DurableConsumer(source, name="desk", owner=7, keep=full)
    async with await nats.connect(server.url) as client:
        await client.jetstream().publish(f"{name}.a", b"one")
        with pytest.raises(CheckpointError, match="the disk is full"):
            async for _ in consumer.messages():
                pass
        found = await client.jetstream().consumer_info(name, "desk")
    assert (found.num_ack_pending, found.ack_floor and found.ack_floor.stream_seq) == (1, 0)


def test_a_crash_repeats_and_does_not_skip(server: NatsServer, subject: str, tmp_path: Path, tails: list[Tail]) -> None:
    sent = simple_run(40).sent
    options = arguments(server, subject, tmp_path / "state")
    tails.append(first := Tail(tmp_path, *options, name="first").start())
    publish(server, subject, sent[:8])
    reach(first, 8)
    first.kill()  # most likely with some of them not acknowledged; what comes next is handed to nobody
    publish(server, subject, sent[8:])
    tails.append(second := Tail(tmp_path, *options, name="second").start())
    wait_for(lambda: len(sent) in ids(second.lines()), timeout=20, what=f"the last one: {second.log()}")
    assert second.stop() == 0
    assert sorted({*ids(first.lines()), *ids(second.lines())}) == list(range(1, len(sent) + 1))
    news = [line["seq"] for line in second.lines() if "seq" in line]
    assert news == sorted(news), "in order, what was not acknowledged before what is newer"
    report = second.lines()[-1]["report"]
    assert (report["records"], report["failed"], report["cycles_missing"]) == (len(sent), 0, 0)
    assert info(server, subject).num_ack_pending == 0


def test_a_reader_goes_on_when_the_server_was_killed(own_server: NatsServer, tmp_path: Path, tails: list[Tail]) -> None:
    asyncio.run(create_stream(own_server.url, "D", ["D.>"]))
    sent = simple_run(24).sent
    publish(own_server, "D.dso", sent[:5])
    tails.append(tail := Tail(tmp_path, *arguments(own_server, "D.dso", tmp_path / "state")).start())
    reach(tail, 5)
    own_server.kill()
    own_server.start()
    publish(own_server, "D.dso", sent[5:])
    reach(tail, len(sent))
    assert tail.stop() == 0
    assert ids(tail.lines()) == list(range(1, len(sent) + 1))  # it may have forgotten acknowledgements: repeats
    assert info(own_server, "D.dso").num_ack_pending == 0


def test_a_stream_that_is_made_anew_is_read_on_by_time(
    server: NatsServer, subject: str, tmp_path: Path, tails: list[Tail]
) -> None:
    sent = simple_run(24).sent
    name = subject.partition(".")[0]
    publish(server, subject, sent[:5])
    tails.append(tail := Tail(tmp_path, *arguments(server, subject, tmp_path / "state")).start())
    reach(tail, 5)
    at(server, lambda jetstream: jetstream.delete_stream(name))
    asyncio.run(create_stream(server.url, name, [f"{name}.>"]))
    publish(server, subject, sent[5:])
    reach(tail, len(sent))
    assert tail.stop() == 0
    assert ids(tail.lines()) == list(range(1, len(sent) + 1))


# ---- one name, one reader -------------------------------------------------------------------------------------------


def test_two_readers_of_one_name_are_refused(
    server: NatsServer, subject: str, tmp_path: Path, tails: list[Tail]
) -> None:
    publish(server, subject, simple_run(2).sent)
    tails.append(first := Tail(tmp_path, *arguments(server, subject, tmp_path / "state")).start())
    reach(first, 2)
    same = once(*arguments(server, subject, tmp_path / "state"))
    assert (same.returncode, same.stdout) == (2, "")
    assert "is in use by another process" in same.stderr
    other = once(*arguments(server, subject, tmp_path / "other"))
    assert (other.returncode, ids([json.loads(line) for line in other.stdout.splitlines()])) == (1, [])
    assert "the durable consumer desk of" in other.stderr
    assert "belongs to another checkpoint" in other.stderr


def test_a_consumer_of_somebody_else_is_left_alone(server: NatsServer, subject: str, tmp_path: Path) -> None:
    stream = subject.partition(".")[0]
    at(server, lambda jetstream: jetstream.add_consumer(stream, durable_name="desk"))
    done = once(*arguments(server, subject, tmp_path / "state"))
    assert done.returncode == 1
    assert "was not made by this command" in done.stderr


@pytest.mark.anyio
async def test_what_goes_to_somebody_else_and_is_not_acknowledged_is_not_skipped(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to a copy of the checkpoint on another machine, of which nobody can know."""
    monkeypatch.setattr(durable, "ACK_WAIT", 1.0)
    name = f"D{next(numbers)}"
    await create_stream(server.url, name, [f"{name}.>"])
    source = Source(judged_servers(servers=(server.url,)), name, f"{name}.a")
    consumer = DurableConsumer(source, name="desk", owner=7, keep=lambda: None)
    seen: list[bytes] = []
    async with await nats.connect(server.url) as client:

        async def read(*, robbed: bool) -> None:
            async with aclosing(consumer.messages()) as messages:
                async for data in messages:
                    if data is not None:
                        seen.append(data)
                    elif not robbed and len(seen) < 4:
                        robbed = True  # its request waits at the server; ours is served in turn with it
                        ours = client.new_inbox()
                        await client.subscribe(ours)
                        request = json.dumps({"batch": 1, "expires": 5_000_000_000}).encode()
                        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{name}.desk", request, reply=ours)
                        for number in (b"1", b"2", b"3", b"4"):
                            await client.jetstream().publish(f"{name}.a", number)
                    if len(seen) == 4:
                        return

        with pytest.raises(TransportError, match="messages of desk went to somebody else"):
            await read(robbed=False)
        before = len(seen)
        await read(robbed=True)
    assert before < 3
    assert seen == [b"1", b"2", b"3", b"4"], "what was handed to the other one comes before what is newer"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--durable", "desk"], "--durable needs --checkpoint FILE"),
        (["--durable", "a.b", "--checkpoint", "FILE"], "is no name of a durable consumer"),
    ],
)
def test_what_is_refused_says_why(options: list[str], words: str, tmp_path: Path) -> None:
    options = [str(tmp_path / "state") if option == "FILE" else option for option in options]
    done = once("nats://127.0.0.1:1/S?subject=S.dso", "--did", DID, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


# ---- sharing the work by partition ----------------------------------------------------------------------------------


def test_three_readers_share_the_sites_of_a_stream_by_partition(
    own_server: NatsServer, tmp_path: Path, tails: list[Tail]
) -> None:
    """With the stream of config/nats-partitions.json; agents publish as ever. One reader is killed meanwhile."""
    asyncio.run(create_stream(own_server.url, "TELEMETRY", ["dx.>"]))
    wanted = (ROOT / "config" / "nats-partitions.json").read_bytes()
    at(own_server, lambda jetstream: jetstream._api_request("$JS.API.STREAM.CREATE.PARTS", wanted))
    runs = {f"site-{number}": Run(secret=bytes(31) + bytes([number])) for number in range(1, 10)}
    accept = [word for number in range(1, 10) for word in ("--did", KeySigner(bytes(31) + bytes([number])).did)]

    def reader(part: int, name: str) -> Tail:
        url = f"{own_server.url}/PARTS?subject=p.{part}.>"
        state = ["--durable", f"desk-{part}", "--checkpoint", str(tmp_path / f"state-{part}")]
        tails.append(tail := Tail(tmp_path, url, *accept, *state, name=name).start())
        return tail

    def printed() -> set[tuple[str, int]]:
        return {(line["stream"], line["seq"]) for tail in tails for line in tail.lines() if "seq" in line}

    def send(cycles: Sequence[int]) -> None:
        for site, run in runs.items():
            before = len(run.sent)
            if not run.sent:
                run.begin([group(100)])
            for cycle in cycles:
                run.data([frame(cycle)])
            publish(own_server, f"dx.{site}.dso", run.sent[before:])

    readers = [reader(part, f"part-{part}") for part in range(3)]
    send(range(100, 105))
    wait_for(lambda: len(printed()) == 9 * 6, timeout=20, what=f"all, there are {len(printed())}")
    readers[1].kill()
    send(range(105, 110))
    readers[1] = reader(1, "part-1-again")
    wait_for(lambda: len(printed()) == 9 * 11, timeout=30, what=f"all, there are {len(printed())}")
    shares = []
    for tail in readers:
        tail.signal(signal.SIGTERM)
        assert tail.wait() == 0
        report = tail.lines()[-1]["report"]
        assert (report["failed"], report["cycles_missing"]) == (0, 0)
        assert set(report["levels"].values()) <= {"ok"}
        shares.append((report["records"], {channel["signer"] for channel in report["channels"]}))
    assert sum(records for records, _ in shares) == 9 * 11, "each record in one share"
    assert sum(len(signers) for _, signers in shares) == 9, "a channel is never torn apart"
    assert all(signers for _, signers in shares)
    last = at(own_server, lambda jetstream: jetstream.get_last_msg("TELEMETRY", "dx.site-1.dso"))
    assert last.data == runs["site-1"].sent[-1], "an agent finds its last record where it put it"
