"""The Debian package: what is in it, and its life on a booted Debian, from the first installation to the purge.

The slow tests boot Debian in systemd-nspawn (testbed/box.py): they need root, mmdebstrap's archive and dpkg-deb.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import provision
from release import deb, source, wheels
from release.bill import bill
from release.target import TARGETS, Target
from release.wheels import Wheel
from testbed.box import Box, debian
from testbed.broker import create_stream
from testbed.processes import NatsServer, Site, edge_agent, wait_for
from tests.packaged import (
    CONFIG,
    CREDENTIAL,
    DROP_IN,
    KEY,
    LARGE_PAGES,
    RING,
    STREAM,
    SUBJECT,
    VECTORS,
    Kit,
    Life,
    alignments,
)

ROOT = Path(__file__).resolve().parent.parent


def needs_a_box() -> None:
    if os.geteuid() != 0:
        pytest.skip("booting a Debian takes root")
    if provision.program("systemd-container") is None or provision.program("mmdebstrap") is None:
        pytest.skip("python3 provision.py debian makes what it needs ready")
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb")


# ---- what a target needs --------------------------------------------------------------------------------------------


def test_markers_are_those_of_the_target_and_not_of_this_machine() -> None:
    entries = {
        "always": "always==1 \\\n    --hash=sha256:aa\n    # via pytest\n",
        "arm": "arm==2 ; platform_machine == 'aarch64' \\\n    --hash=sha256:bb\n",
        "old": "old==3 ; python_version < '3.13' and sys_platform == 'linux' \\\n    --hash=sha256:cc\n",
        "windows": "windows==4 ; sys_platform == 'win32' \\\n    --hash=sha256:dd\n",
    }
    assert [*TARGETS["deb12-amd64"].needs(entries)] == ["always", "old"]
    needed = TARGETS["deb13-arm64"].needs(entries)
    assert [*needed] == ["always", "arm"]
    assert needed["arm"] == "arm==2 \\\n    --hash=sha256:bb\n"
    assert needed["always"] == entries["always"]


def test_wheels_may_ask_for_the_c_library_that_the_release_has() -> None:
    options = TARGETS["deb12-arm64"].wheels
    assert options[:3] == ["--python-version=3.11", "--implementation=cp", "--abi=cp311"]
    assert "--platform=manylinux_2_36_aarch64" in options
    assert "--platform=manylinux_2_37_aarch64" not in options
    assert "--platform=manylinux_2_41_aarch64" in TARGETS["deb13-arm64"].wheels


@pytest.mark.parametrize(("upstream", "version"), [("0.1.0", "0.1.0"), ("1.2rc1", "1.2~rc1"), ("1.2.dev3", "1.2~dev3")])
def test_the_next_debian_and_a_release_after_its_candidate_are_newer(
    monkeypatch: pytest.MonkeyPatch, upstream: str, version: str
) -> None:
    monkeypatch.setattr(deb, "project", lambda: {"version": upstream})
    assert deb.version_of(TARGETS["deb12-amd64"], revision=2) == f"{version}-2~deb12"


def made_wheel(folder: Path, name: str, files: Mapping[str, bytes], licence: str = "MIT") -> Wheel:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: {licence}\n"
        archive.writestr(f"{name}-1.0.dist-info/METADATA", metadata)
    return wheels.read(path)


def test_a_wheel_is_laid_out_without_its_scripts_and_tests(tmp_path: Path) -> None:
    files = {
        "thing/__init__.py": b"1",
        "thing/tests/test_it.py": b"2",
        "thing-1.0.data/scripts/thing": b"3",
        "thing-1.0.data/platlib/thing/fast.so": b"4",
        "tests.py": b"5",
        "../outside.py": b"6",
    }
    wheels.unpack(made_wheel(tmp_path, "thing", files), tmp_path / "site")
    found = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert found == {"thing/__init__.py", "thing/fast.so", "tests.py", "thing-1.0.dist-info/METADATA"}
    assert not (tmp_path / "outside.py").exists()


def test_the_bill_says_what_is_inside_and_who_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    inside = [made_wheel(tmp_path, "low", {}), made_wheel(tmp_path, "top", {}, licence="MIT OR Apache-2.0")]
    entries = {"top": f"top==1.0\n    # via {provision.PROJECT}\n", "low": "low==1.0\n    # via\n    #   top\n"}
    text = bill("edge-agent_1_amd64", "1-1", inside, entries)
    assert text == bill("edge-agent_1_amd64", "1-1", inside, entries)
    said = json.loads(text)
    assert (said["bomFormat"], said["specVersion"]) == ("CycloneDX", "1.6")
    assert said["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert [each["purl"] for each in said["components"]] == ["pkg:pypi/low@1.0", "pkg:pypi/top@1.0"]
    assert said["components"][1]["licenses"] == [{"expression": "MIT OR Apache-2.0"}]
    [digest] = said["components"][0]["hashes"]
    assert digest == {"alg": "SHA-256", "content": hashlib.sha256(inside[0].path.read_bytes()).hexdigest()}
    root = said["metadata"]["component"]["bom-ref"]
    needs = {each["ref"]: each["dependsOn"] for each in said["dependencies"]}
    assert needs == {root: ["pkg:pypi/top@1.0"], "pkg:pypi/top@1.0": ["pkg:pypi/low@1.0"], "pkg:pypi/low@1.0": []}
    assert json.loads(bill("edge-agent_1_arm64", "1-1", inside, entries))["serialNumber"] != said["serialNumber"]


def test_the_manual_page_names_every_command() -> None:
    page = (ROOT / "release" / "debian" / "edge-agent.1").read_text()
    shown = subprocess.run([*edge_agent(), "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
    commands = [line.split()[0] for line in shown.splitlines() if line.startswith("    ") and line[4] != " "]
    assert len(commands) > 10
    assert [name for name in commands if name not in page] == []


def test_wheel_and_sdist_are_the_same_each_time_and_hold_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made: list[list[bytes]] = []
    for name in ("one", "two"):
        copied = source.copy(tmp_path / name)
        paths = [source.wheel(copied, tmp_path / f"{name}-out"), source.sdist(copied, tmp_path / f"{name}-out")]
        made.append([path.read_bytes() for path in paths])
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "one-out" / "dataexchange_edge_agent-0.1.0.tar.gz") as archive:
        names = archive.getnames()
    top = "dataexchange_edge_agent-0.1.0"
    assert {f"{top}/PKG-INFO", f"{top}/LICENSE", f"{top}/agent/cli.py", f"{top}/adapters/__init__.py"} <= {*names}
    assert not [name for name in names if name.startswith((f"{top}/testbed", f"{top}/tests", f"{top}/release"))]


# ---- the package as a file ------------------------------------------------------------------------------------------


# what lintian calls, beside what it depends on
LINTIAN = (
    *("lintian", "base-files", "bash", "coreutils", "dash", "dpkg-dev", "findutils", "grep", "gzip", "libc-bin"),
    *("perl", "sed"),
)


@pytest.mark.slow
def test_the_package_is_the_same_each_time_and_lintian_finds_nothing(tmp_path: Path) -> None:
    """Made for another machine and another Python than ours."""
    needs_a_box()
    kit = Kit(TARGETS["deb13-arm64"], tmp_path)
    package = kit.build(tmp_path / "one")
    libraries = alignments(package)
    assert len(libraries) > 5
    assert {name: found for name, found in libraries.items() if min(found) < LARGE_PAGES} == {}
    previous = os.umask(0o077)
    try:
        kit.own = wheels.read(source.wheel(source.copy(tmp_path / "again"), tmp_path / "own again"))
        again = kit.build(tmp_path / "two")
    finally:
        os.umask(previous)
    assert again.read_bytes() == package.read_bytes()

    root = debian("trixie", variant="extract", packages=LINTIAN)
    if not (vendor := root / "etc" / "dpkg" / "origins" / "default").is_symlink():  # what configuring would do
        vendor.symlink_to("debian")
    with tempfile.TemporaryDirectory(prefix="lintian-", dir=root / "tmp") as box:
        shutil.copy(package, box)
        place = f"/tmp/{Path(box).name}/{package.name}"
        found = subprocess.run(
            ["chroot", str(root), "lintian", "--allow-root", "--tag-display-limit=0", place],
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert (found.returncode, found.stdout) == (0, ""), found.stdout + found.stderr


# ---- its life -------------------------------------------------------------------------------------------------------


@pytest.fixture
def life(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Life]:
    needs_a_box()
    target: Target = request.param
    kit = Kit(target, tmp_path)
    packages = tmp_path / "packages"
    for revision in (1, 2):
        kit.build(packages, revision=revision).rename(packages / f"{revision}.deb")
    shutil.copy(VECTORS, packages)
    with (
        Site(tmp_path / "site", journal=False) as site,
        NatsServer(tmp_path / "nats") as server,
        Box(debian(target.codename), folder=tmp_path / target.name, binds={"/packages": packages}) as box,
    ):
        asyncio.run(create_stream(server.url, STREAM, [SUBJECT]))
        yield Life(box, site, server)


@pytest.mark.slow
@pytest.mark.parametrize("life", [TARGETS["deb12-amd64"], TARGETS["deb13-amd64"]], indirect=True, ids=lambda t: t.name)
def test_the_package_lives_from_its_first_installation_to_its_purge(life: Life) -> None:
    run = life.run

    # installed: ready to be configured, and not started
    assert "edge-agent init" in life.install("/packages/1.deb")
    assert run("systemctl is-enabled edge-agent", check=False).strip() == "disabled"
    assert life.show("ActiveState") == "inactive"
    assert life.owner("/etc/edge-agent") == "root:edge-agent 750"
    assert life.owner("/var/lib/edge-agent") == "edge-agent:edge-agent 750"
    run("systemd-analyze security --threshold=20 edge-agent.service")
    run("ls /usr/lib/edge-agent/lib/python3*/site-packages/agent/__pycache__/cli.*.pyc")
    life.reads_as_written(f"/packages/{VECTORS.name}")

    # init: the service user's key, root's configuration, and a second time nothing
    did = life.box.run("edge-agent", "init").strip()
    assert did.startswith("did:ethr:ewc:0x")
    assert (life.owner(KEY), life.owner(CONFIG)) == ("edge-agent:edge-agent 600", "root:edge-agent 640")
    before = life.content(KEY, CONFIG)
    again = run("edge-agent init")
    assert did in again
    assert again.count("is there already and stays") == 2
    assert life.content(KEY, CONFIG) == before
    secret = life.box.run("cat", KEY).strip()

    # a configuration that is refused ends it, and it is not tried again
    run(f"cp {CONFIG} good && echo 'nonsense = 1' >> {CONFIG}")
    run("systemctl start edge-agent", check=False)
    assert (life.show("ActiveState"), life.show("ExecMainStatus"), life.show("NRestarts")) == ("failed", "78", "0")
    run(f"cat good > {CONFIG} && systemctl reset-failed edge-agent")

    # the first device
    life.configure()
    assert f"{CONFIG}: good" in run("edge-agent check")
    assert "good" in run("edge-agent check --online")
    assert "pv-1/ac" in run("edge-agent read")
    run("systemctl enable --now edge-agent")
    life.delivers()
    assert life.show("ActiveState") == "active"
    wait_for(lambda: "broker connected" in life.show("StatusText"), timeout=10.0, what="the broker in STATUS")
    assert life.owner(RING) == "edge-agent:edge-agent 640"
    first = life.at_the_other_end(did)

    # the key into a credential; the file goes
    assert did in run("edge-agent identity import --credential")
    assert 'key = "credential:agent-key"' in run(f"cat {CONFIG}")
    assert life.owner(CONFIG) == "root:edge-agent 640"
    assert life.owner(CREDENTIAL) == "root:root 600"
    assert did in run(f"rm {KEY}; systemctl restart edge-agent && journalctl -u edge-agent -n 20 | cat")
    life.delivers()
    assert "ok       files: owners and rights are as they should be" in run("edge-agent doctor", check=False)

    # one that hangs is ended by the watchdog, and started again
    life.hang(watchdog=3)
    run("systemctl restart edge-agent")
    life.delivers()

    # an upgrade to what refuses the configuration leaves the old one running
    process = life.show("MainPID")
    run(f"cp -p {CONFIG} good && echo 'nonsense = 1' >> {CONFIG}")
    assert "this version refuses the configuration" in life.install("/packages/2.deb")
    assert (life.show("ActiveState"), life.show("MainPID")) == ("active", process)
    run(f"cat good > {CONFIG}")
    run("apt-get -q -y --allow-downgrades install /packages/1.deb")
    assert life.show("MainPID") != process

    # an upgrade keeps all of it, and what ran runs on
    kept = life.content(CONFIG, CREDENTIAL, DROP_IN)
    ring, process = run(f"stat --format=%i {RING}"), life.show("MainPID")
    life.install("/packages/2.deb")
    assert "-2~deb" in life.box.run("dpkg-query", "--show", "edge-agent")
    assert (life.show("ActiveState"), life.show("NRestarts")) == ("active", "0")
    assert life.show("MainPID") != process
    assert (life.content(CONFIG, CREDENTIAL, DROP_IN), run(f"stat --format=%i {RING}")) == (kept, ring)
    life.delivers()
    second = life.at_the_other_end(did)
    assert second["records"] > first["records"]

    # removed: what is the site's stays, and a new installation goes on with it
    run("apt-get -q -y remove edge-agent")
    assert life.there("/usr/lib/edge-agent", "/usr/bin/edge-agent", "/usr/lib/systemd/system/edge-agent.service") == []
    assert life.there(CONFIG, CREDENTIAL, DROP_IN, RING) == sorted([CONFIG, CREDENTIAL, DROP_IN, RING])
    life.install("/packages/2.deb")
    assert run("systemctl is-enabled edge-agent").strip() == "enabled"
    run("systemctl start edge-agent")
    life.delivers()
    assert life.at_the_other_end(did)["records"] > second["records"]

    log = run("journalctl | cat")
    assert secret not in log
    assert "clock not synchronised" in log
    assert "state of the clock cannot be read" not in log

    # purged: nothing of it stays
    run("apt-get -q -y purge edge-agent")
    gone = ["/etc/edge-agent", "/var/lib/edge-agent", DROP_IN, "/usr/lib/edge-agent", "/run/edge-agent"]
    assert life.there(*gone, "/etc/systemd/system/*/edge-agent*", "/etc/systemd/system/edge-agent*") == []
