"""The pieces in one tar.gz: masked, each made with a deadline, written with mode 0600 and never over another file.

A piece that cannot be made is a file that says why. A crash leaves no file of the name, or a whole one, or, where the
disk failed at that moment, a part of it.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.config.file import included, read
from agent.config.problems import may_be_secret
from agent.custody import parse
from agent.doctor.examination import in_time
from agent.errors import AgentError, ConfigError, SecretError
from agent.secret import Secret
from agent.support.masking import masked
from agent.support.pieces import Piece, readme

_WITHIN = 20.0  # s, for each piece
_LARGEST = 64 * 1024  # bytes of a key file


def secrets(path: Path) -> list[str]:
    """All secrets that a configuration leads to, good as it is or not, and that this user may read: to be looked for.
    Blocks.
    """
    try:
        main = read(path)
        sources = [main, *included(main)]
    except (ConfigError, OSError):
        return []
    return [each for source in sources for each in _secrets(source.raw, source.context, "") if each]


def _secrets(value: Any, context: dict[str, Path], name: str) -> Iterator[str]:
    """Of TOML: what refers to a secret, the place of a key, and plain text where a secret may have been meant."""
    if isinstance(value, dict):
        with suppress(ValidationError, SecretError):
            reference = Secret.model_validate(value, context=context)
            value = {}
            yield reference.read()
        for key, each in value.items():
            yield from _secrets(each, context, key)
    elif isinstance(value, list):
        for each in value:
            yield from _secrets(each, context, name)
    elif isinstance(value, str):
        if may_be_secret(name):
            yield value
        with suppress(ValueError, OSError):
            custody = parse(value, folder=context["folder"])
            if custody.kind != "credential":
                with custody.path.open("rb") as file:
                    yield file.read(_LARGEST).decode(errors="replace").strip()


def pack(found: Mapping[str, tuple[str, Piece]], *, hidden: list[str], folder: str, host: str, made: float) -> bytes:
    """The whole archive: ``found`` by name, below ``folder``. ``made``: s since 1970."""
    packed, archive = io.BytesIO(), dict[str, str]()
    archive["README.txt"] = readme({name: what for name, (what, _) in found.items()}, host=host, made=made)
    archive |= {name: _made(piece) for name, (_, piece) in found.items()}
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in archive.items():
            content = masked(text, hidden).encode(errors="backslashreplace") + b"\n"
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(made)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _made(piece: Piece) -> str:
    """An error that nobody expected is named, and not repeated: it could hold anything."""
    try:
        return in_time(_WITHIN, piece)
    except TimeoutError:
        return f"not available: no answer within {_WITHIN:g} s"
    except ConfigError as error:
        return "\n".join(map(str, error.problems))
    except AgentError as error:
        return f"not available: {error}; {error.hint}"
    except OSError as error:
        return f"not available: {error.strerror}: {error.filename}"
    except Exception as error:  # noqa: BLE001
        return f"not available: {type(error).__name__}"


def write(path: Path, content: bytes) -> None:
    """Raises FileExistsError: there is something of that name; OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as out:
            os.fchmod(out.fileno(), 0o600)  # whatever the umask
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
