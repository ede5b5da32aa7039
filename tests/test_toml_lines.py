"""The scanner finds what tomllib finds, and where it stands."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.toml_lines import Key, line_of, scan


def paths(value: Any, place: Key = ()) -> Iterator[Key]:
    """Every table, array element and value of a parsed text."""
    if place:
        yield place
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from paths(inner, (*place, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*place, index))


TEXTS: list[tuple[str, dict[Key, int]]] = [
    ("", {}),
    ("# nothing", {}),
    ("a = 1", {("a",): 1}),
    ("\n\n  a = 1 # one\r\n\tb = 2", {("a",): 3, ("b",): 4}),
    ("a.b . c = 1", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1}),
    ('\'a.b\'."c\\u0020d" = 1\n"" = 2', {("a.b",): 1, ("a.b", "c d"): 1, ("",): 2}),
    ("[a]\nb = 1\n[ a . c ]\nd = 2", {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", "d"): 4}),
    ("[a.b]\n[a]\nc = 1", {("a",): 1, ("a", "b"): 1, ("a", "c"): 3}),
    (
        "[[a]]\nb = 1\n[[a]]\n[a.c]\nd = 2\n[[a.e]]\nf = 3\n[[a.e]]\n[[a]]\n[[a.e]]",
        {
            ("a",): 1,
            ("a", 0): 1,
            ("a", 0, "b"): 2,
            ("a", 1): 3,
            ("a", 1, "c"): 4,
            ("a", 1, "c", "d"): 5,
            ("a", 1, "e"): 6,
            ("a", 1, "e", 0): 6,
            ("a", 1, "e", 0, "f"): 7,
            ("a", 1, "e", 1): 8,
            ("a", 2): 9,
            ("a", 2, "e"): 10,
            ("a", 2, "e", 0): 10,
        },
    ),
    (
        "a = [ # one ]\n 1, 'two, #',\n\n [ ], [\n3]\n# end\n, ]\nb = 4",
        {("a",): 1, ("a", 0): 2, ("a", 1): 2, ("a", 2): 4, ("a", 3): 4, ("a", 3, 0): 5, ("b",): 8},
    ),
    (
        "a = { b.c = 1, 'd' = [\n{ e = 2 },\n{ }] }",
        {
            ("a",): 1,
            ("a", "b"): 1,
            ("a", "b", "c"): 1,
            ("a", "d"): 1,
            ("a", "d", 0): 2,
            ("a", "d", 0, "e"): 2,
            ("a", "d", 1): 3,
        },
    ),
    ('a = """\n[b]\nc = 1\\"""\n"""""\nd = 2', {("a",): 1, ("d",): 5}),
    ("a = '''\n'b'\n''''\nd = 2", {("a",): 1, ("d",): 4}),
    ("a = \"\"\"\"\"\"\nb = ''''''\nc = \"\"\nd = ''", {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4}),
    ('a = "\\\\"\nb = "\\"#"\nc = \'\\\'', {("a",): 1, ("b",): 2, ("c",): 3}),
    (
        "a = [1979-05-27 07:32:00Z, 1979-05-27T00:32:00.9-07:00, 1979-05-27 , 07:32:00]\nb = 1979-05-27 07:32:00 # x",
        {("a",): 1, ("a", 0): 1, ("a", 1): 1, ("a", 2): 1, ("a", 3): 1, ("b",): 2},
    ),
    ("a = +1_000.5e-3\nb = [-inf,nan,0xdead]", {("a",): 1, ("b",): 2, ("b", 0): 2, ("b", 1): 2, ("b", 2): 2}),
    ("2 = 1\n1.5 = 2\ntrue = 3\n- = 4", {("2",): 1, ("1",): 2, ("1", "5"): 2, ("true",): 3, ("-",): 4}),
]


