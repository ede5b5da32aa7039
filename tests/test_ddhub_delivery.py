"""Delivery over the Data Hub as it is deployed (testbed/ddhub) and a real NATS server: what participants, who share no
code with the agent, can read of it, whatever goes wrong on the way.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from agent.clock import SystemClock
from agent.delivery.drain import Drain
from agent.delivery.errand import Errand
from agent.delivery.publisher import Publisher
from agent.delivery.refusals import Refusals
from agent.errors import Reason, TransportError
from agent.signer import KeySigner
from agent.transports.ddhub.config import DdhubConfig
from agent.transports.ddhub.content import payload
from agent.transports.ddhub.content.records import Agreement, agreement
from agent.transports.ddhub.content.schema import telemetry_schema
from agent.transports.ddhub.requests import Timeouts
from agent.transports.ddhub.transport import DdhubTransport
from agent.verifier import Verifier
from testbed.ddhub.contract import KEY_NAME, key_value
from testbed.ddhub.faults import ANYWHERE
from testbed.ddhub.gateway import Gateway, Padding
from testbed.ddhub.hub import OWNER, USER_ROLE, DataHub
from testbed.ddhub.settings import Settings
from testbed.processes import NatsServer
from tests.ddhub_keys import SMALL
from tests.fakes import FakeStore
from tests.runs import DID, SECRET, Run, frame, group

pytestmark = pytest.mark.anyio
PRIVATE = serialization.load_pem_private_key(SMALL.export_key(), None)
assert isinstance(PRIVATE, rsa.RSAPrivateKey)
QUICK = Timeouts(connect=1, answer=0.5, slow=0.5)


@pytest.fixture(scope="module")
async def hub(server: NatsServer) -> AsyncIterator[DataHub]:
    async with DataHub(server.url, settings=Settings(fetch_wait_s=0.3)) as hub:
        hub.enrol(DID)
        Person.topic = hub.add_topic("telemetry", telemetry_schema())
        yield hub


class Clock(SystemClock):
    """Ours, set by the hub's."""

    def __init__(self, hub: DataHub) -> None:
        super().__init__()
        self._hub = hub

    def wall(self) -> int:
        return int(self._hub.clock.now() * 1e9)


class Person(Gateway):
    """A participant with mailboxes, who reads everything."""

    topic: ClassVar[str]

    def __init__(self, hub: DataHub, number: int, padding: Padding = "oaep") -> None:
        assert isinstance(PRIVATE, rsa.RSAPrivateKey)
        super().__init__(hub.url, f"0x{number:064x}", rsa_key=PRIVATE, padding=padding, now=hub.clock.now)
        self.hub = hub
        self.got: list[bytes] = []

    async def read(self, sender: Gateway) -> list[bytes]:
        """All records so far."""
        for each in await self.receive([self.topic], {DID: sender.signature_key}, amount=100):
            assert each.verified, each.problem
            assert each.text is not None, each.problem
            self.got += payload.decode(each.text).envelopes
        return self.got


