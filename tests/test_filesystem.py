"""What an outbox lies on is read from the mounts, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.outbox import filesystem

MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /run rw,nosuid - tmpfs tmpfs rw,size=5m
23 21 0:21 / /srv\040data rw master:1 propagate_from:2 - nfs4 server:/x rw
24 21 8:2 / /var/lib rw - btrfs /dev/sda2 rw
25 24 8:3 /sub /var/lib/edge-agent rw - xfs /dev/sda3 rw
26 22 0:22 / /run rw - f2fs /dev/sdb rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc", "ext4"),
        ("/run/x", "f2fs"),  # mounted over the one before
        ("/srv data/ring", "nfs4"),
        ("/var/lib/other", "btrfs"),
        ("/var/library", "ext4"),
        ("/var/lib/edge-agent/dso.ring", "xfs"),
    ],
)
def test_the_innermost_mount_says_it(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS + "\n")
    assert filesystem.filesystem_kind(Path(path), mounts) == kind
    assert filesystem.filesystem_kind(Path(path), tmp_path / "none") == ""


@pytest.mark.parametrize(("kind", "words"), [("tmpfs", "memory"), ("nfs4", "server"), ("overlay", "container")])
def test_what_speaks_against_it(tmp_path: Path, kind: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "filesystem_kind", lambda path: kind)
    found = filesystem.against(tmp_path)
    assert found is not None
    assert found.startswith(f"{tmp_path} lies on {kind}: ")
    assert words in found
    monkeypatch.setattr(filesystem, "filesystem_kind", lambda path: "ext4")
    assert filesystem.against(tmp_path) is None


def test_of_this_machine() -> None:
    assert filesystem.filesystem_kind(Path("/proc/self")) == "proc"
