"""The file of a mailbox: SQLite, one process at a time, a transaction on disk when it ends.

A crash leaves each transaction whole or away, and ``was_closed`` False for whoever opens the file next.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agent.errors import AgentError, Verdict

VERSION = 1
_PRAGMAS = (
    "auto_vacuum=FULL",
    "locking_mode=EXCLUSIVE",
    "journal_mode=WAL",
    "synchronous=FULL",
    "journal_size_limit=4194304",  # else the log stays as large as it ever was
)
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE keys (sender TEXT, gateway_id TEXT, wrapped TEXT, nanos INTEGER, used INTEGER, listened INTEGER,
                   PRIMARY KEY (sender, gateway_id, wrapped));
CREATE INDEX keys_by_age ON keys (nanos);
CREATE INDEX keys_by_use ON keys (listened, used, nanos);
CREATE TABLE parked (id TEXT PRIMARY KEY, topic TEXT, sender TEXT, gateway_id TEXT, nanos INTEGER, why TEXT,
                     tried INTEGER, size INTEGER, message TEXT);
CREATE VIEW waiting AS SELECT id, sender, gateway_id, nanos, why,
    tried < (SELECT count(*) FROM keys WHERE keys.sender = parked.sender AND keys.gateway_id = parked.gateway_id)
        AS has_new_key,
    tried, topic, size FROM parked ORDER BY nanos, id;
CREATE TABLE done (id TEXT PRIMARY KEY, nanos INTEGER);
CREATE INDEX done_by_age ON done (nanos);
CREATE TABLE owed (client_id TEXT, id TEXT, nanos INTEGER, PRIMARY KEY (client_id, id)) WITHOUT ROWID;
"""


class MailboxError(AgentError):
    """The mailbox cannot be used: another process has it, it is damaged, or its disk fails."""


@contextmanager
def mailbox_file(path: Path, *, did: str) -> Iterator[MailboxFile]:
    """The file, made if there is none, for this participant alone. Raises MailboxError."""
    lock = _locked(path)
    try:
        file = MailboxFile(path, did=did)
        try:
            yield file
        finally:
            file.close()
    finally:
        os.close(lock)


def _locked(path: Path) -> int:
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "name a folder that is ours"
        raise MailboxError(f"cannot keep a mailbox in {folder}: {error.strerror}", hint=hint) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        hint = "one process receives a topic with a folder; give another one a folder with copies of rsa-*.pem"
        raise MailboxError(f"the mailbox {path} is in use by another process", hint=hint) from None
    return lock


class MailboxFile:
    """Made by ``mailbox_file``. Any thread may use it, one at a time."""

    def __init__(self, path: Path, *, did: str) -> None:
        self.counts_as_crash = False
        """To the next process it looks as if this one had not ended in order."""
        self._path = path
        self._lock = threading.Lock()
        with self._told():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._begin(did)
        except BaseException:
            self._db.close()
            raise

    def _begin(self, did: str) -> None:
        with self._told():
            for pragma in _PRAGMAS:
                self._db.execute(f"PRAGMA {pragma}").fetchall()
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise MailboxError(f"{self._path} is of version {version}, this program knows {VERSION}", hint="update it")
        with self.transaction() as db:
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                facts = {"did": did, "id": secrets.token_hex(8), "reading": 0, "doubt": 0, "latest": 0, "open": 0}
                db.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
                db.execute(f"PRAGMA user_version={VERSION}")
            owner = self.fact("did")
            if owner != did:
                hint = "give each identity a folder of its own"
                raise MailboxError(f"{self._path} belongs to {owner}, not to {did}", hint=hint)
            self.id = str(self.fact("id"))
            """Drawn when the mailbox was made: 16 hex digits."""
            self.was_closed = not self.fact("open")
            """Whether the process that had it before ended in order."""
            self.note("open", 1)

    def close(self) -> None:
        """Let go of it. Never raises: what could not be noted counts as a crash."""
        if not self.counts_as_crash:
            with suppress(MailboxError), self.transaction():
                self.note("open", 0)
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, on disk at its end. Raises MailboxError."""
        with self._lock, self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def fact(self, name: str) -> Any:
        """A value by its name; within a transaction."""
        return self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0]

    def note(self, name: str, value: int) -> None:
        """Replace a value; within a transaction."""
        self._db.execute("UPDATE facts SET value = ? WHERE name = ? AND value != ?", (value, name, value))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            hint = "is there room on the disk, and is the folder ours?"
            raise MailboxError(f"{self._path}: {error}", hint=hint, verdict=Verdict.RETRY) from error
        except sqlite3.Error as error:
            hint = "move it away: a new one begins with all that the broker still has, that is 24 h"
            raise MailboxError(f"{self._path} is damaged: {error}", hint=hint) from error
        except OSError as error:
            raise MailboxError(f"{self._path}: {error.strerror}", hint="is the folder ours?") from error
