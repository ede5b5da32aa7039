"""Configurations in several files: what stands where, and whose problem is told where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.config import load
from agent.config.tables import PathText
from agent.errors import ConfigError
from tests.test_config import GOOD as WHOLE
from tests.test_config import KIND as FAKE
from tests.test_config import FakeConnection, FakeDevice

KIND = f"{__name__}:PathAdapter"
HEAD, _, REST = WHOLE.partition("[[device]]")
CHANNEL = "[[channel]]" + REST.partition("[[channel]]")[2]
METER, PV = (f"[[device]]{part}" for part in REST.partition("[[channel]]")[0].split("[[device]]"))
MAIN = f'include = ["conf.d/*.toml"]\n{HEAD}{METER}{CHANNEL}'


class PathConnection(FakeConnection):
    ca: PathText


class PathAdapter:
    connection_model = PathConnection
    device_model = FakeDevice


def lay(folder: Path, **files: str | bytes) -> Path:
    """``agent.toml`` and what stands in ``conf.d``, by name."""
    (folder / "conf.d").mkdir(exist_ok=True)
    for name, text in files.items():
        path = folder / "agent.toml" if name == "agent" else folder / "conf.d" / f"{name}.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "agent.toml"


def problems(main: Path) -> list[str]:
    """What is wrong, with files relative to the main file's folder."""
    with pytest.raises(ConfigError) as caught:
        load(main)
    return [str(problem).replace(f"{main.parent}/", "") for problem in caught.value.problems]


def test_a_configuration_in_several_files_is_that_of_one(tmp_path: Path) -> None:
    whole = tmp_path / "whole.toml"
    whole.write_text(WHOLE)
    wire, _, site = HEAD.rpartition("[connection.wire]")
    main = lay(
        tmp_path, agent=f'include = ["conf.d/*.toml"]\n{wire}', b=f"[connection.wire]{site}", c=PV, a=METER, d=CHANNEL
    )
    # [agent] stands behind the channel and goes with the main file.
    text = (tmp_path / "conf.d/d.toml").read_text()
    (tmp_path / "conf.d/d.toml").write_text(text.partition("[agent]")[0])
    assert load(main).digest_text() == load(whole).digest_text()
    assert [path.name for path in load(main).files] == ["agent.toml", "a.toml", "b.toml", "c.toml", "d.toml"]
    assert [device.id for device in load(main).devices] == ["meter", "pv"]
    place = load(main).places["channel", "dso"]
    assert (place.file, place.line, place.key) == (f"{tmp_path}/conf.d/d.toml", 1, "channel[0]")


def test_files_come_in_the_order_of_the_list(tmp_path: Path) -> None:
    include = 'include = ["conf.d/z.toml", "conf.d/[a-c].toml", "nothing/*.toml"]'
    main = lay(tmp_path, agent=MAIN.replace('include = ["conf.d/*.toml"]', include), z=PV, b="# empty\n", a="")
    assert [path.name for path in load(main).files] == ["agent.toml", "z.toml", "a.toml", "b.toml"]


def test_a_pattern_may_match_nothing(tmp_path: Path) -> None:
    main = lay(tmp_path, agent=MAIN.replace("conf.d/*", "no/such/**/*").replace('"meter/*", "pv/ac/W"', '"*"'))
    assert load(main).files == (main,)


def test_relative_paths_start_at_the_folder_of_the_file_that_they_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = f'[connection.spare]\nkind = "{KIND}"\nca = "ca.pem"\n'
    lay(tmp_path, agent=MAIN, pv=f"{PV}{spare}")
    monkeypatch.chdir(tmp_path)
    config = load(Path("agent.toml"))
    assert [plan.connection.ca for plan in config.plans if plan.name == "spare"] == [tmp_path / "conf.d" / "ca.pem"]
    assert config.identity.key.path == tmp_path / "key"
    assert [str(path) for path in config.files] == ["agent.toml", "conf.d/pv.toml"]


