"""The whole way over a JetStream cluster of three real servers, a stream on all of them: what is killed, handed over or
taken out of service there loses nothing, doubles nothing and raises no alarm.

Random moments come from a seed that is printed; EDGE_AGENT_SEED=N runs them again.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from agent.delivery.publisher import AWAY
from agent.errors import Reason, TransportError, Verdict
from agent.ports import Ack
from agent.transports.nats.failures import answered
from testbed.cluster import NatsCluster
from testbed.processes import NatsServer, Tail, wait_for
from testbed.rig import Rig
from tests.nats_sessions import answers, message, transport
from tests.runs import DID, simple_run

Json = dict[str, Any]
OK = {"structure": "ok", "signature": "ok", "identity": "ok", "continuity": "ok", "completeness": "ok"}


@pytest.fixture
def cluster(tmp_path: Path) -> NatsCluster:
    return NatsCluster(tmp_path, settings="lame_duck_duration: 30s\nlame_duck_grace_period: 25s")


@pytest.fixture
def rig(tmp_path: Path, cluster: NatsCluster) -> Iterator[Rig]:
    with Rig(tmp_path, cluster=cluster, seal_within="100ms") as running:
        yield running


def delivered(rig: Rig) -> int:
    found = re.search(r"(\d+) delivered", rig.agent.status)
    return int(found[1]) if found else 0


def goes_on(rig: Rig, *, records: int = 5, timeout: float = 40) -> None:
    """Return once so many more records were acknowledged."""
    before = delivered(rig)
    wait_for(lambda: delivered(rig) >= before + records, timeout=timeout, what=f"records to come: {rig.agent.log()}")


def led(cluster: NatsCluster) -> NatsServer:
    """The node that leads the stream, once there is one."""
    return wait_for(lambda: cluster.leader(Rig.STREAM), timeout=30, what="a leader")


def serving(rig: Rig, cluster: NatsCluster) -> NatsServer:
    """The node that the agent is connected to (proc_pid_fd(5), proc_pid_net(5))."""
    links = [os.readlink(link) for link in Path(f"/proc/{rig.agent.pid}/fd").iterdir()]
    ours = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = {int(words[2].rpartition(":")[2], 16) for words in lines if words[9] in ours}
    return next(node for node in cluster.nodes if node.port in ports)


def conclude(rig: Rig, cluster: NatsCluster) -> int:
    """Nothing lost, nothing doubled, no alarm. Returns how many records there are."""
    cluster.start()
    rig.wait_for_state(timeout=60)
    rig.stop()
    lines = rig.consumed(timeout=30)
    account = rig.judge(lines)
    print({name: getattr(account, name) for name in ("records", "runs", "repeats", "gaps", "values_checked")})
    assert account.problems == []
    assert account.good
    assert account.repeats == 0
    assert lines[-1]["report"]["levels"] == OK
    assert " INFO " in rig.agent.log()
    assert [line for line in rig.agent.log().splitlines() if " ERROR " in line] == []
    return account.records


def test_one_node_is_killed(rig: Rig, cluster: NatsCluster) -> None:
    """The stream's leader at that: two are enough."""
    rig.agent.start().wait_ready()
    goes_on(rig)
    led(cluster).kill()
    goes_on(rig)
    conclude(rig, cluster)


def test_a_stream_without_a_leader_is_away_and_no_refusal(tmp_path: Path) -> None:
    """Its followers answer nothing, which on a single server means that there is no stream."""
    with NatsCluster(tmp_path) as cluster:
        cluster.create_stream("S", "S.>")
        leader = wait_for(lambda: cluster.leader("S"), timeout=20, what="a leader")
        follower, other = (node for node in cluster.nodes if node is not leader)
        leader.kill()
        other.kill()

        async def publish() -> Ack:
            async with transport(follower.url, subject="S.a").session() as session:
                await session.send(message(1))
                [answer] = await answers(session, 1)
                return answer

        error = asyncio.run(publish()).error
    assert isinstance(error, TransportError)
    assert (error.verdict, error.reason) == (Verdict.RETRY, Reason.NO_LEADER)
    assert error.reason in AWAY
    assert answered(10008, "JetStream system temporarily unavailable").reason is Reason.NO_LEADER


