"""What must outlive a process that receives from a Data Hub: keys of messages (wrapped, as they came), messages that
cannot be opened yet, the ids of those that are done with, and acknowledgements that the broker has not taken yet.

There is one for each topic that is read, and one process at a time has it. Each method is one transaction, on disk when
it returns. What a crash leaves:

- between the broker's answer with keys and ``put_keys``: the broker counts them as delivered, and they are not here.
  The next start knows that this may be so (``doubts_keys``); if a message lacks its key then, ``reread_keys`` makes
  the broker hand out all keys of the last 24 h again, under another client id.
- between a search and what became of its messages: nothing; they come again.
- behind ``park``: the message is here and comes again, which ``known`` tells.
- behind ``finish``: the message is done with, comes again, and is only acknowledged.

The client ids under which the broker remembers us hold a number that a mailbox draws when it is made. So whoever loses
a mailbox and makes a new one gets everything of the last 24 h again, keys too, and two machines with one DID take
nothing from each other. Do not copy a mailbox: of two with one number each gets a part.

Times are the broker's (ns since 1970), for by them it forgets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from agent.transports.ddhub.answers import ReceivedKey, ReceivedMessage
from agent.transports.ddhub.receiving.delivery import Why
from agent.transports.ddhub.receiving.mailbox_file import MailboxError, MailboxFile, mailbox_file

MOST_PARKED = 256 << 20  # bytes of messages that cannot be opened yet; beyond it the oldest are given up
_LEAST_ROOM = 8 << 10  # that a message counts for: also many small ones take time
MOST_KEYS = 100_000  # some 200 MB; when there is no room those that were used go first, then the oldest
MOST_WAITING_KEYS = 50_000  # whose messages have not come, until further keys are left at the broker
MOST_FOREIGN_KEYS = 10_000  # of them, of senders that nobody here listens to: anybody may write into our mailbox
_LONGEST_ID = 200  # characters, as the broker has it
_LONGEST_WRAPPED = 2048
MOST_KEYS_OF_A_MESSAGE = 32


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """A message that waits, without its text. ``has_new_key``: one has come since it was tried. ``tried``: how many
    were, in vain.
    """

    id: str
    sender: str
    gateway_id: str
    nanos: int
    why: Why
    has_new_key: bool
    tried: int


@dataclass(frozen=True, slots=True)
class Expired:
    """What was dropped because the broker has forgotten it, too. ``unused_keys``: how many by sender, of those that
    somebody here listens to.
    """

    parked: Sequence[ParkedMessage] = ()
    unused_keys: Mapping[str, int] = field(default_factory=dict)


@contextmanager
def mailbox(path: Path, *, did: str) -> Iterator[Mailbox]:
    """The mailbox of a participant in a file, made if there is none. Raises MailboxError."""
    with mailbox_file(path, did=did) as file:
        yield Mailbox(file)


class Mailbox:
    """Made by ``mailbox``. Every method blocks and may raise MailboxError; any thread may call it."""

    def __init__(self, file: MailboxFile) -> None:
        self._file = file
        self.was_closed = file.was_closed
        """Whether the process that had it before ended in order."""
        if not file.was_closed:
            self.doubt_keys()

    def count_as_crash(self) -> None:
        """The broker may hold messages back, of a search that it did not end: to the next process it shall look as if
        this one had crashed.
        """
        self._file.counts_as_crash = True

    # ---- client ids -------------------------------------------------------------------------------------------

    def client_id(self, topic_id: str, senders: Iterable[str]) -> str:
        """The one for messages of a topic from exactly these senders.

        Another set has another one: the broker forgets, for a client id, what its search leaves out. Only letters,
        digits and colons: the broker deletes no name with a dash.
        """
        what = json.dumps([topic_id, sorted(set(senders))]).encode()
        return f"{self.prefix}{hashlib.sha256(what).hexdigest()[:32]}"

    @property
    def prefix(self) -> str:
        """How all our client ids begin."""
        return f"edgeagent:{self._file.id}:"

    def key_client_id(self) -> str:
        """The one for keys, whoever sends them."""
        with self._file.transaction():
            return f"{self.prefix}keys{self._file.fact('reading')}"

    def forget_client_id(self, client_id: str) -> None:
        """The broker has forgotten it."""
        with self._file.transaction() as db:
            db.execute("DELETE FROM owed WHERE client_id = ?", (client_id,))

    # ---- keys -------------------------------------------------------------------------------------------------

    def put_keys(self, keys: Sequence[ReceivedKey], *, listened: Iterable[str]) -> None:
        """Keep keys; ``listened``: senders whose messages somebody here reads."""
        senders = set(listened)
        rows = [
            (each.sender, each.gateway_id, each.wrapped, _bounded(each.nanos), 0, int(each.sender in senders))
            for each in keys
            if len(each.sender) <= _LONGEST_ID
            and len(each.gateway_id) <= _LONGEST_ID
            and len(each.wrapped) <= _LONGEST_WRAPPED
        ]
        with self._file.transaction() as db:
            db.executemany("INSERT OR IGNORE INTO keys VALUES (?, ?, ?, ?, ?, ?)", rows)
            db.executemany(
                "DELETE FROM keys WHERE rowid IN (SELECT rowid FROM keys WHERE sender = ? AND gateway_id = ? "
                "ORDER BY nanos DESC LIMIT -1 OFFSET ?)",
                [(*message, MOST_KEYS_OF_A_MESSAGE) for message in {row[:2] for row in rows}],
            )
            for kinds, most in (((0, 0), MOST_FOREIGN_KEYS), ((0, 1), MOST_KEYS)):
                surplus = db.execute("SELECT count(*) FROM keys WHERE listened IN (?, ?)", kinds).fetchone()[0] - most
                if surplus > 0:  # and some more, for they are sorted each time
                    db.execute(
                        "DELETE FROM keys WHERE rowid IN (SELECT rowid FROM keys WHERE listened IN (?, ?) "
                        "ORDER BY used DESC, nanos LIMIT ?)",
                        (*kinds, surplus + most // 100),
                    )

    def has_room_for_keys(self) -> bool:
        """Whether further keys may be fetched before the messages of those that are here have come."""
        with self._file.transaction() as db:
            waiting: int = db.execute("SELECT count(*) FROM keys WHERE listened IN (0, 1) AND used = 0").fetchone()[0]
        return waiting < MOST_WAITING_KEYS

    def wrapped(self, sender: str, gateway_id: str) -> list[str]:
        """The keys of a message, newest first: who sends again may have wrapped it for another key of ours."""
        with self._file.transaction() as db:
            found = db.execute(
                "SELECT wrapped FROM keys WHERE sender = ? AND gateway_id = ? ORDER BY nanos DESC LIMIT ?",
                (sender, gateway_id, MOST_KEYS_OF_A_MESSAGE),
            )
            return [row[0] for row in found]

    def doubt_keys(self) -> None:
        """An answer with keys may have been lost. Raises nothing: what cannot be noted counts as a crash."""
        try:
            with self._file.transaction():
                self._file.note("doubt", 1)
        except MailboxError:
            self._file.counts_as_crash = True

    def doubts_keys(self) -> bool:
        """Whether an answer with keys may have been lost since all were fetched."""
        with self._file.transaction():
            return bool(self._file.fact("doubt"))

    def reread_keys(self) -> None:
        """Have the broker begin anew with keys. The client id so far stays there: no call removes one for keys."""
        with self._file.transaction():
            self._file.note("doubt", 0)
            self._file.note("reading", self._file.fact("reading") + 1)

    # ---- messages ---------------------------------------------------------------------------------------------

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those that are done with, or wait here."""
        with self._file.transaction() as db:
            asked = "SELECT 1 FROM done WHERE id = :id UNION ALL SELECT 1 FROM parked WHERE id = :id"
            return {each for each in ids if db.execute(asked, {"id": each}).fetchone()}

    def park(self, messages: Sequence[tuple[ReceivedMessage, Why, int]], *, client_id: str) -> list[ParkedMessage]:
        """Keep messages that cannot be opened yet, each with the number of keys that were tried; the broker may forget
        them. Returns those given up for room.
        """
        with self._file.transaction() as db:
            for each, why, tried in messages:
                text = json.dumps(asdict(each))
                of = (each.id, each.topic_id, each.sender, each.gateway_id, _bounded(each.nanos))
                row = (*of, why, tried, max(len(text), _LEAST_ROOM), text)
                db.execute("INSERT OR REPLACE INTO parked VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                _owe(db, each.id, each.nanos, client_id)
            given_up = []
            total = db.execute("SELECT total(size) FROM parked").fetchone()[0]
            for row in db.execute("SELECT * FROM waiting").fetchall() if total > MOST_PARKED else ():
                given_up.append(_parked(row))
                _done(db, row[0], row[3])
                total -= row[8]
                if total <= MOST_PARKED:
                    break
            return given_up

    def parked(self, topic_id: str, senders: Iterable[str]) -> list[ParkedMessage]:
        """What waits of a topic from these senders, the oldest first."""
        wanted = set(senders)
        with self._file.transaction() as db:
            rows = db.execute("SELECT * FROM waiting WHERE topic = ?", (topic_id,))
            return [_parked(row) for row in rows if row[1] in wanted]

    def parked_message(self, message_id: str) -> ReceivedMessage | None:
        """The whole message; None: it is not there any more."""
        with self._file.transaction() as db:
            row = db.execute("SELECT message FROM parked WHERE id = ?", (message_id,)).fetchone()
        return None if row is None else ReceivedMessage(**json.loads(row[0]))

    def finish(self, messages: Sequence[tuple[str, str, str, int]], *, client_id: str) -> None:
        """Messages (id, sender, gateway id, time) are done with: handed over and kept there, or refused."""
        with self._file.transaction() as db:
            for message_id, sender, gateway_id, nanos in messages:
                _done(db, message_id, nanos)
                _owe(db, message_id, nanos, client_id)
                db.execute("UPDATE keys SET used = 1 WHERE sender = ? AND gateway_id = ?", (sender, gateway_id))

    def owe(self, messages: Sequence[tuple[str, int]], *, client_id: str) -> None:
        """Messages (id, time) came again that are ``known``: acknowledge them."""
        with self._file.transaction() as db:
            for message_id, nanos in messages:
                _owe(db, message_id, nanos, client_id)

    def owed(self, client_id: str) -> list[str]:
        """What the broker has to be told under a client id."""
        with self._file.transaction() as db:
            return [row[0] for row in db.execute("SELECT id FROM owed WHERE client_id = ? ORDER BY id", (client_id,))]

    def settle(self, ids: Iterable[str], *, client_id: str) -> None:
        """The broker knows."""
        with self._file.transaction() as db:
            db.executemany("DELETE FROM owed WHERE client_id = ? AND id = ?", [(client_id, each) for each in ids])

    # ---- time -------------------------------------------------------------------------------------------------

    def latest(self, seen: int = 0) -> int:
        """The latest time of the broker's that was seen, ``seen`` included; 0: none."""
        with self._file.transaction():
            before = int(self._file.fact("latest"))
            if seen > before:
                self._file.note("latest", _bounded(seen))
            return max(before, seen)

    def expire(self, before: int) -> Expired:
        """Drop all that is older."""
        with self._file.transaction() as db:
            parked = [_parked(row) for row in db.execute("SELECT * FROM waiting WHERE nanos < ?", (before,))]
            unused = dict(
                db.execute(
                    "SELECT sender, count(*) FROM keys WHERE nanos < ? AND used = 0 AND listened = 1 GROUP BY sender",
                    (before,),
                )
            )
            for statement in (
                "DELETE FROM parked WHERE nanos < ?",
                "DELETE FROM keys WHERE nanos < ?",
                "DELETE FROM done WHERE nanos < ?",
                "DELETE FROM owed WHERE nanos < ?",
            ):
                db.execute(statement, (before,))
            return Expired(parked, unused)


def _done(db: Connection, message_id: str, nanos: int) -> None:
    db.execute("INSERT OR REPLACE INTO done VALUES (?, ?)", (message_id, _bounded(nanos)))
    db.execute("DELETE FROM parked WHERE id = ?", (message_id,))


def _owe(db: Connection, message_id: str, nanos: int, client_id: str) -> None:
    db.execute("INSERT OR REPLACE INTO owed VALUES (?, ?, ?)", (client_id, message_id, _bounded(nanos)))


def _parked(row: Sequence[Any]) -> ParkedMessage:
    return ParkedMessage(row[0], row[1], row[2], row[3], Why(row[4]), bool(row[5]), row[6])


def _bounded(nanos: int) -> int:
    """What SQLite can hold."""
    return min(nanos, (1 << 63) - 1)
