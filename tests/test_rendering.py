"""What commands print of verified records: text, JSON, CSV, SenML, and the report as a page."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import main
from agent.model import (
    Cause,
    ClockState,
    Data,
    DeviceInfo,
    EventCode,
    Frame,
    Gap,
    GroupPlan,
    Point,
    Quality,
    Sealed,
    ValueType,
)
from agent.rendering import account, senml, table
from agent.rendering.page import page
from agent.rendering.words import exact, moment
from agent.verifier import Judged, Verifier
from tests.runs import DID, OTHER_SECRET, FakeClock, Run, S, frame, group, simple_run

BATTERY = (
    Point("SoC", "%", ValueType.FLOAT),
    Point("State", None, ValueType.TEXT),
    Point("On", None, ValueType.BOOLEAN),
    Point("Raw", None, ValueType.BYTES),
)


def lively() -> Run:
    """All types, qualities, gaps by cycle and by time, an event, the source's own time."""
    run = Run()
    run.begin([group(100), GroupPlan("state", 0, None, 0, BATTERY)])
    run.event(EventCode.START, "0.1.0", True)
    run.data(
        [
            frame(100),
            Frame(0, 101, 1, 2, (None, -2304, 0.1), ((0, Quality.NO_VALUE), (1, Quality.SUSPECT))),
            Frame(1, 0, 500_000, None, (81.25, "=1+2", True, b"\xff\x00"), (), 1_763_999_999_123_456_789),
        ],
        [
            Gap(0, 102, 104, Cause.DEVICE_TIMEOUT, "no answer"),
            Gap(1, None, None, Cause.SOURCE_SILENT, None, 900 * S, 990 * S),
        ],
    )
    return run


def judged(run: Run) -> list[Judged]:
    verifier = Verifier([DID])
    return [each for envelope in run.sent for each in verifier.feed(envelope)] + verifier.finish()


def reported(*parts: Sequence[bytes]) -> Verifier:
    verifier = Verifier([DID])
    for part in parts:
        for envelope in part:
            verifier.feed(envelope)
    verifier.finish(complete=True)
    return verifier


# ---- CSV --------------------------------------------------------------------------------------------------------


def test_a_table_has_a_row_per_value_and_per_gap() -> None:
    rows = [dict(zip(table.COLUMNS, row, strict=True)) for each in judged(lively()) for row in table.rows(each)]
    found = [
        (r["row"], r["time"], r["device"], r["group"], r["point"], r["value"], r["unit"], r["quality"]) for r in rows
    ]
    received, source = moment((1_764_001_000 * S) - 500_000_000), moment(1_763_999_999_123_456_789)
    assert received != source
    assert found == [
        ("value", moment(100 * S), "pv-1", "ac", "W", "100", "W", "good"),
        ("value", moment(100 * S), "pv-1", "ac", "PhVphA", "230.4", "V", "good"),
        ("value", moment(100 * S), "pv-1", "ac", "Temp", "21.5", "Cel", "good"),
        ("value", moment(101 * S), "pv-1", "ac", "W", "", "W", "no_value"),
        ("value", moment(101 * S), "pv-1", "ac", "PhVphA", "-230.4", "V", "suspect"),
        ("value", moment(101 * S), "pv-1", "ac", "Temp", "0.1", "Cel", "good"),
        ("value", source, "pv-1", "state", "SoC", "81.25", "%", "good"),
        ("value", source, "pv-1", "state", "State", "'=1+2", "", "good"),  # no formula
        ("value", source, "pv-1", "state", "On", "true", "", "good"),
        ("value", source, "pv-1", "state", "Raw", "ff00", "", "good"),
        ("gap", moment(102 * S), "pv-1", "ac", "", "", "", "device_timeout"),
        ("gap", moment((1_764_000_900) * S), "pv-1", "state", "", "", "", "source_silent"),
    ]
    assert [(r["until"], r["cycle"]) for r in rows if r["row"] == "gap"] == [
        (moment(104 * S), "102..104"),
        (moment((1_764_000_990) * S), ""),
    ]
    assert {(r["site"], r["channel"], r["signer"], r["verdict"]) for r in rows} == {("site-1", "dso", DID, "ok")}


def test_values_of_records_that_are_not_genuine_are_in_no_table() -> None:
    run, verifier = simple_run(4), Verifier([DID])
    verifier.feed(run.sent[0])
    forged = verifier.feed(run.sent[1][:-1] + bytes([run.sent[1][-1] ^ 1]))
    good = verifier.feed(run.sent[1])
    again = verifier.feed(run.sent[1])
    assert [len(list(table.rows(each))) for each in (*forged, *good, *again)] == [0, 6, 0]
    assert [len(list(senml.records(each))) for each in (*forged, *good, *again)] == [0, 6, 0]


# ---- SenML ------------------------------------------------------------------------------------------------------


