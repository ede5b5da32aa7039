"""``edge-agent ddhub status``: whether a channel to a Data Hub can deliver, and what to do where it cannot.

Logs in with the agent's key, beside a running agent, which keeps its own login. Changes nothing, here or there. What
the broker says of recipients only when something is sent comes from the running agent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio

from agent.clock import SystemClock
from agent.commands import FINDING, GOOD, UNAVAILABLE, say
from agent.commands.ddhub_channel import ddhub_channel, published_keys
from agent.commands.ddhub_participant import Ourselves, of_channel
from agent.commands.target import asked
from agent.config import Channel, load
from agent.control.client import ControlError
from agent.control.status_text import age
from agent.errors import TransportError
from agent.printable import printable
from agent.transports.ddhub.content.signature import public_key_of
from agent.transports.ddhub.keys.exchange import Exchange
from agent.transports.ddhub.keys.key_folder import KeyFolder
from agent.transports.ddhub.keys.key_source import open_key_source
from agent.transports.ddhub.keys.participant import ENCRYPTION_TAG, SIGNATURE_TAG, TAGS
from agent.transports.ddhub.keys.publication import Publication
from agent.transports.ddhub.survey import Seen, survey

_MARKS = {True: " ", False: "!", None: "?"}
_SHOWN = 20  # recipients that are as they should be
_PADDING = (
    "nothing tells beforehand which padding a recipient reads: who gets messages and cannot decrypt them has a client "
    'gateway up to 1.9.1, write { did = "...", padding = "pkcs1v15" }'
)

Table = Mapping[str, Any]


def main(options: argparse.Namespace) -> int:
    """1 if something has to be done, 69 if the Data Hub is not reached. Raises ConfigError, ControlError, SignerError,
    PermissionError.
    """
    config = load(options.config)
    channel = ddhub_channel(config, options.channel)
    running, trouble = _running(options, channel.id)
    return anyio.run(_look, options, channel, of_channel(config, channel, any_owner=True), running, trouble)


def _running(options: argparse.Namespace, name: str) -> tuple[Table | None, str]:
    """What the running agent says of the channel; None: nothing, and why."""
    try:
        with asked(options, "status") as answer:
            if answer is None:
                return None, "it does not run, or has no socket"
            for status in answer:
                for channel in status.get("channels", ()):
                    if channel.get("id") == name:
                        return channel, ""
    except (ControlError, PermissionError) as error:
        return None, f"it cannot be asked: {error}"
    return None, "it runs without this channel; `edge-agent reload` has it read the configuration"


async def _look(
    options: argparse.Namespace, channel: Channel, ourselves: Ourselves, running: Table | None, trouble: str
) -> int:
    settings, signer, clock = channel.settings, ourselves.signer, SystemClock()
    exchange = Exchange(settings.keys.tls)
    keys = open_key_source(settings.keys, signer=signer, clock=clock, exchange=exchange)
    found = await survey(settings, signer=signer, clock=clock, keys=keys)
    ours = await _our_keys(ourselves, exchange)
    told = _of_recipients(running)
    recipients = [_with_agent(each, told.get(did)) for did, each in found.recipients.items()]
    recipients += [_with_agent(Seen(did, "a recipient before"), each) for did, each in _others(told, found.recipients)]
    agent = _agent(running, trouble)
    seen = [*found.seen, *ours]
    if options.json:
        shown = [_object(each) for each in seen]
        of = {"channel": channel.id, "url": settings.url, "topic": str(settings.topic), "did": signer.did}
        more = {"recipients": [_object(each) for each in recipients], "agent": _object(agent)}
        print(json.dumps(of | {"reached": not found.is_away, "seen": shown} | more))
    else:
        print(f"channel {channel.id}: {settings.url}, {settings.topic}")
        for line in _lines(seen, recipients, agent):
            print(printable(line))
    if found.is_away:
        return UNAVAILABLE
    return FINDING if any(each.good is False for each in (*seen, *recipients, agent)) else GOOD


# ---- our keys -------------------------------------------------------------------------------------------------------


async def _our_keys(ourselves: Ourselves, exchange: Exchange) -> list[Seen]:
    """Whether the two keys stand in our DID document. Raises SignerError, PermissionError."""
    signer = ourselves.signer
    folder = KeyFolder(ourselves.folder, signer, any_owner=True).read()
    for error in folder.refused:
        say(f"{error}; {error.hint}")
    texts = {SIGNATURE_TAG: public_key_of(signer)}
    if folder.newest is not None:
        texts[ENCRYPTION_TAG] = folder.newest.public
    try:
        there = await published_keys(ourselves.keys, signer=signer, exchange=exchange)
    except TransportError as error:
        words = f"whether they are published is not known: {error}"
        return [Seen("our keys", words, good=False, remedy=error.hint or "try again")]
    found = Publication(texts, [each.public for each in folder.keys[1:]], there)
    facts = {tag: found.agrees(tag) for tag in TAGS}
    if findings := found.findings():
        return [
            Seen("our keys", f"{each.tag}: {each.what}" if each.tag else each.what, False, each.remedy, facts)
            for each in findings
        ]
    return [Seen("our keys", "both stand in our DID document", facts=facts)]


# ---- what the running agent knows -----------------------------------------------------------------------------------


def _of_recipients(running: Table | None) -> dict[str, Table]:
    found = (running or {}).get("recipients")
    return {each["did"]: each for each in found if isinstance(each.get("did"), str)} if isinstance(found, list) else {}


def _others(told: Mapping[str, Table], known: Mapping[str, Seen]) -> Iterator[tuple[str, Table]]:
    """Who is a recipient of the running agent and of the configuration not, and gets nothing."""
    return ((did, each) for did, each in told.items() if did not in known and each.get("trouble"))


def _with_agent(seen: Seen, told: Table | None) -> Seen:
    """A recipient with what the running agent found when it sent."""
    if told is None:
        return seen
    delivered, skipped = told.get("delivered"), told.get("skipped")
    facts = {**seen.facts, **{key: told.get(key) for key in ("delivered", "skipped", "last_s", "trouble")}}
    got = f"{delivered} records delivered"
    got += f", the last {age(told.get('last_s'))} ago" if told.get("last_s") is not None else ""
    got += f", {skipped} skipped" if skipped else ""
    if trouble := told.get("trouble"):
        words = f"{trouble} ({got})"
        return replace(seen, words=words, good=False, remedy=str(told.get("remedy") or seen.remedy), facts=facts)
    if skipped:
        remedy = "`edge-agent outbox resend` sends them again"
        return replace(seen, words=f"{seen.words}; {got}", good=False, remedy=remedy, facts=facts)
    if delivered and seen.good is None:  # whoever gets messages has logged in
        words = f"its RSA key is there, and it gets messages: {got}"
        return replace(seen, words=words, good=True, remedy="", facts=facts | {"logged_in": True})
    return replace(seen, words=f"{seen.words}; {got}", facts=facts)


def _agent(running: Table | None, trouble: str) -> Seen:
    """Its channel, as it is now."""
    if running is None:
        return Seen("agent", f"not known: {trouble}", good=None)
    last = [each["last_s"] for each in _of_recipients(running).values() if type(each.get("last_s")) in (int, float)]
    waiting, oldest = running.get("pending_records"), running.get("oldest_s")
    words = f"{waiting} records wait" + (f", the oldest for {age(oldest)}" if oldest is not None else "")
    words += f"; {running.get('acknowledged')} delivered" + (f", the last {age(min(last))} ago" if last else "")
    keys = ("connected", "state", "reason", "pending_records", "oldest_s", "acknowledged", "refused", "dropped")
    facts = {**{key: running.get(key) for key in keys}, "last_s": min(last) if last else None}
    if running.get("connected") is False and running.get("state"):
        remedy = str(running.get("hint") or "its log says more")
        return Seen("agent", f"{words}; {running['state']}", good=False, remedy=remedy, facts=facts)
    return Seen("agent", words, facts=facts)


# ---- shown ----------------------------------------------------------------------------------------------------------


def _lines(seen: Sequence[Seen], recipients: Sequence[Seen], agent: Seen) -> Iterator[str]:
    for each in seen:
        yield f"{_MARKS[each.good]} {each.what:<11}{each}"
    hidden = 0
    for number, each in enumerate(recipients):
        if each.good and number >= _SHOWN:
            hidden += 1
        else:
            yield f"{_MARKS[each.good]} recipient  {each.what}: {each}"
    if hidden:
        yield f"  recipient  and {hidden} more, all as they should be"
    if recipients:
        yield f"  padding    {_PADDING}"
    yield f"{_MARKS[agent.good]} agent      {agent}"


def _object(seen: Seen) -> dict[str, Any]:
    return {"what": seen.what, "good": seen.good, "words": seen.words, "remedy": seen.remedy, **seen.facts}
