"""Who may read and write the files of the agent: the agent itself all that it needs, others nothing that matters."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.doctor.finding import Finding, fault, note, ok, warning

_ROOT = 0


@dataclass(frozen=True, slots=True)
class Who:
    """The user that the agent runs as: the owner of its state folder."""

    uid: int
    name: str
    groups: frozenset[int]

    @classmethod
    def owner_of(cls, path: Path) -> Who | None:
        """Whom a path belongs to; None if there is no such path. Raises PermissionError."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return cls.of(status.st_uid, status.st_gid)

    @classmethod
    def of(cls, uid: int, gid: int) -> Who:
        """A user of this machine, or one that has no name."""
        try:
            entry = pwd.getpwuid(uid)
            return cls(uid, entry.pw_name, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))
        except KeyError:
            return cls(uid, str(uid), frozenset({gid}))


@dataclass(frozen=True, slots=True)
class FileFacts:
    """``role``: configuration, key, secret, certificate, state, outbox, socket. ``what``: its name for people.

    ``owner`` is a name; ``usable``: whether the agent's user may read it (state, outbox: write), None if that cannot be
    said; ``missing``: it is not there; ``in_open_folder``: others may put another file in its place.
    """

    role: str
    what: str
    path: Path
    mode: int = 0
    uid: int = 0
    owner: str = ""
    usable: bool | None = None
    missing: bool = False
    in_open_folder: bool = False


def look(role: str, what: str, path: Path, who: Who | None) -> FileFacts:
    """Blocks. Raises PermissionError: we may not look there."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return FileFacts(role, what, path, missing=True)
    access = os.R_OK | os.W_OK if role in ("state", "outbox") else os.R_OK
    usable = None if who is None else _may(path, who, access)
    above = path.absolute().parent.stat()
    is_open = bool(above.st_mode & stat.S_IWOTH) and not above.st_mode & stat.S_ISVTX
    owner = Who.of(status.st_uid, status.st_gid).name
    return FileFacts(role, what, path, stat.S_IMODE(status.st_mode), status.st_uid, owner, usable, False, is_open)


def _may(path: Path, who: Who, access: int) -> bool | None:
    """Whether a user may do that by owner, group and mode; None where an access list says more than these."""
    real = path.resolve()
    found: bool | None = True
    for each, wanted in ((real, access), *((folder, os.X_OK) for folder in real.parents)):
        status = each.stat()
        bits = status.st_mode & 7
        if status.st_uid == who.uid:
            bits = status.st_mode >> 6 & 7
        elif status.st_gid in who.groups:
            bits = status.st_mode >> 3 & 7
        if who.uid != _ROOT and bits & wanted != wanted:
            found = None if _has_list(each) and found is not False else False
    return found


def _has_list(path: Path) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:
        return False


def judge(facts: Iterable[FileFacts], who: Who | None) -> Iterator[Finding]:
    """What is to be said of them; ``who``: the agent's user, None if it is not known."""
    good = list[str]()
    for each in facts:
        found = list(_one(each, who))
        yield from found
        if not found and not each.missing:
            good.append(str(each.path))
    if good:
        whose = "" if who is None else f" for the user {who.name}"
        yield ok("files", f"owners and rights are as they should be{whose}: {', '.join(good)}")


def _one(each: FileFacts, who: Who | None) -> Iterator[Finding]:
    about, at = each.what, f"{each.path}, mode {each.mode:04o}, owner {each.owner}"
    if each.missing:
        if each.role not in ("configuration", "state", "outbox", "socket", "key"):  # these are told elsewhere
            remedy = "correct the path, or put the file there"
            yield fault(about, f"{each.path} is not there", why="it is named in the configuration", remedy=remedy)
        return
    if each.role == "key" and each.mode & 0o077:
        why = "who can read it can sign as this box, and the agent refuses it"
        yield fault(about, f"{each.path} is open to others", why=why, remedy=f"chmod 600 {each.path}", looked_at=at)
    if each.role == "key" and who is not None and each.uid not in (who.uid, _ROOT):
        why = f"the agent runs as {who.name} and refuses the key of another user"
        remedy = f"chown {who.name} {each.path}, if it is this box's key"
        yield fault(about, f"{each.path} belongs to {each.owner}", why=why, remedy=remedy, looked_at=at)
    if each.role == "secret" and each.mode & stat.S_IROTH:
        why = "every user of this machine can read the secret, if its folder lets them"
        yield warning(about, f"{each.path} is open to all", why=why, remedy=f"chmod o-rwx {each.path}", looked_at=at)
    if each.role != "socket" and each.mode & stat.S_IWOTH and not each.mode & stat.S_ISVTX:
        why = "every user of this machine can change what the agent reads, signs and where it sends it"
        yield fault(about, f"all may write {each.path}", why=why, remedy=f"chmod o-w {each.path}", looked_at=at)
    if each.role == "socket" and each.mode & 0o007:
        why = "every user of this machine may ask the agent, and have it reload and resend"
        yield warning(about, f"{each.path} is open to all", why=why, remedy=f"chmod o-rwx {each.path}", looked_at=at)
    if each.in_open_folder:
        why = "every user of this machine can put another file in its place"
        remedy = f"chmod o-w {each.path.absolute().parent}"
        yield fault(about, f"all may write the folder of {each.path}", why=why, remedy=remedy, looked_at=at)
    yield from _usable(each, who, about, at)


def _usable(each: FileFacts, who: Who | None, about: str, at: str) -> Iterator[Finding]:
    if who is None or each.role == "socket":
        return
    doing = "write" if each.role in ("state", "outbox") else "read"
    if each.usable is False:
        why = "the agent does not start, or does not reach what it is for"
        alone = doing == "write" or each.role == "key"  # a key that its group may read is refused
        share = f"chgrp {who.name} {each.path}; chmod g+r {each.path}"
        remedy = f"{f'chown {who.name} {each.path}' if alone else share}, and let the user through its folders"
        found = f"{each.path} is not for the user {who.name} to {doing}"
        yield fault(about, found, why=why, remedy=remedy, looked_at=at)
    elif each.usable is None:
        why = "an access list says more than owner and mode"
        remedy = f"runuser -u {who.name} -- test -{doing[0]} {each.path}"
        found = f"whether the user {who.name} may {doing} {each.path} is not known"
        yield note(about, found, why=why, remedy=remedy, looked_at=at)
