"""The verifier's state as bytes, and back: so that whoever consumes a channel for years can stop and go on.

CBOR: ``[format, SHA-256 of the state, state]``. It is the consumer's own file, not evidence: it is held against damage
and wrong shapes, not against somebody who may write it. Runs that wait, holes, digests and the account are all in it.
"""

from __future__ import annotations

import enum
import hashlib
import types
import typing
from collections import Counter
from dataclasses import fields, is_dataclass
from typing import Any

import cbor2

from agent.errors import CheckpointError, EvidenceError
from agent.evidence import cbor
from agent.evidence.coverage import Coverage, Tally
from agent.evidence.did import DidKey
from agent.evidence.record import Head, decode_head, encode_plan, read_plan
from agent.model import Plan
from agent.verifier.book import Book, Lineage, Stream
from agent.verifier.holes import Withdrawals
from agent.verifier.report import Report

FORMAT = 1


def save(book: Book) -> bytes:
    """The state. Holes and runs stand in the account, streams name them by their places there."""
    report = book.report
    places = {id(hole): [i, j] for i, each in enumerate(report.channels) for j, hole in enumerate(each.holes)}
    runs = {id(run): [i, j] for i, each in enumerate(report.channels) for j, run in enumerate(each.runs)}
    accounts = {id(account): i for i, account in enumerate(report.channels)}
    streams = []
    for stream in book.streams.values():
        known = {each.name: _plain(getattr(stream, each.name)) for each in fields(Stream) if each.name not in _LINKED}
        coverage = stream.coverage
        known["account"] = accounts[id(stream.account)]
        known["holes"] = [places[id(hole)] for hole in stream.holes if id(hole) in places]
        known["run"] = runs.get(id(stream.run))
        known["coverage"] = coverage and [_plain(coverage.plan), coverage.next, sorted(coverage.unsure), coverage.torn]
        streams.append(known)
    lineages = [[_plain(key), _plain(lineage)] for key, lineage in book.lineages.items()]
    owners = [[_plain(key), accounts[id(account)]] for key, account in book.accounts.items()]
    state = cbor2.dumps([_plain(report), streams, lineages, owners, _plain(book.permissions.signers)])
    return cbor2.dumps([FORMAT, hashlib.sha256(state).digest(), state])


def restore(saved: bytes) -> Book:
    """The state that ``save`` wrote. Raises CheckpointError."""
    try:
        form, digest, state = cbor2.loads(saved)
        if form != FORMAT:
            raise CheckpointError(f"format {form} of the checkpoint is not known here", hint=_HINT)
        if hashlib.sha256(state).digest() != digest:
            raise CheckpointError("the checkpoint is damaged", hint=_HINT)
        return _restored(*cbor2.loads(state))
    except (cbor2.CBORError, ValueError, TypeError, KeyError, IndexError, AttributeError, EvidenceError) as error:
        raise CheckpointError(f"not a checkpoint: {error}", hint=_HINT) from error


_HINT = "move the file away to begin anew; the report then begins anew, too"
_LINKED = {"account", "holes", "run", "coverage"}


def _restored(report: Any, streams: Any, lineages: Any, owners: Any, permissions: Any) -> Book:
    book = Book()
    book.report = _built(Report, report)
    accounts = book.report.channels
    for known in streams:
        account = accounts[known.pop("account")]
        places, run, covered = known.pop("holes"), known.pop("run"), known.pop("coverage")
        hints = typing.get_type_hints(Stream)
        stream = Stream(**{name: _built(hints[name], value) for name, value in known.items()}, account=account)
        stream.holes = [accounts[i].holes[j] for i, j in places]
        stream.run = accounts[run[0]].runs[run[1]] if run is not None else None
        if covered is not None:
            plan = _built(Plan, covered[0])
            stream.coverage = Coverage(plan, (lambda key: Tally()) if plan.volatile else account.tally)
            stream.coverage.next, stream.coverage.unsure, stream.coverage.torn = covered[1], set(covered[2]), covered[3]
        book.streams[stream.key] = stream
    book.lineages = {_built(_LineageKey, key): _built(Lineage, lineage) for key, lineage in lineages}
    book.accounts = {_built(_AccountKey, key): accounts[i] for key, i in owners}
    book.permissions.signers = _built(dict[DidKey, Withdrawals], permissions)
    return book


_LineageKey = tuple[DidKey, str]
_AccountKey = tuple[DidKey, str | None]


def _plain(value: Any) -> Any:
    """What CBOR can hold."""
    if isinstance(value, Plan):
        return encode_plan(value)
    if isinstance(value, Head):
        return cbor.encode_any_keys(value.fields)  # the only encoding, so the record's bytes
    if hasattr(value, "_asdict"):  # a named tuple
        return {name: _plain(each) for name, each in value._asdict().items()}
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return [[_plain(key), _plain(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value


def _built(hint: Any, plain: Any) -> Any:
    """A value of this type. Raises TypeError, ValueError or KeyError if it has another shape."""
    if hint is Plan:
        return read_plan(plain)
    if hint is Head:
        return decode_head(plain)
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if plain is None else _built(next(each for each in inside if each is not types.NoneType), plain)
    if origin is list:
        return [_built(inside[0], each) for each in plain]
    if origin is tuple:
        return tuple(_built(each, value) for each, value in zip(inside, plain, strict=True))
    if origin is dict:
        return {_built(inside[0], key): _built(inside[1], value) for key, value in plain}
    if origin is Counter:
        return Counter({_built(inside[0], key): _built(int, count) for key, count in plain})
    if is_dataclass(hint) or hasattr(hint, "_fields"):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _built(hints[name], value) for name, value in plain.items()})
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(plain)
    if type(plain) is not hint:
        raise TypeError(f"expected {hint}, found {type(plain)}")
    return plain
