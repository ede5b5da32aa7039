"""What a device says of itself: Read Device Identification, function 43 with MEI type 14.

Pure: a generator that yields questions and is sent the answers. It ends for every device, also one that always says
that more follows. Source: Modbus Application Protocol V1.1b3, section 6.21.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

from agent.model import DeviceInfo

BASIC, REGULAR = 1, 2
"""Categories, which are asked for as a stream of objects: maker, product code and revision; more of the same kind."""

_VENDOR_NAME, _PRODUCT_CODE, _REVISION, _MODEL_NAME = 0, 1, 2, 5
_MOST_QUESTIONS = 8
_MOST_CHARACTERS = 128
_NOT_KNOWN = (1, 2, 3)
"""Exceptions of a device that does not know function, category or object; others mean: not now."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request: the objects of a category, from one of them on."""

    category: int
    first: int


@dataclass(frozen=True, slots=True)
class Objects:
    """An answer: texts by object, the categories that the device has, and with which object it goes on, if it does."""

    texts: Mapping[int, bytes]
    conformity: int
    next: int | None = None


Inquiry = Generator[Question, Objects | int | None, Mapping[int, bytes] | None]


def inquire() -> Inquiry:
    """Ask for what makes up an identity. An answer is objects, the code of an exception response, or None for no good
    answer, behind which nothing more is asked.

    Returns texts by object, empty if the device says nothing of itself, or None if it could not be learned.
    """
    found: dict[int, bytes] = {}
    question = Question(BASIC, _VENDOR_NAME)
    for _ in range(_MOST_QUESTIONS):
        answer = yield question
        if answer is None:
            return found or None
        if isinstance(answer, int):
            return found if answer in _NOT_KNOWN else None
        found = {**answer.texts, **found}
        if answer.next is not None and answer.next > question.first:
            question = Question(question.category, answer.next)
        elif question.category == BASIC and answer.conformity & 0x7F >= REGULAR:
            question = Question(REGULAR, _MODEL_NAME)
        else:
            return found
        if _MODEL_NAME in found:
            return found
    return found


def describe(info: DeviceInfo, texts: Mapping[int, bytes]) -> DeviceInfo:
    """``info`` with what the device says; a serial number is not among the objects."""
    said = {each: text(texts[each]) for each in texts}
    return replace(
        info,
        manufacturer=said.get(_VENDOR_NAME),
        model=said.get(_MODEL_NAME) or said.get(_PRODUCT_CODE),
        firmware=said.get(_REVISION),
    )


def text(data: bytes) -> str | None:
    """A device's text on one line, without padding and what is not printable, cut at 128 characters; None if nothing
    is left. Devices pad with NUL or blanks and do not always write UTF-8.
    """
    try:
        decoded = data.decode("utf-8")
    except UnicodeDecodeError:
        decoded = data.decode("latin-1")
    return "".join(char for char in decoded if char.isprintable()).strip()[:_MOST_CHARACTERS].rstrip() or None
