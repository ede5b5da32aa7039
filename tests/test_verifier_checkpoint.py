"""A verifier that stops and goes on says what one says that never stopped (docs/evidence.md section 6)."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import CheckpointError
from agent.model import Cause, ClockQuality, ClockState, EventCode, Gap
from agent.rendering import account
from agent.verifier import Verifier
from tests.runs import DID, FakeClock, Run, S, frame, group, simple_run


def histories(chance: random.Random) -> list[bytes]:
    """Runs with gaps, events, withdrawn records, a store that forgot, holes, repeats, and what comes out of order."""
    runs: list[Run] = []
    for number in range(4):
        begin = 100 + 100 * number
        run = Run(after=runs[-1] if runs else None, clock=FakeClock(boot=(900 + begin) * S))
        run.clock.good = chance.choice([ClockQuality(ClockState.SYNCHRONISED, 900), ClockQuality()])
        run.begin([group(begin, anchor=(900 + begin) * S)])
        run.event(EventCode.START, "0.1.0", True)
        for cycle in range(begin, begin + 80):
            run.clock.now = (900 + cycle) * S
            if chance.random() < 0.9:
                run.data([frame(cycle)])
            else:
                run.data([], [Gap(0, cycle, cycle, Cause.DEVICE_TIMEOUT)])
            if chance.random() < 0.1:
                run.plan()
        if chance.random() < 0.3:
            run.withdraw(3, 9, Cause.OVERFLOW)
            run.plan()
        runs.append(run)
    sent = [envelope for run in runs for envelope in run.sent if chance.random() < 0.95]
    sent += chance.sample(sent, 20)
    return [envelope for _, envelope in sorted((i + chance.random() * 40, e) for i, e in enumerate(sent))]


def account_of(sent: Sequence[bytes], *, stops: Collection[int] = ()) -> object:
    verifier = Verifier([DID])
    for i, envelope in enumerate(sent):
        if i in stops:
            verifier = Verifier([DID], saved=verifier.save())
        verifier.feed(envelope)
    saved = verifier.save()
    assert Verifier([DID], saved=saved).save() == saved
    verifier.finish(complete=True)
    return account.as_json(verifier.report)


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_stopping_changes_nothing(seed: int) -> None:
    chance = random.Random(seed)
    sent = histories(chance)
    stops = {chance.randrange(len(sent)) for _ in range(5)}
    assert account_of(sent, stops=stops) == account_of(sent)


def test_gaps_in_time_and_qualities_are_kept() -> None:
    run = Run()
    run.begin([group(100)])
    run.data([frame(100)], [Gap(0, 101, 104, Cause.LINK_DOWN, "gone")])
    assert account_of(run.sent, stops={1, 2}) == account_of(run.sent)


def test_a_damaged_checkpoint_is_refused() -> None:
    verifier = Verifier([DID])
    for envelope in simple_run(10).sent:
        verifier.feed(envelope)
    saved = verifier.save()
    for position in range(len(saved)):
        broken = bytearray(saved)
        broken[position] ^= 1
        with pytest.raises(CheckpointError):
            Verifier([DID], saved=bytes(broken))
    for length in range(0, len(saved), 7):
        with pytest.raises(CheckpointError):
            Verifier([DID], saved=saved[:length])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_checkpoint_or_an_error(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        Verifier([DID], saved=data)


def test_a_checkpoint_of_a_newer_format_is_refused() -> None:
    _, digest, state = cbor2.loads(Verifier([DID]).save())
    with pytest.raises(CheckpointError, match="format 2"):
        Verifier([DID], saved=cbor2.dumps([2, digest, state]))
