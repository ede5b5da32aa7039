"""Where the keys of a TOML text stand.

tomllib gives values without positions, and a problem without a line is of little use in a file of a thousand lines.
This scanner reads the structure of a text that tomllib has already accepted (TOML 1.0) and notes the line of every key,
table and array element; it judges nothing and converts no values. Where it does not understand a statement it goes on
with the next line: ``line_of`` then answers with the nearest place that is known. It never raises.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping

Key = tuple[str | int, ...]
"""Names of tables and indexes of arrays from the root, as tomllib's result is walked: ``("device", 0, "id")``."""

_DEEPEST = 64  # names in a key
_BLANK = re.compile(r"[ \t\n]*(?:#[^\n]*[ \t\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
# A multi-line string may end in up to two quotes of its own before the three that close it. The last branch is numbers,
# booleans and dates; a date may be parted from its time by one space.
_SCALAR = re.compile(
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'''
    r"""|'''(?:[^']|'{1,2}(?!'))*'{3,5}"""
    r'''|"(?:[^"\\\n]|\\.)*"'''
    r"""|'[^'\n]*'"""
    r"""|[^\s"'\[\]{},#=]+(?:[ ][0-9]{2}:[^\s"'\[\]{},#=]+)?""",
    re.DOTALL,
)


class _LostError(Exception):
    """The scanner does not understand what stands here."""


def scan(text: str) -> dict[Key, int]:
    """The line, from 1, of everything in a TOML text: of a table its header, of a value its key, of an element itself.

    A table that is only implied stands where it is first named.
    """
    return _Scanner(text.replace("\r\n", "\n")).run()


def line_of(lines: Mapping[Key, int], key: Key) -> int:
    """The line of a key or else of the nearest thing around it; 0 if nothing around it is known."""
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key, 0)


class _Scanner:
    """One pass over a text; ``at`` is where it has got to."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.ends = [match.start() for match in re.finditer("\n", text)]
        self.lines: dict[Key, int] = {}
        self.tables: dict[Key, int] = {}  # arrays of tables: how many elements so far
        self.table: Key = ()

    def run(self) -> dict[Key, int]:
        while self._skip(_BLANK) < len(self.text):
            start = self.at
            try:
                self._statement()
            except (_LostError, tomllib.TOMLDecodeError):
                # From here names may be attributed to a wrong table at worst: a wrong line, never a wrong value.
                end = self.text.find("\n", max(start, self.at))
                self.at = len(self.text) if end < 0 else end + 1
        return self.lines

    def _statement(self) -> None:
        if self._take("[["):
            self._header(array=True)
            self._expect("]]")
        elif self._take("["):
            self._header(array=False)
            self._expect("]")
        else:
            self._pair(self.table)

    def _header(self, *, array: bool) -> None:
        line = self._line()
        *around, last = self._dotted()
        place: Key = ()
        for name in around:
            place = self._note((*place, name), line)
            if place in self.tables:  # a name along the way means the array's last element
                place = (*place, self.tables[place] - 1)
        place = self._note((*place, last), line)
        if array:
            index = self.tables.get(place, 0)
            self.tables[place] = index + 1
            place = self._note((*place, index), line)
        self.table = place

    def _pair(self, table: Key) -> None:
        self._skip(_SPACE)
        line = self._line()
        place = table
        for name in self._dotted():
            place = self._note((*place, name), line)
        self._expect("=")
        self._skip(_SPACE)
        self._value(place)

    def _value(self, place: Key) -> None:
        if self._take("["):
            index = 0
            while not self._closed("]"):
                self._note((*place, index), self._line())
                self._value((*place, index))
                index += 1
                self._comma("]")
        elif self._take("{"):
            while not self._closed("}"):
                self._pair(place)
                self._comma("}")
        else:
            self._match(_SCALAR)

    def _closed(self, bracket: str) -> bool:
        self._skip(_BLANK)
        return self._take(bracket)

    def _comma(self, bracket: str) -> None:
        """Step over the comma between two elements; the closing bracket stays."""
        self._skip(_BLANK)
        if not self._take(",") and not self.text.startswith(bracket, self.at):
            raise _LostError

    def _dotted(self) -> list[str]:
        names = []
        while True:
            self._skip(_SPACE)
            part = self._match(_PART)
            # tomllib itself undoes the escapes of a quoted name.
            names.append(str(tomllib.loads(f"k={part}")["k"]) if part[0] in "\"'" else part)
            self._skip(_SPACE)
            if not self._take("."):
                return names

    def _note(self, place: Key, line: int) -> Key:
        if len(place) > _DEEPEST:  # no configuration; and every level notes all levels above it
            raise _LostError
        self.lines.setdefault(place, line)
        return place

    def _line(self) -> int:
        return bisect_left(self.ends, self.at) + 1

    def _skip(self, blank: re.Pattern[str]) -> int:
        match = blank.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
        return self.at

    def _take(self, mark: str) -> bool:
        found = self.text.startswith(mark, self.at)
        if found:
            self.at += len(mark)
        return found

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise _LostError

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise _LostError
        self.at = match.end()
        return match[0]
