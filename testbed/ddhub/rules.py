"""Who may call what: the broker's role patterns. Pure.

All patterns of a rule must be met, each by a role of its own. In a pattern with ``*`` a dot is any character, and the
whole role must match; one without ``*`` need only be part of the role.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def permits(patterns: Sequence[str], roles: Sequence[str]) -> bool:
    """Whether these roles meet the rule."""
    if not patterns:
        return True
    first, *rest = patterns
    return any(
        _matches(first, role) and permits(rest, [*roles[:at], *roles[at + 1 :]]) for at, role in enumerate(roles)
    )


def _matches(pattern: str, role: str) -> bool:
    if "*" not in pattern:
        return pattern in role
    return re.fullmatch(pattern.replace("*", r"(\w*.*)"), role, re.ASCII) is not None
