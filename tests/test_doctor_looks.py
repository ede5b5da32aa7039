"""What the doctor sees: on files made for it, of this machine, and the whole command with a real broker; and what is
packed for a supporter, with secrets planted everywhere.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import tarfile
import time
import tomllib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import nats
import pytest
from nats.js.api import StreamConfig

from agent import __version__
from agent.cli import main
from agent.doctor import certificates, clock, names, outboxes, rights, serial, service, storage, system, wear
from agent.doctor.case import take
from agent.support.masking import MASK, masked
from agent.tls import Tls
from testbed.certificates import Authority
from testbed.processes import NatsServer
from tests.leaks import holds
from tests.runs import DID, OTHER_SECRET, SECRET, S
from tests.served_agent import FakeChannel, FakeRunning, Ring, serving

CONFIG = f"""\
version = 1
[site]
id = "site-1"
[identity]
key = "file:key"
did = "{DID}"
[connection.wire]
url = "modbus+tcp://127.0.0.1:1"
[[device]]
id = "pv-1"
connection = "wire"
[device.groups.ac]
every = "1s"
points = [{{ name = "W", at = "holding:1", type = "int16" }}]
[[channel]]
id = "dso"
transport = "nats"
servers = ["nats://127.0.0.1:1"]
subject = "dx.dso"
send = ["*"]
outbox = {{ size = "5MiB" }}
[agent]
state = "state"
socket = "agent.sock"
"""


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """The folder of an agent with a good configuration, its key and an empty state folder."""
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "agent.toml").write_text(CONFIG)
    (folder / "key").write_text(SECRET.hex() + "\n")
    (folder / "key").chmod(0o600)
    (folder / "state").mkdir()
    return folder


def doctor(box: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Exit code, and the findings by what they are about; nothing else is said."""
    code = main(["doctor", "--json", "--config", str(box / "agent.toml"), *options])
    said = capsys.readouterr()
    assert not said.err
    told = json.loads(said.out)
    assert told["version"] == __version__
    by_name: dict[str, list[dict[str, str]]] = {}
    for each in told["findings"]:
        by_name.setdefault(each["about"], []).append(each)
    return code, by_name


def bad(findings: dict[str, list[dict[str, str]]]) -> list[tuple[str, str]]:
    return [(each["about"], each["level"]) for told in findings.values() for each in told if each["level"] != "ok"]


# ---- looks ------------------------------------------------------------------------------------------------------


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_time_services_and_the_clock_behind_the_battery(tmp_path: Path) -> None:
    for number, name in (("1", "systemd"), ("77", "chronyd"), ("78", "systemd-timesyn")):
        put(tmp_path / "proc" / number / "comm", f"{name}\n")
    put(tmp_path / "sys" / "class" / "rtc" / "rtc0" / "since_epoch", "1780000000\n")
    found = clock.look(proc=tmp_path / "proc", sys=tmp_path / "sys")
    assert (found.services, found.rtc) == (("chronyd", "systemd-timesyncd"), 1780000000.0)
    hidden = clock.look(proc=tmp_path, sys=tmp_path)
    assert (hidden.services, hidden.rtc, hidden.reads_rtc) == (None, None, False)


def test_what_a_disk_says_of_itself(tmp_path: Path) -> None:
    sys, number = tmp_path / "sys", storage.device_number(tmp_path)
    disk = sys / "devices" / "mmcblk0"
    put(disk / "mmcblk0p2" / "partition", "2\n")
    put(disk / "device" / "type", "MMC\n")
    put(disk / "device" / "life_time", "0x02 0x0a\n")
    put(disk / "device" / "pre_eol_info", "0x01\n")
    put(sys / "fs" / "ext4" / "mmcblk0p2" / "errors_count", "4\n")
    (sys / "dev" / "block").mkdir(parents=True)
    (sys / "dev" / "block" / number).symlink_to(disk / "mmcblk0p2")
    assert wear.look(tmp_path / "not" / "there", 7.0, sys=sys) == wear.WearFacts("mmcblk0", "MMC", 10, 1, 7.0)
    assert storage.look(tmp_path, {}, sys=sys).errors == 4
    mapped = sys / "devices" / "dm-0"
    (mapped / "slaves").mkdir(parents=True)
    (mapped / "slaves" / "mmcblk0p2").symlink_to(disk / "mmcblk0p2")
    (sys / "dev" / "block" / number).unlink()
    (sys / "dev" / "block" / number).symlink_to(mapped)
    assert wear.look(tmp_path, None, sys=sys).disk == "mmcblk0"
    assert wear.look(tmp_path, None, sys=tmp_path / "none").disk == ""


