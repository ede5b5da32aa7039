"""The NATS part of a configuration, and NKeys: what is accepted, and that each problem is found at its key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from agent.config import load
from agent.config.shown import as_file
from agent.config.toml_text import toml_text
from agent.errors import ConfigError
from agent.transports.nats.config import NatsConfig, takes
from agent.transports.nats.nkeys import read_credentials, read_seed
from agent.units import S
from testbed.nats_accounts import NatsAccounts, NatsKey
from tests.test_config_refusals import GOOD

NATS, TLS = ("nats://host",), ("tls://host:443", "tls://[::1]")
SECRET = {"env": "X"}
LOGIN = {"username": "u", "password": SECRET}


def judged(**settings: Any) -> NatsConfig:
    return NatsConfig.model_validate({"servers": list(NATS), **settings})


def test_all_keys(tmp_path: Path) -> None:
    channel = """
        servers = ["tls://nats-1.dso.example", "tls://nats-2.dso.example:443"]
        creds = { file = "dso.creds" }
        tls = { ca = "dso-ca.pem", cert = "agent.pem", key = { file = "agent.key" }, first = true, server_name = "n" }
        stream = "telemetry"
        create.subjects = ["dx.>"]
        create.max_age = "365d"
        create.max_bytes = "4GiB"
        create.replicas = 3
        create.storage = "memory"
        create.duplicate_window = "5m"
        create.discard = "new"
        create.max_msg_size = "1MiB"
    """
    path = tmp_path / "agent.toml"
    path.write_text(re.sub(r"servers = .*\n", channel.replace("\\", r"\\"), GOOD))
    config = load(path)
    settings = config.channels[0].settings
    assert settings.servers == ("tls://nats-1.dso.example:4222", "tls://nats-2.dso.example:443")
    assert (settings.login, settings.secure, settings.tls.first) == ("creds", True, True)
    assert (settings.tls.ca, settings.creds.path) == (tmp_path / "dso-ca.pem", tmp_path / "dso.creds")
    create = settings.create
    assert (create.max_age, create.max_bytes, create.duplicate_window) == (365 * 86400 * S, 4 << 30, 300 * S)
    path.write_text(toml_text(as_file(config)))
    assert load(path).channels[0].settings == settings


def test_what_a_stream_is_when_nothing_is_said() -> None:
    create = judged(stream="S", create={}).create
    assert create is not None
    assert (create.storage, create.discard, create.duplicate_window, create.replicas) == ("file", "old", 120 * S, 1)
    assert (create.subjects, create.max_age, create.max_bytes, create.max_msg_size) == (None, None, None, None)


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"servers": ["tls://a", "nats://b"]}, "servers", "some are tls:// and some nats://, without TLS; write"),
        ({"tls": {}}, "tls", "nats:// is not encrypted; write tls:// in servers, or remove it"),
        ({"servers": TLS, "tls": {"cert": "a.pem"}}, "tls.key", "cert needs key; add it, or remove cert"),
        ({"servers": TLS, "tls": {"key": SECRET, "cert": "a"}}, "tls.key", "a key is read from a file"),
        ({"username": "u"}, "password", "a username needs a password; add it"),
        ({"password": SECRET}, "username", "a password needs a username; add it"),
        ({**LOGIN, "token": SECRET}, "token", "username is a way to log in already; keep one of the two"),
        ({"nkey": SECRET, "creds": SECRET}, "creds", "nkey is a way to log in already; keep one of the two"),
        ({"token": SECRET, "nkey": SECRET}, "nkey", "token is a way to log in already"),
        ({"token": "hunter2"}, "token", "a secret does not stand in the configuration; write"),
        ({"creds": {"file": "a", "env": "b"}}, "creds", "a secret is in one place; write"),
        ({"create": {}}, "stream", 'create needs the name of the stream; add stream = "NAME"'),
        ({"stream": "S", "create": {"max_bytes": "1KiB"}}, "create.max_bytes", "1KiB is out of range; choose 1MiB to"),
        ({"stream": "S", "create": {"max_age": "1m"}}, "create.max_age", "1m is out of range; choose 1h to"),
        (
            {"stream": "S", "create": {"max_age": "1h", "duplicate_window": "2h"}},
            "create.duplicate_window",
            "it is longer than max_age; choose at most 1h",
        ),
        ({"stream": "S", "create": {"subjects": []}}, "create.subjects", "the list is empty; name at least one"),
        ({"stream": "S", "create": {"subjects": ["a..b"]}}, "create.subjects.0", '"a..b" is no subject of a stream'),
    ],
)
def test_each_problem_is_found_at_its_key(settings: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        judged(**settings)
    found = {".".join(map(str, each["loc"])): each["msg"] for each in raised.value.errors()}
    assert list(found) == [key]
    assert words in found[key]
    assert "hunter2" not in str(found)


def test_problems_stand_on_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD.replace("send =", 'token = "hunter2"\nnkey = { file = "n" }\ncreate = {}\nsend ='))
    with pytest.raises(ConfigError) as raised:
        load(path)
    [problem] = raised.value.problems
    assert (GOOD.count("\n", 0, GOOD.index("send =")) + 1, "channel[0].token") == (problem.line, problem.key)
    path.write_text(path.read_text().replace('"hunter2"', '{ file = "t" }'))
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert [problem.key for problem in raised.value.problems] == ["channel[0].stream", "channel[0].nkey"]


def test_the_subjects_of_create_take_the_channels(tmp_path: Path) -> None:
    settings = judged(stream="S", create={"subjects": ["dx.*.a", "other.>"]})
    assert settings.destination(site="s", channel="a") == "dx.s.a"
    with pytest.raises(ValueError, match=r'the subjects of create do not take "dx\.s\.b"; add it there'):
        settings.destination(site="s", channel="b")


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*", "a", False),
        (">", "a", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.>", "b.c", False),
        ("*.b.>", "a.b.c", True),
        ("*.b.>", "a.b", False),
    ],
)
def test_what_a_pattern_takes(pattern: str, subject: str, expected: bool) -> None:
    assert takes(pattern, subject) == expected


# ---- NKeys ------------------------------------------------------------------------------------------------------


def test_a_seed_is_the_key_that_nats_takes_it_for() -> None:
    """Of NATS' own documentation (nkeys, README)."""
    key = read_seed("SUACSSL3UAHUDXKFSNVUZRF5UHPMW" + "Z6BFDTJ7M6USDXIEDNPPQYYYCU3VY")  # a scan for keys passes it over
    assert key.public == "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def test_signatures_are_good_by_another_library() -> None:
    import base64

    own = NatsKey("user")
    key = read_seed(own.seed)
    assert key.public == own.public
    raw = base64.b32decode(key.public)[1:-2]
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(key.sign("nonce-1")), b"nonce-1")
    assert own.seed not in repr(key)
    assert own.seed[4:20] not in repr(vars(type(key)))


@pytest.mark.parametrize("expires", [None, 1_700_000_000])
def test_credentials(expires: int | None) -> None:
    text = NatsAccounts().creds(expires=expires)
    found = read_credentials(text.replace("\n", "\r\n"))
    assert (found.expires, found.key.public) == (expires, NatsKey("user", "agent").public)
    assert found.jwt in text
    assert found.jwt not in repr(found)
