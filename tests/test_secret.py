"""Secrets are named, read when they are needed, and never shown."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.config.problems import Findings
from agent.errors import SecretError, Verdict
from agent.secret import Secret
from agent.tls import Tls

CANARY = "hunter2-canary"
REMEDY = 'write { file = "PATH" }, { credential = "NAME" } or { env = "NAME" }'


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    password: Secret


def secret(folder: Path | None = None, **where: str) -> Secret:
    context = {"folder": folder} if folder else None
    return Secret.model_validate(where, context=context)


def refused(where: Any) -> list[str]:
    """What is wrong with a table whose password is ``where``."""
    findings = Findings(file="f", lines={})
    assert findings.judge(Login, {"password": where}, at=("connection", "bms")) is None
    return [f"{problem.key}: {problem.what}; {problem.remedy}" for problem in findings.sorted()]


# ---- reading ----------------------------------------------------------------------------------------------------


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p").write_text(CANARY)
    found = secret(tmp_path, file="p")
    assert found.read() == CANARY
    assert found.path == tmp_path / "p"
    (tmp_path / "p").write_text("renewed")
    assert found.read() == "renewed"


@pytest.mark.parametrize(
    ("content", "expected"), [(b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b" a ", " a "), ("é".encode(), "é")]
)
def test_one_line_end_does_not_count(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "p").write_bytes(content)
    assert secret(tmp_path, file="p").read() == expected


def test_from_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "bms").write_text(f"{CANARY}\n")
    assert secret(credential="bms").read() == CANARY
    assert secret(credential="bms").path == tmp_path / "bms"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(SecretError, match=r"^credential bms is not there$") as caught:
        secret(credential="bms").read()
    assert caught.value.hint == "LoadCredential= in the unit gives credentials to the service alone"


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMS_PASSWORD", CANARY)
    assert secret(env="BMS_PASSWORD").read() == CANARY
    with pytest.raises(SecretError, match=r"^env BMS_PASSWORD is in no file$"):
        _ = secret(env="BMS_PASSWORD").path
    for value in (None, ""):
        monkeypatch.setenv("BMS_PASSWORD", value) if value is not None else monkeypatch.delenv("BMS_PASSWORD")
        with pytest.raises(SecretError, match=r"^env BMS_PASSWORD is not set$"):
            secret(env="BMS_PASSWORD").read()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(SecretError, match=r"^file .* is no file$"):
            secret(file=str(place)).read()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read: No such file or directory"),
        (CANARY.encode() + b"\xff", "is not text"),
        (CANARY.encode() * 10_000, "is larger than 65536 bytes"),
        (b"", "is empty"),
        (b"\n", "is empty"),
    ],
)
def test_a_file_that_holds_no_secret(tmp_path: Path, content: bytes | None, what: str) -> None:
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    with pytest.raises(SecretError) as caught:
        secret(tmp_path, file="p").read()
    assert str(caught.value) == f"file {tmp_path}/p {what}"
    assert caught.value.hint
    assert caught.value.verdict is Verdict.RETRY
    assert CANARY not in repr(caught.value.__cause__)


def test_a_file_that_everybody_can_read_is_taken_and_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a folder that is closed to others it is not open to them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # all folders above are open
        path = Path(folder, "p")
        path.write_text(CANARY)
        for folder_mode, mode, is_open in [(0o755, 0o640, False), (0o750, 0o644, False), (0o755, 0o644, True)]:
            Path(folder).chmod(folder_mode)
            path.chmod(mode)
            for read in (secret(file=str(path)).read, secret(file=str(path)).read):
                assert (read(), secret(file=str(path)).is_open) == (CANARY, is_open)
            hint = f"secret=file {path} hint=chmod o-rwx {path}"
            said = [f"every user of this machine can read a secret {hint}"] if is_open else []
            assert [record.getMessage() for record in caplog.records] == said
        key = path.rename(Path(folder, "key"))  # which the TLS library reads itself
        with pytest.raises(ssl.SSLError):
            Tls.model_validate({"cert": str(key), "key": {"file": str(key)}}).context()
        assert f"a secret secret=file {key} hint=" in caplog.records[1].getMessage()
    assert not secret(env="HOME").is_open
    assert not secret(file=str(tmp_path / "none")).is_open


# ---- what may stand in a configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", [CANARY, 5, [CANARY], True, {"file": "a", "env": "B"}, {}, {"file": "a", "credential": "b", "env": "c"}]
)
def test_it_is_a_reference_to_one_place(where: Any) -> None:
    one = isinstance(where, dict)
    what = "a secret is in one place" if one else "a secret does not stand in the configuration"
    assert refused(where) == [f"connection.bms.password: {what}; {REMEDY}"]


@pytest.mark.parametrize("where", [{"credential": "../x"}, {"env": "A=B"}, {"credential": ".."}, {"env": ""}])
def test_a_name_is_a_name(where: dict[str, str]) -> None:
    (name,) = where
    text = "this is no name; write letters, digits, _, . and -"
    assert refused(where) == [f"connection.bms.password.{name}: {text}"]


def test_other_keys_are_refused() -> None:
    assert refused({"flie": "p"}) == ["connection.bms.password.flie: unknown key; did you mean 'file'?"]
    assert refused({"file": ""})[0].startswith("connection.bms.password.file: expected a path in quotes")


# ---- nothing of it is shown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", [CANARY, [CANARY], {"file": [CANARY]}, {"env": f"{CANARY}="}, {"file": f"{CANARY}\0"}]
)
def test_no_message_repeats_what_stands_in_its_place(where: Any) -> None:
    assert CANARY not in "\n".join(refused(where))
    with pytest.raises(ValidationError):
        Login.model_validate({"password": where})


def test_neither_the_model_nor_what_is_made_of_it_holds_the_secret(tmp_path: Path) -> None:
    (tmp_path / "p").write_text(CANARY)
    login = Login.model_validate({"password": {"file": "p"}}, context={"folder": tmp_path})
    assert login.password.read() == CANARY
    assert CANARY not in repr(login) + str(login) + login.model_dump_json() + repr(login.password.__dict__)
    assert str(login.password) == f"file {tmp_path}/p"
    assert login.model_dump(mode="json", exclude_none=True) == {"password": {"file": f"{tmp_path}/p"}}


def test_a_schema_has_references_only() -> None:
    schema = Login.model_json_schema()["$defs"]["Secret"]
    assert schema["properties"].keys() == {"file", "credential", "env"}
    assert (schema["minProperties"], schema["maxProperties"], schema["additionalProperties"]) == (1, 1, False)
