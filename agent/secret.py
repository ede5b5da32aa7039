"""Secrets of a configuration: named, never written there.

``{ file = "PATH" }``, ``{ credential = "NAME" }`` (systemd.exec(5), LoadCredential=) or ``{ env = "NAME" }``. What the
reference leads to is read each time it is needed, so that a renewed secret is taken up, and is never kept, logged or
shown; a reference itself is no secret. A file that every user of the machine can read is taken, for in containers all
may be so, and told of once.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationInfo, model_validator

from agent.errors import SecretError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_REMEDY = 'write { file = "PATH" }, { credential = "NAME" } or { env = "NAME" }'
_LARGEST = 64 * 1024

log = logging.getLogger(__name__)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or value in (".", ".."):
        raise ValueError("this is no name; write letters, digits, _, . and -")
    return value


def _file(value: str, info: ValidationInfo) -> str:
    if not value or "\0" in value:
        raise ValueError('expected a path in quotes; write it like "/etc/edge-agent/password"')
    context: Mapping[str, Path] = info.context or {}
    return str(Path(context.get("folder", Path()), value))


def _at_once(path: str, flags: int) -> int:
    """A pipe would be waited for, by who wants to stop as well."""
    return os.open(path, flags | os.O_NONBLOCK)


class Secret(BaseModel):
    """Where a secret stands."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, json_schema_extra={"minProperties": 1, "maxProperties": 1}
    )

    file: Annotated[str, AfterValidator(_file)] | None = None
    credential: Annotated[str, AfterValidator(_name)] | None = None
    env: Annotated[str, AfterValidator(_name)] | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _one(cls, value: Any, handler: ModelWrapValidatorHandler[Secret]) -> Secret:
        # What stands here may be the secret itself: it is not repeated.
        if not isinstance(value, dict | Secret):
            raise ValueError(f"a secret does not stand in the configuration; {_REMEDY}")
        secret = handler(value)
        if len(secret.model_fields_set) != 1:
            raise ValueError(f"a secret is in one place; {_REMEDY}")
        return secret

    def __str__(self) -> str:
        kind = next(iter(self.model_fields_set))
        return f"{kind} {getattr(self, kind)}"

    def read(self) -> str:
        """The secret, without a line end behind it. Raises SecretError."""
        if self.env is not None:
            if not os.environ.get(self.env):
                raise SecretError(f"{self} is not set", hint="set it in the agent's environment")
            return os.environ[self.env]
        try:
            with open(self.path, "rb", opener=_at_once) as file:  # Path.open takes no opener
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise SecretError(f"{self} is no file", hint="put the secret into a file of its own")
                content = file.read(_LARGEST + 1)
        except OSError as error:
            raise SecretError(
                f"{self} cannot be read: {error.strerror}", hint="may the agent's user read it?"
            ) from error
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise SecretError(f"{self} is not text", hint="write it as UTF-8") from None
        if len(content) > _LARGEST:
            raise SecretError(f"{self} is larger than {_LARGEST} bytes", hint="is it the right file?")
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            raise SecretError(f"{self} is empty", hint="put the secret there")
        self.tell_if_open()
        return text

    @property
    def is_open(self) -> bool:
        """Whether it is in a file that every user of this machine can read; False also if there is none."""
        try:
            real = self.path.resolve()
            return bool(real.stat().st_mode & stat.S_IROTH) and all(
                folder.stat().st_mode & stat.S_IXOTH for folder in real.parents
            )
        except (SecretError, OSError):
            return False

    def tell_if_open(self) -> None:
        """Have the log say so, once in the life of this process; for who reads the file himself."""
        if self.is_open:
            _tell(str(self), str(self.path))

    @property
    def path(self) -> Path:
        """The file of a secret that is in one; a library may want to read it itself. Raises SecretError."""
        if self.file is not None:
            return Path(self.file)
        if self.credential is None:
            raise SecretError(f"{self} is in no file", hint='write { file = "PATH" } or { credential = "NAME" }')
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise SecretError(
                f"{self} is not there", hint="LoadCredential= in the unit gives credentials to the service alone"
            )
        return Path(folder, self.credential)


@cache
def _tell(secret: str, path: str) -> None:
    log.warning("every user of this machine can read a secret secret=%s hint=%s", secret, f"chmod o-rwx {path}")