@pytest.mark.parametrize(("text", "lines"), TEXTS)
def test_lines(text: str, lines: dict[Key, int]) -> None:
    assert set(lines) == set(paths(tomllib.loads(text))), "the table itself must be true"
    assert scan(text) == lines


# ---- generated texts -------------------------------------------------------------------------------------------


class Writer:
    """Writes a random TOML text and notes where it puts everything."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[Key, int] = {}

    def put(self, text: str) -> None:
        self.text += text

    def note(self, place: Key) -> None:
        self.lines.setdefault(place, self.text.count("\n") + 1)

    def pick(self, *choices: str) -> str:
        return self.draw(st.sampled_from(choices))

    def number(self, most: int) -> int:
        return self.draw(st.integers(0, most))

    def blank(self, *, lines: bool = False) -> None:
        self.put(self.pick("", "", " ", "\t "))
        if lines:
            self.put(self.pick("", "", "\n", "\r\n \n", " # [x] = {\"'\n", "#\n\t"))

    def end(self) -> None:
        self.put(self.pick("\n", "\r\n", ' # \' """ ]\n', "\n\n"))

    def names(self, most: int) -> list[str]:
        """Different names, so that no two statements clash."""
        return self.draw(st.lists(NAMES, min_size=0, max_size=most, unique=True))

    def name(self, name: str) -> None:
        bare = name != "" and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
        forms = [self._basic(name)]
        if bare:
            forms += [name, name]
        if "'" not in name and name.isprintable():
            forms.append(f"'{name}'")
        self.put(self.pick(*forms))

    def _basic(self, text: str) -> str:
        escaped = "".join(
            f"\\u{ord(c):04x}" if c in '"\\' or not c.isprintable() or (c == "." and self.number(1)) else c
            for c in text
        )
        return f'"{escaped}"'

    def dotted(self, place: Key, names: list[str]) -> Key:
        for index, name in enumerate(names):
            if index:
                self.blank()
                self.put(".")
                self.blank()
            place = (*place, name)
            self.note(place)
            self.name(name)
        return place

    def scalar(self) -> None:
        kind = self.number(5)
        if kind == 0:
            self.put(self.pick(*PLAIN))
        elif kind == 1:
            self.put(self._basic(self.draw(BASIC)))
        elif kind == 2:
            self.put("'" + self.draw(LITERAL).replace("'", "").replace("\n", "") + "'")
        elif kind == 3:
            inner = self.draw(BASIC)
            self.put('"""' + self.pick("", "\n") + self._multi(inner, '"') + self.pick("", '"', '""') + '"""')
        elif kind == 4:
            inner = self.draw(LITERAL)
            self.put("'''" + self.pick("", "\r\n") + self._multi(inner, "'") + self.pick("", "'", "''") + "'''")
        else:
            self.put(self.pick(*DATES))

    def _multi(self, text: str, quote: str) -> str:
        if quote == '"':
            text = text.replace("\\", "\\\\").replace('"""', '""\\"')
        while quote * 3 in text:
            text = text.replace(quote * 3, quote * 2)
        return text.rstrip(quote)

    def value(self, place: Key, depth: int) -> None:
        kind = self.number(5) if depth else 0
        if kind == 4:
            self.put("[")
            count = self.number(3)
            for index in range(count):
                self.blank(lines=True)
                self.note((*place, index))
                self.value((*place, index), depth - 1)
                self.blank(lines=True)
                self.put("," if index + 1 < count else self.pick("", ","))
            self.blank(lines=True)
            self.put("]")
        elif kind == 5:
            self.put("{")
            for index, name in enumerate(self.names(3)):
                if index:
                    self.put(",")
                self.blank()
                self.pair(place, name, depth - 1)
            self.blank()
            self.put("}")
        else:
            self.scalar()

    def pair(self, table: Key, name: str, depth: int) -> None:
        place = self.dotted(table, [name, *self.names(2)] if self.number(2) == 0 else [name])
        self.blank()
        self.put("=")
        self.blank()
        self.value(place, depth)
        self.blank()

    def pairs(self, table: Key, names: list[str]) -> None:
        for name in names:
            self.blank()
            self.pair(table, name, 3)
            self.end()

    def tables(self, around: Key, written: list[str], names: list[str], depth: int) -> None:
        """Tables and arrays of tables under the table ``around``, whose header is written as ``written``."""
        for name in names:
            array = self.number(1)
            for index in range(1 + array * self.number(2)):
                self.blank()
                self.put("[[" if array else "[")
                self.blank()
                place = (*around, name)
                self.note(place)
                if array:
                    place = (*place, index)
                    self.note(place)
                for part in written:
                    self.name(part)
                    self.put(".")
                self.name(name)
                self.blank()
                self.put("]]" if array else "]")
                self.end()
                inner = self.names(4)
                half = self.number(len(inner))
                self.pairs(place, inner[:half])
                if depth:
                    self.tables(place, [*written, name], inner[half:], depth - 1)


