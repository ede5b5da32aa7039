"""Metrics: what the page says, held against a status of the real agent by Prometheus' own parser; and that page,
documentation and alert rules speak of the same metrics.
"""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from agent.bus import LATE, Bus
from agent.control.metrics import CAUSES, METRICS, OUTBOX_STATES, OUTCOMES, render
from agent.control.status_text import lines
from agent.delivery.latency import LATENCY, MARKS, Latency, Pace
from agent.errors import Reason
from agent.histogram import Histogram, Rate
from agent.model import Cause
from agent.outbox import ring
from tests.fakes import BACKEND, MS, Acquisition, Fate, S
from tests.house import House, fake_transport

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTED = ROOT / "docs" / "metrics.md"
OPERATING = ROOT / "docs" / "operating.md"
RULES = ROOT / "config" / "alerts.yaml"


@pytest.fixture
def anyio_backend() -> Any:
    return BACKEND


def parsed(status: dict[str, Any]) -> dict[str, Family]:
    """The page's families, by the names that it gives them."""
    text = render(status).decode()
    assert text.endswith("\n")
    families = {family.name + "_total" * (family.type == "counter"): family for family in
                text_string_to_metric_families(text)}  # fmt: skip
    assert len(families) == text.count("# TYPE"), "a family is there twice"
    series = re.findall(r"^([a-z_]+(?:\{.*\})?) \S+$", text, re.MULTILINE)
    assert len(series) == len(set(series)), "a series is there twice"
    assert len(series) == len([line for line in text.splitlines() if not line.startswith("#")]), "an odd line"
    return families


def value(families: dict[str, Family], name: str, **labels: str) -> float | None:
    """Of one series; None if there is none. Of a histogram by the name of one of its series."""
    for family in families.values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


