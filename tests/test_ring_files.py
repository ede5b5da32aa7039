"""The file layer under the outbox: what it asks of the system, in which order, and that two who make or replace one
file do not meet.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.outbox.files import OS_FILES, create_locked, open_locked, replace_locked

Calls = list[tuple[str, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is synced, linked and renamed, by name."""
    made: Calls = []

    def recorded(call: str, named: Callable[..., str]) -> None:
        real = getattr(os, call)

        def record(*arguments: Any) -> Any:
            made.append((call, named(*arguments)))
            return real(*arguments)

        monkeypatch.setattr(os, call, record)

    def name(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    recorded("fdatasync", name)
    recorded("fsync", name)
    recorded("link", lambda path, aside: Path(aside).name)
    recorded("rename", lambda old, new: Path(new).name)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def at_lock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """What another process does right before we get a lock, once."""
    todo: list[Callable[[], object]] = []
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if todo:
            todo.pop()()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    yield todo
    assert not todo, "it was locked"


def fill(fd: int) -> None:
    OS_FILES.pwrite(fd, b"new", 0)
    OS_FILES.fdatasync(fd)


def held(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_what_was_made_is_on_disk_with_its_name(folder: Path, calls: Calls) -> None:
    os.close(create_locked(folder / "ring", fill))
    assert calls == [("fdatasync", "ring.new"), ("rename", "ring"), ("fsync", "state")]


def test_who_opens_it_sees_to_its_name(folder: Path, calls: Calls) -> None:
    (folder / "ring").touch()
    os.close(open_locked(folder / "ring"))
    assert calls == [("fsync", "state")]


def test_the_old_file_has_its_second_name_before_it_loses_its_first(folder: Path, calls: Calls) -> None:
    (folder / "ring").write_text("old")
    fd = open_locked(folder / "ring")
    calls.clear()
    replace_locked(fd, folder / "ring", fill, aside=folder / "aside")
    assert calls == [
        ("fdatasync", "ring.new"), ("link", "aside"), ("fsync", "state"), ("rename", "ring"), ("fsync", "state"),
    ]  # fmt: skip
    assert (held(fd), (folder / "aside").read_text(), (folder / "ring").read_text()) == (b"old", "old", "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_the_owner_stays(folder: Path) -> None:
    (folder / "ring").write_text("old")
    os.chown(folder / "ring", 12_345, 12_346)
    fd = open_locked(folder / "ring")
    replace_locked(fd, folder / "ring", fill)
    os.close(fd)
    found = (folder / "ring").stat()
    assert (found.st_uid, found.st_gid) == (12_345, 12_346)


def test_nothing_is_left_of_what_was_begun_before(folder: Path) -> None:
    (folder / "ring.new").write_bytes(b"x" * 10_000)
    assert held(create_locked(folder / "ring", fill)) == b"new"


def test_a_file_that_came_meanwhile_stays(folder: Path) -> None:
    (folder / "ring").write_text("of another process")
    with pytest.raises(FileExistsError):
        create_locked(folder / "ring", fill)
    assert (folder / "ring").read_text() == "of another process"


def test_a_draft_that_another_process_took_is_not_written_to(folder: Path, at_lock: list[Callable[[], object]]) -> None:
    at_lock.append(lambda: (folder / "ring.new").rename(folder / "elsewhere"))
    with pytest.raises(FileExistsError):
        create_locked(folder / "ring", fill)
    assert (folder / "elsewhere").read_bytes() == b""


def test_a_file_that_was_replaced_meanwhile_is_opened_again(folder: Path, at_lock: list[Callable[[], object]]) -> None:
    (folder / "ring").write_text("old")
    (folder / "other").write_text("its successor")
    at_lock.append(lambda: (folder / "other").rename(folder / "ring"))
    assert held(open_locked(folder / "ring")) == b"its successor"


def test_a_read_that_is_cut_short_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ring").write_bytes(bytes(range(250)))
    fd = os.open(folder / "ring", os.O_RDONLY)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 100), offset))
    assert OS_FILES.pread(fd, 240, 5) == bytes(range(5, 245))
    assert OS_FILES.pread(fd, 240, 200) == bytes(range(200, 250))
    os.close(fd)
