"""The verifier's report as one HTML page that prints well: no script, nothing from elsewhere, all text escaped.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from agent.evidence.coverage import GroupKey, Tally
from agent.printable import printable
from agent.rendering.account import causes, clock_quality, duration, hole_words, run_words, summary, time_range
from agent.rendering.words import cause_name, event_name, moment, quality_name
from agent.verifier import ChannelReport, Level, Outcome, Report, Run

_LEVELS = {
    Level.STRUCTURE: "the bytes are evidence, undamaged",
    Level.SIGNATURE: "each record was signed by the key that it names, and not a bit changed since",
    Level.IDENTITY: "the key is one that was to be accepted",
    Level.CONTINUITY: "no record is missing, repeated or reordered, also across restarts and outages",
    Level.COMPLETENESS: "every reading that was announced is there, or its absence is stated with a cause",
}
_STYLE = """
body { font: 10pt/1.4 sans-serif; color: #111; max-width: 60em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin: 0 } h2 { font-size: 1.15em; margin: 1.6em 0 .3em; border-bottom: 1px solid #999 }
p { margin: .3em 0 } table { border-collapse: collapse; width: 100%; margin: .5em 0 }
th, td { text-align: left; vertical-align: top; padding: .2em .6em .2em 0; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } code { font-size: .9em; word-break: break-all }
.ok { color: #14602a } .failed { color: #a11212; font-weight: bold } .unknown { color: #7a5200 }
svg { width: 12em; height: .9em; display: block } small { color: #444 }
@page { size: A4; margin: 15mm } tr, p { break-inside: avoid } thead { display: table-header-group }
@media print { body { margin: 0; max-width: none } }
""".strip()


def page(report: Report, *, made: int, sources: Iterable[str]) -> str:
    """The whole page. ``made``: wall time, ns; ``sources``: what was read, such as names of files."""
    return "\n".join(_page(report, made, list(sources))) + "\n"


def _page(report: Report, made: int, sources: list[str]) -> Iterator[str]:
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    yield f"<title>Verification of telemetry, {moment(made)[:10]}</title><style>{_STYLE}</style></head><body>"
    yield "<h1>Verification of telemetry</h1>"
    yield f"<p><small>Made {moment(made)} from {_text(', '.join(sources))}</small></p>"
    yield f"<p><strong>{_text(summary(report))}</strong></p>"
    rows = ([level.capitalize(), what, _outcome(report.outcome(level))] for level, what in _LEVELS.items())
    yield from _table(["Level", "If it is ok", "Here"], ([_text(a), _text(b), c] for a, b, c in rows))
    for channel in report.told():
        yield from _channel(channel)
    yield "<h2>Beside that</h2>"
    rest = [
        (report.repeats, "records came more than once and were ignored"),
        (report.late, "records came again too late to be compared with what was judged"),
        (report.before_plan, "records were judged up to continuity only: their plan is not at hand"),
        (report.foreign, "records of other signers were not judged"),
    ]
    yield from (f"<p>{count} {words}.</p>" for count, words in rest if count)
    yield from (f"<p>From a newer version: {_text(what)} ({count} times).</p>" for what, count in report.news.items())
    yield (
        "<p><small>This does not prove that a device told the truth, that the key signed nothing else, or that nothing "
        "was cut off at the end. For sources that send by themselves it does not prove that all they sent was received."
        "</small></p></body></html>"
    )


def _channel(channel: ChannelReport) -> Iterator[str]:
    name = "Runs of which no plan is at hand" if channel.channel is None else f"Channel {channel.channel}"
    site = f", site {channel.site}" if channel.site is not None else ""
    yield f"<h2>{_text(name + site)}</h2>"
    who = f"{_text(channel.name)}, " if channel.name else ""
    yield f"<p>Signed by {who}<code>{_text(channel.signer)}</code></p>"
    if channel.first is not None and channel.last is not None:
        when = time_range(channel.first, channel.last)
        yield f"<p>Sealed from {when}: {channel.records} records, {channel.frames} frames.</p>"
        yield f"<p>The agent's clock was {_text(clock_quality(channel))}.</p>"
    if channel.overdue_ns is not None:
        yield f'<p class="unknown">Overdue: nothing was sealed for {duration(channel.overdue_ns)}.</p>'
    if channel.groups:
        head = [
            "Device / group",
            "",
            "#expected",
            "#present",
            "#missing",
            "In gaps, by cause",
            "Values that are not good",
        ]
        yield from _table(head, (_group(key, tally) for key, tally in sorted(channel.groups.items())))
    events = ", ".join(f"{n} {event_name(code)}" for code, n in sorted(channel.events.items()))
    if events:
        yield f"<p>Events: {_text(events)}.</p>"
    if channel.holes:
        yield from _table(["Records that did not come in their turn"], ([_text(hole_words(h))] for h in channel.holes))
    if channel.runs:
        yield from _table(["Runs of the agent, and how each joins the one before"], map(_run_row, channel.runs))
    rest = channel.joins.total() - len(channel.runs)
    if rest > 0:
        yield f"<p>{rest} earlier runs are not listed.</p>"


def _run_row(run: Run) -> list[str]:
    when = f"{time_range(run.began, run.ended)}: " if run.began and run.ended else ""
    return [_text(when + run_words(run))]


def _group(key: GroupKey, tally: Tally) -> list[str]:
    silent = ", ".join(f"{duration(ns)} {cause_name(cause)}" for cause, ns in sorted(tally.silent.items()))
    gaps = causes(tally.gaps) + (f"; no messages during {silent}" if silent else "")
    quality = ", ".join(f"{n} {quality_name(code)}" for code, n in sorted(tally.quality.items())) or "none"
    missing = f'<span class="failed">{tally.missing}</span>' if tally.missing else "0"
    counts = [str(tally.expected), str(tally.present), missing]
    return [_text("/".join(key)), _bar(tally), *counts, _text(gaps), _text(quality)]


def _bar(tally: Tally) -> str:
    """Present, in gaps and missing as parts of a bar."""
    if not tally.expected:
        return ""
    shares = [(tally.present, "#3b8f52"), (tally.gaps.total(), "#d9a520"), (tally.missing, "#c02020")]
    at, parts = 0.0, []
    for count, colour in shares:
        width = 100 * count / tally.expected
        if count:
            parts.append(f'<rect x="{at:.2f}" width="{max(width, 0.5):.2f}" height="10" fill="{colour}"/>')
        at += width
    return f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'


def _outcome(outcome: Outcome) -> str:
    return f'<span class="{outcome}">{outcome}</span>'


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """``head``: a # before a name marks a column of numbers. Cells are HTML."""
    numbers = [name.startswith("#") for name in head]
    cells = "".join(
        f"<th{_number(is_number)}>{_text(name.removeprefix('#'))}</th>"
        for name, is_number in zip(head, numbers, strict=True)
    )
    yield f"<table><thead><tr>{cells}</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td{_number(n)}>{cell}</td>" for n, cell in zip(numbers, row, strict=True)) + "</tr>"
    yield "</tbody></table>"


def _number(is_number: bool) -> str:
    return ' class="n"' if is_number else ""


def _text(text: str) -> str:
    return escape(printable(text))
