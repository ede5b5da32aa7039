"""What the oracle found: counts, and every problem in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from testbed.served import Json

_TOLD = 10  # problems of one kind that are told one by one


@dataclass(slots=True)
class Account:
    """What came of it."""

    records: int = 0
    frames: int = 0
    failed: int = 0
    repeats: int = 0
    runs: int = 0
    records_withdrawn: int = 0  # missing, and some plan says that they may be
    records_missing: int = 0  # and no plan says so
    doubled: int = 0  # records, cycles and messages that are there again as if they were new
    cycles_expected: int = 0
    cycles_present: int = 0
    cycles_in_gaps: int = 0
    cycles_missing: int = 0
    gaps: dict[str, int] = field(default_factory=dict)  # cycles by cause
    values_checked: int = 0
    values_wrong: int = 0
    reads_lost: int = 0  # answered by a site, accounted for by nothing
    # messages, counted for each channel and group that they concern
    messages_published: int = 0
    messages_owed: int = 0  # taken by the broker while the agent's session was there
    messages_delivered: int = 0  # in at least one frame
    messages_in_gaps: int = 0  # stated as not decodable
    messages_doubled: int = 0  # frames and gaps beyond the first
    messages_retained: int = 0  # frames of what the broker had kept as a retained message
    messages_excused: int = 0  # lost by a killed broker, or in records that a plan withdraws
    messages_lost: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Nothing failed, nothing missing, nothing wrong, and something was checked."""
        return not self.problems and not self.messages_lost and self.values_checked > 0

    def problem(self, text: str, *, count: int = 0) -> None:
        """Note what is wrong; ``count``: how many of the kind there are with this one."""
        if count <= _TOLD:
            self.problems.append(text)

    def gap(self, cause: str, cycles: int) -> None:
        """Cycles that are stated as not there."""
        if cycles > 0:
            self.cycles_in_gaps += cycles
            self.gaps[cause] = self.gaps.get(cause, 0) + cycles

    def compare(self, report: Json) -> None:
        """Hold the verifier's report against this: the two count apart."""
        for name in ("records", "frames", "cycles_expected", "cycles_present", "cycles_in_gaps"):
            if report[name] != getattr(self, name):
                self.problem(f"the verifier counts {report[name]} {name}, the oracle {getattr(self, name)}")
