"""``edge-agent check``: what it prints of a good configuration, and what ``--online`` finds."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from agent.commands import check
from agent.config import load
from agent.config.tables import Identity
from agent.errors import AcquisitionError, ConfigError, SignerError
from agent.evidence.record import link_of
from agent.foresight.probe import Tried, _identity, _secret, try_all
from agent.model import Cause, DeviceInfo, Point, ValueType
from agent.outbox import Outbox, filesystem
from agent.ports import Clock, DeviceSelection
from agent.secret import Secret
from testbed.broker import create_stream
from testbed.certificates import Authority
from testbed.processes import NatsServer, Site, edge_agent
from tests.runs import DID, SECRET
from tests.test_config import FakeConnection, FakeDevice
from tests.test_config_refusals import GOOD

KIND = f"{__name__}:ListeningAdapter"
SUNSPEC = """\
[[device]]
id = "pv-1"
connection = "wire"
sunspec = {}
groups = { ac = { every = "1s", points = ["103.W", "103.Hz"] }, slow = { every = "1m", points = ["103.WH"] } }
"""


ROOT = Path(__file__).parents[1]
BATTERY = GOOD[GOOD.rindex("[[device]]") : GOOD.index("[[channel]]")]


class ListeningConnection(FakeConnection):
    password: Secret | None = None
    fails: bool = False


class ListenedTable(FakeDevice):
    pins: dict[str, Annotated[tuple[Secret, ...], Field(strict=False)]] = Field(default={})


class ListenedDevice:
    """A device of messages that never come."""

    def __init__(self, chosen: DeviceSelection) -> None:
        self.info = DeviceInfo(chosen.config.id, "fake")
        self._chosen = chosen.groups

    def points(self, group: str) -> tuple[Point, ...]:
        return tuple(Point(name, None, ValueType.INTEGER) for name in self._chosen[group])


class ListeningAdapter:
    """A source of messages that can be subscribed to, or not."""

    connection_model = ListeningConnection
    device_model = ListenedTable
    subscribed: ClassVar[list[str]] = []

    def __init__(self, name: str, connection: Any, devices: Sequence[DeviceSelection], clock: Clock) -> None:
        self.devices = [ListenedDevice(each) for each in devices]
        self._name, self._connection = name, connection

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[None]:
        if self._connection.fails:
            raise AcquisitionError(Cause.LINK_DOWN, "the broker does not know us", hint="look at the password")
        self.subscribed.append(self._name)
        yield

    async def close(self) -> None:
        self.subscribed.append("closed")


@pytest.fixture(autouse=True)
def forget() -> None:
    ListeningAdapter.subscribed.clear()


def checked(
    path: Path, capsys: pytest.CaptureFixture[str], *, online: bool = False
) -> tuple[int, list[str], list[str]]:
    """Exit code, and the lines of stdout and stderr."""
    code = check.main(argparse.Namespace(file=path, online=online, json=False))
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()


def checked_json(path: Path, capsys: pytest.CaptureFixture[str], *, online: bool = False) -> tuple[int, Any]:
    """Exit code, and the object; nothing else is said."""
    code = check.main(argparse.Namespace(file=path, online=online, json=True))
    said = capsys.readouterr()
    assert not said.err
    return code, json.loads(said.out)


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


# ---- offline ------------------------------------------------------------------------------------------------------


def test_what_is_sent_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.replace('send = ["*"]', 'send = ["meter/*", "battery/state/SoC"]')
    text = text.replace('{ name = "SoC", at = "/soc" }', '{ name = "SoC", at = "/soc" }, { name = "V", at = "/v" }')
    path = write(tmp_path, text)
    code, lines, said = checked(path, capsys)
    assert (code, said) == (0, [])
    assert lines == [
        f"{path}: good",
        "channel dso: to dx.park-7.dso",
        "  meter/power, every 1s: W",
        "  battery/state, by message: SoC",
        lines[4],
        lines[5],
        "not sent by any channel: battery/state/V",
        lines[7],
    ]
    assert lines[4].startswith("  2")
    assert " MiB a day in 86,4" in lines[4]
    assert " records; outbox of 8MiB lasts for 5." in lines[4]
    assert lines[4].endswith(" hours")
    assert lines[5].startswith("  battery/state: about 3")
    assert lines[5].endswith(" bytes more for each message, less where it shares a record with others")
    assert lines[7].startswith("assumed: values that move about 1 % per reading")


def test_each_channel_has_its_own_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    channel = '[[channel]]\nid = "b"\ntransport = "nats"\nservers = ["nats://h"]\nsend = ["battery/*"]\n[agent]'
    include = 'include = ["[ab].toml"]\n'
    (tmp_path / "a.toml").write_text("# nothing yet\n")
    path = write(tmp_path, include + GOOD.replace("[agent]", channel))
    _, lines, _ = checked(path, capsys)
    assert lines[0] == f"{path}: good, with 1 included"
    at = lines.index("channel b: to dx.park-7.b")
    assert lines[at + 1 : at + 4] == [
        "  battery/state, by message: SoC",
        lines[at + 2],
        "  outbox of 64MiB",
    ]
    assert lines[at + 2].endswith(" bytes for each message, less where it shares a record with others")
    assert not any(line.startswith("not sent") for line in lines)


def test_many_names_are_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = ", ".join(f'{{ name = "P{i}", at = "holding:{i}", type = "int16" }}' for i in range(100))
    path = write(tmp_path, GOOD.replace('{ name = "W", at = "40001", type = "int16" }', points))
    _, lines, _ = checked(path, capsys)
    assert "  meter/power, every 1s: P0, P1, P2, P3, P4, P5, P6, P7, P8, P9 ... (100 in all)" in lines


def test_a_good_one_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD.replace('send = ["*"]', 'send = ["meter/*"]'))
    code, found = checked_json(path, capsys)
    (channel,) = found.pop("channels")
    assert (code, found) == (
        0,
        {"file": str(path), "good": True, "problems": [], "not_sent": ["battery/*"], "warnings": []},
    )
    assert channel["groups"] == [{"device": "meter", "group": "power", "every_s": 1.0, "points": ["W"]}]
    assert 86_400 <= channel["records_per_day"] < 86_500
    assert 20 << 20 < channel["bytes_per_day"] < 30 << 20
    assert (channel["outbox_bytes"], channel["bytes_per_message"]) == (8 << 20, {})
    assert 0.2 < channel["outbox_days"] < 0.3


def test_messages_alone_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD.replace('send = ["*"]', 'send = ["battery/*"]'))
    _, found = checked_json(path, capsys)
    (channel,) = found["channels"]
    assert [group["every_s"] for group in channel["groups"]] == [None]
    assert channel["outbox_days"] is None
    assert channel["bytes_per_message"].keys() == {"battery/state"}


def test_an_outbox_that_a_start_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD.replace("[agent]", '[agent]\nstate = "."'))
    ring = tmp_path / "dso.ring"
    Outbox.open(ring, channel="dso", size=8 << 20, inspect=link_of).close()
    assert checked(path, capsys)[0] == 0
    path.write_text(path.read_text().replace("8MiB", "9MiB"))
    code, found = checked_json(path, capsys)
    (problem,) = found["problems"]
    assert (code, problem["key"], problem["line"] > 1) == (78, "channel[0].outbox.size", True)
    assert "outbox resize --channel dso" in problem["remedy"]
    ring.write_bytes(b"EVRING99")
    assert "version" in checked_json(path, capsys)[1]["problems"][0]["what"]


def test_a_state_folder_on_the_wrong_file_system(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "filesystem_kind", lambda path: "tmpfs")
    path = write(tmp_path, GOOD.replace("[agent]", '[agent]\nstate = "state"'))
    assert checked_json(path, capsys)[1]["warnings"] == [], "it is made at the first start"
    (tmp_path / "state").mkdir()
    assert [line for line in checked(path, capsys)[1] if line.startswith("warning: ") and "lies on tmpfs" in line]


def test_problems_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD.replace("version = 1", "version = 1\nsiet = 3"))
    problem = {"file": str(path), "line": 2, "key": "siet", "what": "unknown key", "remedy": "did you mean 'site'?"}
    assert checked_json(path, capsys) == (78, {"file": str(path), "good": False, "problems": [problem]})


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KiB"),
        (150_000, "146 KiB"),
        (5e9, "4.7 GiB"),
        (5e16, "45475 TiB"),
    ],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert check._bytes(count) == text


@pytest.mark.parametrize(
    ("days", "text"),
    [
        (0.01, "14 minutes"), (0.1, "2.4 hours"), (1.9, "46 hours"), (2.04, "2.0 days"), (31.4, "31 days"),
        (3649, "3649 days"), (4000, "more than 10 years"),
    ],
)  # fmt: skip
def test_times_for_people(days: float, text: str) -> None:
    assert check._time(days * 86_400e9) == text


def test_what_cannot_become_a_record_is_a_problem_of_the_configuration(tmp_path: Path) -> None:
    points = ", ".join(f'{{ name = "P{i}", at = "holding:{i}", type = "int16" }}' for i in range(15_000))
    path = write(tmp_path, GOOD.replace('{ name = "W", at = "40001", type = "int16" }', points))
    with pytest.raises(ConfigError) as caught:
        check.main(argparse.Namespace(file=path, online=False, json=False))
    assert str(caught.value).startswith(f"{path}:13: device[0].groups.power: one reading of 15000 points may take ")


UNMADE = """\
from tests.test_config import FakeConnection, FakeDevice

