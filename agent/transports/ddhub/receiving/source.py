"""Where a participant receives from: a Data Hub, a topic, and where the keys of the senders come from.

``receiving`` puts together all that a reader needs (docs/consuming.md, "From a Data Hub").
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import to_thread
from pydantic import ValidationError

from agent.errors import SignerError
from agent.ports import Clock, Signer
from agent.transports.ddhub.broker import broker
from agent.transports.ddhub.config import DdhubConfig, DdhubServer, DdhubTopic, judge_did
from agent.transports.ddhub.keys.key_folder import KeyFolder
from agent.transports.ddhub.keys.key_source import open_key_source
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig
from agent.transports.ddhub.keys.network import participant
from agent.transports.ddhub.receiving.consumer import Consumer, TopicName
from agent.transports.ddhub.receiving.mailbox import mailbox
from agent.transports.ddhub.receiving.our_keys import OurKeys

SCHEMES = ("ddhub+https://", "ddhub+http://")
_EXAMPLE = "expected ddhub+https://HOST/OWNER/TOPIC"


@dataclass(frozen=True, slots=True)
class Source:
    """A topic of a Data Hub. ``keys``: where those of its senders come from."""

    server: DdhubServer
    topic: TopicName
    keys: KeySourceConfig = field(default_factory=KeySourceConfig)

    @classmethod
    def of(cls, channel: DdhubConfig) -> Source:
        """What others send on the topic of a channel."""
        topic = TopicName(channel.topic.owner, channel.topic.name)
        return cls(DdhubServer(url=channel.url, tls=channel.tls), topic, channel.keys)

    @classmethod
    def parse(cls, url: str, *, keys: KeySourceConfig | None = None, tls: Any = None) -> Source:
        """``ddhub+https://host[:port][/path]/OWNER/TOPIC``. Raises ValueError, which repeats no password."""
        if not url.startswith(SCHEMES):
            raise ValueError(f"not a source: {url.partition('@')[0]:.80}; {_EXAMPLE}")
        base, _, name = url.removeprefix("ddhub+").rpartition("/")
        base, _, owner = base.rpartition("/")
        try:
            server = DdhubServer.model_validate({"url": base, **({"tls": tls} if tls else {})})
            topic = DdhubTopic.model_validate({"owner": owner, "name": name, "version": "1.0.0"})
        except ValidationError as error:
            words = str(error.errors(include_url=False, include_input=False)[0]["msg"]).removeprefix("Value error, ")
            raise ValueError(f"{words}; {_EXAMPLE}") from None
        return cls(server, TopicName(topic.owner, topic.name), keys or KeySourceConfig())


@asynccontextmanager
async def receiving(
    source: Source,
    *,
    signer: Signer,
    senders: Iterable[str],
    folder: Path,
    clock: Clock,
    every: float = 10.0,
) -> AsyncIterator[Consumer]:
    """A consumer of a topic, as the participant whose key ``signer`` has, of what these ``senders`` (DIDs) send to it.

    ``folder``: holds our RSA keys (``edge-agent ddhub keys``) and a mailbox for each topic, which one process at a time
    reads. ``every``: s between searches that find nothing. The broker is asked when the consumer is. Raises ValueError
    (a DID), MailboxError, SignerError, TransportError (a certificate).
    """
    who = participant(signer.did)
    accepted = [judge_did(each) for each in senders]
    if not accepted:
        raise ValueError("say whose messages are to be received")
    if any(participant(each).network != who.network for each in accepted):
        raise ValueError(f"a Data Hub knows one network, ours is {who.network.name}; correct the DIDs")
    keys = open_key_source(source.keys, signer=signer, clock=clock)
    rsa = KeyFolder(folder, signer)
    private = (await to_thread.run_sync(rsa.read)).private
    if not private:
        hint = "make and publish one with `edge-agent ddhub keys --send`; senders encrypt for it"
        raise SignerError(f"there is no RSA key of ours in {folder}", hint=hint)
    ours = OurKeys(
        private,
        read=lambda: rsa.read().private,
        did=who.did,
        document=keys,
        may_lack_us=source.keys.file is not None,
        clock=clock,
    )
    with mailbox(folder / f"mailbox.{source.topic.in_file_names}.db", did=who.did) as box:
        async with broker(source.server, signer=signer, clock=clock) as api:
            consumer = Consumer(
                api,
                topic=source.topic,
                senders=accepted,
                mailbox=box,
                keys=keys,
                ours=ours,
                clock=clock,
                every=every,
            )
            try:
                yield consumer
            finally:
                consumer.close()
