"""A participant that receives from the fake Data Hub, and others that send to it as client gateways do."""

from __future__ import annotations

import functools
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from Crypto.PublicKey.RSA import RsaKey

from agent.errors import TransportError
from agent.signer import KeySigner
from agent.transports.ddhub.broker import broker
from agent.transports.ddhub.config import DdhubServer
from agent.transports.ddhub.content import cipher, payload
from agent.transports.ddhub.keys.key_source import FileKeys, RenewedKeySource
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig
from agent.transports.ddhub.keys.rsa_key import public_pem
from agent.transports.ddhub.receiving.consumer import Consumer, TopicName
from agent.transports.ddhub.receiving.delivery import Delivery
from agent.transports.ddhub.receiving.mailbox import mailbox
from agent.transports.ddhub.receiving.our_keys import OurKeys
from agent.transports.ddhub.receiving.source import Source
from testbed.ddhub.clock import HubClock
from testbed.ddhub.gateway import Gateway
from testbed.ddhub.hub import OWNER, DataHub
from testbed.ddhub.settings import Settings
from tests.ddhub_keys import SMALL
from tests.runs import FakeClock, S, simple_run

ANYTHING = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}
_secrets = itertools.count(0x7001)
_topics = itertools.count()


class Receiver:
    """A participant of its own, with a folder, a topic, and senders that are in its file of keys.

    Its clock is the hub's. ``consumer`` is open within ``open``.
    """

    def __init__(self, hub: DataHub, clock: FakeClock, folder: Path) -> None:
        self.hub, self.clock, self.folder = hub, clock, folder
        secret = next(_secrets).to_bytes(32)
        self.signer = KeySigner(secret, network="volta")
        self.did = self.signer.did
        self.name = f"telemetry{next(_topics)}"
        self.topic_id = hub.add_topic(self.name, ANYTHING)
        self.state = folder / "state"
        self.ours: list[RsaKey] = [SMALL]
        self.rsa: RsaKey = SMALL  # for which others encrypt
        self.senders: list[Gateway] = []
        self.known: dict[str, Any] = {}
        hub.enrol(self.did)

    @classmethod
    @asynccontextmanager
    async def made(cls, hub: DataHub, clock: FakeClock, folder: Path) -> AsyncIterator[Receiver]:
        """One that can be sent to."""
        made = cls(hub, clock, folder)
        hub.served.clear()
        await hub.open_channel(made.did)
        yield made
        hub.faults.clear()
        for each in made.senders:
            await each.__aexit__(None, None, None)

    async def sender(self, *, known: bool = True) -> Gateway:
        """Another participant; ``known``: its key is in the file."""
        gateway = Gateway(self.hub.url, f"0x{next(_secrets):064x}", now=self.hub.clock.now)
        self.hub.enrol(gateway.did)
        await gateway.login()
        self.senders.append(gateway)
        if known:
            self.introduce(gateway)
        return gateway

    def introduce(self, gateway: Gateway) -> None:
        """Put a sender's key into the file of participants."""
        self.known[gateway.did] = {"signature": gateway.signature_key}
        draft = self.folder / "participants.new"
        draft.write_text(json.dumps(self.known))
        draft.replace(self.folder / "participants.json")

    # ---- sending ----

    async def send(self, sender: Gateway, *envelopes: bytes, **how: Any) -> Any:
        """An encrypted message to the receiver, a millisecond after the one before."""
        self.clock.now += 1_000_000
        text = payload.encode(envelopes)
        return await sender.send(self.topic_id, text, {self.did: public_pem(self.rsa)}, **how)

    async def post(self, sender: Gateway, text: str, **changes: Any) -> Any:
        """A message without a key, in clear unless ``changes`` say otherwise."""
        self.clock.now += 1_000_000
        body = {
            "fqcns": [self.did],
            "payload": text,
            "topicId": self.topic_id,
            "topicVersion": "1.0.0",
            "signature": sender.sign(text),
            "clientGatewayMessageId": str(uuid.uuid4()),
            "payloadEncryption": False,
        }
        return await sender.post("/messages", body | changes)

    async def send_encrypted(self, sender: Gateway, text: str, *, key: bytes, **changes: Any) -> str:
        """An encrypted message whose key does not come yet; returns its gateway id."""
        gateway_id = str(uuid.uuid4())
        sealed = cipher.encrypt(text, key)
        await self.post(sender, sealed, payloadEncryption=True, clientGatewayMessageId=gateway_id, **changes)
        return gateway_id

    async def send_key(self, sender: Gateway, gateway_id: str, key: bytes, *, rsa: RsaKey | None = None) -> None:
        """The key of a message."""
        wrapped = cipher.wrap(key, public_pem(rsa or self.rsa))
        await sender.post(
            "/messages/internal", {"fqcn": self.did, "clientGatewayMessageId": gateway_id, "payload": wrapped}
        )

    # ---- receiving ----

    @property
    def source(self) -> Source:
        """Where it receives from."""
        keys = KeySourceConfig.model_validate({"file": str(self.folder / "participants.json")})
        return Source(DdhubServer(url=self.hub.url), TopicName(OWNER, self.name), keys)

    @asynccontextmanager
    async def open(
        self,
        *senders: Gateway,
        folder: Path | None = None,
        keys: RenewedKeySource | None = None,
        every: float = 0.01,
    ) -> AsyncIterator[Consumer]:
        """As a process does that receives; without ``senders`` from all. Our RSA keys are in memory."""
        keys = keys or FileKeys(self.folder / "participants.json")
        ours = OurKeys(
            tuple(self.ours),
            read=lambda: tuple(self.ours),
            did=self.did,
            document=keys,
            may_lack_us=True,
            clock=self.clock,
        )
        with mailbox((folder or self.state) / "mailbox.db", did=self.did) as box:
            async with broker(self.source.server, signer=self.signer, clock=self.clock) as api:
                consumer = Consumer(
                    api,
                    topic=self.source.topic,
                    senders=[each.did for each in senders or self.senders],
                    mailbox=box,
                    keys=keys,
                    ours=ours,
                    clock=self.clock,
                    every=every,
                )
                try:
                    yield consumer
                finally:
                    consumer.close()

    async def stored(self) -> int:
        """How many messages lie in our stream."""
        return len(await self.hub.stored(self.did))


