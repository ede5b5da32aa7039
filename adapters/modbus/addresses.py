"""Registers as the vendors' manuals write them: ``40021``, ``400021``, ``holding:20``.

Pure: text in, addresses of the protocol (from 0) out. Errors are ValueError with the text "what is wrong; what to do".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from adapters.modbus.requests import RegisterKind, Registers
from agent.fields import NOT_YET

AT_REMEDY = 'write "40021" (holding), "30021" (input), or "holding:20" and "input:20", which count from 0'

_NUMBERED = re.compile(r"([0-9])([0-9]{4,5})", re.ASCII)
_NAMED = re.compile(r"([a-z]+):([0-9]{1,5})", re.ASCII)
_KINDS: Mapping[str, RegisterKind] = {"4": "holding", "3": "input", "holding": "holding", "input": "input"}
_BIT_KINDS = ("0", "1", "coil", "discrete")


def register(text: str, *, one_based: bool) -> tuple[RegisterKind, int]:
    """Kind and protocol address of ``40021``, ``400021``, ``holding:20`` and the like. Raises ValueError.

    The five or six digits are the vendors' way: the first says the kind, the rest counts from 1, or from 0 if not
    ``one_based``.
    """
    if match := _NAMED.fullmatch(text):
        kind, address = match[1], int(match[2])
    elif match := _NUMBERED.fullmatch(text):
        kind, address = match[1], int(match[2]) - one_based
    else:
        raise ValueError(f'"{text[:40]}" is no register; {AT_REMEDY}')
    if kind in _BIT_KINDS:
        raise ValueError(f"coils and discrete inputs are {NOT_YET}; read a register instead")
    if kind not in _KINDS:
        raise ValueError(f'"{text}" is no register; {AT_REMEDY}')
    if address < 0:
        raise ValueError(
            f'"{text}" is before the first register, which is {text[:-1]}1; set addresses = "0-based" or correct it'
        )
    if address > 0xFFFF:
        raise ValueError(f'"{text}" is behind the last register; addresses end at 65535')
    return _KINDS[kind], address


def register_range(text: str, *, one_based: bool) -> Registers:
    """The registers of ``40100-40119`` or ``holding:99-118``, both ends included, or of a single one. Raises
    ValueError.
    """
    first, dash, last = text.partition("-")
    kind, address = register(first, one_based=one_based)
    if not dash:
        return Registers(kind, address, 1)
    if ":" in first and ":" not in last:
        last = first.partition(":")[0] + ":" + last
    last_kind, last_address = register(last, one_based=one_based)
    if last_kind != kind or last_address < address:
        raise ValueError(f'"{text}" is no range; write the first and the last register of one kind')
    return Registers(kind, address, last_address - address + 1)
