"""Problems of a configuration in the words of its reader.

pydantic finds all that is wrong with a model at once; here each finding becomes a ``Problem`` with a line, a key and a
remedy. A value is repeated in a message only if no name on its way can be a secret's.
"""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from agent.config.rest import Rest
from agent.config.toml_lines import Key, line_of
from agent.errors import Problem
from agent.fields import NOT_YET
from agent.printable import printable

Model = TypeVar("Model", bound=BaseModel)
_Details = list[tuple[Key, dict[str, Any]]]  # where something stands, and pydantic's account of it


# Keys of the format that later versions understand, by the table they stand in ("*": any name or index). Consulted only
# for a key that its model does not know, so an entry does no harm once the key works.
_LATER: dict[Key, str] = {
    (): "http",
    ("connection", "*"): "tls idle_close",
    ("device", "*"): "profile",
    ("device", "*", "groups", "*"): "sample aggregate report",
    ("device", "*", "groups", "*", "points", "*"): "report sample aggregate",
}
_SECRET = re.compile(r"pass|secret|token|nkey|creds|credential|seed|pin", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something of the configuration stands: the file, the line from 1 (0: no line), the key in that file."""

    file: str
    line: int
    key: str

    def problem(self, what: str, remedy: str) -> Problem:
        """What is wrong there, on one line."""
        return Problem(self.file, self.line, *map(printable, (self.key, what, remedy)))

    def seen_from(self, file: str) -> str:
        """What a message about ``file`` calls it."""
        return self.key if file == self.file else f"{self.key} in {self.file}:{self.line}"


class Findings:
    """Collects the problems of one file; the first one about a place stands."""

    def __init__(self, *, file: str, lines: Mapping[Key, int]) -> None:
        self.file = file
        self.lines = lines
        self._problems: dict[Key, Problem] = {}

    def add(self, key: Key, what: str, remedy: str) -> None:
        """Note what is wrong at a key and what to do about it."""
        self._problems.setdefault(key, self.place(key).problem(what, remedy))

    def refuses(self, key: Key) -> bool:
        """Whether something was noted at a key."""
        return key in self._problems

    def add_unreadable(self, problem: Problem) -> None:
        """Note what keeps the whole file from being read."""
        self._problems.setdefault((), problem)

    def place(self, key: Key) -> Place:
        """Where a key stands."""
        return Place(self.file, line_of(self.lines, key), dotted(key))

    def add_error(self, key: Key, error: ValueError) -> None:
        """Note an error whose text is "what is wrong; what to do"."""
        self.add(key, *_halves(str(error)))

    def judge(
        self, model: type[Model], raw: Any, *, at: Key, context: Any = None, also_known: Iterable[str] = ()
    ) -> Model | None:
        """The model of what stands at a key, or None and all that is wrong with it.

        ``also_known``: keys at the same place that are judged elsewhere, for suggestions.
        """
        rest: Rest | None = Rest(raw)
        while rest is not None:
            try:
                found = model.model_validate(rest.raw, context=context)
                return found if rest.is_whole else None
            except ValidationError as error:
                found_wrong = [
                    (rest.original(place_in(rest.raw, detail["loc"])), dict(detail))
                    for detail in error.errors(include_url=False)
                ]
            details = [(inner, detail) for inner, detail in found_wrong if not rest.lacks(inner)]
            self._note(model, details, at=at, also_known=also_known)
            rest = rest.less({inner: _alone(model, inner, detail, also_known) for inner, detail in details})
        return None

    def _note(self, model: type[BaseModel], details: _Details, *, at: Key, also_known: Iterable[str]) -> None:
        """Note what a model refuses."""
        for inner, detail in details:
            # A list whose elements were refused counts as too short as well; that is no problem of its own.
            if detail["type"] == "too_short" and any(
                len(o) > len(inner) and o[: len(inner)] == inner for o, _ in details
            ):
                continue
            if _is_unknown(detail):
                self.add_unknown((*at, *inner), _known(model, inner, also_known))
            else:
                self.add((*at, *inner), *_words(detail, (*at, *inner)))

    def add_unknown(self, key: Key, known: Iterable[str]) -> None:
        """Note a key that nothing understands, at least not yet."""
        if _is_later(key):
            self.add(key, NOT_YET, "remove it")
            return
        meant = near(key, known)
        self.add(key, "unknown key", f"did you mean '{meant}'?" if meant else "remove it")

    @contextmanager
    def guarded(self, key: Key) -> Iterator[None]:
        """Note at a key what an adapter's models raise: a third party's may raise anything, and a reload must not end
        the agent for it.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001
            what = f"the adapter cannot judge this ({type(error).__name__}: {error})"
            self.add(key, what.replace("; ", ", "), "see the adapter's own documentation")

    def add_strays(
        self, table: Mapping[str, Any], models: Iterable[type[BaseModel]], *, at: Key, known: Iterable[str]
    ) -> None:
        """Note the keys of a table that none of the models knows, when it is not clear which of them judges it."""
        known = {*known, *(key for model in models for key in known_keys(model, ()))}
        for key in table:
            if key not in known:
                self.add_unknown((*at, key), known)

    def sorted(self) -> list[Problem]:
        """All problems, by line."""
        return sorted(self._problems.values(), key=lambda problem: problem.line)


def render(problems: Iterable[Problem]) -> str:
    """One line per problem."""
    return "\n".join(map(str, problems))


def may_be_secret(name: str) -> bool:
    """Whether what stands under a name is better not shown."""
    return _SECRET.search(name) is not None


def dotted(key: Key) -> str:
    """``device[0].groups.ac`` for ``("device", 0, "groups", "ac")``; unusual names are quoted as in TOML."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else '"' + part.replace('"', '\\"') + '"'
            text += f".{name}" if text else name
    return text


def known_keys(model: type[BaseModel], inner: Key) -> set[str]:
    """The keys that may stand at a place inside a model."""
    models = {model}
    for part in inner:
        # An index, or a name of a mapping, leads to no other model.
        deeper = {
            found
            for each in models
            if part in each.model_fields
            for found in _models(each.model_fields[str(part)].annotation)
        }
        models = deeper or models
    return {field.alias or name for each in models for name, field in each.model_fields.items()}


def near(key: Key, known: Iterable[str]) -> str:
    """The known key that was probably meant; "" if there is none."""
    return next(iter(difflib.get_close_matches(str(key[-1]), list(known), n=1)), "")


def place_in(raw: Any, loc: tuple[int | str, ...]) -> Key:
    """A location of pydantic without what it adds of its own (tags of unions, names of validators)."""
    place: list[int | str] = []
    for index, part in enumerate(loc):
        inside = (isinstance(raw, dict) and part in raw) or (
            isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        )
        if inside:
            raw = raw[part]
        elif not isinstance(raw, dict) or index + 1 < len(loc):
            continue
        place.append(part)  # found, or the last one of a table: the key that is missing
    return tuple(place)


def _is_unknown(detail: Mapping[str, Any]) -> bool:
    return bool(detail["type"] == "extra_forbidden")


def _known(model: type[BaseModel], inner: Key, also_known: Iterable[str]) -> list[str]:
    """What an unknown key could have been."""
    return [*known_keys(model, inner[:-1]), *(also_known if len(inner) == 1 else ())]


def _alone(model: type[BaseModel], inner: Key, detail: Mapping[str, Any], also_known: Iterable[str]) -> Key:
    """What holds a refused key and can be taken away without a change for any other key; () if that is not known.

    That is a key which is no misspelt one, and a key of the table that its model does not name in ``judged_together``.
    """
    name = inner[0] if inner else ""
    if _is_unknown(detail):
        meant = near(inner, _known(model, inner, also_known))
        if not meant:
            return inner
        name = meant if len(inner) == 1 else name
    together: Collection[str] | None = getattr(model, "judged_together", None)
    return () if together is None or name in together else inner[:1]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _is_later(key: Key) -> bool:
    *table, name = key
    for place, names in _LATER.items():
        if len(place) == len(table) and all(want in ("*", part) for want, part in zip(place, table, strict=True)):
            return name in names.split()
    return False


def _halves(text: str) -> tuple[str, str]:
    what, mark, remedy = text.rpartition("; ")
    return (what, remedy) if mark else (text, "docs/configuration.md says what is allowed")


def _words(detail: dict[str, Any], key: Key) -> tuple[str, str]:
    """What is wrong and what to do, for one error of pydantic."""
    kind: str = detail["type"]
    context: dict[str, Any] = detail.get("ctx", {})
    if kind == "value_error":
        return _halves(str(context["error"]))
    if kind == "missing":
        return "missing", "add it"
    found = _found(detail["input"], key)
    for ending, (expected, remedy) in _TYPES.items():
        if kind.startswith(ending):
            return f"expected {expected}, found {found}", remedy
    if kind in _LIMITS:
        what, remedy = _LIMITS[kind]
        return what.format(found=found), remedy.format(**context)
    if kind in ("literal_error", "enum"):
        return f"{found} is not possible", "choose " + str(context["expected"]).replace("'", '"')
    # A third party's own type of error; its message is all there is.
    return str(detail["msg"]), "docs/configuration.md says what is allowed"


# By the beginning of pydantic's name of an error.
_TYPES = {
    "string_type": ("text", 'write it in quotes, such as "text"'),
    "int_": ("a whole number", "write digits without quotes or a fraction"),
    "float_": ("a number", "write digits without quotes"),
    "finite_number": ("a finite number", "write digits"),
    "bool_": ("true or false", "write one of them without quotes"),
    "list_type": ("a list", "write it in brackets, [ ... ]"),
    "tuple_type": ("a list", "write it in brackets, [ ... ]"),
    "dict_type": ("a table", "write { key = value } or a [table] of its own"),
    "mapping_type": ("a table", "write { key = value } or a [table] of its own"),
    "model_type": ("a table", "write { key = value } or a [table] of its own"),
    "model_attributes_type": ("a table", "write { key = value } or a [table] of its own"),
}
_LIMITS = {
    "string_too_short": ("the text is too short", "write at least {min_length} characters"),
    "string_too_long": ("the text is too long", "write at most {max_length} characters"),
    "too_short": ("too few entries", "write at least {min_length}"),
    "too_long": ("too many entries", "write at most {max_length}"),
    "string_pattern_mismatch": ("{found} is not of the form that is needed", "write what the pattern {pattern} allows"),
    "greater_than": ("{found} is out of range", "choose more than {gt}"),
    "greater_than_equal": ("{found} is out of range", "choose {ge} or more"),
    "less_than": ("{found} is out of range", "choose less than {lt}"),
    "less_than_equal": ("{found} is out of range", "choose {le} or less"),
    "multiple_of": ("{found} is not possible", "choose a multiple of {multiple_of}"),
}


def _found(value: Any, key: Key) -> str:
    """A value as the file shows it, short; only its type if it may be a secret."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if any(isinstance(part, str) and may_be_secret(part) for part in key):
        return "something else"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value[:40]}"' if "@" not in value else "text"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return f"the date or time {value}"
    return f"{value}"[:40]
