"""Patterns of a topic's schema (ECMAScript, as Ajv takes them), judged in bounded time. Pure.

A topic's owner may change its schema at any time, and a pattern can be made to take years (backtracking), while Python
holds the whole process. So a pattern is taken apart before it is used: it is written again in Python's dialect, and
from its quantifiers follows how many steps it may take. What is not known here, or may take more, is not judged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

MOST_STEPS = 1_000_000  # for one text; some 20 ms
_LONGEST = 1000  # characters of a pattern
_DEEPEST = 20  # groups in groups
_LARGEST_COUNT = 1000  # of {n,m}
_AT_ONCE = 16  # characters in a row cost a step
_SYNTAX = frozenset("^$\\.*+?()[]{}|/")
_SAME = frozenset("dDwWtnrfvb")  # escapes that mean the same in both, ASCII
_SPACES = {  # white space of ECMAScript, and all else
    "s": r"\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff",
    "S": r"\x00-\x08\x0e-\x1f!-\x9f\xa1-\u167f\u1681-\u1fff\u200b-\u2027\u202a-\u202e\u2030-\u205e"
    r"\u2060-\u2fff\u3001-\ufefe\uff00-\U0010ffff",
}
_NO_BORDER = r"(?!\b)"  # Python's own never holds in an empty text
_DOT = r"[^\n\r\u2028\u2029]"
_COUNT = re.compile(r"\{([0-9]{1,4})(,([0-9]{1,4})?)?\}")
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")
_GROUP = re.compile(r"\((?:\?(?:(?P<kind>[:=!])|<[A-Za-z_][A-Za-z0-9_]*>))?")


class NotJudged(ValueError):
    """A pattern that is none, is not known here, or may take too long."""


class _Cost(NamedTuple):
    """How many ways there are to match: ``ways`` times the text's length to the power of ``degree``, each of ``size``
    characters. ``fixed``: always the same number of characters.
    """

    size: int = 0
    ways: int = 1
    degree: int = 0
    fixed: bool = True

    def then(self, other: _Cost) -> _Cost:
        ways = min(self.ways * other.ways, MOST_STEPS + 1)
        return _Cost(self.size + other.size, ways, self.degree + other.degree, self.fixed and other.fixed)


_ONE = _Cost(size=1)  # a character


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that can be judged."""

    _regex: re.Pattern[str]
    _once: int
    _degree: int

    def steps(self, text: str) -> int:
        """How many steps it may take for a text."""
        length: int = (len(text) + 1) ** self._degree
        return self._once * length

    def found_in(self, text: str) -> bool | None:
        """Whether it is found in a text; None if that could take longer than ``MOST_STEPS``."""
        return None if self.steps(text) > MOST_STEPS else self._regex.search(text) is not None


