"""The benchmarks' figures: what they print and when they count as met. What they measure is run by bench/run alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.figure import Figure, interleaved


@pytest.mark.parametrize(("value", "met"), [(2.9, True), (3.0, True), (3.1, False)])
def test_a_figure_is_met_when_its_ratio_is_within_the_target(value: float, met: bool) -> None:
    figure = Figure("cpu", value, "us", 1.0, "the reference", 3.0)
    assert figure.met is met
    assert figure.as_json() == {
        "value": value,
        "unit": "us",
        "reference": 1.0,
        "ratio": value,
        "target": 3.0,
        "met": met,
    }
    assert ("MISSED" in figure.line()) is not met


def test_measures_are_taken_in_turn_and_their_medians_count() -> None:
    order: list[str] = []
    values = {"a": iter([5.0, 1.0, 3.0]), "b": iter([10.0, 30.0, 20.0])}

    def measure(name: str) -> float:
        order.append(name)
        return next(values[name])

    assert interleaved([lambda: measure("a"), lambda: measure("b")]) == [3.0, 20.0]
    assert order == ["a", "b"] * 3


def test_an_unknown_figure_is_refused_with_the_names_that_there_are() -> None:
    done = subprocess.run([sys.executable, "-m", "bench", "speed"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cpu_per_reading" in done.stderr
