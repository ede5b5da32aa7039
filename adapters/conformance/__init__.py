"""The adapter conformance suite: what agent/ports.py and agent/kinds.py promise of an adapter, as tests for pytest.

An adapter's author writes a subject, which says how the adapter is configured and moves its other end, and a class:

    class TestMine(PolledAdapterConformance):
        subject_type = MySubject

docs/adapters.md shows it whole. Needs pytest and anyio's plugin for it; the agent itself never imports this package.
"""

from __future__ import annotations

from adapters.conformance.event import EventAdapterConformance
from adapters.conformance.polled import PolledAdapterConformance
from adapters.conformance.subject import CONNECTION, EventSubject, PolledSubject

__all__ = ["CONNECTION", "EventAdapterConformance", "EventSubject", "PolledAdapterConformance", "PolledSubject"]
