"""``check --online``: tries the key and each broker, device and secret of a configuration once, all at the same time.

Publishes nothing and seals nothing. A device is read as the agent reads it, a source of messages is subscribed to and
not listened to, as a visitor where its adapter knows that. What was found is a line each, in the order of the
configuration; nothing here raises for what it found.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import anyio
from anyio import to_thread

from agent import kinds
from agent.clock import SystemClock
from agent.config.each_of import each_of
from agent.config.effective import AdapterPlan, Channel, Config
from agent.config.tables import Identity
from agent.errors import AcquisitionError, AgentError, Reason, SecretError, SignerError, TransportError
from agent.model import Sample
from agent.ports import PolledDevice, Signer
from agent.secret import Secret
from agent.signer import open_signer
from agent.transports.facts import BrokerFacts

WITHIN = 15.0  # s, for each, and so for all


@dataclass(frozen=True, slots=True)
class Tried:
    """What trying one thing showed. ``unreachable``: it is a broker that was not reached, or let us not in; ``denied``:
    this user may not read what is needed for it.
    """

    what: str
    words: str
    good: bool = True
    unreachable: bool = False
    denied: bool = False
    takes: int | None = None  # of a broker: bytes of the largest envelope
    facts: BrokerFacts | None = None  # of a broker, if they were asked for

    def as_json(self) -> dict[str, str | bool]:
        """For programs."""
        return {"what": self.what, "good": self.good, "words": self.words}

    def __str__(self) -> str:
        return f"{self.what}: {'good: ' if self.good else ''}{self.words}"


@dataclass(frozen=True, slots=True)
class _Trial:
    what: str
    run: Callable[[str], Awaitable[Tried]]  # given its name; may raise AgentError
    is_broker: bool = False


@dataclass(frozen=True, slots=True)
class Looks:
    """What is tried beside key and secrets. ``facts``: brokers are asked for their limits, too."""

    brokers: bool = True
    devices: bool = True
    facts: bool = False


EVERYTHING = Looks()


async def try_all(config: Config, *, within: float = WITHIN, looks: Looks = EVERYTHING) -> list[Tried]:
    """Try everything that is to be looked at; returns after ``within`` seconds at the latest, but for what must be
    closed.
    """
    trials = [*_trials(config, looks)]
    found: dict[int, Tried] = {}

    async def run(index: int, trial: _Trial) -> None:
        words, unreachable, denied = f"no answer within {within:g} s", trial.is_broker, False
        with anyio.move_on_after(within):
            try:
                found[index] = await trial.run(trial.what)
            except AgentError as error:
                words, denied = _words(error), _denied(error)
                unreachable = trial.is_broker and not isinstance(error.__cause__, SecretError)
        found.setdefault(index, Tried(trial.what, words, good=False, unreachable=unreachable, denied=denied))

    async with anyio.create_task_group() as tasks:
        for index, trial in enumerate(trials):
            tasks.start_soon(run, index, trial)
    return [found[index] for index in range(len(trials))]


def _trials(config: Config, looks: Looks) -> Iterator[_Trial]:
    yield _Trial("identity", partial(_identity, config.identity))
    for what, secret in secrets_of(config):
        yield _Trial(what, partial(_secret, secret))
    for channel in config.channels if looks.brokers else ():
        yield _Trial(
            f"channel {channel.id}", partial(_broker, config.identity, channel, with_facts=looks.facts), is_broker=True
        )
    for plan in config.adapters():
        opened = _Opened(plan, config)
        if opened.is_subscribed and looks.brokers:
            yield _Trial(f"connection {plan.name}", opened.subscribe, is_broker=True)
        elif not opened.is_subscribed and looks.devices:
            for index, device in enumerate(plan.devices):
                yield _Trial(f"device {device.config.id}", partial(opened.read, index))


# ---- key and secrets --------------------------------------------------------------------------------------------


async def _identity(identity: Identity, what: str) -> Tried:
    """Open the key; a credential can be opened where systemd gave it only, in the service. Raises SignerError."""
    if _is_elsewhere(identity):
        return Tried(what, f"{identity.key} is given to the service alone, and was not tried")
    return Tried(what, f"{identity.key} holds the key of {(await _opened(identity)).did}")


def _is_elsewhere(identity: Identity) -> bool:
    return identity.key.kind == "credential" and not os.environ.get("CREDENTIALS_DIRECTORY")


async def _opened(identity: Identity) -> Signer:
    opened = partial(open_signer, identity.key, passphrase=identity.passphrase, did=identity.did, any_owner=True)
    return await to_thread.run_sync(opened, abandon_on_cancel=True)


def secrets_of(config: Config) -> Iterator[tuple[str, Secret]]:
    """Those in the tables of connections, devices, channels and the agent, and where each stands."""
    for plan in config.adapters():
        yield from each_of(plan.connection, Secret, at=f"connection {plan.name}")
        for device in plan.devices:
            yield from each_of(device.config, Secret, at=f"device {device.config.id}")
    for channel in config.channels:
        yield from each_of(channel.settings, Secret, at=f"channel {channel.id}")
    yield from each_of(config.agent.token, Secret, at="agent: token")


async def _secret(secret: Secret, what: str) -> Tried:
    """Raises SecretError."""
    await to_thread.run_sync(secret.read, abandon_on_cancel=True)
    return Tried(what, f"{secret} can be read" + (", but so can every user of this machine" if secret.is_open else ""))


# ---- brokers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _NoKey:
    """The signer of a box whose key cannot be opened: most brokers do not ask for it."""

    error: SignerError

    @property
    def did(self) -> str:
        raise self._raised()

    def sign(self, digest: bytes) -> bytes:
        raise self._raised()

    def _raised(self) -> TransportError:
        return TransportError(f"the key is needed to log in: {self.error}", hint=self.error.hint, reason=Reason.SECRET)


async def _broker(identity: Identity, channel: Channel, what: str, *, with_facts: bool) -> Tried:
    """Connect to each of the servers; one that is as it should be is enough."""
    settings = channel.settings.visitor() if hasattr(channel.settings, "visitor") else channel.settings
    signer: Signer
    try:
        signer = await _opened(identity)
    except SignerError as error:
        signer = _NoKey(error)
    try:
        transport = kinds.load(channel.transport)(settings, topic=channel.topic, signer=signer, clock=SystemClock())
    except TransportError as error:
        if _is_elsewhere(identity):
            return Tried(what, f"{identity.key} is given to the service alone, and logs in there only: not tried")
        return Tried(what, _words(error), good=False)
    found = list[Tried]()

    async def connect() -> None:  # each session goes to the next server
        reached = False
        try:
            async with transport.session() as session:
                reached = True
                words = f"{channel.topic} is taken"
                last = await session.last() if transport.reads_back else None
                if transport.reads_back:
                    words += ", nothing there yet" if last is None else ", can be read back"
                words += f"; {remark}" if (remark := getattr(session, "remark", "")) else ""
                facts = None
                if with_facts and hasattr(session, "facts"):
                    told = None if last is None or last.resent else last.envelope
                    facts = replace(await session.facts(), last=told)
                found.append(Tried(what, words, takes=transport.max_envelope, facts=facts))
        except TransportError as error:
            unreachable = not reached and error.reason is not Reason.SECRET
            denied = _denied(error)
            found.append(Tried(what, _words(error), good=False, unreachable=unreachable, denied=denied))

    async with anyio.create_task_group() as tasks:
        for _ in range(len(getattr(channel.settings, "servers", "1"))):
            tasks.start_soon(connect)
    found.sort(key=lambda each: (not each.good, each.unreachable))
    best, others = found[0], [each.words for each in found[1:] if each.words != found[0].words]
    words = f"{best.words} (another server: {' / '.join(others)})" if others else best.words
    return replace(best, words=words)


# ---- devices ----------------------------------------------------------------------------------------------------


class _Opened:
    """The adapter of a connection while its devices are tried; the last one closes it."""

    def __init__(self, plan: AdapterPlan, config: Config) -> None:
        self._plan = plan
        self._adapter = config.adapter(plan, SystemClock(), visitor=True)
        self._left = len(plan.devices)
        self.is_subscribed = hasattr(self._adapter, "subscribe")

    async def read(self, index: int, what: str) -> Tried:
        """Read each group of a device once."""
        try:
            return await self._read(self._adapter.devices[index], [*self._plan.devices[index].groups], what)
        finally:
            self._left -= 1
            if not self._left:
                await self._close()

    async def _read(self, device: PolledDevice, groups: list[str], what: str) -> Tried:
        values, good, failed = 0, 0, list[str]()
        for group in groups:
            try:
                await device.prepare()
                sample: Sample = await device.acquire(group)
            except AcquisitionError as error:
                failed.append(f"{group}: {error.cause.name.lower()}: {_words(error)}")
            else:
                values += len(sample.values)
                good += len(sample.values) - len(sample.quality)
        if failed:
            return Tried(what, " / ".join(dict.fromkeys(failed)), good=False)
        return Tried(what, f"{good} of {values} values read are good" if good < values else f"{values} values read")

    async def subscribe(self, what: str) -> Tried:
        """Connect and subscribe. Raises AcquisitionError, SecretError."""
        try:
            async with self._adapter.subscribe():
                names = ", ".join(device.config.id for device in self._plan.devices)
                return Tried(what, f"subscribed for {names}; messages are not waited for")
        finally:
            await self._close()

    async def _close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._adapter.close()


def _denied(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, PermissionError):
        error = error.__cause__
    return error is not None


def _words(error: AgentError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)
