"""A life: one world, a sequence of faults that follows from a seed, and the oracle's word on all of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from testbed.account import Account
from testbed.campaign.faults import KINDS, Fault, pause
from testbed.campaign.world import World
from testbed.processes import ProcessError

RECOVERS_WITHIN = 60.0  # s


@dataclass(slots=True)
class Outcome:
    """What came of lives."""

    faults: dict[str, int] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)  # s from the last heal until all worked, by kind
    lives: int = 0
    ends: int = 0  # of the agent, by itself
    runs: int = 0
    records: int = 0
    frames: int = 0
    messages: int = 0
    lost: int = 0  # and stated nowhere
    doubled: int = 0
    wrong: int = 0  # values
    false_alarms: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Both together."""
        for kind, number in other.faults.items():
            self.faults[kind] = self.faults.get(kind, 0) + number
        for kind, seconds in other.slowest.items():
            self.slowest[kind] = max(self.slowest.get(kind, 0), seconds)
        for name in (
            "lives",
            "ends",
            "runs",
            "records",
            "frames",
            "messages",
            "lost",
            "doubled",
            "wrong",
            "false_alarms",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.findings += other.findings


def live(
    folder: Path, *, seed: int, faults: int, defect: str, kinds: Collection[str], say: Callable[[str], None]
) -> Outcome:
    """One life of so many faults. ``kinds``: only these; none: all. What goes wrong is in the findings. In one of four
    lives the agent goes on in memory while the disk fails.
    """
    outcome = Outcome(lives=1)
    try:
        with World(folder, defect=defect, memory=seed % 4 == 2) as world:
            world.begin()
            chance, waiting = random.Random(seed), list[Fault]()
            for together in waves(random.Random(chance.random()), faults, kinds):
                wave = [kind(world, random.Random(chance.random())) for kind in together]
                _play(wave, outcome, chance)
                waiting += wave
                if chance.random() < 0.5:
                    _recover(waiting, world, outcome, say)
                    waiting = []
            if waiting:
                _recover(waiting, world, outcome, say)
            try:
                world.settle_battery(timeout=RECOVERS_WITHIN / 2)
            except ProcessError as error:  # which ones, the oracle tells
                outcome.findings.append(str(error))
            world.wait_for_state(timeout=RECOVERS_WITHIN, failing=None)
            world.stop(timeout=20)
            lines = world.consumed(strict=False)
            _judge(world, world.judge(lines), lines[-1]["report"]["levels"], outcome)
    except (ProcessError, OSError) as error:
        outcome.findings.append(f"seed {seed}: {error}")
    return outcome


def waves(chance: random.Random, faults: int, kinds: Collection[str]) -> Iterator[list[type[Fault]]]:
    """Faults that overlap; all kinds have their turn."""
    wanted = [kind for kind in KINDS if not kinds or kind.kind in kinds]
    deck: list[type[Fault]] = []
    while faults > 0:
        wave: list[type[Fault]] = []
        for _ in range(min(faults, chance.choice((1, 2, 3, 4, 5)))):
            if not deck:
                deck = chance.sample(wanted, len(wanted))
            touched = frozenset[str]().union(*(kind.touches for kind in wave))
            fitting = next((kind for kind in deck if not kind.touches & touched), None)
            if fitting is None:
                break
            deck.remove(fitting)
            wave.append(fitting)
        faults -= len(wave)
        yield wave


def _play(wave: list[Fault], outcome: Outcome, chance: random.Random) -> None:
    for fault in wave:
        outcome.faults[fault.kind] = outcome.faults.get(fault.kind, 0) + 1
        fault.inject()
        pause(chance.uniform(0.0, 0.2))
    pause(chance.choice((0.1, 0.2, 0.5, 1.2)))
    for fault in chance.sample(wave, len(wave)):
        fault.heal()
        pause(chance.uniform(0.0, 0.1))


def _recover(wave: list[Fault], world: World, outcome: Outcome, say: Callable[[str], None]) -> None:
    healed = time.monotonic()
    world.recover(RECOVERS_WITHIN)
    took = time.monotonic() - healed
    for fault in wave:
        outcome.slowest[fault.kind] = max(took, outcome.slowest.get(fault.kind, 0))
    say(f"{', '.join(fault.kind for fault in wave)}: recovered in {took:.1f} s")


def _judge(world: World, account: Account, levels: dict[str, str], outcome: Outcome) -> None:
    outcome.runs, outcome.records, outcome.frames = account.runs, account.records, account.frames
    outcome.messages, outcome.ends = account.messages_delivered, len(world.died)
    outcome.lost = account.records_missing + account.cycles_missing + account.reads_lost + account.messages_lost
    outcome.doubled = account.doubled
    outcome.wrong = account.values_wrong
    outcome.findings += account.problems
    told = outcome.lost + outcome.doubled + outcome.wrong
    outcome.false_alarms = account.failed if told else max(account.failed, len(account.problems))
    bad = {level: word for level, word in levels.items() if word != "ok"}
    if bad:
        outcome.findings.append(f"the verifier says {bad}")
        outcome.false_alarms += not told
    if "Traceback" in (log := world.agent.log_path.read_text(encoding="utf-8", errors="replace")):
        outcome.findings.append("the agent raised: " + log[log.index("Traceback") :][:3000])
    if not account.values_checked:
        outcome.findings.append("nothing was checked")