# ---- what is wrong with include itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("5", 'agent.toml:1: include: expected a list; write it like ["conf.d/*.toml"]'),
        (
            "[5]",
            'agent.toml:1: include[0]: expected a path or a pattern in quotes; write it like ["conf.d/*.toml"]',
        ),
        (
            '[""]',
            'agent.toml:1: include[0]: expected a path or a pattern in quotes; write it like ["conf.d/*.toml"]',
        ),
        (
            '["conf.d/pv.toml",\n"gone.toml"]',
            'agent.toml:2: include[1]: there is no file "gone.toml"; make it, correct the path, or leave it out',
        ),
        (
            '["conf.d/pv.toml", "conf.d/./pv.toml"]',
            'agent.toml:1: include[1]: "conf.d/./pv.toml" names pv.toml, which is included already; leave it out',
        ),
        (
            '["conf.d/pv.toml", "conf.d/p*.toml"]',
            'agent.toml:1: include[1]: "conf.d/p*.toml" names pv.toml, which is included already; choose a pattern',
        ),
        (
            '["conf.d/pv.toml", "agent.toml"]',
            'agent.toml:1: include[1]: "agent.toml" names agent.toml, which is this file itself; leave it out',
        ),
        (
            '["conf.d/pv.toml", "*.toml"]',
            'agent.toml:1: include[1]: "*.toml" names agent.toml, which is this file itself; choose a pattern',
        ),
    ],
)
def test_include_itself(tmp_path: Path, include: str, expected: str) -> None:
    main = lay(tmp_path, agent=MAIN.replace('["conf.d/*.toml"]', include), pv=PV)
    found = problems(main)
    assert any(problem.startswith(expected) for problem in found)
    assert len(found) == 1 or "pv.toml" not in include  # without it a pattern names nothing


def test_a_link_to_an_included_file_is_that_file(tmp_path: Path) -> None:
    main = lay(tmp_path, agent=MAIN, a=PV)
    (tmp_path / "conf.d" / "b.toml").symlink_to("a.toml")
    (problem,) = problems(main)
    assert problem == (
        'agent.toml:1: include[0]: "conf.d/*.toml" names b.toml, which is included already; '
        "choose a pattern that leaves it out"
    )


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    config = lay(tmp_path, agent=MAIN, pv=PV)
    os.mkfifo(tmp_path / "conf.d" / "a.toml")  # reading it would last until somebody writes
    (tmp_path / "conf.d" / "b.toml").symlink_to("b.toml")
    with pytest.raises(ConfigError) as caught:
        load(config)
    pipe, loop = map(str, caught.value.problems)
    assert pipe.startswith(f"{tmp_path}/conf.d/a.toml: this is no file; ")
    assert loop.startswith(f"{tmp_path}/conf.d/b.toml: cannot be read: Too many levels of symbolic links; ")


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = lay(tmp_path, agent=MAIN, pv=PV)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # root may list every folder
    assert (
        "agent.toml:1: include[0]: the folder conf.d cannot be read: Permission denied; let the agent's user list it"
        in problems(main)
    )


# ---- what is wrong with an included file ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\nb\n", "conf.d/x.toml:2: not TOML: expected '=' after a key in a key/value pair; correct this line or"),
        (b"# gr\xfc\xdf\n", "conf.d/x.toml:1: the file is not UTF-8; save it as UTF-8"),
        ("a = " + "[" * 100_000, "conf.d/x.toml: arrays or tables are nested too deeply; write it flatter"),
        (None, "conf.d/x.toml: this is no file; name a file that the agent's user may read"),
        ("version = 1\n", "conf.d/x.toml:1: version: stands in the main file only, not in an included one; move it to"),
        ("include = []", "conf.d/x.toml:1: include: stands in the main file only, not in an included one; move it to"),
        (
            "[site]\n",
            "conf.d/x.toml:1: site: stands in the main file only, not in an included one; move it to",
        ),
        ("\n[agent]", "conf.d/x.toml:2: agent: stands in the main file only, not in an included one; move it to"),
        ("[clock]", "conf.d/x.toml:1: clock: stands in the main file only, not in an included one; move it to"),
        ("[[devise]]", "conf.d/x.toml:1: devise: unknown key; did you mean 'device'?"),
        ("device = 1", "conf.d/x.toml:1: device: expected tables; write it as [[device]]"),
        ("device = []", "conf.d/x.toml:1: device: expected tables; write it as [[device]]"),
        (
            METER.replace('"1s"', "5"),
            'conf.d/x.toml:2: device[0].id: "meter" is the id of device[0] in agent.toml:10 too; choose another one',
        ),
        (
            METER.replace('"1s"', "5"),
            "conf.d/x.toml:5: device[0].groups.power.every: expected a duration in quotes; write a whole number",
        ),
        (
            f'[connection.wire]\nkind = "{FAKE}"\n',
            'conf.d/x.toml:1: connection.wire: "wire" is the name of connection.wire in agent.toml:8 too',
        ),
        (
            CHANNEL.partition("[agent]")[0],
            'conf.d/x.toml:2: channel[0].id: "dso" is the id of channel[0] in agent.toml:19 too; choose another one',
        ),
        (
            CHANNEL.partition("[agent]")[0].replace('id = "dso"', 'id = "b"\nsubject = "dx.park-7.dso"'),
            'conf.d/x.toml:3: channel[0].subject: "dx.park-7.dso" is where channel[0] in agent.toml:19 writes',
        ),
        (
            PV.replace('"wire"', '"wier"').replace('"pv"', '"pw"'),
            'conf.d/x.toml:3: device[0].connection: there is no connection "wier"; choose one of: wire',
        ),
    ],
    ids=range(18),
)
def test_a_problem_of_an_included_file_is_told_there(tmp_path: Path, text: str | bytes | None, expected: str) -> None:
    main = lay(tmp_path, agent=MAIN, pv=PV)
    if text is None:
        (tmp_path / "conf.d" / "x.toml").mkdir()
    else:
        lay(tmp_path, x=text)
    assert [problem for problem in problems(main) if problem.startswith(expected)]
    assert all(problem.startswith("conf.d/x.toml") for problem in problems(main))


