"""Which looks there are for a case, in the order in which they are told."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import anyio

from agent import __version__
from agent.config import Config
from agent.config.each_of import each_of
from agent.config.effective import AdapterPlan
from agent.doctor import (
    brokers,
    case,
    certificates,
    clock,
    names,
    outboxes,
    rights,
    serial,
    service,
    storage,
    system,
    wear,
)
from agent.doctor.case import Case
from agent.doctor.examination import Look, in_time
from agent.doctor.finding import Finding, note
from agent.errors import ConfigError, EvidenceError, SignerError
from agent.foresight.forecast import Forecast
from agent.foresight.probe import Looks, secrets_of, try_all
from agent.foresight.prospect import Prospect, prospect, with_sizes
from agent.signer import open_signer
from agent.tls import Tls
from agent.transports.facts import BrokerFacts

_FORESEE = 30.0  # s: a slow box plays a large configuration through
_ONLINE = 20.0  # s, a little more than agent/foresight/probe.py takes
_TLS_AT_ONCE, _MQTTS = ("mqtts",), 8883  # connections whose certificate is looked at here


def looks(found: Case, *, offline: bool) -> list[Look]:
    """All of them; ``offline``: no broker, device or name server is asked."""
    config = found.config
    foreseen = None if config is None else _Foreseen(config)
    done = [
        Look("configuration", partial(_configuration, found, foreseen), within=_FORESEE),
        Look("clock", lambda: clock.judge(clock.look())),
        Look("state folder", partial(_storage, found)),
        Look("files", partial(_rights, found)),
        Look("outboxes", partial(_around, found)),
        Look("agent", partial(_service, found), within=20),
        Look("system", lambda: system.judge(system.look())),
    ]
    if config is None or foreseen is None:
        return done
    done[3:3] = [Look("disk", partial(_wear, config, foreseen), within=_FORESEE)]
    done.append(Look("certificates", partial(_certificates, config)))
    done += [Look(what, partial(_port, config, what, path)) for what, path in serial.ports(config)]
    if offline:
        done.append(Look("key and secrets", partial(_offline, config), within=_ONLINE))
        done += [Look(f"outbox {each.id}", partial(_outbox, config, each.id)) for each in config.channels]
        return done
    done += [Look(f"name {host}", partial(_name, host)) for host in names.hosts(config)]
    done.append(Look("brokers and devices", partial(_online, found, config, foreseen), within=_FORESEE + _ONLINE))
    return done


class _Foreseen:
    """What a configuration comes to, made once for all looks that need it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = Lock()
        self._found: Prospect | ConfigError | None = None

    def prospect(self) -> Prospect:
        """Blocks. Raises ConfigError."""
        with self._lock:
            if self._found is None:
                try:
                    self._found = anyio.run(prospect, self._config)
                except ConfigError as error:
                    self._found = error
        if isinstance(self._found, ConfigError):
            raise self._found
        return self._found

    def forecasts(self) -> Mapping[str, Forecast]:
        """By channel; {} where the configuration is refused, which is told elsewhere. Blocks."""
        try:
            return self.prospect().forecasts
        except ConfigError:
            return {}


# ---- this box ---------------------------------------------------------------------------------------------------


def _configuration(found: Case, foreseen: _Foreseen | None) -> Iterator[Finding]:
    """Also what a start would refuse though the file is good."""
    if foreseen is not None:
        try:
            foreseen.prospect()
        except ConfigError as error:
            found = replace(found, config=None, problems=error.problems)
    yield from case.judge(found)


def _storage(found: Case) -> Iterator[Finding]:
    sizes = {} if found.config is None else {each.id: each.outbox.size for each in found.config.channels}
    yield from storage.judge(storage.look(found.agent.state, sizes))


def _wear(config: Config, foreseen: _Foreseen) -> Iterator[Finding]:
    forecasts = foreseen.forecasts()
    yield from wear.judge(wear.look(config.agent.state, wear.written(forecasts.values()) if forecasts else None))


def _rights(found: Case) -> Iterator[Finding]:
    who = rights.Who.owner_of(found.agent.state)
    seen, hidden = list[rights.FileFacts](), list[str]()
    for role, what, path in _files(found):
        try:
            seen.append(rights.look(role, what, path, who))
        except PermissionError:
            hidden.append(str(path))
    yield from rights.judge(seen, who)
    if hidden:
        words = f"not seen by this user: {', '.join(hidden)}"
        yield note("files", words, why="their owners and rights are not known", remedy="sudo edge-agent doctor")


