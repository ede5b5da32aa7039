"""An errand: settled records that are to be sent once more, and how far that has come."""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from agent.errors import TransportError, Verdict
from agent.ports import Ack, Stored


class Errand:
    """``waiting``: without an answer, by position. ``duplicates``: what the broker says that it has already.
    ``trouble``: why it does not take the rest, as it was last told.
    """

    def __init__(self, records: Iterable[Stored]) -> None:
        self.waiting = {record.pos: record for record in records}
        self.stored = self.duplicates = self.refused = 0
        self.trouble = ""
        self.changed = anyio.Event()  # set, and replaced, with every answer and every session

    def answer(self, ack: Ack) -> bool:
        """Take an answer; False if it is none for this errand."""
        if ack.token not in self.waiting:
            return False
        if isinstance(ack.error, TransportError):
            self.failed(ack.token, ack.error)
            return True
        del self.waiting[ack.token]
        self.duplicates += ack.duplicate
        self.stored += not ack.duplicate
        self.trouble = ""
        self.wake()
        return True

    def failed(self, position: int, error: TransportError) -> None:
        """It was not taken: for good if the error says so, else it still waits."""
        self.trouble = str(error)
        if error.verdict is Verdict.REJECT and position in self.waiting:
            del self.waiting[position]
            self.refused += 1
        self.wake()

    def wake(self) -> None:
        """Have who waits look again."""
        self.changed.set()
        self.changed = anyio.Event()
