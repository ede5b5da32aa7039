"""A channel to the Data Hub in a configuration: what is taken, and every problem at its key, with a remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agent.config import load
from agent.config.effective import plain
from agent.config.schema import schema
from agent.config.shown import as_file
from agent.config.toml_text import toml_text
from agent.errors import ConfigError
from agent.transports.ddhub.config import DdhubConfig, DdhubRecipient, DdhubServer
from agent.units import S
from tests.ddhub_scripted import ALICE, BOB, CONFIG
from tests.test_config import GOOD

CHANNEL = f"""
[[channel]]
id = "market"
transport = "ddhub"
url = "https://ddhub.example"
topic = {{ owner = "edge.apps.example.iam.ewc", name = "telemetry", version = "1.0.0" }}
recipients = ["{BOB}"]
send = ["meter/power/W"]
"""


def judged(**changes: Any) -> DdhubConfig:
    return DdhubConfig.model_validate({key: each for key, each in (CONFIG | changes).items() if each is not None})


def problems(**changes: Any) -> dict[str, str]:
    """By the key, "what is wrong; what to do"."""
    with pytest.raises(ValidationError) as raised:
        judged(**changes)
    return {
        ".".join(map(str, each["loc"])): each["msg"].removeprefix("Value error, ") for each in raised.value.errors()
    }


def test_defaults() -> None:
    config = judged(keys=None)
    assert config.send_every == 300 * S
    assert config.max_message == 450 * 1024
    assert config.on_recipient_failure == "wait"
    assert (config.keys.file, config.keys.hub, config.keys.rpc) == (None, None, None)
    assert config.destination(site="s", channel="c") == "edge.apps.example.iam.ewc/telemetry/1.0.0"
    assert 170_000 < config.max_envelope < 175_000
    assert not config.is_visitor
    assert config.visitor().is_visitor
    assert config.visitor().topic == config.topic


def test_recipients_are_dids_or_tables() -> None:
    config = judged(recipients=[BOB, {"did": ALICE, "padding": "pkcs1v15"}])
    assert config.recipients == (DdhubRecipient(did=BOB), DdhubRecipient(did=ALICE, padding="pkcs1v15"))
    assert plain(config)["recipients"] == [BOB, {"did": ALICE, "padding": "pkcs1v15"}]
    assert judged(recipients=None, roles=["market.roles.edge.apps.example.iam.ewc"]).recipients is None


@pytest.mark.parametrize(
    ("did", "words"),
    [
        (BOB.lower(), f'has no checksum (EIP-55); if the digits are right, write "{BOB}"'),
        ("did:ethr:volta:0x" + BOB[-40:].upper(), f'has no checksum (EIP-55); if the digits are right, write "{BOB}"'),
        (BOB[:-1] + "9", "has a wrong checksum (EIP-55), a digit or a capital is mistyped; if the digits are right"),
        (BOB.replace("volta", "mainnet"), "is no DID of a participant; write"),
        (BOB.replace("volta:", ""), "is no DID of a participant; write"),
        (BOB + "#controller", "is no DID of a participant; write"),
        (BOB + "\n", "is no DID of a participant; write"),
        ("", "is no DID of a participant; write"),
    ],
)
def test_a_did_is_exactly_as_the_hub_writes_it(did: str, words: str) -> None:
    for recipient in (did, {"did": did}):
        (found,) = problems(recipients=[ALICE, recipient]).values()
        assert words in found


def test_what_recipients_say_together() -> None:
    on_ewc = ALICE.replace("volta", "ewc")
    assert list(problems(recipients=[BOB, BOB])) == ["recipients.1"]
    assert "one network" in problems(recipients=[BOB, on_ewc])["recipients.1"]
    assert "at least one" in problems(recipients=[])["recipients"]
    assert "nobody" in problems(recipients=None)["recipients"]
    assert judged(roles=["a.roles.b.ewc"]).recipients == (DdhubRecipient(did=BOB),), "both"
    assert list(problems(recipients=None, roles=["user"])) == ["roles.0"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ddhub.example", "is no address"),
        ("ftp://ddhub.example", "is no address of a server"),
        ("https://", "is no address of a server"),
        ("https://ddhub.example:0", "is no address of a server"),
        ("https://ddhub.example:port", "is no address"),
        ("https://ddhub.example?a=b", "behind the ?"),
        ("https://a b", "is no address of a server"),
        ("https://user:geheim@ddhub.example", "logs in with its key"),
    ],
)
def test_addresses(url: str, words: str) -> None:
    found = problems(url=url)["url"]
    assert words in found
    assert "; " in found or found.endswith("remove it")
    assert "geheim" not in found


def test_addresses_that_are_taken() -> None:
    assert judged(url="https://ddhub.example/").url == "https://ddhub.example"
    assert judged(url="https://ddhub.example:8443/hub/").url == "https://ddhub.example:8443/hub"
    assert not DdhubServer(url="http://127.0.0.1:9000").secure
    assert "not encrypted" in problems(url="http://ddhub.example", tls={})["tls"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"topic": {"owner": "example.org", "name": "t", "version": "1.0.0"}}, "topic.owner"),
        ({"topic": {"owner": "e.ewc", "name": "my-topic", "version": "1.0.0"}}, "topic.name"),
        ({"topic": {"owner": "e.ewc", "name": "a.b", "version": "1.0.0"}}, "topic.name"),
        ({"topic": {"owner": "e.ewc", "name": "t", "version": "1.0"}}, "topic.version"),
        ({"topic": {"owner": "e.ewc", "name": "t", "version": "1.0.0-rc1"}}, "topic.version"),
        ({"topic": {"owner": "e.ewc", "name": "t", "version": "1.0.٣"}}, "topic.version"),
        ({"topic": {"owner": "e.ewc", "name": "t"}}, "topic.version"),
        ({"topic": "telemetry"}, "topic"),
        ({"send_every": "0s"}, "send_every"),
        ({"send_every": "7h"}, "send_every"),
        ({"max_message": "1KiB"}, "max_message"),
        ({"max_message": "9MiB"}, "max_message"),
        ({"on_recipient_failure": "drop"}, "on_recipient_failure"),
        ({"recipients": [{"did": BOB, "padding": "none"}]}, "recipients.0.padding"),
        ({"recipients": BOB}, "recipients"),
        ({"servers": []}, "servers"),
        ({"keys": {"file": "a", "hub": "https://b"}}, "keys.hub"),
    ],
)
def test_each_problem_is_at_its_key(changes: dict[str, Any], key: str) -> None:
    assert list(problems(**changes)) == [key]


# ---- in a file --------------------------------------------------------------------------------------------------


def test_a_channel_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD + CHANNEL + CHANNEL.replace('"market"', '"other"'))
    config = load(path)
    market, other = config.channels[1:]
    assert market.topic == other.topic == "edge.apps.example.iam.ewc/telemetry/1.0.0", "two may write to one topic"
    written = tmp_path / "written.toml"
    written.write_text(toml_text(as_file(config)))
    assert load(written).digest_text() == config.digest_text()
    assert json.loads(config.digest_text())["channel"]["market"]["settings"]["recipients"] == [BOB]


def test_problems_in_a_file_have_lines_and_remedies(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    text = GOOD + CHANNEL.replace("recipients", "recipient").replace('"1.0.0"', '"1"').replace("url", "urll")
    path.write_text(text)
    begin = len(GOOD.splitlines()) + 1
    with pytest.raises(ConfigError) as raised:
        load(path)
    found = [(each.line - begin, each.key, each.remedy) for each in raised.value.problems]
    assert found == [
        (1, "channel[1].url", "add it"),
        (4, "channel[1].urll", "did you mean 'url'?"),
        (5, "channel[1].topic.version", 'write three numbers, such as "1.0.0"'),
        (6, "channel[1].recipient", "did you mean 'recipients'?"),
    ]


def test_editors_know_its_keys() -> None:
    channel = schema()["$defs"]["Channel_ddhub"]
    assert {"url", "topic", "recipients", "roles", "keys", "send_every", "max_message"} <= channel["properties"].keys()
    assert {"url", "topic", "transport", "id", "send"} <= {*channel["required"]}


def test_judging_imports_neither_http_nor_cryptography(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD + CHANNEL)
    program = (
        "import sys; from pathlib import Path; from agent.config import load; load(Path(sys.argv[1]));"
        "print(*{'httpx', 'Crypto', 'jsonschema', 'rlp', 'nats'} & {each.partition('.')[0] for each in sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
