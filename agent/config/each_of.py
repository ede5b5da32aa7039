"""What of one type stands in the tables of a configuration, however deep: secrets, TLS tables, texts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

Kind = TypeVar("Kind")


def each_of(value: Any, kind: type[Kind], *, at: str = "") -> Iterator[tuple[str, Kind]]:
    """Each value of a type, and where it stands: ``at`` and the keys on the way, parted by ": ". A third party's tables
    may hold some, too; nothing is looked for inside of what was found.
    """
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, kind):
        yield at, value
    elif isinstance(value, BaseModel):
        inner = iter(value)  # dict() of a table with a key named "keys" would call that
    elif isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, each in inner:
        yield from each_of(each, kind, at=f"{at}: {key}" if at else str(key))
