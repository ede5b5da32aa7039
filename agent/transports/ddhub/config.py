"""What a channel with ``transport = "ddhub"`` says besides the keys that all channels have.

Kept apart from the transport so that a configuration is judged without importing an HTTP client or cryptography. No
secret stands in it, only what leads to one.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from agent.fields import SOME, Problems, Table
from agent.tls import Tls
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig, judge_http
from agent.transports.ddhub.keys.network import NETWORKS, canonical
from agent.units import Duration, S, Size, duration_range, size_range

Padding = Literal["oaep", "pkcs1v15"]

_DID = re.compile(rf"did:ethr:(?:{'|'.join(NETWORKS)}):0x([0-9A-Fa-f]{{40}})")
_OWNER = re.compile(r"[^\s/\x00-\x1f\x7f]{1,200}\.ewc")
_TOPIC = re.compile(r"[A-Za-z0-9_]{1,255}")
_VERSION = re.compile(r"(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8})){2}", re.ASCII)
_ROLE = re.compile(r"[^\s/&?#.\x00-\x1f\x7f]+(\.[^\s/&?#.\x00-\x1f\x7f]+)+")


def judge_url(url: str) -> str:
    """The address below which a Data Hub answers, without a slash at its end. Raises ValueError, which does not repeat
    it: it may hold a password.
    """
    judge_http(url, example="https://ddhub.example", instead="the agent logs in with its key, remove it")
    if "?" in url:
        raise ValueError('what stands behind the ? is no part of it; write it like "https://ddhub.example"')
    return url.rstrip("/")


def judge_did(did: str) -> str:
    """The DID of a participant exactly as the Data Hub writes it: it compares them as texts. Raises ValueError."""
    match = _DID.fullmatch(did)
    if match is None:
        networks = " or ".join(NETWORKS)
        raise ValueError(
            f'"{did:.80}" is no DID of a participant; write "did:ethr:NETWORK:0x" and 40 hex digits, NETWORK {networks}'
        )
    right = canonical(did)
    if right != did:
        mixed = match[1] not in (match[1].lower(), match[1].upper())
        what = (
            "has a wrong checksum (EIP-55), a digit or a capital is mistyped" if mixed else "has no checksum (EIP-55)"
        )
        raise ValueError(f'"{did}" {what}; if the digits are right, write "{right}"')
    return did


def _owner(name: str) -> str:
    if not _OWNER.fullmatch(name):
        raise ValueError(
            f'"{name:.80}" is no owner of a topic; write its namespace, such as "edge.apps.example.iam.ewc"'
        )
    return name


def _topic(name: str) -> str:
    if not _TOPIC.fullmatch(name):
        raise ValueError(f'"{name:.80}" is no name that every broker and gateway takes; write letters, digits and _')
    return name


def _version(text: str) -> str:
    if not _VERSION.fullmatch(text):
        raise ValueError(f'"{text:.40}" is no version of a topic; write three numbers, such as "1.0.0"')
    return text


def _role(name: str) -> str:
    if not _ROLE.fullmatch(name):
        raise ValueError(f'"{name:.80}" is no role; write it like "market.roles.edge.apps.example.iam.ewc"')
    return name


class DdhubTopic(Table):
    """A topic and the version of its schema that we send by."""

    owner: Annotated[str, AfterValidator(_owner)]
    name: Annotated[str, AfterValidator(_topic)]
    version: Annotated[str, AfterValidator(_version)]

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}/{self.version}"


class DdhubRecipient(Table):
    """A participant that gets what the channel sends. ``padding``: how its key of each message is wrapped; client
    gateways up to 1.9.1 read PKCS#1 v1.5 only, later ones OAEP only, and nothing on the wire tells.
    """

    did: Annotated[str, AfterValidator(judge_did)]
    padding: Padding = "oaep"


def _recipient(value: Any) -> Any:
    return {"did": value} if isinstance(value, str) else value


def _recipient_text(recipient: DdhubRecipient) -> str | dict[str, str]:
    return recipient.did if recipient.padding == "oaep" else {"did": recipient.did, "padding": recipient.padding}


_RECIPIENT_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": f"^{_DID.pattern}$"},
        {
            "type": "object",
            "properties": {
                "did": {"type": "string", "pattern": f"^{_DID.pattern}$"},
                "padding": {"enum": ["oaep", "pkcs1v15"], "default": "oaep"},
            },
            "required": ["did"],
            "additionalProperties": False,
        },
    ]
}

Recipient = Annotated[
    DdhubRecipient,
    BeforeValidator(_recipient),
    PlainSerializer(_recipient_text, when_used="json"),
    WithJsonSchema(_RECIPIENT_SCHEMA),
]
"""In the file a DID, or a table where there is more to say."""


class DdhubServer(Table):
    """Where a Data Hub is: the same address for logging in and for the broker."""

    url: Annotated[str, AfterValidator(judge_url)]
    tls: Tls | None = None

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return self.url.startswith("https://")

    @model_validator(mode="after")
    def _judge(self) -> DdhubServer:
        problems = Problems()
        self._judge_together(problems)
        problems.raise_any(type(self).__name__)
        return self

    def _judge_together(self, problems: Problems) -> None:
        if self.tls is not None and not self.secure:
            problems.add("http:// is not encrypted; write https:// in url, or remove it", "tls")


class DdhubConfig(DdhubServer):
    """Energy Web's Data Hub: which topic the records go to, and who gets them.

    ``recipients``, and whoever holds one of ``roles``. ``send_every`` in ns: records of this span travel in one
    message; ``max_message``: bytes that one may have as it is sent, encrypted.
    """

    topic: DdhubTopic
    keys: KeySourceConfig = Field(default_factory=KeySourceConfig)
    recipients: Annotated[tuple[Recipient, ...], Field(strict=False), SOME] | None = None
    roles: Annotated[tuple[Annotated[str, AfterValidator(_role)], ...], Field(strict=False), SOME] | None = None
    send_every: Annotated[Duration, duration_range("1s", "6h")] = 300 * S
    max_message: Annotated[Size, size_range("64KiB", "8MiB")] = 450 * 1024
    on_recipient_failure: Literal["wait", "skip"] = "wait"

    destination_key: ClassVar[str] = "topic"
    shares_destination: ClassVar[bool] = True
    """Several channels may write to one topic: nothing is read back from it, and recipients tell runs apart."""

    is_visitor: ClassVar[bool] = False
    """Looks and sends nothing."""

    @property
    def max_envelope(self) -> int:
        """Bytes of the largest envelope that fits into a message."""
        from agent.transports.ddhub.content.payload import largest_envelope  # not for who only judges a configuration

        return largest_envelope(self.max_message)

    def visitor(self) -> DdhubConfig:
        """The same for who only looks whether all is well."""
        return DdhubVisitor.model_construct(**dict(iter(self)))  # dict(self) would ask for its keys

    def destination(self, *, site: str, channel: str) -> str:
        """Where a channel's records go, as plans state it. Never raises; the ids do not matter."""
        return str(self.topic)

    def _judge_together(self, problems: Problems) -> None:
        super()._judge_together(problems)
        if self.recipients is None and self.roles is None:
            problems.add('nobody would get anything; name DIDs, or roles = ["ROLE"]', "recipients")
        seen, networks = dict[str, int](), set[str]()
        for index, recipient in enumerate(self.recipients or ()):
            network, _, address = recipient.did.removeprefix("did:ethr:").partition(":")
            if address in seen:
                problems.add("this recipient is there twice; leave one out", "recipients", index)
            elif networks and network not in networks:
                first = next(iter(networks))
                problems.add(
                    f"it is on {network}, the first one on {first}; a Data Hub knows one network, correct one of them",
                    "recipients",
                    index,
                )
            seen[address] = index
            networks.add(network)


class DdhubVisitor(DdhubConfig):
    """``DdhubConfig.visitor``."""

    is_visitor: ClassVar[bool] = True