def _files(found: Case) -> Iterator[tuple[str, str, Path]]:
    yield "configuration", "configuration", found.path
    yield "state", "state folder", found.agent.state
    if found.agent.socket is not None:
        yield "socket", "socket", found.agent.socket
    config = found.config
    if config is None:
        return
    for path in config.files[1:]:
        yield "configuration", "configuration", path
    if config.identity.key.kind != "credential":
        yield "key", "key", config.identity.key.path
    passphrase = config.identity.passphrase
    named = [("identity: passphrase", passphrase)] if passphrase is not None else []
    for what, secret in [*named, *secrets_of(config)]:
        if secret.file is not None:
            yield "secret", what, Path(secret.file)
    for what, table in _tls(config):
        for name, certificate in (("ca", table.ca), ("cert", table.cert)):
            if certificate is not None:
                yield "certificate", f"{what}: {name}", certificate
    for channel in config.channels:
        yield "outbox", f"outbox {channel.id}", config.agent.state / f"{channel.id}.ring"


def _tls(config: Config) -> Iterator[tuple[str, Tls]]:
    for plan in config.adapters():
        yield from each_of(plan.connection, Tls, at=f"connection {plan.name}")
    for channel in config.channels:
        yield from each_of(channel.settings, Tls, at=f"channel {channel.id}")


def _around(found: Case) -> Iterator[Finding]:
    channels = [] if found.config is None else [each.id for each in found.config.channels]
    try:
        facts = outboxes.look_around(found.agent.state, channels)
    except (FileNotFoundError, NotADirectoryError):
        return  # told with the folder
    if found.config is None:
        facts = replace(facts, strays=())
    yield from outboxes.judge_around(facts)


def _service(found: Case) -> Iterator[Finding]:
    told = service.look(__version__, found.status, found.silence, found.hint, denied=found.denied, hangs=found.hangs)
    yield from service.judge(told)


def _certificates(config: Config) -> Iterator[Finding]:
    for what, table in _tls(config):
        for facts in certificates.look(what, table):
            yield from certificates.judge(facts, time.time())


def _port(config: Config, what: str, path: Path) -> Iterator[Finding]:
    who = rights.Who.owner_of(config.agent.state)
    yield from serial.judge(serial.look(what, path, who))


def _outbox(config: Config, channel: str, last: outboxes.Sealed | None = None) -> Iterator[Finding]:
    facts = outboxes.look_at(config.agent.state / f"{channel}.ring", channel)
    yield from outboxes.judge(facts, did=_did(config), now=time.time(), last=last)


def _did(config: Config) -> str | None:
    """Whose key this box has: as configured, else as the key says if we may open it."""
    identity = config.identity
    if identity.did is not None or identity.key.kind != "file":
        return identity.did
    try:
        return in_time(5, lambda: open_signer(identity.key, any_owner=True).did)
    except (SignerError, TimeoutError):
        return None


# ---- what the configuration names -------------------------------------------------------------------------------


def _name(host: str) -> Iterator[Finding]:
    yield from names.judge(names.look(host))


def _offline(config: Config) -> Iterator[Finding]:
    found = anyio.run(partial(try_all, config, looks=Looks(brokers=False, devices=False)))
    yield from map(brokers.tried, found)


def _online(found: Case, config: Config, foreseen: _Foreseen) -> Iterator[Finding]:
    """Devices are left to the agent that runs: some take one client only, and it says how they are."""
    forecasts = foreseen.forecasts()
    wanted = Looks(devices=found.status is None, facts=True)
    tried = anyio.run(partial(try_all, config, looks=wanted))
    yield from map(brokers.tried, with_sizes(tried, forecasts) if forecasts else tried)
    by_name = {each.what: each for each in tried}
    for channel in config.channels:
        broker = by_name[f"channel {channel.id}"].facts
        if broker is not None:
            yield from brokers.judge(brokers.ChannelFacts(channel, broker, forecasts.get(channel.id)))
            if broker.certificate is not None:
                where = broker.server or channel.settings.servers[0]
                shown = certificates.shown(f"channel {channel.id}: the server's certificate", where, broker.certificate)
                yield from certificates.judge(shown, time.time())
        yield from _outbox(config, channel.id, _last(broker))
    for plan in config.adapters():
        yield from _shown(plan)


def _last(broker: BrokerFacts | None) -> outboxes.Sealed | None:
    """The broker's last record on our subject; None: there is none, or it is no record, which the agent tells."""
    if broker is not None and broker.last is not None:
        with suppress(EvidenceError):
            return outboxes.Sealed.of(broker.last)
    return None


def _shown(plan: AdapterPlan) -> Iterator[Finding]:
    """The certificate of a connection that speaks TLS at once."""
    url, table = getattr(plan.connection, "url", None), getattr(plan.connection, "tls", None)
    if not isinstance(url, str) or url.partition("://")[0] not in _TLS_AT_ONCE or not isinstance(table, Tls | None):
        return
    found = names.endpoint(url)
    if found is None:
        return
    host, port = found
    what = f"connection {plan.name}: the server's certificate"
    facts = certificates.dial(what, host=host, port=port or _MQTTS, table=table or Tls())
    if facts is not None:
        yield from certificates.judge(facts, time.time())
