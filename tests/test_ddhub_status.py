"""``edge-agent ddhub status`` against testbed/ddhub: each thing that can be wrong is told with its remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.transports.ddhub.content.schema import telemetry_schema
from testbed.ddhub.hub import CREATOR_ROLES, OWNER, USER_ROLE
from testbed.ddhub.settings import Settings
from tests.ddhub_command_world import RECIPIENT, CommandWorld, command_world
from tests.ddhub_registry import DID
from tests.ddhub_world import NOWHERE
from tests.served_agent import FakeRunning, serving

STRANGER = "did:ethr:volta:0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF"


@pytest.fixture
def world(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[CommandWorld]:
    with command_world(tmp_path, capfd) as made:
        made.have_rsa_key()
        yield made


def running(**channel: Any) -> FakeRunning:
    """An agent with one channel, all well but for what is given."""
    well = {"id": "market", "connected": True, "state": "", "pending_records": 2, "acknowledged": 40}
    return FakeRunning(told={"version": "0.1.0", "channels": [well | channel]})


def of_recipient(**changes: Any) -> dict[str, Any]:
    return {
        "did": RECIPIENT, "delivered": 40, "skipped": 0, "last_s": 70.0, "trouble": "", "remedy": "", **changes
    }  # fmt: skip


def wrong(shown: Any) -> list[tuple[str, bool | None]]:
    return [
        (each["what"], each["good"])
        for each in (*shown["seen"], *shown["recipients"], shown["agent"])
        if each["good"] is not True
    ]


def the(shown: Any, what: str) -> Any:
    [found] = [each for each in (*shown["seen"], *shown["recipients"]) if each["what"] == what]
    return found


def test_all_is_well_and_nothing_was_changed(world: CommandWorld) -> None:
    with serving(running(recipients=[of_recipient()]), world.socket):
        code, out, err = world.run("status", "--config", str(world.config))
    assert (code, err) == (0, "")
    topic = world.hub.state.topics[0]["id"]
    got = "40 records delivered, the last 1 min ago"
    *lines, padding, agent = out.splitlines()
    assert lines == [
        f"channel market: {world.hub.url}, {OWNER}/telemetry/1.0.0",
        f"  login      let in as {DID}",
        f"  roles      {USER_ROLE}; enough to send and receive, not to register topics (none is needed to send)",
        "  limits     messages of 8388608 bytes at most, kept for 24 h; ours have 460800 at most",
        f"  topic      {OWNER}/telemetry/1.0.0 is there ({topic}), with our schema",
        "  our keys   both stand in our DID document",
        f"  recipient  {RECIPIENT}: its RSA key is there (OAEP), and it has logged in; {got}",
    ]
    assert padding.startswith("  padding    nothing tells beforehand")
    assert agent == "  agent      2 records wait; 40 delivered, the last 1 min ago"
    asked = {(each.method, each.path) for each in world.hub.served if not each.path.startswith("/rpc")}
    assert {path for method, path in asked if method != "GET"} == {"/auth/login"}
    assert DID not in world.hub.state.channels


def test_what_it_tells_programs(world: CommandWorld) -> None:
    code, shown = world.shown("status")
    assert code == 0
    assert (shown["channel"], shown["reached"], shown["did"]) == ("market", True, DID)
    assert the(shown, "roles")["roles"] == [USER_ROLE]
    assert the(shown, "roles")["may_register_topics"] is False
    assert the(shown, "topic")["schema_is_ours"] is True
    assert the(shown, "our keys")["dsb-symmetric-encryption"] is True
    assert the(shown, RECIPIENT) == {
        "what": RECIPIENT, "good": True, "words": "its RSA key is there (OAEP), and it has logged in", "remedy": "",
        "did": RECIPIENT, "padding": "oaep", "has_key": True, "logged_in": True,
    }  # fmt: skip
    assert wrong(shown) == [("agent", None)]
    assert "does not run" in shown["agent"]["words"]


def foreign_schema(world: CommandWorld, schema: Any) -> None:
    world.hub.state.topics[0]["versions"]["1.0.0"]["schema"] = json.dumps(schema)


def without_topic(world: CommandWorld) -> None:
    world.hub.state.topics[0]["name"] = "Telemetry"


def another_version(world: CommandWorld) -> None:
    versions = world.hub.state.topics[0]["versions"]
    versions["1.2.0"] = versions.pop("1.0.0")


DRAFT = "http://json-schema.org/draft-07/schema#"
WRONG: dict[str, tuple[Callable[[CommandWorld], object], str, str, str]] = {
    "nobody": (lambda world: world.hub.enrol(DID, []), "login", r"does not have any roles", r"enrol this DID"),
    "another role": (
        lambda world: world.hub.enrol(DID, ["user.roles.edge.apps.aemo.iam.ewc"]),
        "roles", r"aemo.iam.ewc; the broker wants another", r"like user\.roles\.\*\.apps\.\*energyweb\.\*\.ewc",
    ),
    "no topic": (without_topic, "topic", r"has no topic telemetry", r"to the letter \(there are: Telemetry\)"),
    "no version": (another_version, "topic", r"has no version 1\.0\.0", r"\(there are: 1\.2\.0\)"),
    "a schema that does not take it": (
        lambda world: foreign_schema(world, {"$schema": DRAFT, "type": "object", "required": ["power"]}),
        "topic", r"does not take what we send", r"`edge-agent ddhub topic` prints",
    ),
    "a schema that is none": (
        lambda world: foreign_schema(world, {"$schema": DRAFT, "mystery": 1}),
        "topic", r"none that a client gateway takes", r"edge-agent ddhub topic",
    ),
    "another type": (
        lambda world: world.hub.state.topics[0].update(schemaType="XML"), "topic", r"is of type XML", r"type JSD7"
    ),
    "another key of ours": (
        lambda world: world.hub.chain.set_key(DID, "dsb-signature-key", "0x04" + "11" * 64),
        "our keys", r"dsb-signature-key: ", r"publish",
    ),
    "a recipient without a key": (
        lambda world: world.configure(who=f'recipients = ["{STRANGER}"]'),
        STRANGER, r"has published no key", r"its owner has to publish it",
    ),
    "nobody holds the role": (
        lambda world: world.configure(who='roles = ["market.roles.edge.apps.example.iam.ewc"]'),
        "recipients", r"nobody but us holds a role", r"correct roles",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_remedy(world: CommandWorld, name: str) -> None:
    arrange, what, words, remedy = WRONG[name]
    arrange(world)
    code, shown = world.shown("status")
    assert code == 1
    assert (what, False) in wrong(shown)
    assert re.search(words, the(shown, what)["words"])
    assert re.search(remedy, the(shown, what)["remedy"])
    out = world.run("status", "--config", str(world.config))[1]
    assert re.search(rf"^! (recipient  )?{re.escape(what)}", out, re.MULTILINE)


def test_a_schema_of_others_that_takes_what_we_send_is_good(world: CommandWorld) -> None:
    foreign_schema(world, {"$schema": DRAFT, "type": "object"})
    code, shown = world.shown("status")
    assert (code, the(shown, "topic")["schema_is_ours"]) == (0, False)
    assert "with a schema that is not ours and takes what we send" in the(shown, "topic")["words"]
    foreign_schema(world, json.loads(telemetry_schema(readable=True)))
    found = the(world.shown("status")[1], "topic")
    assert (found["schema_is_ours"], found["words"].partition("; ")[2]) == (True, "it demands readable values")


def test_who_may_register_topics_is_told(world: CommandWorld) -> None:
    world.hub.enrol(DID, CREATOR_ROLES)
    found = the(world.shown("status")[1], "roles")
    assert found["may_register_topics"] is True
    assert "and to register topics" in found["words"]


def test_a_broker_that_takes_less_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with command_world(tmp_path, capfd, settings=Settings(message_max=200_000)) as world:
        world.have_rsa_key()
        code, shown = world.shown("status")
    assert code == 1
    assert "messages of 200000 bytes at most" in the(shown, "limits")["words"]
    assert "lower max_message to 191KiB" in the(shown, "limits")["remedy"]


def test_whether_somebody_ever_logged_in_is_known_or_not(world: CommandWorld) -> None:
    world.hub.state.role_index.clear()
    code, shown = world.shown("status")
    found = the(shown, RECIPIENT)
    assert (code, found["good"], found["logged_in"]) == (0, None, None)
    assert "whether it has ever logged in is not known" in found["words"]
    assert "no mailbox" in found["remedy"]


AGENT: dict[str, tuple[dict[str, Any], int, bool | None, str]] = {
    "it gets messages": ({}, 0, True, r"it gets messages: 40 records delivered"),
    "the broker does not know it": (
        {"delivered": 0, "last_s": None, "trouble": "the broker does not know it: not exists", "remedy": "log in"},
        1, False, r"does not know it: not exists \(0 records delivered\)",
    ),
    "skipped": ({"skipped": 7}, 1, False, r"40 records delivered.*, 7 skipped"),
    "nothing yet": ({"delivered": 0, "last_s": None}, 0, None, r"not known; 0 records delivered"),
}  # fmt: skip


@pytest.mark.parametrize("name", AGENT)
def test_what_the_agent_found_when_it_sent_counts(world: CommandWorld, name: str) -> None:
    changes, wanted, good, words = AGENT[name]
    world.hub.state.role_index.clear()
    with serving(running(recipients=[of_recipient(**changes)]), world.socket):
        code, shown = world.shown("status")
    assert (code, the(shown, RECIPIENT)["good"]) == (wanted, good)
    assert re.search(words, the(shown, RECIPIENT)["words"])


def test_who_is_no_recipient_any_more_and_holds_up_the_agent_is_told(world: CommandWorld) -> None:
    trouble = of_recipient(did=STRANGER, trouble="it has no RSA key")
    with serving(running(recipients=[of_recipient(), trouble]), world.socket):
        code, shown = world.shown("status")
    assert (code, wrong(shown)) == (1, [(STRANGER, False)])


def test_a_channel_that_the_hub_refuses_is_told(world: CommandWorld) -> None:
    with serving(running(connected=False, state="refuses (403)", reason="permission"), world.socket):
        code, shown = world.shown("status")
    assert (code, wrong(shown)) == (1, [("agent", False)])
    assert shown["agent"]["words"] == "2 records wait; 40 delivered; refuses (403)"


def test_an_agent_without_this_channel_is_told(world: CommandWorld) -> None:
    with serving(running(id="other"), world.socket):
        code, shown = world.shown("status")
    assert (code, wrong(shown)) == (0, [("agent", None)])
    assert "edge-agent reload" in shown["agent"]["words"]


def test_a_hub_that_is_away_hides_nothing_else(world: CommandWorld) -> None:
    world.configure(url=NOWHERE)
    code, shown = world.shown("status")
    assert (code, shown["reached"]) == (69, False)
    assert wrong(shown) == [("login", False), (RECIPIENT, None), ("agent", None)]
    assert the(shown, "our keys")["good"] is True


def test_a_node_that_is_down_leaves_the_rest(world: CommandWorld) -> None:
    world.hub.faults.put("rpc-error", method="eth_chainId", message="out of order", times=None)
    code, shown = world.shown("status")
    assert code == 1
    assert wrong(shown) == [("our keys", False), (RECIPIENT, False), ("agent", None)]
    assert the(shown, RECIPIENT)["has_key"] is None
    assert "out of order" in the(shown, "our keys")["words"]


def test_a_key_that_may_not_be_read_and_a_channel_that_is_none(world: CommandWorld) -> None:
    code, _, err = world.run("status", "--config", str(world.config), "--channel", "other")
    assert (code, "there are: market" in err) == (2, True)
    (world.folder / "key").unlink()
    code, _, err = world.run("status", "--config", str(world.config))
    assert (code, "no such file" in err.lower() or "is not there" in err) == (78, True), err
