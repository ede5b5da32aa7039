"""Topic filters and topic names (MQTT 5.0, section 4.7; the same in 3.1.1).

Pure. Errors are ValueError with the text "what is wrong; what to do".
"""

from __future__ import annotations

from collections.abc import Mapping

_LONGEST = 1024  # bytes of a filter; MQTT allows 65535, and each point's source repeats it
_MOST_CACHED = 4096  # topics; a site has few, and who invents them endlessly only costs himself the cache

Concerns = tuple[tuple[int, str], ...]
"""Index of a device, and group."""


def judge_filter(text: str) -> str:
    """A topic filter such as ``site/+/state`` or ``site/#``. Raises ValueError."""
    if not text or len(text.encode(errors="replace")) > _LONGEST or not text.isprintable():
        raise ValueError(
            f"the topic is empty, too long or not printable; write 1 to {_LONGEST} bytes, such as site/battery/state"
        )
    levels = text.split("/")
    if levels[0] == "$share":
        raise ValueError(
            "a shared subscription would give part of the messages to others; remove $share and the name behind it"
        )
    for index, level in enumerate(levels):
        if level != "+" and "+" in level:
            raise ValueError(f'"{level[:40]}" holds a + beside other characters; + stands for a whole level')
        if "#" in level and (level != "#" or index + 1 < len(levels)):
            raise ValueError("# is not a level of its own at the end; # stands for all levels that follow")
    return text


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic filter takes a topic. What begins with ``$`` is not taken by a wildcard in front (4.7.2)."""
    if topic.startswith("$") and pattern[:1] in ("+", "#"):
        return False
    wanted, levels = pattern.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        if len(levels) < len(wanted):  # "a/#" takes "a" as well
            return False
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(want in ("+", level) for want, level in zip(wanted, levels, strict=True))


class Routes:
    """Whom a topic concerns: ``filters`` by device and group."""

    def __init__(self, filters: Mapping[tuple[int, str], str]) -> None:
        self._filters = dict(filters)
        self._known: dict[str, Concerns] = {}

    def concerns(self, topic: str) -> Concerns:
        """The groups whose filter takes the topic."""
        found = self._known.get(topic)
        if found is None:
            found = tuple(key for key, pattern in self._filters.items() if matches(pattern, topic))
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            self._known[topic] = found
        return found