class Bench:
    """An outbox with a publisher, and participants."""

    def __init__(
        self, hub: DataHub, *people: Person, records: int = 3, folder: Path, after: Bench | None = None, **settings: Any
    ) -> None:
        """``after``: goes on where that one stopped, as a new process does."""
        self.hub = hub
        self.people = people
        self.store: FakeStore = after.store if after else FakeStore(segment_size=1 << 22, segments=8)
        self.run: Run = after.run if after else Run()
        self._cycle: int = after._cycle if after else 100
        self._appended: int = after._appended if after else 0
        if after is None:
            self.run.begin([group(100)])
        keys = folder / "participants.json"
        keys.write_text(json.dumps({each.did: {"encryption": each.encryption_key} for each in people}))
        recipients: Any = [{"did": each.did, "padding": each.padding} for each in people]
        self.config = DdhubConfig.model_validate(
            {
                "url": hub.url,
                "topic": {"owner": OWNER, "name": "telemetry", "version": "1.0.0"},
                "keys": {"file": str(keys)},
                **({} if "roles" in settings else {"recipients": recipients}),
                **settings,
            }
        )
        clock = Clock(hub)
        self.transport = DdhubTransport(
            self.config, topic="t", signer=KeySigner(SECRET, did=DID), clock=clock, timeouts=QUICK
        )
        self.publisher = Publisher(
            channel="market",
            store=self.store,
            transport=self.transport,
            did=DID,
            topic="t",
            clock=clock,
            drain=Drain(rate=None, spread=0, clock=clock),
            refusals=Refusals(),
        )
        self.add(records)

    def add(self, records: int, *, size: int = 1) -> None:
        for _ in range(records):
            self.run.data([frame(cycle) for cycle in range(self._cycle, self._cycle + size)])
            self._cycle += size
        for number in range(self._appended, len(self.run.sent)):
            self.store.append([(self.run.sent[number], self.run.links[number])], new_segment=number == 0)
        self._appended = len(self.run.sent)
        self.publisher.notify()

    async def drained(self, within: float = 20) -> None:
        with anyio.fail_after(within):
            await self.publisher.drained()

    async def resent(self) -> Errand:
        """Have all sent again by order."""
        errand = Errand(self.store.read(0, max_bytes=1 << 20))
        with anyio.fail_after(20):
            while errand.waiting:
                await self.publisher.send_again(errand)
        return errand

    async def failed(self, reason: str) -> None:
        """Return once delivery has failed for this reason."""
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.publisher.drained)
                while self.publisher.reason != reason:  # noqa: ASYNC110 - no event tells
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.publisher.run)
        yield bench
        tasks.cancel_scope.cancel()


@pytest.fixture
async def people(hub: DataHub, request: pytest.FixtureRequest) -> AsyncIterator[Sequence[Person]]:
    """Two who have logged in: a gateway of today, and an old one."""
    number = 10 * (1 + abs(hash(request.node.name)) % 10**9)
    async with Person(hub, number) as bob, Person(hub, number + 1, "pkcs1v15") as carol:
        for each in (bob, carol):
            hub.enrol(each.did)
            await each.login()
        yield bob, carol
        hub.faults.clear()


@pytest.fixture
def sender(hub: DataHub) -> Gateway:
    """Our keys, as others know them."""
    return Gateway(hub.url, f"0x{SECRET.hex()}", now=hub.clock.now)