def test_room_that_an_outbox_has_not_reserved(tmp_path: Path) -> None:
    with (tmp_path / "b.ring").open("wb") as file:
        file.truncate(5 << 20)
    found = storage.look(tmp_path, {"a": 6 << 20, "b": 5 << 20})
    assert (found.wanted, found.thin, found.there) == ({"a": 6 << 20, "b": 5 << 20}, ("b",), True)
    assert storage.look(tmp_path / "x", {}).there is False
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert storage.look(tmp_path / "link", {"a": 1}).instead == f"a link to {tmp_path / 'disk'}, where no folder is"
    assert storage.look(tmp_path / "b.ring", {"a": 1}).instead == "no folder"


def test_who_may_do_what(tmp_path: Path) -> None:
    stranger = rights.Who(4_000_000, "nobody-here", frozenset({4_000_001}))
    tmp_path.chmod(0o711)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    file = tmp_path / "secret"
    file.write_text("x")
    file.chmod(0o604)
    assert rights.look("secret", "s", file, stranger).usable is True
    assert rights.look("outbox", "s", file, stranger).usable is False  # to write
    file.chmod(0o640)
    assert rights.look("secret", "s", file, stranger).usable is False
    group = replace(stranger, groups=frozenset({file.stat().st_gid}))
    assert rights.look("secret", "s", file, group).usable is True
    assert rights.look("secret", "s", file, rights.Who(0, "root", frozenset())).usable is True
    assert rights.look("secret", "s", tmp_path / "none", stranger).missing
    tmp_path.chmod(0o733)
    assert rights.look("secret", "s", file, stranger).in_open_folder
    tmp_path.chmod(0o700)
    assert rights.look("secret", "s", file, group).usable is False  # nobody else comes through the folder
    assert rights.Who.owner_of(tmp_path / "none") is None


def test_a_serial_port_and_its_lasting_name(tmp_path: Path) -> None:
    by_id = tmp_path / "by-id"
    by_id.mkdir()
    (by_id / "usb-adapter").symlink_to("/dev/null")
    stranger = rights.Who(4_000_000, "x", frozenset())
    found = serial.look("connection wire", Path("/dev/null"), stranger, by_id=by_id)
    assert (found.there, found.is_port, found.stable) == (True, True, str(by_id / "usb-adapter"))
    assert not serial.look("c", tmp_path / "none", stranger, by_id=by_id).there
    assert serial.look("c", by_id, None, by_id=by_id).is_port is False


def test_a_name_that_is_not_known_and_addresses_of_this_machine() -> None:
    assert names.look("no-such-host.invalid").trouble
    assert names.look("x" * 300).trouble
    assert names.look("127.0.0.1").addresses == ("127.0.0.1",)
    assert names.endpoint("mqtts://[::1]:8883?version=5") == ("::1", 8883)
    assert names.endpoint("no url") is None
    assert names.endpoint("nats://[::1") is None


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path / "ca.pem", "not a certificate")
    put(tmp_path / "key", "x")
    table = Tls.model_validate(
        {"ca": "ca.pem", "cert": "none.pem", "key": {"file": "key"}}, context={"folder": tmp_path}
    )
    found = {each.what: each.trouble for each in certificates.look("t", table)}
    assert found["t: ca"] == "no certificate in PEM form"
    assert found["t: cert"] == "No such file or directory"
    assert found["t: key"]


