"""Read planning: every span is whole within one request, and no request breaks a limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.modbus.requests import Limits, RegisterKind, Registers, plan


def holding(address: int, count: int = 1) -> Registers:
    return Registers("holding", address, count)


@pytest.mark.parametrize(
    ("spans", "limits", "requests"),
    [
        ([], Limits(), []),
        ([holding(5)], Limits(), [holding(5)]),
        ([holding(0), holding(9)], Limits(max_gap=8), [holding(0, 10)]),
        ([holding(0), holding(10)], Limits(max_gap=8), [holding(0), holding(10)]),
        ([holding(9, 2), holding(0)], Limits(), [holding(0, 11)]),  # the order of the points does not matter
        ([holding(0, 2), holding(2, 2)], Limits(max_registers=3), [holding(0, 2), holding(2, 2)]),
        ([holding(0, 2), holding(1, 2)], Limits(), [holding(0, 3)]),
        ([holding(0, 4), holding(1)], Limits(), [holding(0, 4)]),
        ([holding(0), Registers("input", 1, 1)], Limits(), [holding(0), Registers("input", 1, 1)]),
        ([holding(0), holding(4)], Limits(forbidden=(holding(2),)), [holding(0), holding(4)]),
        ([holding(0), holding(4)], Limits(forbidden=(Registers("input", 2, 1),)), [holding(0, 5)]),
        ([holding(i) for i in range(200)], Limits(), [holding(0, 125), holding(125, 75)]),
    ],
)
def test_spans_are_joined(spans: list[Registers], limits: Limits, requests: list[Registers]) -> None:
    assert list(plan(spans, limits)[0]) == requests


def test_a_span_too_long_for_a_request_is_an_error() -> None:
    with pytest.raises(ValueError):
        plan([holding(0, 4)], Limits(max_registers=3))


kinds: st.SearchStrategy[RegisterKind] = st.sampled_from(["holding", "input"])
span = st.builds(Registers, kinds, st.integers(0, 400), st.integers(1, 8))
limits = st.builds(Limits, st.integers(8, 125), st.integers(0, 30), st.lists(span, max_size=4).map(tuple))


@given(st.lists(span, max_size=40), limits)
def test_requests_cover_the_spans_and_keep_the_limits(spans: list[Registers], limits: Limits) -> None:
    spans = [each for each in spans if not any(map(each.overlaps, limits.forbidden))]
    requests, where = plan(spans, limits)
    for each, index in zip(spans, where, strict=True):
        assert requests[index].hull(each) == requests[index]
        assert requests[index].kind == each.kind
    for request in requests:
        assert request.count <= limits.max_registers
        assert not any(map(request.overlaps, limits.forbidden))
