"""A hub, participants and messages for the tests of the fake Data Hub.

A module takes the fixtures by name: ``hub, alice = ddhub_world.hub, ddhub_world.alice``.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from testbed.ddhub.gateway import Gateway
from testbed.ddhub.hub import DataHub
from testbed.ddhub.settings import Settings
from testbed.processes import NatsServer

VECTORS = json.loads((Path(__file__).parent / "vectors" / "ddhub.json").read_bytes())
IDENTITIES = json.loads((Path(__file__).parent / "vectors" / "identity.json").read_bytes())
ALICE, BOB = "0x" + "11" * 32, "0x" + "22" * 32
UUID4 = "0b271eb8-1e21-4817-95af-7951649360ed"
NOWHERE = "http://127.0.0.1:9"
numbers = itertools.count(1000)  # private keys that nobody has yet


def message(topic: str, *recipients: str, **changes: Any) -> dict[str, Any]:
    """A request of POST /messages; what is changed to None is left out."""
    usual = {
        "fqcns": [*recipients],
        "payload": "00:11",
        "topicId": topic,
        "topicVersion": "1.0.0",
        "signature": "0x12",
        "clientGatewayMessageId": UUID4,
        "payloadEncryption": True,
    }
    return {name: value for name, value in (usual | changes).items() if value is not None}


def told(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message of an error of the broker."""
    body = answer.json()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\[UTC\]", body["timestamp"])
    assert answer.text.startswith('{"returnCode":')
    return answer.status_code, body["returnCode"], body["returnMessage"]


def siwe(who: Gateway, uri: str, nonce: str) -> dict[str, str]:
    """A signed EIP-4361 message without a statement."""
    text = (
        f"here.example wants you to sign in with your Ethereum account:\n{who.address}\n\n\n"
        f"URI: {uri}\nVersion: 1\nChain ID: 73799\nNonce: {nonce}\nIssued At: 2025-01-01T00:00:00.000Z"
    )
    return {"message": text, "signature": "0x" + who.personal_sign(text)}


def participant(hub: DataHub) -> Gateway:
    """One that nobody else is, enrolled but not logged in."""
    gateway = Gateway(hub.url, f"0x{next(numbers):064x}", now=hub.clock.now)
    hub.enrol(gateway.did)
    return gateway


@pytest.fixture(scope="module")
async def hub(server: NatsServer) -> AsyncIterator[DataHub]:
    """One for a module, whose searches do not wait for long."""
    async with DataHub(server.url, settings=Settings(fetch_wait_s=0.3)) as hub:
        yield hub


@pytest.fixture
async def alice(hub: DataHub) -> AsyncIterator[Gateway]:
    """A participant who has logged in; faults that her test put are gone after it."""
    async with participant(hub) as alice:
        await alice.login()
        yield alice
    hub.faults.clear()


@pytest.fixture
async def bob(hub: DataHub) -> AsyncIterator[Gateway]:
    """Another one."""
    async with participant(hub) as bob:
        await bob.login()
        yield bob