def test_no_permission_for_an_included_file_is_told_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = lay(tmp_path, agent=MAIN, pv=PV)
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "pv.toml":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read every file
    assert problems(main) == [
        "conf.d/pv.toml: cannot be read: Permission denied; name a file that the agent's user may read"
    ]


def test_a_broken_file_hides_nothing_of_the_others_and_accuses_nobody(tmp_path: Path) -> None:
    """What it may hold is not missed: a device that a channel sends, the connection of a device."""
    other = PV.replace('"wire"', '"elsewhere"').replace('"pv"', '"pv-2"').replace('"5s"', "5")
    main = lay(tmp_path, agent=MAIN.replace('"park-7"', "7"), a="[[device]\n", b=PV.replace('"5s"', "5"), c=other)
    assert [problem.partition(" ")[0] for problem in problems(main)] == [
        "agent.toml:4:",
        "conf.d/a.toml:1:",
        "conf.d/b.toml:4:",
    ]


def test_tables_that_are_missing_may_be_in_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    head = HEAD.partition("[connection.wire]")[0]
    main = lay(tmp_path, agent=f'include = ["conf.d/*.toml"]\n{head}', a="[[device]\n")
    assert [problem.partition(" ")[0] for problem in problems(main)] == ["conf.d/a.toml:1:"]
    lay(tmp_path, a="")
    assert [problem.partition(":")[2] for problem in problems(main)] == [
        " connection: missing; add [connection.NAME]",
        " device: missing; add [[device]]",
        " channel: missing; add [[channel]]",
    ]


def test_all_problems_come_by_file_and_line_the_main_file_first(tmp_path: Path) -> None:
    main = lay(
        tmp_path,
        agent=MAIN.replace('"park-7"', "7").replace('log_level = "info"', "log_level = 1"),
        b=f"[[device]]\n{PV}",
        a=f"{PV.replace('pv', 'p v')}[x]\n",
    )
    assert [problem.partition(" ")[0] for problem in problems(main)] == [
        "agent.toml:4:",
        "agent.toml:27:",
        "conf.d/a.toml:2:",
        "conf.d/a.toml:5:",
        "conf.d/b.toml:1:",
        "conf.d/b.toml:1:",
    ]


def test_another_version_says_nothing_of_included_files(tmp_path: Path) -> None:
    main = lay(tmp_path, agent=MAIN.replace("version = 1", "version = 2"), x="[[device]\n")
    assert problems(main) == [
        "agent.toml:2: version: this agent reads version 1, not 2; install the agent that the file is for"
    ]


def test_a_pattern_that_names_nothing_in_any_file(tmp_path: Path) -> None:
    main = lay(tmp_path, agent=MAIN.replace('"pv/ac/W"', '"pv/ac/W", "pv-9/*"'), pv=PV)
    assert problems(main) == [
        'agent.toml:23: channel[0].send[2]: "pv-9/*" names nothing that is read; the devices are: meter, pv'
    ]