def test_the_stream_is_handed_over_again_and_again(rig: Rig, cluster: NatsCluster) -> None:
    """Nobody answers then for a moment, or JetStream says that it is unavailable: neither is a refusal."""
    rig.agent.start().wait_ready()
    goes_on(rig)
    for _ in range(4):
        cluster.step_down(Rig.STREAM)
        led(cluster)
        goes_on(rig, records=3)
    conclude(rig, cluster)


def test_a_server_that_goes_out_of_service_is_left_at_once(rig: Rig, cluster: NatsCluster) -> None:
    """Lame-duck mode, as ``nats-server --signal ldm`` orders it: it would close the connection after 25 s itself."""
    rig.agent.start().wait_ready()
    goes_on(rig)
    first = serving(rig, cluster)
    first.signal(signal.SIGUSR2)
    wait_for(lambda: "the server goes out of service" in rig.agent.log(), timeout=20, what="the agent to notice")
    goes_on(rig)
    assert first.alive
    first.kill()
    conclude(rig, cluster)


def test_a_durable_consumer_of_a_cluster_reads_a_long_backlog(tmp_path: Path) -> None:
    """There the end of a request overtakes its messages, of which the servers first assure each other."""
    sent = simple_run(800).sent
    with NatsCluster(tmp_path) as cluster:
        cluster.create_stream("S", "S.>")

        async def publish() -> None:
            async with await nats.connect(cluster.url) as client:
                for envelope in sent:
                    await client.jetstream().publish("S.a", envelope)

        asyncio.run(publish())
        options = ["--durable", "desk", "--checkpoint", str(tmp_path / "state")]
        with Tail(tmp_path, f"{cluster.url}/S?subject=S.a", "--did", DID, *options) as tail:
            wait_for(lambda: len(tail.lines()) >= len(sent), timeout=30, what=f"all: {tail.log()}")
            assert tail.stop() == 0
    assert [line["seq"] for line in tail.lines() if "seq" in line] == list(range(1, len(sent) + 1))
    assert "Batch Completed" not in tail.log()


@pytest.mark.slow
def test_nodes_are_killed_at_random(rig: Rig, cluster: NatsCluster, chance: random.Random) -> None:
    """For 50 s: one, the leader, or two at once, so that for some seconds there is no quorum."""
    checkpoint = str(rig.folder / "desk.state")
    tail = Tail(rig.folder, "--config", str(rig.config), "--durable", "desk", "--checkpoint", checkpoint, name="desk")
    with tail:
        rig.agent.start().wait_ready()
        goes_on(rig)
        _kill_at_random(rig, cluster, chance)
        records = conclude(rig, cluster)
        wait_for(lambda: len(_ok(tail)) >= records, timeout=40, what=f"all at the durable consumer: {tail.log()}")
        assert tail.stop() == 0
    assert len(_ok(tail)) == len(set(_ok(tail))) == records
    report = tail.lines()[-1]["report"]
    print({name: report[name] for name in ("records", "repeats", "failed")}, tail.log())
    assert report["levels"] == OK


def _ok(tail: Tail) -> list[str]:
    return [line["id"] for line in tail.lines() if line.get("verdict") == "ok"]


def _kill_at_random(rig: Rig, cluster: NatsCluster, chance: random.Random) -> None:
    counts = {"leader": 0, "any": 0, "two": 0}
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        what = chance.choice(("leader", "leader", "any", "two"))
        victims = chance.sample(cluster.nodes, 2 if what == "two" else 1)
        if what == "leader":
            victims = [led(cluster)]
        for victim in victims:
            victim.kill()
        counts[what] += 1
        time.sleep(chance.uniform(0.0, 6.0))
        for victim in victims:
            victim.start()
        if chance.random() < 0.7:  # else the next blow comes before it has found its feet
            goes_on(rig, records=chance.randrange(1, 30))
    print(counts)
    cluster.start()
