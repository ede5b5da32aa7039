"""Whether our two keys stand in our DID document as others need them, and what to do if not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.transports.ddhub.keys.participant import (
    ENCRYPTION_TAG,
    SIGNATURE_TAG,
    TAGS,
    ParticipantKeys,
    Remark,
    same_rsa,
    short,
)

_HOW = "publish it: `edge-agent ddhub keys` with --send, --signed or --unsigned"


@dataclass(frozen=True, slots=True)
class Publication:
    """``ours``: our keys as text, by tag; one may be missing. ``replaced``: RSA keys that ours replaced. ``published``:
    what the DID document has; None: nobody could tell.
    """

    ours: Mapping[str, str]
    replaced: Sequence[str]
    published: ParticipantKeys | None

    def text(self, tag: str) -> str | None:
        """The key that is published; None also if it is unknown or cannot be used."""
        if self.published is None:
            return None
        return {SIGNATURE_TAG: self.published.signature, ENCRYPTION_TAG: self.published.encryption}[tag]

    def agrees(self, tag: str) -> bool | None:
        """Whether our key stands there, in a form and place that client gateways see; None: unknown."""
        if self.published is None:
            return None
        published, mine = self.text(tag), self.ours.get(tag)
        if published is None or mine is None or any(remark.tag == tag for remark in self.published.remarks):
            return False
        return same_rsa(published, mine) if tag == ENCRYPTION_TAG else published == mine

    @property
    def missing(self) -> list[str]:
        """The tags of our keys that are to be published; all of them if it is unknown what is."""
        return [tag for tag in TAGS if tag in self.ours and not self.agrees(tag)]

    def findings(self) -> list[Remark]:
        """What is wrong, each with its remedy; nothing if it is unknown what is published."""
        if self.published is None:
            return []
        found = list(self.published.remarks)
        for tag in TAGS:
            if not self.agrees(tag) and not any(remark.tag == tag for remark in found):
                found.append(self._finding(tag))
        return found

    def _finding(self, tag: str) -> Remark:
        published = self.text(tag)
        if tag not in self.ours:
            return Remark(tag, "we have no RSA key yet", f"make it and {_HOW}")
        if published is None:
            return Remark(tag, "it is not published", _HOW)
        if tag == ENCRYPTION_TAG and any(same_rsa(published, old) for old in self.replaced):
            return Remark(tag, "the key before this one stands there", _HOW)
        what = f"another key stands there: {short(published)}"
        return Remark(tag, what, f"does a client gateway run with our key? stop it; then {_HOW}")