class Adapter:
    connection_model, device_model = FakeConnection, FakeDevice

    def __init__(self, *arguments):
        import fruit_library_that_is_not_installed
"""


@pytest.mark.parametrize("command", ["check", "read", "run"])
def test_an_adapter_that_cannot_be_made_is_a_problem_of_the_configuration(tmp_path: Path, command: str) -> None:
    """Its library is not installed, say: started again it would be the same."""
    (tmp_path / "unmade_adapter.py").write_text(UNMADE)
    (tmp_path / "key").write_text("01" * 32)
    (tmp_path / "key").chmod(0o600)
    battery = BATTERY.replace('topic = "t"\n', "").replace(', at = "/soc"', "").replace("state]", 'state]\nevery="1s"')
    text = GOOD.replace(BATTERY, battery).replace('url = "mqtt://192.0.2.2"', 'kind = "unmade_adapter:Adapter"')
    path = write(tmp_path, text.replace("[agent]", '[agent]\nstate = "state"\nsocket = ""'))
    (tmp_path / "state").mkdir()
    arguments = [command, *([] if command == "check" else ["--config"]), str(path)]
    done = subprocess.run(
        [*edge_agent(), *arguments],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = "the adapter cannot be made: ModuleNotFoundError: No module named 'fruit_library_that_is_not_installed'"
    assert (done.returncode, done.stdout) == (78, "")
    assert f"{path}:8: connection.bms: {told}; see the adapter's own documentation\n" in done.stderr
    assert "Traceback" not in done.stderr


# ---- online -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), journal=False).start() as site:
        yield site


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port on which nobody answers."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


GROUP = '[device.groups.state]\ntopic = "t"'


def online(folder: Path, *, wire: int, servers: Sequence[str], bms: str = "", subject: str = "dx.{site}") -> Path:
    text = GOOD.partition("[[device]]")[0].replace("192.0.2.1", f"127.0.0.1:{wire}")
    text = text.replace('url = "mqtt://192.0.2.2"', f'kind = "{KIND}"\n{bms}')
    battery = BATTERY.replace('topic = "t"\n', "").replace(
        "[device.groups.state]", '[device.groups.state]\nevery = "1s"'
    )
    channel = GOOD[GOOD.index("[[channel]]") :].replace('["nats://127.0.0.1:4222"]', str(list(servers)))
    channel = channel.replace("send =", f'subject = "{subject}"\nsend =')
    key = folder / "key"
    key.write_text(SECRET.hex())
    key.chmod(0o600)
    return write(folder, text + SUNSPEC + battery.replace(', at = "/soc"', "") + channel)


def test_a_secret_that_everybody_can_read_is_told_of() -> None:
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:  # all folders above are open
        file.write(b"hunter2")
        file.flush()
        for mode, words in [(0o600, "can be read"), (0o644, "can be read, but so can every user of this machine")]:
            os.chmod(file.name, mode)
            assert asyncio.run(_secret(Secret(file=file.name), "it")).words == f"file {file.name} {words}"


def test_a_credential_is_tried_in_the_service_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = Identity.model_validate({"key": "credential:agent-key"})
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    tried = asyncio.run(_identity(identity, "identity"))
    assert (tried.good, tried.words) == (
        True,
        "credential:agent-key is given to the service alone, and was not tried",
    )
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(SignerError, match="agent-key"):
        asyncio.run(_identity(identity, "identity"))


def test_all_is_good(tmp_path: Path, server: NatsServer, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(create_stream(server.url, "GOOD", ["dx.park-7"]))
    (tmp_path / "p").write_text("hunter2")
    path = online(tmp_path, wire=site.port, servers=[server.url], bms='password = { file = "p" }')
    code, lines, said = checked(path, capsys, online=True)
    assert (code, said) == (0, [])
    assert lines[-5:] == [
        f"identity: good: file:{tmp_path}/key holds the key of {DID.replace('volta', 'ewc')}",
        f"connection bms: password: good: file {tmp_path}/p can be read",
        "channel dso: good: dx.park-7 is taken, nothing there yet",
        "device pv-1: good: 3 values read",
        "connection bms: good: subscribed for battery; messages are not waited for",
    ]
    assert "hunter2" not in "".join(lines)
    code, found = checked_json(path, capsys, online=True)
    assert (code, found["online"][3]) == (0, {"what": "device pv-1", "good": True, "words": "3 values read"})
    assert ListeningAdapter.subscribed.count("bms") == 2
    assert ListeningAdapter.subscribed[-1] == "closed"


def test_nothing_is_reached(
    tmp_path: Path, nobody: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    servers = [f"nats://127.0.0.1:{nobody}", f"nats://localhost:{nobody}"]
    bms = 'fails = true\npassword = { env = "NO_SUCH_SECRET" }'
    began = time.monotonic()
    code, lines, said = checked(online(tmp_path, wire=nobody, servers=servers, bms=bms), capsys, online=True)
    assert time.monotonic() - began < 15
    assert code == 69
    assert lines[-2].startswith("assumed: ")
    assert [line.partition(": ")[0] for line in said] == [
        "connection bms",
        "channel dso",
        "device pv-1",
        "connection bms",
    ]
    assert said[0] == "connection bms: password: env NO_SUCH_SECRET is not set; set it in the agent's environment"
    assert all(f"cannot connect to {server}: " in said[1] for server in servers)
    assert said[2].startswith("device pv-1: ac: link_down: ")
    assert said[3] == "connection bms: the broker does not know us; look at the password"
    code, found = checked_json(tmp_path / "agent.toml", capsys, online=True)
    assert (code, found["good"], [each["good"] for each in found["online"]]) == (69, True, [True, *4 * [False]])


def test_secrets_of_devices_are_tried_however_deep(
    tmp_path: Path, server: NatsServer, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(create_stream(server.url, "GOOD", ["dx.park-7"]))
    path = online(tmp_path, wire=site.port, servers=[server.url])
    (tmp_path / "pin").write_text("1234")
    pins = 'pins = { a = [{ file = "pin" }, { file = "none" }] }'
    text = path.read_text().replace("[agent]", '[agent]\nhttp = "127.0.0.1:9469"\ntoken = { file = "pin" }')
    path.write_text(text.replace('id = "battery"', f'id = "battery"\n{pins}'))
    code, lines, said = checked(path, capsys, online=True)
    assert f"agent: token: good: file {tmp_path}/pin can be read" in lines
    remedy = "No such file or directory; may the agent's user read it?"
    assert (code, said) == (1, [f"device battery: pins: a: 1: file {tmp_path}/none cannot be read: {remedy}"])
    assert f"device battery: pins: a: 0: good: file {tmp_path}/pin can be read" in lines


def test_a_device_that_is_not_read_is_a_finding(
    tmp_path: Path, server: NatsServer, nobody: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(create_stream(server.url, "GOOD", ["dx.park-7"]))
    code, lines, said = checked(online(tmp_path, wire=nobody, servers=[server.url]), capsys, online=True)
    assert code == 1
    assert [line.partition(": ")[0] for line in said] == ["device pv-1"]
    assert len([line for line in lines if ": good: " in line]) == 3


def test_a_key_that_cannot_be_used_is_a_finding(
    tmp_path: Path, server: NatsServer, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(create_stream(server.url, "GOOD", ["dx.park-7"]))
    path = online(tmp_path, wire=site.port, servers=[server.url])
    (tmp_path / "key").chmod(0o644)
    code, _, said = checked(path, capsys, online=True)
    assert (code, said) == (1, [f"identity: the key file {tmp_path}/key is open to others; chmod 600 {tmp_path}/key"])


def test_a_broker_of_messages_that_is_not_reached_is_69(
    tmp_path: Path, server: NatsServer, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(create_stream(server.url, "GOOD", ["dx.park-7"]))
    path = online(tmp_path, wire=site.port, servers=[server.url], bms="fails = true")
    code, _, said = checked(path, capsys, online=True)
    assert (code, said) == (69, ["connection bms: the broker does not know us; look at the password"])


def test_a_broker_that_was_not_tried_for_want_of_a_password_is_a_finding(
    tmp_path: Path, server: NatsServer, site: Site, nobody: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(create_stream(server.url, "GOOD", ["dx.park-7"]))
    path = online(tmp_path, wire=site.port, servers=[server.url])
    bms = f'url = "mqtt://127.0.0.1:{nobody}"\nusername = "u"\npassword = {{ file = "none" }}'
    text = path.read_text().replace(f'kind = "{KIND}"', bms).replace('[device.groups.state]\nevery = "1s"', GROUP)
    text = text.replace('name = "SoC"', 'name = "SoC", at = "/soc"')
    path.write_text(text)
    assert checked(path, capsys, online=True)[0] == 1
    path.write_text(text.replace('username = "u"\npassword = { file = "none" }\n', ""))
    assert checked(path, capsys, online=True)[0] == 69


def test_a_missing_stream_is_a_finding(
    tmp_path: Path, server: NatsServer, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    path = online(tmp_path, wire=site.port, servers=[server.url], subject="nowhere.{site}")
    code, _, said = checked(path, capsys, online=True)
    assert code == 1
    remedy = "create the stream on the server, or correct the channel's subject"
    assert said == [f"channel dso: no JetStream stream takes nowhere.park-7; {remedy}"]


def test_a_stream_that_is_to_be_created_is_not_by_looking(
    tmp_path: Path, server: NatsServer, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    path = online(tmp_path, wire=site.port, servers=[server.url], subject="later.{site}")
    path.write_text(path.read_text().replace("subject =", 'stream = "LATER"\ncreate = {}\nsubject ='))
    for _ in range(2):
        code, lines, said = checked(path, capsys, online=True)
        assert (code, said) == (0, [])
        taken = "later.park-7 is taken, nothing there yet"
        assert f"channel dso: good: {taken}; the stream LATER is not there yet, the agent creates it" in lines


def test_a_stream_of_that_name_that_does_not_take_the_subject_is_a_finding(
    tmp_path: Path, server: NatsServer, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(create_stream(server.url, "OTHER", ["other.>"]))
    path = online(tmp_path, wire=site.port, servers=[server.url])
    path.write_text(path.read_text().replace("subject =", 'stream = "OTHER"\nsubject ='))
    code, _, said = checked(path, capsys, online=True)
    remedy = "add the subject to the stream, or correct the channel's subject or stream"
    assert (code, said) == (69, [f"channel dso: the stream OTHER takes other.>, not dx.park-7; {remedy}"])


def test_logins_and_tls_are_tried(
    tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path / "ca")
    own = authority.issue("server")
    (tmp_path / "pw").write_text("hunter2\n")
    (tmp_path / "old").write_text("hunter3\n")
    settings = f"""
        authorization {{ user: agent, password: hunter2 }}
        tls {{ cert_file: "{own.path}", key_file: "{own.key}" }}
    """
    login = 'username = "agent"\npassword = { file = "PW" }\ntls = { ca = "CA" }\nstream = "S"\ncreate = {}'
    with NatsServer(tmp_path, settings=settings).start() as server:
        path = online(tmp_path, wire=site.port, servers=[server.tls_url])
        text = path.read_text().replace("subject =", f"{login}\nsubject =")

        def found(password: str, ca: Path) -> tuple[int, str]:
            path.write_text(text.replace("PW", password).replace("CA", str(ca)))
            code, lines, said = checked(path, capsys, online=True)
            assert not any(secret in "".join([*lines, *said, caplog.text]) for secret in ("hunter2", "hunter3"))
            return code, next(line for line in [*said, *lines] if line.startswith("channel dso: "))

        assert found("pw", authority.path)[0] == 0
        code, words = found("old", authority.path)
        assert (code, "not let in with username: Authorization Violation; is it right" in words) == (69, True)
        code, words = found("pw", Authority(tmp_path / "other").path)
        assert (code, "certificate is refused: unable to get local issuer" in words) == (69, True)
        assert "; set ca of tls to the certificate of the authority that signed the server's" in words
        code, words = found("pw", tmp_path / "none.pem")
        assert (code, f"No such file or directory: {tmp_path}/none.pem; are the files of tls there" in words) == (
            1,
            True,
        )
        assert found("none", authority.path)[0] == 1


def test_one_server_of_several_is_enough(
    tmp_path: Path, server: NatsServer, site: Site, nobody: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(create_stream(server.url, "GOOD", ["dx.park-7"]))
    path = online(tmp_path, wire=site.port, servers=[f"nats://127.0.0.1:{nobody}", server.url])
    code, lines, said = checked(path, capsys, online=True)
    assert (code, said) == (0, [])
    (line,) = [line for line in lines if line.startswith("channel dso: good")]
    assert f"(another server: cannot connect to nats://127.0.0.1:{nobody}: " in line


def test_a_server_that_takes_too_little(tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with NatsServer(tmp_path, settings="max_payload: 1024").start() as small:
        asyncio.run(create_stream(small.url, "SMALL", ["dx.park-7"]))
        code, _, said = checked(online(tmp_path, wire=site.port, servers=[small.url]), capsys, online=True)
    assert code == 78
    (line,) = said
    assert line.startswith("channel dso: the server takes 512 bytes at once, and a record may have ")
    assert line.endswith("; raise max_payload on the server, or spread the points over several groups")


def test_no_right_to_read_back(tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    limited = '{ user: c, password: d, permissions: { publish: "dx.>" } }'
    settings = f"authorization {{ users: [{{ user: a, password: b }}, {limited}] }}\nno_auth_user: c"
    with NatsServer(tmp_path, settings=settings).start() as strict:
        asyncio.run(create_stream(strict.url.replace("://", "://a:b@"), "STRICT", ["dx.park-7"]))
        code, _, said = checked(online(tmp_path, wire=site.port, servers=[strict.url]), capsys, online=True)
    assert code == 1
    (line,) = said
    assert line.startswith("channel dso: not permitted to read back: ")
    assert "; let the agent's user publish to " in line


def test_who_never_answers_is_not_waited_for(tmp_path: Path, site: Site) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        config = load(online(tmp_path, wire=site.port, servers=[f"nats://127.0.0.1:{silent.getsockname()[1]}"]))
        began = time.monotonic()
        found = asyncio.run(try_all(config, within=1.0))
        assert time.monotonic() - began < 5
    assert found[1] == Tried("channel dso", "no answer within 1 s", good=False, unreachable=True)
    assert all(each.good for each in [found[0], *found[2:]])