def test_the_outboxes_of_a_folder(box: Path) -> None:
    ring = Ring(box / "state" / "dso.ring")
    ring.data(3)
    found = outboxes.look_at(box / "state" / "dso.ring", "dso")
    assert found.standing is not None
    assert [each.seq for each in found.newest] == [1, 2]
    assert found.newest[-1] == outboxes.Sealed.of(ring.held[-1][1])
    assert found.newest[-1].did == DID
    (box / "state" / "copy.ring").write_bytes((box / "state" / "dso.ring").read_bytes())
    (box / "state" / "bms.filters").write_text("x\n")
    around = outboxes.look_around(box / "state", ["dso"])
    assert around.copies == ((box / "state" / "copy.ring", box / "state" / "dso.ring"),)
    assert around.strays == ((box / "state" / "copy.ring", "ring"),)
    assert outboxes.look_at(box / "state" / "x.ring", "x").trouble == ""
    (box / "state" / "y.ring").symlink_to(box / "disk")
    assert "y.ring is a link to" in outboxes.look_at(box / "state" / "y.ring", "y").trouble
    assert "of channel 'dso'" in outboxes.look_at(box / "state" / "copy.ring", "x").trouble


def test_this_machine_without_a_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither systemctl nor journalctl
    found = service.look("0.1.0", {"pid": os.getpid()}, "", "")
    assert (found.unit, found.errors) == ({}, None)
    assert found.memory is not None
    assert found.memory > 1 << 20
    assert system.look().kernel


def test_what_systemd_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "systemctl"
    tool.write_text('#!/bin/sh\n[ "$LC_ALL" = C ] || exit 1\necho "LoadState=loaded"\necho "NRestarts=4"\n')
    tool.chmod(0o755)
    log = tmp_path / "journalctl"
    log.write_text('#!/bin/sh\necho "outbox failed channel=dso"\n')
    log.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = service.look("0.1.0", None, "no agent", "")
    assert found.unit == {"LoadState": "loaded", "NRestarts": "4"}
    assert found.errors == ["outbox failed channel=dso"]


# ---- the command ------------------------------------------------------------------------------------------------