@asynccontextmanager
async def moving_hub(nats: str, **settings: Any) -> AsyncIterator[tuple[DataHub, FakeClock]]:
    """A hub, and the clock that it goes by."""
    clock = FakeClock()
    usual = {"fetch_wait_s": 0.3, "ack_wait_s": 1.0}
    async with DataHub(nats, settings=Settings(**(usual | settings)), clock=HubClock(lambda: clock.wall() / S)) as hub:
        yield hub, clock


async def collect(consumer: Consumer, clock: FakeClock | None = None, *, within: float = 20) -> list[Delivery]:
    """All that comes until nothing more is to be expected. ``clock``: what the hub fails is tried again, and what it
    may hold back is waited for.
    """
    found: list[Delivery] = []
    with anyio.fail_after(within):
        while True:
            try:
                async with aclosing(consumer.batches()) as batches:
                    async for batch in batches:
                        found += batch
                        await consumer.acknowledge(batch)
                        if consumer.settled:
                            return found
            except TransportError:
                if clock is None:
                    raise
                clock.now += 36 * S


async def rounds(consumer: Consumer, count: int = 1) -> list[Delivery]:
    """What so many searches yield; nothing is acknowledged."""
    found: list[Delivery] = []
    async with aclosing(consumer.batches()) as batches:
        for _ in range(count):
            found += await anext(batches)
    return found


def envelopes(deliveries: Iterable[Delivery]) -> list[bytes]:
    """Their records, in order."""
    return [envelope for each in deliveries for envelope in each.envelopes]


@functools.cache
def records(count: int) -> Sequence[bytes]:
    """Real ones, the same at each call."""
    return tuple(simple_run(2 * count).sent[:count])