NAMES = st.one_of(
    st.sampled_from(["a", "b", "c-1", "0", "W_h", "true"]), st.text("ab.'\"\\# =[]é\t", min_size=0, max_size=4)
)
BASIC = st.text("ab'\"\\#[]{},= é", max_size=8) | st.sampled_from(["a", "[x]", "k = 1 # no"])
LITERAL = st.text("ab'\"\\#[]{},=\né", max_size=8)
PLAIN = ("1", "-17", "+1_0", "0xDEAD_beef", "0o7", "0b1", "1.5", "-1e9", "6.6E-3", "inf", "-nan", "true", "false")
DATES = ("1979-05-27T07:32:00Z", "1979-05-27 07:32:00.5+01:00", "1979-05-27t07:32:00", "1979-05-27", "07:32:00.1")


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Key, int]]:
    writer = Writer(draw)
    names = writer.names(6)
    half = writer.number(len(names))
    writer.pairs((), names[:half])
    writer.tables((), [], names[half:], 2)
    return writer.text, writer.lines


@settings(max_examples=150, deadline=None)
@given(documents())
def test_finds_what_tomllib_finds_where_it_was_written(document: tuple[str, dict[Key, int]]) -> None:
    text, lines = document
    found = scan(text)
    assert set(found) == set(paths(tomllib.loads(text)))
    assert found == lines


# ---- what is no TOML -------------------------------------------------------------------------------------------


SHUFFLED = documents().flatmap(lambda document: st.permutations(document[0][:40]).map("".join))


@settings(max_examples=150, deadline=None)
@given(st.text("ab01.'\"\\#[]{},= \n\r\té", max_size=60) | SHUFFLED)
def test_never_fails(text: str) -> None:
    last = text.count("\n") + 1
    assert all(1 <= line <= last for line in scan(text).values())


def test_deep_nesting_does_not_fail() -> None:
    assert line_of(scan("a = 1\nb = " + "[" * 100_000 + "\nc = 1\n"), ("a",)) == 1


def test_goes_on_behind_what_it_does_not_understand() -> None:
    lines = scan("a = 1\nb = = 2\n[c\nd = 3\n[e]\nf = 4\n")
    assert line_of(lines, ("a",)) == 1
    assert line_of(lines, ("e", "f")) == 6


def test_an_unknown_key_has_the_line_of_what_is_around_it() -> None:
    lines = scan("\n[[device]]\n\n[device.groups]\nac = { every = '1s' }\n")
    assert line_of(lines, ("device", 0, "id")) == 2
    assert line_of(lines, ("device", 0, "groups", "ac", "points", 3)) == 5
    assert line_of(lines, ("site",)) == 0
    assert line_of(lines, ()) == 0


def test_every_leaf_of_the_shipped_configuration() -> None:
    text = (Path(__file__).parents[1] / "config" / "agent.toml").read_text()
    assert set(scan(text)) == set(paths(tomllib.loads(text)))