def test_a_box_that_runs_well(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ring(box / "state" / "dso.ring").data()
    (box / "state" / "dso.ring").chmod(0o600)
    told = {"version": __version__, "uptime_s": 5, "did": DID, "config": str(box / "agent.toml"), "pid": os.getpid()}
    running = FakeRunning({"dso": FakeChannel("dso", box / "state" / "dso.ring")}, told=told)
    with serving(running, box / "agent.sock"):
        code, found = doctor(box, capsys, "--offline")
    for about in ("configuration", "agent", "files", "identity", "state folder"):
        assert [each["level"] for each in found[about]][:1] == ["ok"], found[about]
    of_the_machine = {"clock", "disk", "system", "service", "log", "state folder"}
    # The ring was made by a fake clock, in its past.
    assert {about for about, _ in bad(found)} - of_the_machine <= {"outbox dso"}
    assert code in (0, 1)
    assert not [each for each in found if each.startswith(("name", "device"))]  # nobody was asked


def test_what_this_user_may_not_read_is_no_fault_of_the_box(
    box: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def denied(path: Any, *arguments: Any, **more: Any) -> int:
        if Path(path).name in ("key", "token"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments, **more)

    put(box / "token", "t")
    (box / "token").chmod(0o600)
    config = box / "agent.toml"
    config.write_text(config.read_text().replace("[[channel]]", '[[channel]]\ntoken = { file = "token" }'))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", denied)
        _, found = doctor(box, capsys)
    [identity] = found["identity"]
    assert (identity["level"], identity["remedy"]) == ("note", "look again as root: sudo edge-agent doctor")
    assert [each["level"] for name, told in found.items() if name.startswith("channel dso") for each in told] == [
        "note",
        "note",
    ]


def test_without_an_agent_and_a_good_configuration_it_says_what_it_can(
    box: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (box / "agent.toml").write_text(CONFIG.replace('every = "1s"', 'every = "1x"'))
    code, found = doctor(box, capsys)
    assert code == 1
    [problem] = found["configuration"]
    assert problem["level"] == "fault"
    assert f"{box / 'agent.toml'}:13: device[0].groups.ac.every" in problem["found"]
    assert found["agent"][0]["found"] == f"no agent answers at {box / 'agent.sock'}"  # the one that it names
    assert found["state folder"][0]["looked_at"]
    code, found = doctor(box / "none", capsys)
    assert code == 1
    assert "cannot be read" in found["configuration"][0]["found"]


def test_an_outbox_that_a_start_would_refuse_is_found(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ring(box / "state" / "dso.ring", size=6 << 20)
    _, found = doctor(box, capsys, "--offline")
    assert "made with 5 segments" in found["configuration"][0]["found"]


def test_an_agent_that_hangs_does_not_hold_up(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.doctor.case._STATUS_WITHIN", 0.05)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(box / "agent.sock"))
        deaf.listen()
        found = take(box / "agent.toml")
    assert (found.status, found.silence, found.hangs) == (None, "the agent does not answer", True)


def test_a_broker_is_asked_for_its_limits_and_for_what_it_has(
    box: Path, server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    ring = Ring(box / "state" / "dso.ring")
    ring.data()
    stolen = Ring(box / "stolen.ring")  # the same key on another box
    stolen.run.clock.now += 60 * S
    text = CONFIG.replace("nats://127.0.0.1:1", server.url).replace("dx.dso", "doctor.dso")
    (box / "agent.toml").write_text(text)
    stream = StreamConfig(name="doctor", subjects=["doctor.>"], max_msg_size=512, duplicate_window=5)
    anyio.run(publish, server.url, [envelope for _, envelope in ring.held], stream)
    code, found = doctor(box, capsys)
    assert code == 1
    of_channel = [(each["level"], each["found"]) for each in found["channel dso"]]
    assert [level for level, _ in of_channel] == ["ok", "fault", "warning"]
    assert "doctor takes messages of 512 B" in of_channel[1][1]
    assert "recognises repeats for 5 s only" in of_channel[2][1]
    assert not [each for each in found["outbox dso"] if "later record" in each["found"]]
    assert found["device pv-1"][0]["level"] == "fault"  # nothing answers there
    assert found["address 127.0.0.1"][0]["level"] == "ok"
    anyio.run(publish, server.url, [stolen.data(), stolen.data()], None)
    _, found = doctor(box, capsys)
    assert [each["level"] for each in found["outbox dso"] if "later record" in each["found"]] == ["fault"]


async def publish(url: str, envelopes: Sequence[bytes], stream: StreamConfig | None) -> None:
    client = await nats.connect(url)
    try:
        if stream is not None:
            await client.jetstream().add_stream(stream)
        for envelope in envelopes:
            await client.jetstream().publish("doctor.dso", envelope)
    finally:
        await client.close()


def test_the_certificate_that_a_server_shows(box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path / "ca")
    own = authority.issue("server")  # for two days
    settings = f'tls {{ cert_file: "{own.path}", key_file: "{own.key}", handshake_first: true }}'
    text = CONFIG.replace("[agent]", f'tls = {{ ca = "{authority.path}", first = true }}\n[agent]')
    with NatsServer(tmp_path, settings=settings, tls=True) as server:
        (box / "agent.toml").write_text(text.replace("nats://127.0.0.1:1", server.tls_url))
        anyio.run(create_stream, server.tls_url, "T", ["dx.>"], authority.path)
        table = Tls.model_validate({"ca": str(authority.path)})
        dialled = certificates.dial("t", host="127.0.0.1", port=server.port, table=table)
        refused = certificates.dial("t", host="127.0.0.1", port=server.port, table=Tls())
        code, found = doctor(box, capsys)
    assert (code, refused) == (1, None)
    assert dialled is not None
    [(level, words)] = [(each["level"], each["found"]) for each in found["channel dso: the server's certificate"]]
    assert level == "warning"
    assert ", in 1 d" in words
    assert [each["level"] for each in found["channel dso: tls: ca"]] == ["warning"]
    assert dialled.valid[0].ends - time.time() < 2 * 86_400


async def create_stream(url: str, name: str, subjects: list[str], ca: Path) -> None:
    context = ssl.create_default_context(cafile=ca)
    client = await nats.connect(url, tls=context, tls_handshake_first=True)
    try:
        await client.jetstream().add_stream(StreamConfig(name=name, subjects=subjects))
    finally:
        await client.close()


# ---- support ----------------------------------------------------------------------------------------------------

PASSWORD, TOKEN, TLS_KEY = "correct horse battery staple", "tok-5f3a9c1e7b", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"
SEED = "SU" + 28 * "AC"  # of that form, and nobody's
PEM = "PRIVATE KEY-----"
JWT = "eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.eyJqdGkiOiJYIn0.c2lnbmF0dXJlc2lnbmF0dXJl"
CREDS = f"""\
-----BEGIN NATS USER JWT-----
{JWT}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{SEED}
------END USER NKEY SEED------
"""
SECRETS = (PASSWORD, TOKEN, TLS_KEY, SEED, JWT, "in-the-url", "env-secret-8812", "plain-in-a-comment", "third-party-pw")


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert all(each.isfile() and each.mode == 0o600 and each.uid == each.gid == 0 for each in members)
        return {each.name.partition("/")[2]: _read(tar, each) for each in members}


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None
    return file.read().decode()


def test_nothing_that_is_packed_holds_a_secret(
    box: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"password": PASSWORD, "token": TOKEN, "user.creds": CREDS, "tls.key": TLS_KEY, "cert.pem": "x"}
    for name, content in files.items():
        put(box / name, content + "\n")
    monkeypatch.setenv("EDGE_SECRET", "env-secret-8812")
    second = """\
[[channel]]
id = "b"
transport = "nats"
servers = ["tls://127.0.0.1:1"]
token = { file = "token" }
send = ["*"]
tls = { cert = "cert.pem", key = { file = "tls.key" } }
[[channel]]
id = "c"
transport = "nats"
servers = ["nats://127.0.0.1:1"]
creds = { file = "user.creds" }
send = ["*"]
[connection.bms]
url = "mqtt://127.0.0.1:1"
username = "u"
password = { env = "EDGE_SECRET" }
[[device]]
id = "battery"
connection = "bms"
topic = "t"
[device.groups.state]
points = [{ name = "SoC", at = "/soc" }]
[connection.third]
kind = "tests.test_config_check:ListeningAdapter"
password = { file = "password" }
[[device]]
id = "third"
connection = "third"
[device.groups.x]
every = "1s"
points = [{ name = "p" }]
[agent]
"""
    (box / "agent.toml").write_text("# plain-in-a-comment\n" + CONFIG.replace("[agent]\n", second))
    log = "\n".join(
        [
            f"outbox failed token={TOKEN} hint=a",
            f"connecting to nats://user:in-the-url@host:4222 password: {PASSWORD}",
            f"key {SECRET.hex()} {SECRET.hex().upper()} {int.from_bytes(SECRET, 'big')}",
            f"third party says {PASSWORD!r} {quote(PASSWORD)}",
            f"and {PASSWORD.encode().hex()} {b64encode(PASSWORD.encode()).decode()}",
            CREDS,
            f"Authorization: Bearer {TOKEN}",
            "password=third-party-pw",
            "env-secret-8812",
            TLS_KEY,
            "an ordinary line",
        ]
    )
    for tool, words in (("journalctl", log), ("systemctl", "LoadState=loaded\nActiveState=active")):
        put(box / "bin" / tool, f"#!/bin/sh\ncat <<'END'\n{words}\nEND\n")
        (box / "bin" / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{box / 'bin'}:/bin:/usr/bin")
    ring = Ring(box / "state" / "dso.ring")
    ring.data(5)
    packed = box / "x.tar.gz"
    running = FakeRunning(told={"version": "0.1.0", "channels": [{"id": "dso", "state": f"refused: {PASSWORD}"}]})
    with serving(running, box / "agent.sock"):
        code = main(["support", str(packed), "--offline", "--config", str(box / "agent.toml")])
    said = capsys.readouterr()
    assert (code, said.out) == (0, f"{packed}\n")
    assert packed.stat().st_mode & 0o777 == 0o600
    found = unpacked(packed)
    everything = "".join(found.values()) + said.out + said.err
    assert [secret for secret in SECRETS if secret in everything] == []
    assert not holds(everything.encode(), SECRET)
    assert b64encode(PASSWORD.encode()).decode()[:-4] not in everything
    assert PASSWORD.encode().hex() not in everything
    assert not any(
        envelope[-64:].hex() in everything or b64encode(envelope)[:64].decode() in everything
        for _, envelope in ring.held
    )
    assert "an ordinary line" in found["journal.txt"]
    assert "configuration.txt" not in found, found["configuration.txt"]
    assert tomllib.loads(found["configuration.toml"])["connection"]["bms"]["password"] == {"env": "EDGE_SECRET"}
    assert all(name in found["README.txt"] for name in found if name != "README.txt")


def test_what_is_packed(box: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Ring(box / "state" / "dso.ring").data(5)
    monkeypatch.chdir(box)
    assert main(["support", "--offline", "--config", "agent.toml"]) == 0
    name = capsys.readouterr().out.strip()
    assert re.fullmatch(rf"edge-agent-{re.escape(os.uname().nodename)}-\d{{8}}T\d{{6}}Z\.tar\.gz", name)
    found = unpacked(box / name)
    assert json.loads(found["doctor.json"])["version"] == __version__
    assert found["doctor.txt"].strip().endswith("good")
    assert json.loads(found["versions.json"])["libraries"]["cbor2"]
    assert json.loads(found["status.json"])["silence"] == f"no agent answers at {box / 'agent.sock'}"
    [outbox] = json.loads(found["outbox.json"])
    assert (outbox["channel"], outbox["pending_records"], outbox["counted"]["kinds"]) == (
        "dso",
        2,
        {"plan": 1, "data": 1},
    )
    assert (outbox["last"]["did"], outbox["last"]["frames"]) == (DID, 5)
    assert tomllib.loads(found["configuration.toml"])["channel"][0]["id"] == "dso"
    assert "outbox of 5MiB lasts for" in found["check.txt"]
    assert "dso.ring" in found["files.txt"]


def test_a_full_disk_is_told_with_the_name_of_the_file(
    box: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert main(["support", str(box / "x"), "--offline", "--config", str(box / "agent.toml")]) == 2
    assert capsys.readouterr().err == f"edge-agent: {box / 'x'}: No space left on device; make room on this disk\n"
    assert not (box / "x").exists()


def test_what_is_there_already_is_not_overwritten(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (box / "x").write_text("mine")
    assert main(["support", str(box / "x"), "--offline", "--config", str(box / "agent.toml")]) == 2
    assert (box / "x").read_text() == "mine"
    assert "is there already" in capsys.readouterr().err


def test_a_box_without_a_good_configuration_can_be_packed_and_a_piece_that_fails_says_why(
    box: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (box / "agent.toml").write_text(
        'password = "third-party-pw"\n' + CONFIG.replace('state = "state"', 'state = "none"')
    )
    assert main(["support", str(box / "x"), "--offline", "--config", str(box / "agent.toml")]) == 0
    found = unpacked(box / "x")
    assert f"{box / 'agent.toml'}:1: password: unknown key" in found["configuration.txt"]
    assert "configuration.toml" not in found
    assert found["files.txt"] == f"not available: No such file or directory: {box / 'none'}\n"
    assert "third-party-pw" not in "".join(found.values())


@pytest.mark.parametrize(
    ("text", "secrets", "left"),
    [
        ("a secret-1 b", ["secret-1"], f"a {MASK} b"),
        ('{"x": "se\\"cret"}', ['se"cret'], f'{{"x": "{MASK}"}}'),
        ("abc", ["abc"], "abc"),  # too short to be looked for: it would take half of all words
        (SEED, [], MASK),
        (f"nats://u:p@h:4222 {JWT}", [], f"nats://{MASK}@h:4222 {MASK}"),
        ("password=hunter2, next", [], f"{MASK}, next"),
        (f"-----BEGIN EC {PEM}\nMHcCAQ\n-----END EC {PEM}\nbehind", [], f"{MASK}\nbehind"),
        (f"-----BEGIN {PEM}\ncut off", [], MASK),
        (OTHER_SECRET.hex(), [f"0x{OTHER_SECRET.hex()}"], MASK),
        (
            "did:ethr:volta:0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A",
            [],
            "did:ethr:volta:0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A",
        ),
        ('password = { file = "p" }', [], 'password = { file = "p" }'),
    ],
)
def test_what_is_masked(text: str, secrets: list[str], left: str) -> None:
    assert masked(text, secrets) == left
