"""A message of the Data Hub on its way out: filled with records, composed once, and delivered to each recipient.

A draft takes records of one run, in order, as long as they fit. Composed it never changes: whoever gets it later, after
a failure, gets the same text under the same ids, which is what the broker keeps if it had it all the while. Nothing
here asks anybody; memory only.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from agent.errors import AgentError
from agent.ports import Message, Signer
from agent.transports.ddhub.config import DdhubRecipient
from agent.transports.ddhub.content import cipher, payload
from agent.transports.ddhub.content.signature import sign_text

MOST_RECORDS = 2048  # half of what the publisher hands over ahead


class Draft:
    """Records that will leave together. ``since``: boot time of the first. ``resent``: they were asked for. ``copied``:
    the topic wants their values readable beside them.

    The copy of a record is "" if it has no values, or nobody asks; None if none can be made. Either all have one that
    should, or the message has none: what it says of its records is complete, or it says nothing.
    """

    def __init__(self, *, most: int, since: int, resent: bool, copied: bool = False) -> None:
        self.since = since
        self.resent = resent
        self.tokens: dict[str, int] = {}  # by message id
        self._envelopes: list[bytes] = []
        self._copies: list[str] | None = [] if copied else None
        self._is_legible: bool | None = None  # None: no record has values yet
        self._most = payload.largest_clear(most)
        self._size = payload.clear_size([], [] if copied else None)

    @property
    def copies(self) -> int:
        """Of how many records the values are readable."""
        return len(self._copies or ())

    def takes(self, message: Message, copy: str | None = "") -> bool:
        """Whether one more fits: of the same run, as readable, and within the size."""
        if not self._envelopes:
            return True
        same_run = message.id.partition("-")[0] == next(iter(self.tokens)).partition("-")[0]
        alike = copy == "" or self._is_legible in (None, copy is not None)
        grown = self._size + self._share(message.envelope, copy)
        return same_run and alike and grown <= self._most and len(self.tokens) < MOST_RECORDS

    def add(self, message: Message, copy: str | None = "") -> None:
        """It takes it."""
        self._size += self._share(message.envelope, copy)
        self._envelopes.append(message.envelope)
        self.tokens[message.id] = message.token
        if self._copies is None or copy == "":
            return
        self._is_legible = copy is not None
        if copy:
            self._copies.append(copy)

    def _share(self, envelope: bytes, copy: str | None) -> int:
        """By how many characters the text grows; the first of a list has no comma before it."""
        share = payload.envelope_share(len(envelope)) - (not self._envelopes)
        return share + (len(copy) + bool(self._copies) if copy and self._copies is not None else 0)

    def text(self) -> str:
        """What is encrypted."""
        return payload.encode(self._envelopes, self._copies)


def fits_with_copy(message: Message, copy: str, *, most: int) -> bool:
    """Whether a message takes a record and its copy, if it has nothing else."""
    return payload.clear_size([len(message.envelope)], [len(copy)]) <= payload.largest_clear(most)


@dataclass(slots=True)
class Refusal:
    """Why a recipient does not get a message. ``for_good``: trying again does not help until somebody acts."""

    reason: str
    hint: str
    for_good: bool = False


@dataclass(slots=True)
class Outgoing:
    """A composed message, and who has it.

    ``tokens``: of its records by message id; None: not handed over in the session in force. ``waiting``: who does not
    have it yet; ``keyed``: boot time since when a recipient has its key. ``failing``: boot time
    since when one does not get it, by DID.
    """

    gateway_id: str
    transaction_id: str
    payload: str
    signature: str
    key: bytes = field(repr=False)
    resent: bool
    copies: int  # records whose values are readable in it
    tokens: dict[str, int | None]
    waiting: dict[str, DdhubRecipient]
    keyed: dict[str, int] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    delivered: int = 0
    duplicates: int = 0  # of these: the broker had it before

    def has(self, did: str, *, duplicate: bool = False) -> None:
        """A recipient has it."""
        del self.waiting[did]
        self.refusals.pop(did, None)
        self.delivered += 1
        self.duplicates += duplicate

    def lacks(self, did: str, refusal: Refusal, *, now: int) -> None:
        """A recipient does not have it. ``now``: boot time."""
        self.refusals[did] = refusal
        self.failing.setdefault(did, now)


def compose(draft: Draft, text: str, recipients: tuple[DdhubRecipient, ...], *, signer: Signer) -> Outgoing:
    """Encrypt and sign; ``text`` is the draft's. Takes some ms of CPU for each 100 kB. Raises SignerError."""
    key = cipher.new_key()
    encrypted = cipher.encrypt(text, key)
    return Outgoing(
        gateway_id=str(uuid.uuid4()),
        transaction_id=transaction_id(draft),
        payload=encrypted,
        signature=sign_text(encrypted, signer),
        key=key,
        resent=draft.resent,
        copies=draft.copies,
        tokens=dict(draft.tokens),
        waiting={each.did: each for each in recipients},
    )


def transaction_id(draft: Draft) -> str:
    """What the broker knows a repeat by, for two minutes: the first record, the last, and how many; one between them
    may have been set aside, and a message that has it is another one. What is sent again by order has an id that was
    never there before. 200 characters at most.
    """
    ids = list(draft.tokens)
    return f"{ids[0]}:{ids[-1]}:{len(ids)}" + (f":{uuid.uuid4().hex}" if draft.resent else "")


def unkeyed(error: AgentError) -> Refusal:
    """No key can be wrapped for a recipient."""
    return Refusal(str(error), error.hint or "its owner must publish an RSA key in the DID document")
