"""How commands print verified records: text, JSON, JSON Lines, CSV or SenML JSON (docs/consuming.md).

A printer gets the records as they are judged, and the report at the end. ``lasting``: the records never end, so what is
printed is whole line by line.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from typing import Protocol

from agent.commands import say
from agent.rendering import account, objects, senml, table, text
from agent.verifier import Judged, Report


class Printer(Protocol):
    """Prints records."""

    def records(self, judged: Iterable[Judged]) -> None:
        """Print what was judged; it is out when this returns."""

    def end(self, report: Report) -> None:
        """Nothing more comes."""


def printer(options: argparse.Namespace, *, lasting: bool) -> Printer:
    """The one that was chosen."""
    if options.format == "json":
        return _Json()
    if options.format == "jsonl":
        return _JsonLines()
    if options.format == "csv":
        return _Csv()
    if options.format == "senml":
        return _SenmlPacks() if lasting else _Senml()
    return _Text()


class _Text:
    def records(self, judged: Iterable[Judged]) -> None:
        for each in judged:
            print("\n".join(text.text_lines(each)), flush=True)

    def end(self, report: Report) -> None:
        _say(report)


class _JsonLines:
    def records(self, judged: Iterable[Judged]) -> None:
        for each in judged:
            print(json.dumps(objects.as_json(each)), flush=True)

    def end(self, report: Report) -> None:
        print(json.dumps({"report": account.as_json(report)}), flush=True)


class _Json:
    def __init__(self) -> None:
        self._begun = False

    def records(self, judged: Iterable[Judged]) -> None:
        for each in judged:
            self._next()
            print(json.dumps(objects.as_json(each)), end="", flush=True)

    def _next(self) -> None:
        print(",\n" if self._begun else '{"records": [\n', end="")
        self._begun = True

    def end(self, report: Report) -> None:
        print("\n]" if self._begun else '{"records": []', end="")
        print(f',\n"report": {json.dumps(account.as_json(report))}}}', flush=True)


class _Csv:
    def __init__(self) -> None:
        self._writer = csv.writer(sys.stdout)  # with the line ends of RFC 4180
        self._writer.writerow(table.COLUMNS)

    def records(self, judged: Iterable[Judged]) -> None:
        for each in judged:
            self._writer.writerows(table.rows(each))
        sys.stdout.flush()

    def end(self, report: Report) -> None:
        sys.stdout.flush()
        _say(report)


class _SenmlPacks:
    """A SenML pack per record, a line each."""

    def records(self, judged: Iterable[Judged]) -> None:
        for each in judged:
            if found := list(senml.records(each)):
                print(f"[{','.join(found)}]", flush=True)

    def end(self, report: Report) -> None:
        _say(report)


class _Senml:
    """All in one SenML pack."""

    def __init__(self) -> None:
        self._begun = False

    def records(self, judged: Iterable[Judged]) -> None:
        for each in judged:
            for record in senml.records(each):
                print(",\n" if self._begun else "[", record, sep="", end="")
                self._begun = True
        sys.stdout.flush()

    def end(self, report: Report) -> None:
        print("]" if self._begun else "[]", flush=True)
        _say(report)


def _say(report: Report) -> None:
    say("\n".join(account.lines(report)))