async def test_every_participant_can_verify_and_read_all(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    assert sender.did == DID
    async with running(Bench(hub, *people, folder=tmp_path, records=20)) as bench:
        await bench.drained()
        bench.add(30, size=40)
        await bench.drained()
    for each in people:
        assert await each.read(sender) == bench.run.sent


@pytest.mark.parametrize("source", ["hub", "rpc"])
async def test_keys_are_those_of_documents_on_both_sides(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path, source: str
) -> None:
    bob, carol = people
    for each in people:
        hub.chain.publish_keys(each.did, signature=each.signature_key, encryption=each.encryption_key)
    hub.chain.mine(12)
    hub.chain.publish_keys(DID, signature=sender.signature_key)
    hub.chain.revoke_attribute(DID, KEY_NAME, key_value("dsb-symmetric-encryption", bob.encryption_key))
    assert await carol.senders(DID, hub=hub.hub_url) == {}, "one key of two is none"
    hub.chain.publish_keys(DID, encryption=bob.encryption_key)  # anybody's will do, for nobody writes to us
    keys = {source: {"hub": hub.hub_url, "rpc": hub.rpc_url}[source]}
    async with running(Bench(hub, *people, folder=tmp_path, keys=keys)) as bench:
        await bench.drained()
    for each in people:
        found = await each.receive([each.topic], await each.senders(DID, hub=hub.hub_url))
        assert all(one.verified for one in found)
        assert [envelope for one in found for envelope in payload.decode(one.text or "").envelopes] == bench.run.sent


async def test_readable_values_agree_with_their_records_also_for_a_sender_that_starts_again(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    """It begins again within a run, and finds the plan in its outbox."""
    bob, _ = people
    topic = {"owner": OWNER, "name": "readable", "version": "1.0.0"}
    topic_id = hub.add_topic("readable", telemetry_schema(readable=True))
    bench = Bench(hub, bob, folder=tmp_path, records=5, topic=topic)
    async with running(bench):
        await bench.drained()
    async with running(Bench(hub, bob, folder=tmp_path, records=0, after=bench, topic=topic)) as bench:
        bench.add(3, size=10)
        await bench.drained()
    verifier, found = Verifier([DID]), list[tuple[Agreement, int]]()
    for each in await bob.receive([topic_id], {DID: sender.signature_key}, amount=100):
        assert each.text is not None, each.problem
        text = payload.decode(each.text)
        assert text.records is not None
        judged = [judged for envelope in text.envelopes for judged in verifier.feed(envelope)]
        found.append((agreement(text.records, judged), len(text.records)))
    assert found == [(Agreement.AGREE, 15), (Agreement.AGREE, 90)]


async def test_whatever_the_hub_does_once_all_arrives_in_order(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    """What was done all the same the broker knows as a duplicate."""
    async with running(Bench(hub, *people, folder=tmp_path)) as bench:
        await bench.drained()
        for fault in ("401", "403", "429", "500", *sorted(ANYWHERE)):
            hub.faults.put(fault, path="/messages/internal" if fault == "silent" else "/messages")
            bench.add(1)
            await bench.drained()
            hub.faults.clear()
            assert hub.faults.taken[fault]
    for each in people:
        assert await each.read(sender) == bench.run.sent


async def test_whatever_the_hub_does_while_a_session_opens_the_next_one_does(
    hub: DataHub, people: Sequence[Person], tmp_path: Path
) -> None:
    for path in ("/auth/login", "/channel/initExtChannel", "/config", "/topics*"):
        for fault in ("500", "502", "495", "cut", "junk", "empty", "truncated"):
            bench = Bench(hub, *people, folder=tmp_path)
            hub.faults.put(fault, path=path)
            with pytest.raises(TransportError) as raised:
                async with bench.transport.session():
                    pytest.fail("opened")
            assert raised.value.hint
            assert "eyJ" not in str(raised.value)
            async with bench.transport.session() as session:
                assert session.delivers


@pytest.mark.parametrize(
    ("fault", "path", "details"),
    [
        ("key-lost", "/messages/internal", {}),
        ("recipient-failed", "/messages", {}),
        ("recipient-failed", "/messages", {"with_did": False}),
        ("recipient-failed", "/messages", {"reason": "nats: no responders", "code": "MB::NATS_SERVER"}),
    ],
)
async def test_who_fails_is_tried_alone(
    hub: DataHub,
    people: Sequence[Person],
    sender: Gateway,
    tmp_path: Path,
    fault: str,
    path: str,
    details: dict[str, Any],
) -> None:
    bob, carol = people
    before = len(hub.calls("/messages"))
    hub.faults.put(fault, path=path, did=carol.did, **details)
    async with running(Bench(hub, bob, carol, folder=tmp_path)) as bench:
        await bench.drained()
    asked = [body["fqcns"] for body in hub.calls("/messages")[before:]]
    assert asked in ([[bob.did, carol.did], [carol.did]], [[bob.did], [carol.did]])
    assert len(await hub.stored(bob.did)) == len(await hub.stored(carol.did)) == 1
    assert await carol.read(sender) == await bob.read(sender) == bench.run.sent


async def test_a_200_in_which_all_failed_or_the_count_is_wrong_is_read_by_name(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    hub.faults.put("all-failed", path="/messages")
    hub.faults.put("miscounted", path="/messages", skip=1)
    async with running(Bench(hub, *people, folder=tmp_path)) as bench:
        await bench.drained()
        bench.add(1)
        await bench.drained()
    for each in people:
        assert await each.read(sender) == bench.run.sent
    assert hub.faults.taken["miscounted"] == 1


async def test_who_has_never_logged_in_is_waited_for_until_he_has(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    bob, _ = people
    async with Person(hub, 4711) as late:
        hub.enrol(late.did)
        async with running(Bench(hub, bob, late, folder=tmp_path)) as bench:
            await bench.failed(Reason.RECIPIENT)
            assert late.did in bench.publisher.trouble
            assert await bob.read(sender) == bench.run.sent, "the other has it"
            bench.add(2)
            await late.login()
            await bench.drained()
        assert await late.read(sender) == await bob.read(sender) == bench.run.sent


async def test_who_has_never_logged_in_is_skipped_and_gets_it_by_order(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    bob, _ = people
    async with Person(hub, 4712) as late:
        hub.enrol(late.did)
        async with running(Bench(hub, bob, late, folder=tmp_path, on_recipient_failure="skip")) as bench:
            await bench.drained()
            assert bench.transport.courier.accounts[late.did].skipped == len(bench.run.sent)
            await late.login()
            await bench.resent()
        assert await late.read(sender) == bench.run.sent
        assert await bob.read(sender) == bench.run.sent * 2


async def test_tokens_expire_and_are_revoked_unnoticed(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    async with running(Bench(hub, *people, folder=tmp_path)) as bench:
        await bench.drained()
        hub.proxy.revoke()
        bench.add(1)
        await bench.drained()
        assert bench.publisher.connected
        assert not bench.publisher.failures
    assert await people[0].read(sender) == bench.run.sent


async def test_holders_of_a_role_get_it(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    role = "market.roles.edge.apps.energyweb.iam.ewc"
    bob, _ = people
    hub.enrol(bob.did, [USER_ROLE, role])
    await bob.login()
    hub.enrol(DID, [USER_ROLE, role])
    async with running(Bench(hub, *people, folder=tmp_path, roles=[role])) as bench:
        await bench.drained()
    hub.enrol(DID)
    assert await bob.read(sender) == bench.run.sent
    assert hub.calls("/messages")[-1]["fqcns"] == [bob.did]


async def test_without_a_role_nothing_is_sent_until_there_is_one(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    hub.enrol(DID, ["user.roles.edge.apps.aemo.iam.ewc"])
    async with running(Bench(hub, *people, folder=tmp_path)) as bench:
        await bench.failed(Reason.PERMISSION)
        bench.transport._login._entered_at -= 60 * 10**9  # a minute later
        hub.enrol(DID)
        await bench.drained()
    assert await people[0].read(sender) == bench.run.sent


async def test_what_nats_does_not_take_is_sent_in_smaller_messages(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    """A stock server takes 1 MiB, whatever the broker says of itself."""
    bench = Bench(hub, people[0], folder=tmp_path, max_message="8MiB", records=0)
    bench.add(1200, size=100)
    assert sum(map(len, bench.run.sent)) > 500_000
    async with running(bench):
        await bench.drained()
    stored = await hub.stored(people[0].did)
    assert len(stored) > 1
    assert await people[0].read(sender) == bench.run.sent


async def test_what_the_broker_forgot_comes_again_by_order(
    hub: DataHub, people: Sequence[Person], sender: Gateway, tmp_path: Path
) -> None:
    bob, _ = people
    async with running(Bench(hub, bob, folder=tmp_path)) as bench:
        await bench.drained()
        for each in await hub.stored(bob.did):
            assert each["transactionId"]
        await hub.move(25 * 3600)
        assert await hub.stored(bob.did) == []
        await bob.login()
        errand = await bench.resent()
        assert (errand.stored, errand.refused) == (4, 0)
    assert await bob.read(sender) == bench.run.sent


async def test_no_topic_and_a_foreign_schema(hub: DataHub, people: Sequence[Person], tmp_path: Path) -> None:
    hub.add_topic("other", {"type": "object", "required": ["kW"]})
    for name, reason in (("nowhere", Reason.NO_TOPIC), ("other", Reason.SCHEMA)):
        topic = {"owner": OWNER, "name": name, "version": "1.0.0"}
        bench = Bench(hub, *people, folder=tmp_path, topic=topic)
        with pytest.raises(TransportError) as raised:
            async with bench.transport.session():
                pytest.fail("opened")
        assert raised.value.reason == reason
