"""Our RSA keys while we receive: who receives with another key than others encrypt for is told so."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from Crypto.PublicKey.RSA import RsaKey

from agent.errors import TransportError
from agent.transports.ddhub.keys.participant import ParticipantError, ParticipantKeys
from agent.transports.ddhub.keys.rsa_key import public_pem
from agent.transports.ddhub.receiving.our_keys import OurKeys
from tests.ddhub_keys import MINE, SMALL
from tests.runs import DID, FakeClock, S

pytestmark = pytest.mark.anyio
HOUR = 3600 * S


class Document:
    """What is published for us, None: it is not known; and how often somebody looked."""

    def __init__(self, text: str | Exception | None) -> None:
        self.text = text
        self.looks = 0

    async def keys(self, did: str) -> ParticipantKeys:
        self.looks += 1
        if isinstance(self.text, Exception):
            raise self.text
        return ParticipantKeys("0x04", self.text)


class World:
    """Our keys, what the folder holds, and the log."""

    def __init__(self, caplog: pytest.LogCaptureFixture, text: str | Exception | None, *, may_lack_us: bool) -> None:
        caplog.set_level(logging.INFO)
        self.caplog = caplog
        self.clock = FakeClock()
        self.folder: list[RsaKey] = [SMALL]
        self.document = Document(text)
        self.keys = OurKeys(
            [SMALL],
            read=lambda: tuple(self.folder),
            did=DID,
            document=self.document,
            may_lack_us=may_lack_us,
            clock=self.clock,
        )

    async def look(self, *, after: int = 0) -> list[str]:
        """What the log says of a look."""
        self.clock.now += after
        self.caplog.clear()
        await self.keys.look()
        return [each.getMessage() for each in self.caplog.records]


Make = Callable[..., World]


@pytest.fixture
def make(caplog: pytest.LogCaptureFixture) -> Make:
    return lambda text, *, may_lack_us=False: World(caplog, text, may_lack_us=may_lack_us)


async def test_a_key_that_we_hold_is_no_word_worth(make: Make) -> None:
    world = make(public_pem(SMALL))
    assert await world.look() == await world.look(after=HOUR) == []
    assert await world.look(after=HOUR - S) == []
    assert world.document.looks == 2, "once an hour"


async def test_a_key_that_we_do_not_hold_is_told_once_and_that_it_is_well_again(make: Make) -> None:
    world = make(public_pem(MINE))
    (line,) = await world.look()
    assert line.startswith("others encrypt for an RSA key that we do not hold, and nothing that they send can be read")
    assert f"did={DID} published=" in line
    assert "hint=publish ours with `edge-agent ddhub keys --send`, or bring the file of that key" in line
    assert await world.look(after=HOUR) == []
    world.document.text = public_pem(SMALL)
    assert await world.look(after=HOUR) == ["others encrypt for an RSA key of ours again"]
    world.document.text = public_pem(MINE)
    assert len(await world.look(after=HOUR)) == 1


async def test_a_key_that_was_made_and_published_meanwhile_is_found(make: Make) -> None:
    world = make(public_pem(MINE))
    world.folder.insert(0, MINE)
    assert await world.look() == []
    assert world.keys.private == (MINE, SMALL)


@pytest.mark.parametrize("text", [None, ParticipantError(f"{DID} has published no key")])
async def test_nothing_published_is_told_but_not_of_a_file_of_the_others(
    make: Make, text: str | Exception | None
) -> None:
    world = make(text)
    (line,) = await world.look()
    assert line.startswith(f"no RSA key is published for us, and nobody can encrypt for us did={DID} hint=publish ours")
    assert await world.look(after=HOUR) == []
    assert await make(text, may_lack_us=True).look() == []


async def test_nobody_can_be_asked(make: Make) -> None:
    world = make(TransportError("down"))
    assert await world.look() == await world.look(after=599 * S) == []
    world.document.text = public_pem(MINE)
    assert len(await world.look(after=S)) == 1, "it is asked again before an hour is over"