def test_senml_has_names_below_the_did_and_exact_decimals() -> None:
    found = [json.loads(text, parse_float=Decimal) for each in judged(lively()) for text in senml.records(each)]
    base = {"bn": f"{DID}/", "bt": 100}
    late = Decimal("1763999999.123456") - 100
    assert found == [
        base | {"n": "pv-1/ac/W", "u": "W", "v": 100},
        {"n": "pv-1/ac/PhVphA", "u": "V", "v": Decimal("230.4")},
        {"n": "pv-1/ac/Temp", "u": "Cel", "v": Decimal("21.5")},
        {"n": "pv-1/ac/PhVphA", "u": "V", "v": Decimal("-230.4"), "t": 1, "quality": "suspect"},
        {"n": "pv-1/ac/Temp", "u": "Cel", "v": Decimal("0.1"), "t": 1},
        {"n": "pv-1/state/SoC", "u": "%", "v": Decimal("81.25"), "t": late},
        {"n": "pv-1/state/State", "vs": "=1+2", "t": late},
        {"n": "pv-1/state/On", "vb": True, "t": late},
        {"n": "pv-1/state/Raw", "vd": "_wA", "t": late},
    ]


def test_senml_names_hold_only_what_rfc_8428_allows() -> None:
    run = Run()
    run.begin([replace(group(100), name="a b")], [DeviceInfo('m"ü', "modbus")])
    run.data([frame(100)])
    names = [json.loads(text)["n"] for each in judged(run) for text in senml.records(each)]
    assert names == ["m__/a_b/W", "m__/a_b/PhVphA", "m__/a_b/Temp"]


@given(st.integers(-(2**64), 2**64 - 1), st.integers(-80, 80))
def test_numbers_are_exact(value: int, exponent: int) -> None:
    text = exact(Point("W", "W", ValueType.INTEGER, exponent), value)
    assert Decimal(text) == Decimal(value).scaleb(exponent)
    assert len(text) < 100
    assert json.loads(text, parse_float=Decimal, parse_int=Decimal) == Decimal(text)


@pytest.mark.parametrize("exponent", [10**6, -(10**6), 2**63, -(2**63)])
def test_an_absurd_exponent_costs_nothing(exponent: int) -> None:
    assert exact(Point("W", "W", ValueType.INTEGER, exponent), 7) == f"7e{exponent}"


# ---- the report -------------------------------------------------------------------------------------------------


