"""Payloads: JSON (RFC 8259) whose numbers stay exact, and what JSON pointers (RFC 6901) find in it.

Pure. Whatever the bytes are, ``parse`` returns a document or raises ValueError with what is wrong in a few words that
hold nothing of the payload; it takes time in proportion to their number. Whole numbers become int, others Decimal.
The last of several equal keys wins. A byte order mark in front is skipped, as RFC 8259 allows. Escaped lone
surrogates are left to who wants the text.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

_ESCAPES = re.compile(r"~(?![01])")
_INDEX = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_BRACKETS = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"?', re.DOTALL)
_DEEPEST = 64
_BLANKS = " \t\n\r"

Pointer = tuple[str, ...]
"""The reference tokens of a JSON pointer."""


class _NotFinite(ValueError):
    pass


def _refuse(name: str) -> None:
    raise _NotFinite(f"{name} is not JSON")


_read = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse).raw_decode


def parse(payload: bytes) -> Any:
    """The document. Raises ValueError."""
    try:
        text = payload.decode().removeprefix("\ufeff").strip(_BLANKS)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if not text:
        raise ValueError("empty")
    if text.count("[") + text.count("{") > _DEEPEST and _too_deep(text):
        raise ValueError("nested too deeply")
    try:
        document, end = _read(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at character {error.pos}") from None
    except InvalidOperation:
        raise ValueError("a number with an exponent out of reach") from None
    except ValueError as error:
        # Python's own limit for digits of whole numbers; its text is about Python.
        raise ValueError(str(error) if isinstance(error, _NotFinite) else "a number with too many digits") from None
    if end != len(text):
        raise ValueError(f"not JSON at character {end}")
    return document


def _too_deep(text: str) -> bool:
    """Whether arrays and objects are nested beyond ``_DEEPEST``.

    The parser's own limit is that of Python's stack, which somebody may have raised beyond what the machine's holds.
    """
    depth = 0
    for match in _BRACKETS.finditer(text):
        mark = match[0]
        depth += (mark in "[{") - (mark in "]}")
        if depth > _DEEPEST:
            return True
    return False


def pointer(text: str) -> Pointer:
    """The tokens of ``/power/w``; "" is the whole document. Raises ValueError ("what is wrong; what to do")."""
    if text and not text.startswith("/"):
        raise ValueError(f'"{text[:40]}" is no JSON pointer; write / before each name, such as "/power/w"')
    if _ESCAPES.search(text):
        raise ValueError(f'"{text[:40]}" holds a ~ that escapes nothing; write ~0 for ~ and ~1 for / within a name')
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:])


def find(document: Any, tokens: Pointer) -> Any:
    """What a pointer leads to; None also stands for what is not there."""
    for token in tokens:
        if type(document) is dict:
            document = document.get(token)
        elif type(document) is list and _INDEX.fullmatch(token) and int(token) < len(document):
            document = document[int(token)]
        else:
            return None
    return document
