"""Which roles the broker of a Data Hub wants for what, by the rules that it is shipped with. Pure.

All patterns of a rule must be met, each by a role of its own. In a pattern ``*`` is anything and a dot any character;
the whole role must match. Whoever runs a hub may have other rules (``RULES_USER``, ``RULES_TOPICCREATOR``), so what is
said here explains a refusal and never replaces asking.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """What a participant may do, and the patterns of the roles that it needs for that."""

    what: str
    patterns: tuple[str, ...]

    def missing(self, roles: Sequence[str]) -> list[str]:
        """The patterns that no role is left for, as few as possible; empty: the rule is met."""
        return _missing(self.patterns, [*dict.fromkeys(roles)])


USER_PATTERN = "user.roles.*.apps.*energyweb.*.ewc"
USER = Rule("send and receive", (USER_PATTERN,))
TOPIC_CREATOR = Rule(
    "register topics",
    (
        "topiccreator.roles.ddhub.apps.*energyweb.*.ewc",
        USER_PATTERN,
        "topiccreator.roles.*.apps.*.*.ewc",
    ),
)


def of_users(roles: Sequence[str]) -> list[str]:
    """Those that let one send and receive."""
    return [role for role in dict.fromkeys(roles) if _matches(USER_PATTERN, role)]


def belongs_to(owner: str, roles: Sequence[str]) -> bool:
    """Whether the application of one of the roles is part of the name of a topic's owner, as registering one needs."""
    return any(application in owner for _, mark, application in (role.partition(".roles.") for role in roles) if mark)


def _missing(patterns: Sequence[str], roles: list[str]) -> list[str]:
    if not patterns:
        return []
    first, *rest = patterns
    found = [_missing(rest, [*roles[:at], *roles[at + 1 :]]) for at, role in enumerate(roles) if _matches(first, role)]
    return min([*found, [first, *_missing(rest, roles)]], key=len)


def _matches(pattern: str, role: str) -> bool:
    return re.fullmatch(pattern.replace("*", r".*"), role) is not None