class _Page(html.parser.HTMLParser):
    """The text of a page; every element must be closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def text_of(report_page: str) -> str:
    reader = _Page()
    reader.feed(report_page)
    reader.close()
    assert reader.open == []
    assert not reader.seen & {"script", "link", "img", "iframe"}
    return " ".join(" ".join(reader.words).split())


def test_the_page_says_what_the_text_says() -> None:
    first = simple_run(10)
    second = Run(after=first, clock=FakeClock(boot=1020 * S))
    second.begin([group(120, anchor=1020 * S)])
    second.data([frame(120)])
    report = reported(first.sent[:3], first.sent[4:], second.sent).report
    text = text_of(page(report, made=1_764_000_000 * S, sources=["evidence.cbor"]))
    assert account.summary(report) in text
    for part in (
        "pv-1/ac 21 9 2 10 agent_down",
        "records 4 to 4 of run",
        "missing: failed",
        "continuous, agent_down",
        DID,
    ):
        assert part in text, part
    assert 'src="' not in page(report, made=0, sources=[])
    assert "http" not in page(report, made=0, sources=[])


def test_nothing_from_outside_becomes_markup() -> None:
    nasty = "<script>alert(1)</script>\x1b[31m&\u202e"
    run = Run()
    run.sealer.facts = replace(run.sealer.facts, site=nasty, channel=nasty)
    run.begin([replace(group(100), name=nasty)], [DeviceInfo(nasty, "modbus")])
    run.data([frame(100)])
    run.event(EventCode.STOP, nasty)
    made = page(reported(run.sent).report, made=0, sources=[nasty])
    text_of(made)
    assert "\x1b" not in made
    assert "\u202e" not in made
    words = "\n".join(account.lines(reported(run.sent).report))
    assert words.replace("\n", "").isprintable()


def test_clock_quality_is_told() -> None:
    run = Run()
    states = [(ClockState.NOT_SYNCHRONISED, None), (ClockState.SYNCHRONISED, 1500), (ClockState.SYNCHRONISED, 900)]
    run.begin([group(100)])
    for cycle, (state, error) in enumerate(states, 100):
        body = run.sealer.data_body(_data(cycle), at=run.sealer.now())
        run.sealer.cover(_data(cycle))
        at = Sealed(run.clock.wall(), run.clock.boot(), state, error)
        run.sent.append(run.sealer.seal(body, at=at)[0])
    verifier = reported(run.sent)
    words = "\n".join(account.lines(verifier.report))
    clock = "of unknown state in 1 of 4 records, not synchronised in 1 of 4 records, synchronised in 2 of 4 records"
    assert f"clock {clock}, off by at most 1.5 ms" in words
    [channel] = account.as_json(verifier.report)["channels"]
    assert channel["clock"] == {"unknown": 1, "not_synchronised": 1, "synchronised": 2}
    assert channel["clock_error_us"] == 1500


def _data(cycle: int) -> Data:
    return Data(1, (frame(cycle),), ())


# ---- commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """A file."""
    file = tmp_path / "evidence.cbor"
    file.write_bytes(b"".join(lively().sent))
    return file


def test_decode_prints_each_form(evidence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", str(evidence), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert [record["kind"] for record in whole["records"]] == ["plan", "event", "data"]
    assert whole["report"]["records"] == 3

    assert main(["decode", str(evidence), "--jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [*whole["records"], {"report": whole["report"]}]

    assert main(["decode", str(evidence), "--csv"]) == 0
    printed = capsys.readouterr()
    assert len(list(csv.DictReader(printed.out.splitlines()))) == 12
    assert "verified 3 records" in printed.err

    assert main(["decode", str(evidence), "--senml"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 9

    assert main(["decode", str(evidence)]) == 0
    assert "gap: cycles 102 to 104: device_timeout (no answer)" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["--json", "--senml"])
def test_decode_of_nothing_is_still_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert main(["decode", str(tmp_path / "empty"), form]) == 1
    json.loads(capsys.readouterr().out)


def test_verify_writes_the_page_and_goes_on_at_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent = simple_run(10).sent
    kept = tmp_path / "state"
    for number, part in enumerate((sent[:3], sent[3:])):
        (tmp_path / f"day-{number}").write_bytes(b"".join(part))
    options = ["--did", DID, "--checkpoint", str(kept)]
    assert main(["verify", str(tmp_path / "day-0"), *options, "--part"]) == 0
    assert main(["verify", str(tmp_path / "day-1"), *options, "--json", "--html", str(tmp_path / "report.html")]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["records"], report["cycles_expected"], report["cycles_missing"]) == (6, 10, 0)
    assert "10 of 10 cycles" in text_of((tmp_path / "report.html").read_text())
    kept.write_bytes(kept.read_bytes()[:-1])
    assert main(["verify", str(tmp_path / "day-1"), *options]) == 1
    assert re.search(r"state: not a checkpoint.*; move the file away", capsys.readouterr().err)


def test_verify_tells_what_is_overdue_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old").write_bytes(b"".join(simple_run(4).sent))
    assert main(["verify", str(tmp_path / "old"), "--did", DID]) == 0
    assert "OVERDUE" not in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "old"), "--did", DID, "--live"]) == 0
    assert "OVERDUE: nothing was sealed for" in capsys.readouterr().out


# ---- whom to accept ---------------------------------------------------------------------------------------------


def test_an_allow_list_names_signers_and_channels(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allow = tmp_path / "allow.toml"
    allow.write_text(f'version = 1\n[[signer]]\ndid = "{DID}"\nname = "Solar park 7"\nchannels = ["dso"]\n')
    assert main(["verify", str(evidence), "--allow", str(allow)]) == 0
    assert f"signed by Solar park 7 ({DID})" in capsys.readouterr().out
    allow.write_text(allow.read_text().replace('"dso"', '"market"'))
    assert main(["verify", str(evidence), "--allow", str(allow)]) == 1
    assert "the allow-list does not let its signer write the channel dso" in capsys.readouterr().err


def test_all_that_is_wrong_with_an_allow_list_is_told(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allow = tmp_path / "allow.toml"
    allow.write_text(
        f"""version = 2
        extra = 1
        [[signer]]
        did = "did:web:example.org"
        [[signer]]
        name = 3
        channels = []
        [[signer]]
        did = "{DID}"
        chanels = ["dso"]
        [[signer]]
        did = "{DID.lower()}"
        """
    )
    assert main(["verify", str(evidence), "--allow", str(allow)]) == 2
    told = capsys.readouterr().err
    for part in (
        "extra: not a key",
        "version: expected 1",
        "signer[0].did: not a did:ethr DID",
        "signer[1].name: expected text",
        "signer[1].channels: expected names",
        "signer[1].did: missing",
        "signer[2].chanels: not a key",
        "signer[3].did: listed twice",
    ):
        assert f"{allow}: {part}" in told, part


def test_files_that_name_countless_signers_ask_for_a_choice(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.commands.verify.MOST_NAMED", 1)
    stranger = Run(secret=OTHER_SECRET)
    (tmp_path / "other").write_bytes(stranger.begin([group(1)]))
    assert main(["decode", str(evidence), str(tmp_path / "other")]) == 2
    assert "more than 1 signers; give --did" in capsys.readouterr().err
    assert main(["decode", str(evidence), str(tmp_path / "other"), "--did", DID]) == 1, "one record is foreign"
