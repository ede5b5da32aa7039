"""The table that a campaign leaves in docs/reliability.md, between two marks that stay."""

from __future__ import annotations

from pathlib import Path

from testbed.campaign.life import Outcome

BEGIN, END = "<!-- campaign: written by python -m testbed.campaign -->", "<!-- campaign: end -->"


def table(outcome: Outcome, *, command: str, took: float) -> str:
    """Markdown."""
    kinds = "".join(
        f"| {kind} | {number} | {outcome.slowest.get(kind, 0):.1f} s |\n"
        for kind, number in sorted(outcome.faults.items())
    )
    counts = (
        ("faults", sum(outcome.faults.values())),
        ("lives of the rig", outcome.lives),
        ("runs of the agent with records", outcome.runs),
        ("ends of the agent by itself (its disk was bad when it started), and new starts", outcome.ends),
        ("records", outcome.records),
        ("frames", outcome.frames),
        ("MQTT messages delivered", outcome.messages),
        ("lost and not stated", outcome.lost),
        ("doubled after dedup", outcome.doubled),
        ("wrong values", outcome.wrong),
        ("false alarms", outcome.false_alarms),
        ("longest time to recover", f"{max(outcome.slowest.values(), default=0):.1f} s"),
    )
    rows = "".join(f"| {name} | {number} |\n" for name, number in counts)
    return (
        f"`{command}`, {took / 60:.0f} min:\n\n| all faults together | |\n|---|---|\n{rows}\n"
        f"| fault | times | longest time to recover, of all that overlapped |\n|---|---|---|\n{kinds}"
    )


def write(page: Path, text: str) -> None:
    """Put it between the marks. Raises ValueError if the page has none."""
    content = page.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place marked for the table: {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
