"""Files that hold a key: read only if they are nobody else's, written whole or not at all, never over another.

Where the file system can do it (O_TMPFILE), a file has no name until it is complete and on disk, so a crash leaves
nothing behind. Elsewhere a crash can leave a draft, ``.NAME.PID`` with mode 0600; the name itself is never half a key.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

from agent.errors import SignerError

Owner = tuple[int, int]  # uid, gid

_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)  # open(2): O_TMPFILE is not supported here


def read_private(path: Path, *, what: str, most: int, remedy: str = "", any_owner: bool = False) -> bytes:
    """A file of mode 0600 that belongs to this user or to root; ``any_owner``: root may look at anybody's.

    ``what``: the file in a message; ``most``: bytes; ``remedy``: what makes such a file. Raises SignerError.
    """
    content, status = _read(path, what=what, most=most, remedy=remedy)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise SignerError(f"the {what} {path} is open to others", hint=f"chmod 600 {path}")
    if status.st_uid not in (os.geteuid(), 0) and not any_owner:
        raise SignerError(
            f"the {what} {path} belongs to another user",
            hint=f"the key must belong to the user that runs the agent, or to root; this is user {_user()}",
        )
    return content


def read_credential(name: str, *, most: int) -> bytes:
    """A credential that systemd gave to this service. Raises SignerError.

    Who may read it is systemd's affair: it is root's or this user's, in a folder for this service alone, and may be
    readable to its group, as systemd grants an access list where the file system has them (which shows as 0440).
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        hint = "LoadCredential= in the unit gives credentials to the service alone"
        raise SignerError(f"the credential {name} is not there", hint=hint)
    remedy = f"add LoadCredential={name}:PATH to the unit"
    content, status = _read(Path(folder, name), what="credential", most=most, remedy=remedy)
    if stat.S_IMODE(status.st_mode) & 0o027 or status.st_uid not in (os.geteuid(), 0):
        hint = "systemd makes none like that: what set CREDENTIALS_DIRECTORY?"
        raise SignerError(f"the credential {name} is open to others, or of another user", hint=hint)
    return content


def read_any(path: Path, *, what: str, most: int) -> bytes:
    """A file from elsewhere, whoever may read it. Raises SignerError."""
    return _read(path, what=what, most=most)[0]


def _read(path: Path, *, what: str, most: int, remedy: str = "") -> tuple[bytes, os.stat_result]:
    try:
        # Not blocking: a pipe would wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            regular = stat.S_ISREG(status.st_mode)
            content = file.read(most + 1) if regular else b""
    except OSError as error:
        hint = "is the path right?"
        if isinstance(error, PermissionError):
            hint = "run it as the agent's user or as root"
        elif path.is_symlink():
            hint = "it is a link: is what it leads to there, is a disk to be mounted?"
        elif isinstance(error, FileNotFoundError) and remedy:  # what is only out of reach must not get a successor
            hint += f" {remedy}"
        raise SignerError(f"cannot read the {what} {path}: {error.strerror}", hint=hint) from error
    if not regular:
        raise SignerError(f"the {what} {path} is no regular file", hint="name a file")
    if len(content) > most:
        raise SignerError(f"the {what} {path} is larger than {most} bytes", hint="is it the right file?")
    return content, status


def write_private(path: Path, content: bytes, *, what: str, owner: Owner | None = None, mode: int = 0o600) -> None:
    """Make a file of mode 0600, or ``mode``, of this user or, as root may say, of ``owner``. Raises SignerError if
    there is something of this name, OSError.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _write_nameless(folder, path.name, content, owner, mode):
                _write_draft(folder, path.name, content, owner, mode)
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise taken(path, what=what) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file


def taken(path: Path, *, what: str) -> SignerError:
    """The error that says that there is something of this name."""
    return SignerError(
        f"cannot write the {what} {path}: {os.strerror(errno.EEXIST)}",
        hint="it is never overwritten; move it away first",
    )


def _write_nameless(folder: int, name: str, content: bytes, owner: Owner | None, mode: int) -> bool:
    """Whether this file system could do it."""
    try:
        file = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
        return False
    try:
        _fill(file, content, owner, mode)
        try:
            os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=folder)  # open(2), O_TMPFILE; fails if the name is taken
        except FileNotFoundError:  # no /proc
            return False
    finally:
        os.close(file)
    return True


def _write_draft(folder: int, name: str, content: bytes, owner: Owner | None, mode: int) -> None:
    draft = f".{name}.{os.getpid()}"
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        try:
            _fill(file, content, owner, mode)
        finally:
            os.close(file)
        os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder)  # unlike rename this fails if the name is taken
    finally:
        os.unlink(draft, dir_fd=folder)


def _fill(file: int, content: bytes, owner: Owner | None, mode: int) -> None:
    os.fchmod(file, mode)
    if owner is not None:
        os.fchown(file, *owner)
    if os.write(file, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file)


def _user() -> str:
    """Who this process is: NAME/UID."""
    try:
        return f"{pwd.getpwuid(os.geteuid()).pw_name}/{os.geteuid()}"
    except KeyError:
        return str(os.geteuid())