# ---- a real agent ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of an agent on virtual time, with a channel that delivers and one whose broker is away; one of its devices timed
    out at times.
    """
    fake_transport(monkeypatch)
    monkeypatch.chdir(tmp_path)
    house = House(Path(), {"dso": 'send = ["meter/*", "battery/*"]', "market": 'send = ["meter/slow/*"]'})
    house.broker("market").down()
    told: dict[str, Any] = {}

    async def work() -> None:
        await anyio.sleep(2.05)
        meter, done = house.world.devices["meter"], 0

        def script(group: str) -> Acquisition:
            nonlocal done
            done += group == "fast"
            late = group == "fast" and done % 10 == 0
            return Acquisition(took=450 * MS, cause=Cause.DEVICE_TIMEOUT) if late else Acquisition(took=10 * MS)

        meter.script = script
        house.broker().fate = lambda message: Fate(answers=[(200 * MS, None)])
        for number in (1, 2, 3):
            house.source.send(number)
        await anyio.sleep(20)
        told.update(house.running.status())

    await house.live(work)
    return told


@pytest.mark.anyio
async def test_the_page_of_an_agent_at_work(status: dict[str, Any], tmp_path: Path) -> None:
    assert status["config"] == str(tmp_path / "agent.toml"), "for commands that are given elsewhere"
    families = parsed(status)
    assert {metric.name for metric in METRICS} == set(families)
    assert {metric.name: metric.kind for metric in METRICS} == {name: each.type for name, each in families.items()}
    dso, market = status["channels"]
    assert value(families, "agent_channel_connected", channel="dso") == 1
    assert value(families, "agent_channel_connected", channel="market") == 0
    assert value(families, "agent_outbox_records", channel="market") == market["pending_records"] > 10
    assert value(families, "agent_outbox_bytes", channel="market") == market["pending_bytes"] > 1000
    assert value(families, "agent_outbox_oldest_seconds", channel="market") == pytest.approx(22, abs=1.5)
    assert value(families, "agent_delivery_failures_total", channel="market", reason="other") == sum(
        market["failures"].values()
    )
    assert value(families, "agent_records_total", channel="dso") == dso["seq"], "all of them are on disk"
    assert value(families, "agent_head_seq", channel="dso") == dso["seq"]
    assert dso["seq"] - 3 <= dso["acked_seq"] <= dso["seq"]
    assert market["acked_seq"] == 0
    assert value(families, "agent_acquisitions_total", device="battery", outcome="ok") == 3
    timeouts = value(families, "agent_acquisitions_total", device="meter", outcome="device_timeout")
    assert timeouts is not None
    assert timeouts >= 8
    gaps = [
        value(families, "agent_gap_cycles_total", channel="dso", cause=each) for each in ("device_timeout", "overrun")
    ]
    assert gaps == [pytest.approx(timeouts, abs=1)] * 2, (
        "450 ms with a period of 200: one is missed; not all is on disk"
    )
    assert value(families, "agent_gap_cycles_total", channel="market", cause="device_timeout") == 0
    assert value(families, "agent_outbox_state", channel="dso", state="ok") == 1
    assert sum(value(families, "agent_outbox_state", channel="dso", state=each) or 0 for each in OUTBOX_STATES) == 1
    for reason in ("overflow", "refused", "disk_error", "memory"):
        assert value(families, "agent_dropped_records_total", channel="dso", reason=reason) == 0
    assert value(families, "agent_connection_connected", connection="bus") == 1
    assert value(families, "agent_connection_connected", connection="wire") is None
    assert value(families, "agent_connection_connects_total", connection="bus") == 1
    assert value(families, "agent_memory_bytes") == status["process"]["memory_bytes"] > 10 << 20


@pytest.mark.anyio
async def test_what_is_measured_is_what_happened(status: dict[str, Any]) -> None:
    families = parsed(status)
    commits = value(families, "agent_publish_latency_seconds_count", channel="dso")
    assert commits is not None
    assert commits > 15
    assert value(families, "agent_publish_latency_seconds_bucket", channel="dso", le="0.5") == commits
    slow = commits - (value(families, "agent_publish_latency_seconds_bucket", channel="dso", le="0.1") or 0)
    assert slow >= 18, "answered after 200 ms for 20 s"
    assert value(families, "agent_publish_latency_seconds_count", channel="market") == 0
    acquired = value(families, "agent_acquisitions_total", device="meter", outcome="ok")
    timeouts = value(families, "agent_acquisitions_total", device="meter", outcome="device_timeout")
    assert acquired is not None
    assert timeouts is not None
    busy = value(families, "agent_connection_busy_seconds_total", connection="wire")
    assert busy == pytest.approx(0.45 * timeouts + 0.01 * (acquired - 12), rel=0.1), "slow and fast may overlap"
    assert value(families, "agent_poll_lateness_seconds_count", connection="wire") == acquired, "of what came"
    late = value(families, "agent_poll_lateness_seconds_bucket", connection="wire", le="0.01")
    assert late is not None
    assert late >= acquired - 10
    dso = status["channels"][0]
    assert dso["rate"] == pytest.approx(1, rel=0.25), "a record a second"
    assert "in connection" not in "".join(lines(status))


@pytest.mark.anyio
async def test_the_number_of_series_follows_from_the_configuration(status: dict[str, Any]) -> None:
    series = {len(render(copy.deepcopy(status)).splitlines())}
    busy = copy.deepcopy(status)
    for channel in busy["channels"]:
        channel.update(seq=10**9, records=10**9, latency={**channel["latency"], "counts": [5] * (len(LATENCY) + 1)})
    series.add(len(render(busy).splitlines()))
    assert len(series) == 1


@pytest.mark.anyio
async def test_labels_may_hold_anything_and_what_is_not_known_has_no_sample(status: dict[str, Any]) -> None:
    odd = 'a"b\\c\nd{e="f"} ä'
    status["site"] = odd
    status["clock"] = {"state": "unknown", "error_us": None, "waiting_s": None, "steps": 0}
    status["process"]["memory_bytes"] = None
    families = parsed(status)
    assert families["agent_info"].samples[0].labels["site"] == odd
    for name in ("agent_clock_synchronised", "agent_clock_error_seconds", "agent_memory_bytes"):
        assert families[name].samples == []
    status["clock"] = {"state": "synchronised", "error_us": 1500, "waiting_s": 3.0, "steps": 2}
    families = parsed(status)
    assert value(families, "agent_clock_error_seconds") == pytest.approx(0.0015)
    assert (value(families, "agent_clock_synchronised"), value(families, "agent_clock_waiting")) == (1, 1)
    assert value(families, "agent_clock_steps_total") == 2


@pytest.mark.anyio
async def test_what_waits_from_before_the_start_has_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_transport(monkeypatch)
    house = House(tmp_path, {"dso": 'send = ["meter/*"]\ndrain = { spread = "0s" }'})
    house.broker().down()
    ages: list[float | None] = []

    async def work() -> None:
        await anyio.sleep(20)
        ages.append(house.status()["oldest_s"])

    began = house.clock.now
    await house.live(work)
    assert ages[-1] == pytest.approx(20, abs=1.5)

    async def again() -> None:
        await work()
        assert ages[-1] == pytest.approx((house.clock.now - began) / S, abs=1.5)
        house.broker().up()
        await house.delivered()
        ages.append(house.status()["oldest_s"])
        assert house.status()["acked_seq"] > 0

    await house.live(again)
    assert ages[-1] is None


@pytest.mark.anyio
async def test_counts_go_on_over_a_reload_and_an_outbox_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_transport(monkeypatch)
    house = House(tmp_path, {"dso": 'send = ["meter/*"]'})

    async def work() -> None:
        await anyio.sleep(5)
        before = house.status()
        house.configure({"dso": 'send = ["meter/*"]\nmark = 1\n'})
        await house.running.reload()
        house.files.away.add("dso.ring")
        await house.in_state("failed")
        await anyio.sleep(3)
        house.files.away.clear()
        await house.in_state("ok")
        after = house.status()
        for key in ("records", "frames", "acknowledged"):
            assert after[key] >= before[key] > 0
        assert sum(after["latency"]["counts"]) >= sum(before["latency"]["counts"]) > 0
        families = parsed(house.running.status())
        dropped = value(families, "agent_dropped_frames_total", channel="dso", reason="not_stored")
        assert dropped == after["not_stored"] > 0

    await house.live(work)


# ---- page, documentation and rules speak of the same ----------------------------------------------------------------


def documented() -> dict[str, tuple[str, str]]:
    """Kind and labels of each metric of the table."""
    rows = re.findall(r"^\| `(agent_\w+)` \| (\w+) \|(.*?)\| .+ \|$", DOCUMENTED.read_text(), re.MULTILINE)
    return {name: (kind, labels) for name, kind, labels in rows}


def test_every_metric_is_documented_and_nothing_else() -> None:
    table = documented()
    assert set(table) == {metric.name for metric in METRICS}
    assert {metric.name: metric.kind for metric in METRICS} == {name: kind for name, (kind, _) in table.items()}


@pytest.mark.anyio
async def test_the_labels_are_as_documented(status: dict[str, Any]) -> None:
    status["requests"] = {"ok": 1}
    for name, family in parsed(status).items():
        there = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert there == set(re.findall(r"`(\w+)`", documented()[name][1])), name


def test_names_are_as_the_house_names_them() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"agent(_[a-z0-9]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")


def test_alert_rules_are_whole_name_what_is_exported_and_are_explained() -> None:
    text = RULES.read_text()
    rules = text.split("- alert: ")[1:]
    assert len(rules) > 10
    histograms = [metric.name for metric in METRICS if metric.kind == "histogram"]
    exported = {metric.name for metric in METRICS} | {f"{name}_bucket" for name in histograms}
    explained = re.findall(r"^\| `(EdgeAgent\w+)` \| \S.* \| \S.* \|$", OPERATING.read_text(), re.MULTILINE)
    names = [rule.split()[0] for rule in rules]
    assert names == explained, "in the order of the rules"
    for rule in rules:
        assert re.search(r"^ {8}expr: ", rule, re.MULTILINE)
        assert re.search(r"^ {8}labels: \{ severity: (critical|warning) \}$", rule, re.MULTILINE)
        assert re.search(r'^ {8}annotations: \{ summary: ".+" \}$', rule, re.MULTILINE)
        used = re.findall(r"\bagent_\w+", rule)
        assert used or "up{" in rule
        assert set(used) <= exported
        states = re.findall(r'state=~?"([a-z|]+)"', rule)
        assert {state for each in states for state in each.split("|")} <= set(OUTBOX_STATES)
    causes = {state for each in re.findall(r'cause="(\w+)"', text) for state in each.split("|")}
    assert causes <= set(CAUSES) <= {cause.name.lower() for cause in Cause}
    assert "\t" not in text
    assert set(OUTCOMES) - {"ok"} <= {cause.name.lower() for cause in Cause}


def test_alert_rules_name_labels_that_their_metrics_have() -> None:
    table = {name: set(re.findall(r"`(\w+)`", labels)) for name, (_, labels) in documented().items()}
    table |= {f"{metric.name}_bucket": table[metric.name] for metric in METRICS if metric.kind == "histogram"}
    reasons = {each.value for each in Reason}
    for rule in RULES.read_text().split("- alert: ")[1:]:
        labels = set.union({"instance", "job"}, *(table[name] for name in re.findall(r"\bagent_\w+", rule)))
        used = set(re.findall(r"\$labels\.(\w+)|[{,](\w+)[=!]", rule))
        assert {name or matched for name, matched in used} <= labels, rule
        for selected in re.findall(r'reason!?~?"([\w|]+)"', rule):
            assert set(selected.split("|")) <= reasons
        for joined in re.findall(r"on \((.*?)\)", rule):
            assert set(joined.split(", ")) <= labels


def test_the_alert_of_an_outbox_that_fills_up_comes_before_it_overwrites() -> None:
    """Also of the smallest, with the smallest records: its marks, headers and ends take their share."""
    smallest, segment, record = 5 << 20, 1 << 20, 300
    held = (smallest - ring.START) // segment * segment * record / ring.size_of(record) / smallest
    [limit] = re.findall(r"agent_outbox_bytes / agent_outbox_size_bytes > ([\d.]+)", RULES.read_text())
    assert float(limit) < 0.8 * held, "in time"


# ---- what counts ----------------------------------------------------------------------------------------------------


def test_a_histogram_counts_up_to_and_with_its_bounds() -> None:
    found = Histogram((0.1, 1))
    for each in (0, 0.1, 0.11, 1, 1.01, 50):
        found.observe(each)
    found.observe(0.5, 3)
    assert found.as_json() == {"bounds": [0.1, 1], "counts": [2, 5, 2], "sum": pytest.approx(53.72)}


def test_a_rate_is_that_of_about_the_last_minute() -> None:
    rate = Rate()
    assert rate.per_second(5 * S) == 0
    for second in range(600):
        rate.add(3, second * S)
        if second > 5:
            assert rate.per_second(second * S) == pytest.approx(3, rel=0.2), "from the first on"
    assert rate.per_second(599 * S) == pytest.approx(3, rel=0.02)
    assert rate.per_second(659 * S) == pytest.approx(3 / math.e, rel=0.02)
    assert rate.per_second(1500 * S) < 1e-5


def test_a_bus_is_busy_while_anybody_uses_it() -> None:
    bus = Bus()
    for begin in range(0, 60, 2):
        bus.begin(begin * S)
        bus.begin(begin * S + S // 4)  # waits for the first
        bus.end(begin * S + S // 2)
        bus.end(begin * S + S)
    told = bus.status(60 * S)
    assert told["busy_s"] == 30
    assert told["busy"] == pytest.approx(0.5, rel=0.05)
    bus.begin(60 * S)
    assert bus.status(70 * S)["busy_s"] == 40, "it is busy now"
    assert told["late"]["bounds"] == list(LATE)


def test_latency_of_commits_and_the_age_of_the_oldest() -> None:
    pace = Pace()
    latency = Latency(pace)
    latency.backlog, latency.backlog_wall = 4, 100 * S
    assert latency.oldest(3, wall=160 * S, boot=0) == 60
    latency.stored(6, seq=2, now=10 * S)
    latency.stored(9, seq=5, now=11 * S)
    assert latency.oldest(4, wall=0, boot=13 * S) == 3
    latency.settled(7, acknowledged=3, now=12 * S)
    assert (latency.acked_seq, pace.latency.sum, sum(pace.latency.counts)) == (2, 2, 1)
    assert latency.oldest(7, wall=0, boot=13 * S) == 2
    latency.settled(5, acknowledged=3, now=12 * S)  # the broker lost some
    assert latency.acked_seq == 2
    latency.settled(9, acknowledged=5, now=12 * S)
    assert (latency.acked_seq, pace.latency.sum, sum(pace.latency.counts)) == (5, 3, 2)
    assert latency.oldest(9, wall=0, boot=13 * S) is None
    assert pace.rate.per_second(12 * S) == pytest.approx(5, rel=0.02), "in a second at least"


def test_latency_holds_a_bounded_number_of_marks_and_counts_every_commit() -> None:
    pace = Pace()
    latency = Latency(pace)
    for commit in range(10 * MARKS):
        latency.stored(commit + 1, seq=commit + 1, now=commit * S)
        assert len(latency._marks) <= MARKS
    assert latency.oldest(0, wall=0, boot=10 * MARKS * S) == 10 * MARKS
    latency.settled(10 * MARKS, acknowledged=10 * MARKS, now=10 * MARKS * S)
    assert sum(pace.latency.counts) == 10 * MARKS
    assert latency.acked_seq == 10 * MARKS
