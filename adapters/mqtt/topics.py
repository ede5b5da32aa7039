"""Topic filters and topic names (MQTT 5.0, section 4.7; the same in 3.1.1).

Pure. Errors are ValueError with the text "what is wrong; what to do".
"""

from __future__ import annotations

from collections.abc import Mapping

_LONGEST = 1024  # bytes of a filter; MQTT allows 65535, and each point's source repeats it
_MOST_CACHED = 4096  # topics; a site has few, and who invents them endlessly only costs himself the cache
_LONGEST_CACHED = 1024  # characters of one, of 65535; with the former it bounds the memory

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


def covers(wide: str, narrow: str) -> bool:
    """Whether a topic filter takes every topic that another one takes."""
    if narrow.startswith("$") and wide[:1] in ("+", "#"):
        return False
    wider, levels = wide.split("/"), narrow.split("/")
    for want, level in zip(wider, levels, strict=False):
        if want == "#":
            return True
        if level == "#" or want not in ("+", level):
            return False
    return len(wider) == len(levels) or wider[len(levels) :] == ["#"]


def overlap(one: str, other: str) -> bool:
    """Whether some topic is taken by both topic filters."""
    if (one[:1] in ("+", "#") and other.startswith("$")) or (other[:1] in ("+", "#") and one.startswith("$")):
        return False
    levels, others = one.split("/"), other.split("/")
    for mine, its in zip(levels, others, strict=False):
        if "#" in (mine, its):
            return True
        if "+" not in (mine, its) and mine != its:
            return False
    longer = max(levels, others, key=len)
    return len(levels) == len(others) or longer[min(len(levels), len(others)) :] == ["#"]


def wild(pattern: str) -> bool:
    """Whether a topic filter has a wildcard. Two that overlap and of which one has none cover each other."""
    return "+" in pattern or "#" in pattern


def widest(filters: Mapping[str, int]) -> dict[str, int]:
    """The filters to subscribe so that none is covered by another, each with the highest QoS of those that it covers.

    For a message that several subscriptions take a broker may send several copies (MQTT 5.0, 3.3.4; NATS does, and
    Mosquitto does for version 5).
    """
    return {
        wide: max(qos for narrow, qos in filters.items() if covers(wide, narrow))
        for wide in filters
        if not any(covers(other, wide) for other in filters if other != wide)
    }


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
            if len(topic) <= _LONGEST_CACHED:
                self._known[topic] = found
        return found
