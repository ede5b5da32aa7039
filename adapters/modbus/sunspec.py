"""The walk through a SunSpec device: from the marker "SunS" over the headers of its models to the end.

Pure: generators that yield the registers they need and are sent the answer (the registers, or the code of an
exception response). They end for every device, also one that lies: addresses only rise, and the number of models is
bounded. The device's own lengths are trusted and nothing is read past them. Source: SunSpec Device Information Model
Specification, "Device Information Model".
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from adapters.modbus import definitions
from adapters.modbus.identification import text
from adapters.modbus.requests import Registers
from agent.errors import AcquisitionError
from agent.model import Cause, DeviceInfo

Answer = Sequence[int] | int
Walk = Generator[Registers, Answer, Mapping[int, "ModelAt"]]

_MARKER = [0x5375, 0x6E53]  # "SunS"
MARKER_LENGTH = 2
_END = 0xFFFF
_MOST_MODELS = 256
_HINT = "`sunspec = { base = [...] }` says where the device's SunSpec map begins; the vendor's manual has it"


@dataclass(frozen=True, slots=True)
class ModelAt:
    """A model in a device: ``address`` is that of its id, ``length`` what the device says follows the two registers
    of the header.
    """

    model: int
    address: int
    length: int

    @property
    def end(self) -> int:
        """The address behind its last register."""
        return self.address + definitions.HEADER + self.length


def walk(bases: Sequence[int], wanted: Collection[int]) -> Walk:
    """Find the models, the first of each number; ends early once all wanted ones are found.

    Raises AcquisitionError: there is no marker, or the chain of models is broken before all wanted ones were found.
    """
    for base in bases:
        answer = yield Registers("holding", base, MARKER_LENGTH)
        if not isinstance(answer, int) and list(answer) == _MARKER:
            break
    else:
        places = ", ".join(map(str, bases))
        raise AcquisitionError(Cause.DECODE_ERROR, f"no SunSpec marker at {places}", hint=_HINT)
    found: dict[int, ModelAt] = {}
    address = base + MARKER_LENGTH
    for _ in range(_MOST_MODELS):
        if set(wanted) <= set(found):
            return found
        if address + definitions.HEADER > 0x10000:
            raise _broken("the chain of models has no end marker", address)
        header = yield Registers("holding", address, definitions.HEADER)
        if isinstance(header, int):
            raise _broken(f"exception {header} instead of a model or the end marker", address)
        if header[0] == _END:
            return found
        model = ModelAt(header[0], address, header[1])
        if model.model == 0 or model.end > 0x10000:
            raise _broken(f"no model can have number {model.model} and length {model.length}", address)
        found.setdefault(model.model, model)
        address = model.end
    raise _broken(f"more than {_MOST_MODELS} models", address)


def _broken(text: str, address: int) -> AcquisitionError:
    return AcquisitionError(Cause.DECODE_ERROR, f"the device's SunSpec map is broken: {text} at holding:{address}")


def common_registers(model: ModelAt, max_registers: int) -> tuple[Registers, ...]:
    """What to read of the common model to know who made the device."""
    last = definitions.model(definitions.COMMON)["SN"]
    end = min(model.end, model.address + last.offset + last.count)
    return tuple(
        Registers("holding", address, min(max_registers, end - address))
        for address in range(model.address, end, max_registers)
    )


def describe(info: DeviceInfo, registers: Sequence[int]) -> DeviceInfo:
    """``info`` with what the registers of the common model say."""
    return replace(
        info,
        manufacturer=_text(registers, "Mn"),
        model=_text(registers, "Md"),
        serial=_text(registers, "SN"),
        firmware=_text(registers, "Vr"),
    )


def _text(registers: Sequence[int], name: str) -> str | None:
    """A text of the common model; what stands behind the first NUL is padding."""
    point = definitions.model(definitions.COMMON)[name]
    words = registers[point.offset : point.offset + point.count]
    return text(b"".join(word.to_bytes(2, "big") for word in words).partition(b"\0")[0])