def read(text: str) -> Pattern:
    """Take a pattern apart. Raises NotJudged."""
    if len(text) > _LONGEST:
        raise NotJudged("too long")
    parser = _Parser(text)
    written, cost = parser.alternatives(0)
    if parser.at != len(text):
        parser.refuse("a parenthesis too many")
    try:
        regex = re.compile(written, re.ASCII)
    except (re.error, RecursionError, OverflowError):
        raise NotJudged("not known here") from None
    anchored = text.startswith("^") and not parser.split
    return Pattern(regex, (1 + cost.size // _AT_ONCE) * cost.ways, cost.degree + (0 if anchored else 1))


class _Parser:
    """Reads ECMAScript with the flag u, writes Python."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.split = False  # an alternation outside of groups, where ^ anchors only one side

    def refuse(self, why: str) -> NoReturn:
        raise NotJudged(f"{why} at character {self.at + 1}")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def alternatives(self, depth: int) -> tuple[str, _Cost]:
        if depth > _DEEPEST:
            self.refuse("nested too deeply")
        sides = [self.sequence(depth)]
        while self.peek() == "|":
            self.at += 1
            self.split |= depth == 0
            sides.append(self.sequence(depth))
        if len(sides) == 1:
            return sides[0]
        costs = [cost for _, cost in sides]
        ways = min(sum(cost.ways for cost in costs), MOST_STEPS + 1)
        size, degree = sum(cost.size for cost in costs), max(cost.degree for cost in costs)
        return "|".join(side for side, _ in sides), _Cost(size, ways, degree, fixed=False)

    def sequence(self, depth: int) -> tuple[str, _Cost]:
        written, cost = [], _Cost()
        while self.peek() not in ("", "|", ")"):
            term, of_term = self.term(depth)
            written.append(term)
            cost = cost.then(of_term)
        return "".join(written), cost

    def term(self, depth: int) -> tuple[str, _Cost]:
        first = self.peek()
        if first in ("^", "$"):
            self.at += 1
            return (r"\A" if first == "^" else r"\Z"), _Cost()
        if first == "(":
            atom, cost, looks = self.group(depth)
            return (atom, cost) if looks else self.repeated(atom, cost)
        if first == "[":
            return self.repeated(self.characters(), _ONE)
        if first == "\\":
            atom = self.escape()
            return (atom, _Cost()) if atom in (r"\b", _NO_BORDER) else self.repeated(atom, _ONE)
        if first in "*+?{}]":
            self.refuse("a quantifier or bracket that belongs to nothing")
        self.at += 1
        return self.repeated(_DOT if first == "." else re.escape(first), _ONE)

    def group(self, depth: int) -> tuple[str, _Cost, bool]:
        head = _GROUP.match(self.text, self.at)
        if head is None or (self.text.startswith("(?", self.at) and head.end() == self.at + 1):
            self.refuse("a group of an unknown kind")
        self.at = head.end()
        inner, cost = self.alternatives(depth + 1)
        if self.peek() != ")":
            self.refuse("a group that does not end")
        self.at += 1
        looks = head["kind"] in ("=", "!")
        return f"(?{head['kind'] if looks else ':'}{inner})", cost, looks

    def repeated(self, atom: str, cost: _Cost) -> tuple[str, _Cost]:
        mark = self.peek()
        if mark not in ("*", "+", "?", "{"):
            return atom, cost
        least, most = self.count()
        if self.peek() == "?":
            self.at += 1
            mark += "?"  # how eager it is changes the order, not the outcome
        if self.peek() in ("*", "+", "?", "{"):
            self.refuse("a quantifier of a quantifier")
        simple = cost.fixed and cost.ways == 1
        if most is None:
            if not simple:
                self.refuse("a repetition of what may match in several ways")
            return f"{atom}{{{least},}}", _Cost(cost.size * max(1, least), 1, 1, fixed=False)
        total = _Cost(cost.size * most, most - least + 1, fixed=least == most)
        if not simple:
            for _ in range(most):
                total = total.then(cost._replace(size=0))
        return f"{atom}{{{least},{most}}}", total

    def count(self) -> tuple[int, int | None]:
        mark = self.peek()
        if mark != "{":
            self.at += 1
            return (1 if mark == "+" else 0), (1 if mark == "?" else None)
        found = _COUNT.match(self.text, self.at)
        if found is None:
            self.refuse("a count that is none")
        self.at = found.end()
        least = int(found[1])
        most = least if found[2] is None else int(found[3]) if found[3] is not None else None
        if max(least, most or 0) > _LARGEST_COUNT or (most is not None and most < least):
            self.refuse("a count that is too large, or turned round")
        return least, most

    def escape(self, *, within: bool = False) -> str:
        """An escape outside or within brackets; the backslash is next."""
        letter = self.text[self.at + 1 : self.at + 2]
        if letter in _SYNTAX or (within and letter == "-"):
            self.at += 2
            return re.escape(letter)
        if letter in _SAME:
            self.at += 2
            return f"\\{letter}"
        if letter in _SPACES:
            self.at += 2
            return _SPACES[letter] if within else f"[{_SPACES[letter]}]"
        if letter == "B" and not within:
            self.at += 2
            return _NO_BORDER
        code = _CODE.match(self.text, self.at + 1)
        if code is None:
            self.refuse("an escape that is not known here")
        number = int(code[1] or code[2] or code[3], 16)
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            self.refuse("no character, or half a one")
        self.at = code.end()
        return re.escape(chr(number))

    def characters(self) -> str:
        """What stands in brackets."""
        start = self.at
        self.at += 1
        written = ["["]
        if self.peek() == "^":
            self.at += 1
            written.append("^")
        empty = len(written)
        while self.peek() != "]":
            low = self.character()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self.character()
                if {low, high} & {*_SPACES.values()}:
                    self.refuse("a range from or to white space")
                low = f"{low}-{high}"
            written.append(low)
        if len(written) == empty:
            self.at = start
            self.refuse("empty brackets")
        self.at += 1
        return "".join(written) + "]"

    def character(self) -> str:
        first = self.peek()
        if first == "":
            self.refuse("brackets that do not end")
        if first == "\\":
            return self.escape(within=True)
        self.at += 1
        return re.escape(first) if first.isascii() else first
