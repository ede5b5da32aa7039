"""Verified values as rows of a table for spreadsheets and databases: CSV (RFC 4180). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.evidence.envelope import message_id
from agent.rendering.readings import absences, readings
from agent.rendering.words import cause_name, moment, quality_name, scaled_text
from agent.verifier import Judged

COLUMNS = (
    "row", "time", "until", "site", "channel", "device", "group", "point", "value", "unit", "quality", "cycle",
    "signer", "record", "verdict",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would take for a formula


def rows(judged: Judged) -> Iterator[tuple[str, ...]]:
    """A row for each value, and one for each gap: ``row`` says which. ``quality`` is that of the value, or the gap's
    cause; ``until`` the end of the gap.
    """
    plan, head = judged.plan, judged.head
    if plan is None or head is None:
        return
    place = (_safe(plan.site), _safe(plan.channel))
    source = (judged.signer or "", message_id(head.link), judged.verdict)
    for each in readings(judged):
        value = _safe(each.value) if isinstance(each.value, str) else scaled_text(each.point, each.value)
        quality = "good" if each.quality is None else quality_name(each.quality)
        name = (_safe(each.device), _safe(each.group), _safe(each.point.name))
        what = (value, _safe(each.point.unit or ""), quality, str(each.cycle))
        yield ("value", moment(each.wall), "", *place, *name, *what, *source)
    for gap in absences(judged):
        cycle = "" if gap.first is None else f"{gap.first}..{gap.last}"
        name = (_safe(gap.device), _safe(gap.group), "")
        yield (
            "gap", moment(gap.wall), moment(gap.until), *place, *name, "", "", cause_name(gap.cause), cycle, *source,
        )  # fmt: skip


def _safe(text: str) -> str:
    """Text from outside that a spreadsheet takes for text."""
    return f"'{text}" if text.startswith(_FORMULA) else text
