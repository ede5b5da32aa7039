"""What the documentation says of files, commands, keys and log lines is so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import main
from agent.config import load

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = ROOT / "README.md"
OPERATING = ROOT / "docs" / "operating.md"
LOG_LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


# ---- links ------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made where it is shown."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def test_all_pages_of_docs_can_be_found_from_the_readme() -> None:
    text = README.read_text()
    for page in (ROOT / "docs").glob("*.*"):
        assert f"docs/{page.name}" in text, page.name


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_nobody_is_told_to_install_the_package_of_somebody_else(page: Path) -> None:
    assert not re.search(r"pip3? install (-\S+ )*edge-agent", page.read_text())


# ---- commands ---------------------------------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """The commands of the README's table, without their arguments."""
    rows = re.findall(r"^\| `edge-agent ([^`]+)` \|", README.read_text(), re.MULTILINE)
    return [[word for word in row.split() if word.islower()] for row in rows]


def test_the_table_has_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    there = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert there
    assert {command[0] for command in commands()} == set(there)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_the_table_is_there(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert f"edge-agent {' '.join(command)}" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["demo", "test", "bench/run", "provision.sh", "provision.py"])
def test_a_script_of_the_readme_is_there(script: str) -> None:
    assert (ROOT / script).exists()


def test_the_demo_takes_the_options_that_the_readme_names() -> None:
    told = subprocess.run([sys.executable, "-m", "testbed.demo", "--help"], cwd=ROOT, capture_output=True, text=True)
    for option in ("--for", "--json"):
        assert option in told.stdout
        assert f"`{option}" in README.read_text()


def test_the_demo_in_the_readme_ends_well() -> None:
    shown = re.search(r"^\$ \./demo --for 20\n(.*?)\n```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    last = shown[1].splitlines()[-1]
    assert re.fullmatch(
        r"verified \d+ records, \d+ frames, 0 failed: signature ok, continuity ok, completeness ok "
        r"\((\d+) of \1 cycles, 0 in gaps\)",
        last,
    )
    assert "SIGKILL" in shown[1]


# ---- configuration ----------------------------------------------------------------------------------------------


def test_the_configuration_in_the_readme_is_good(tmp_path: Path) -> None:
    shown = re.search(r"^```toml\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    file = tmp_path / "agent.toml"
    file.write_text(shown[1])
    assert load(file).channels[0].id == "dso"


def keys_of(table: object) -> Iterator[str]:
    if isinstance(table, dict):
        for key, value in table.items():
            yield key
            yield from keys_of(value)
    elif isinstance(table, list):
        for each in table:
            yield from keys_of(each)


def test_every_key_of_the_shipped_configuration_is_documented() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    shipped = tomllib.loads((ROOT / "config" / "agent.toml").read_text())
    named = {"hall", "pv", "electrical", "energy", "ac", "dso", "nmi", "0", "1", "2"}  # of this site, not of the format
    structure = {"site", "identity", "connection", "device", "channel", "agent", "outbox", "sunspec"}
    for key in set(keys_of(shipped)) - named - structure:
        assert re.search(rf"`[^`\n]*\b{key}\b[^`\n]*`", page), key


# ---- log lines --------------------------------------------------------------------------------------------------


def log_messages() -> Iterator[tuple[Path, str]]:
    """The constant beginning of each log line of the agent and its adapters, up to the first key=value."""
    for path in sorted([*(ROOT / "agent").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LOG_LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
            ):
                first = node.args[0]
                assert isinstance(first, ast.Constant), f"{short(path)}:{node.lineno}: the message is not constant"
                yield path, re.split(r" ?\S+=|%", str(first.value))[0].strip()


def test_every_log_line_is_explained() -> None:
    page = OPERATING.read_text()
    found = list(log_messages())
    assert len(found) > 10
    assert [f"{short(path)}: {message}" for path, message in found if f"`{message}`" not in page] == []


def test_no_log_line_is_explained_that_is_not_there() -> None:
    table = OPERATING.read_text().partition("## The log\n")[2].partition("###")[0]
    explained = re.findall(r"^\| `([^`]+)` \| (?:debug|info|warning|error) \|", table, re.MULTILINE)
    assert explained
    assert set(explained) - {message for _, message in log_messages()} == set()


# ---- modules ----------------------------------------------------------------------------------------------------


def test_every_module_has_a_place_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in [*(ROOT / "agent").glob("*.py"), *(ROOT / "adapters").rglob("*.py")]:
        if path.name != "__init__.py":
            assert re.search(rf"[`/]{path.name}`", page), short(path)


@pytest.mark.parametrize("page", ["ddhub.md", "reliability.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text()))
    defined = {
        name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 20
    assert named - defined == set()
