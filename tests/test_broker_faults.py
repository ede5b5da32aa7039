"""What an operator or a slow machine does to a single real nats-server and its clients: nothing is lost."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import nats
import pytest

from testbed.broker import create_stream
from testbed.processes import NatsServer, Tail, wait_for
from testbed.rig import Rig, command
from tests.runs import DID, simple_run


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path, seal_within="100ms") as running:
        yield running


def delivered(rig: Rig) -> int:
    found = re.search(r"(\d+) delivered", rig.agent.status)
    return int(found[1]) if found else 0


def goes_on(rig: Rig) -> None:
    before = delivered(rig)
    wait_for(lambda: delivered(rig) >= before + 5, timeout=30, what=f"records to come: {rig.agent.log()}")


def publish(server: NatsServer, contents: Sequence[bytes]) -> None:
    async def send() -> None:
        async with await nats.connect(server.url) as client:
            for content in contents:
                await client.jetstream().publish("S.a", content)

    asyncio.run(send())


def test_a_stream_is_removed_and_made_again_while_the_agent_runs(rig: Rig) -> None:
    """What was there goes with it, and is sent again by order; what waits meanwhile is not lost."""
    rig.agent.start().wait_ready()
    goes_on(rig)
    with Tail(rig.folder, *rig.source, name="live") as live:

        async def remove() -> None:
            async with await nats.connect(rig.broker.url) as client:
                await client.jetstream().delete_stream(rig.STREAM)

        asyncio.run(remove())
        wait_for(lambda: "broker refuses the channel" in rig.agent.log(), timeout=20, what="the agent to notice")
        assert "reason=no_stream" in rig.agent.log()
        asyncio.run(create_stream(rig.broker.url, rig.STREAM, ["dx.>"]))
        goes_on(rig)
        assert "broker holds nothing of what it acknowledged" in rig.agent.log()
        outcome = command("outbox", "resend", "--since", "1h", "--json", "--config", rig.config)
        assert json.loads(outcome)["stored"] > 0
        rig.wait_for_state()
        rig.stop()

        def stopped() -> bool:
            return any(line.get("event", {}).get("code") == "stop" for line in live.lines())

        wait_for(stopped, timeout=20, what="the last record")
        assert live.stop() == 0
        account = rig.judge(live.lines())
    assert account.problems == []
    assert account.good


def test_an_agent_that_froze_and_was_dropped_by_the_server_goes_on(rig: Rig) -> None:
    rig.broker.kill()
    rig.broker.settings = 'ping_interval: "300ms"\nping_max: 1\ndebug: true'
    rig.broker.start()
    rig.agent.start().wait_ready()
    goes_on(rig)
    rig.agent.signal(signal.SIGSTOP)
    log = rig.broker.log
    wait_for(lambda: "Stale Client Connection" in log(), timeout=20, what="the server to drop it")
    rig.agent.signal(signal.SIGCONT)
    goes_on(rig)
    rig.wait_for_state()
    rig.stop()
    account = rig.judge(rig.consumed())
    assert account.problems == []
    assert (account.good, account.repeats) == (True, 0)
    assert set(account.gaps) <= {"overrun"}, "what fell due while it was frozen is stated"


def restarted(server: NatsServer, *, settings: str) -> None:
    """Have it run with these settings and an empty stream S."""
    server.kill()
    server.settings = settings
    server.start()
    asyncio.run(create_stream(server.url, "S", ["S.>"]))


@pytest.mark.parametrize("durable", [False, True])
def test_a_consumer_that_is_slow_is_never_asked_to_take_more_than_it_can(
    own_server: NatsServer, tmp_path: Path, durable: bool
) -> None:
    """A server drops who does not take what it has to send; the sockets' buffers hold some megabytes besides."""
    restarted(own_server, settings="max_pending: 8MB\nmax_payload: 1MB")
    sent = simple_run(80).sent
    publish(own_server, sent[:1])
    options = ["--durable", "desk", "--checkpoint", str(tmp_path / "state")] if durable else []
    with Tail(tmp_path, f"{own_server.url}/S?subject=S.a", "--did", DID, *options) as tail:
        wait_for(lambda: len(tail.lines()) == 1, timeout=20, what="the first record")
        tail.signal(signal.SIGSTOP)
        publish(own_server, [part for envelope in sent[1:] for part in (bytes(900_000), envelope)])
        tail.signal(signal.SIGCONT)
        wait_for(lambda: len(tail.lines()) >= 2 * len(sent) - 1, timeout=30, what=f"all: {tail.log()}")
        assert tail.stop() == 1  # for what is no evidence
        lines = tail.lines()
    assert [line["seq"] for line in lines if "seq" in line] == list(range(1, len(sent) + 1))
    assert [line["verdict"] for line in lines[:-1]].count("structure failed") == len(sent) - 1
    assert "Slow Consumer" not in own_server.log()


@pytest.mark.parametrize("durable", [False, True])
def test_a_consumer_that_was_dropped_because_it_was_too_slow_misses_nothing(
    own_server: NatsServer, tmp_path: Path, durable: bool
) -> None:
    restarted(own_server, settings="max_pending: 64KB\nmax_payload: 64KB")
    sent = simple_run(40).sent
    publish(own_server, sent[:1])
    options = ["--durable", "desk", "--checkpoint", str(tmp_path / "state")] if durable else []
    with Tail(tmp_path, f"{own_server.url}/S?subject=S.a", "--did", DID, *options) as tail:
        wait_for(lambda: len(tail.lines()) == 1, timeout=20, what="the first record")
        tail.signal(signal.SIGSTOP)
        publish(own_server, [part for envelope in sent[1:] for part in (*[bytes(60_000)] * 6, envelope)])
        wait_for(lambda: "Slow Consumer Detected" in own_server.log(), timeout=20, what="the server to drop it")
        own_server.kill()  # one that takes so little at a time would drop it again and again
        own_server.settings = ""
        own_server.start()
        tail.signal(signal.SIGCONT)
        wait_for(lambda: len(tail.lines()) >= 7 * len(sent) - 6, timeout=30, what=f"all: {tail.log()}")
        assert tail.stop() == 1
        lines = tail.lines()
    assert [line["seq"] for line in lines if "seq" in line] == list(range(1, len(sent) + 1))
