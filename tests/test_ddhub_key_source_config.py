"""``keys`` of a channel to the Data Hub: what is accepted, and that each problem is found at its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agent.secret import Secret
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig, shown

REGISTRY = "0xE29672f34e92b56C9169f9D485fFc8b9A136BCE4"
NODE = "https://rpc.example/v3/canary-4711"


def judged(folder: Path | None = None, **keys: Any) -> KeySourceConfig:
    return KeySourceConfig.model_validate(keys, context=None if folder is None else {"folder": folder})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, {}),
        ({"file": "participants.json"}, {"file": Path("/here/participants.json")}),
        ({"hub": "https://hub.example"}, {"hub": "https://hub.example/v1"}),
        ({"hub": "https://hub.example/v1/"}, {"hub": "https://hub.example/v1"}),
        ({"hub": "http://127.0.0.1:8080"}, {"hub": "http://127.0.0.1:8080/v1"}),
        ({"rpc": "http://localhost:8545"}, {"rpc": ("http://localhost:8545",), "confirmations": 12}),
        ({"rpc": [NODE, "http://[::1]:1"]}, {"rpc": (NODE, "http://[::1]:1"), "registry": None}),
        ({"rpc": {"file": "node"}}, {"rpc": (Secret(file="/here/node"),)}),
        ({"rpc": ["https://a.example", {"env": "NODE"}]}, {"rpc": ("https://a.example", Secret(env="NODE"))}),
        ({"rpc": NODE, "registry": REGISTRY, "confirmations": 0}, {"registry": REGISTRY, "confirmations": 0}),
        ({"rpc": NODE, "registry": REGISTRY.lower()}, {"registry": REGISTRY}),
        ({"hub": "https://hub.example", "tls": {"ca": "ca.pem"}}, {"hub": "https://hub.example/v1"}),
    ],
)
def test_what_is_good(keys: dict[str, Any], said: dict[str, Any]) -> None:
    config = judged(Path("/here"), **keys)
    assert {name: getattr(config, name) for name in said} == said
    written = config.model_dump(mode="json", exclude_unset=True)
    assert judged(**written) == config


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"file": "a", "hub": "https://h.example"}, "hub", "the keys come from file already; keep one of the two"),
        ({"hub": "https://h.example", "rpc": NODE}, "rpc", "the keys come from hub already; keep"),
        ({"hub": "https://h.example", "confirmations": 3}, "confirmations", "it belongs to rpc; add rpc, or"),
        ({"registry": REGISTRY}, "registry", "it belongs to rpc; add rpc, or remove it"),
        ({"file": "a", "tls": {}}, "tls", "a file needs no TLS; remove it"),
        ({"rpc": NODE, "registry": "0x12"}, "registry", "this is no address of a contract; write 0x and 40"),
        ({"rpc": NODE, "registry": REGISTRY.replace("CE4", "CE5")}, "registry", "the capitals of this address do not"),
        ({"rpc": NODE, "confirmations": 101}, "confirmations", "less than or equal to 100"),
        ({"rpc": []}, "rpc", "the list is empty; name at least one"),
        ({"rpc": 7}, "rpc.0", "expected an address in quotes; write it like"),
        ({"rpc": {"file": "a", "env": "B"}}, "rpc.0", "a secret is in one place; write"),
        ({"rpc": "https://rpc.example/?key=canary-4711"}, "rpc.0", "what stands behind the ? may be a key; put"),
        ({"rpc": "https://user:canary-4711@rpc.example/"}, "rpc.0", "a user or password stands in the address; put"),
        ({"hub": "http://hub.example"}, "hub", "without TLS anybody on the way can put his keys in place"),
        ({"hub": "http://127.example"}, "hub", "without TLS anybody on the way"),
        ({"hub": "ftp://hub.example"}, "hub", "this is no address of a server; write it like"),
        ({"hub": "https://hub example"}, "hub", "this is no address of a server"),
        ({"hub": "https://hub.example:99999"}, "hub", "this is no address of a server"),
        ({"hub": "https://"}, "hub", "this is no address of a server"),
    ],
)
def test_each_problem_is_found_at_its_key(keys: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        judged(**keys)
    found = {".".join(map(str, each["loc"])): each["msg"] for each in raised.value.errors()}
    assert list(found) == [key]
    assert words in found[key]
    assert "canary" not in found[key]


def test_of_an_address_no_key_is_shown() -> None:
    assert shown("https://user:canary@rpc.example:8545/v3/canary?k=canary") == "https://rpc.example:8545"


def test_the_schema_for_editors_takes_both_ways_to_write_a_node() -> None:
    one, secret, many, _ = KeySourceConfig.model_json_schema()["properties"]["rpc"]["anyOf"]
    assert (one, secret) == ({"type": "string"}, {"$ref": "#/$defs/Secret"})
    assert many == {"items": {"anyOf": [one, secret]}, "type": "array"}
