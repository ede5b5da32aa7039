"""``edge-agent ddhub topic`` against testbed/ddhub: our schema printed, and registered by who may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import TransportError
from agent.transports.ddhub import registration
from agent.transports.ddhub import roles as rules
from agent.transports.ddhub.config import DdhubTopic
from agent.transports.ddhub.content.schema import telemetry_schema
from testbed.ddhub.hub import CREATOR_ROLES, OWNER, USER_ROLE
from testbed.ddhub.rules import permits
from testbed.ddhub.settings import TOPICCREATOR, USER
from tests.ddhub_command_world import CommandWorld, command_world
from tests.ddhub_registry import DID
from tests.ddhub_scripted import TOPIC_ID, Script, hub
from tests.ddhub_world import NOWHERE

pytestmark = pytest.mark.anyio
OURS = json.loads(telemetry_schema())
OPEN = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}


@pytest.fixture
def world(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[CommandWorld]:
    with command_world(tmp_path, capfd) as made:
        made.hub.state.topics.clear()
        made.hub.enrol(DID, CREATOR_ROLES)
        yield made


def register(world: CommandWorld, *arguments: str) -> tuple[int, str, str]:
    return world.run("topic", "--register", "--config", str(world.config), *arguments)


def held(world: CommandWorld) -> dict[str, Any]:
    """The schemas that the broker has, by version."""
    return {
        version: json.loads(each["schema"])
        for topic in world.hub.state.topics
        for version, each in topic["versions"].items()
    }


def file(world: CommandWorld, schema: Any) -> str:
    path = world.folder / "schema.json"
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return str(path)


def test_our_schema_is_printed_without_any_configuration(world: CommandWorld) -> None:
    code, out, err = world.run("topic")
    assert (code, out, err) == (0, telemetry_schema(), "")
    assert len(world.hub.served) == 0


def test_a_topic_is_registered_and_then_left_alone(world: CommandWorld) -> None:
    code, out, err = register(world)
    topic = world.hub.state.topics[0]
    assert (code, err) == (0, "")
    assert out == f"{OWNER}/telemetry/1.0.0 registered, as a new topic; id {topic['id']}\n"
    assert held(world) == {"1.0.0": OURS}
    asked = len(world.hub.calls("/topics"))
    code, out, _ = register(world)
    assert (code, "is there already, with this schema" in out) == (0, True)
    assert len(world.hub.calls("/topics")) == asked


def test_a_version_is_added_and_the_channel_is_reminded(world: CommandWorld) -> None:
    register(world)
    code, out, err = register(world, "--version", "1.1.0", "--schema", file(world, OPEN))
    assert (code, "registered, as a new version" in out) == (0, True)
    assert 'set version = "1.1.0" in its topic' in err
    assert held(world) == {"1.0.0": OURS, "1.1.0": OPEN}


def test_another_schema_of_a_version_is_overwritten_only_when_told(world: CommandWorld) -> None:
    world.hub.add_topic("telemetry", OPEN)
    code, out, err = register(world)
    assert (code, out) == (1, "")
    assert "is there with another schema" in err
    assert "--overwrite" in err
    assert held(world) == {"1.0.0": OPEN}
    code, out, _ = register(world, "--overwrite", "--json")
    assert (code, json.loads(out)["outcome"]) == (0, "overwritten")
    assert held(world) == {"1.0.0": OURS}


def test_who_may_not_register_is_told_what_is_missing(world: CommandWorld) -> None:
    world.hub.enrol(DID, [USER_ROLE, CREATOR_ROLES[0]])
    code, out, err = register(world)
    assert (code, out, held(world)) == (1, "", {})
    assert "three roles at once" in err
    assert err.rstrip().endswith("missing: topiccreator.roles.*.apps.*.*.ewc")


def test_the_owner_must_be_of_one_of_our_roles(world: CommandWorld) -> None:
    world.config.write_text(world.config.read_text().replace(OWNER, "edge.apps.example.iam.ewc"))
    code, _, err = register(world)
    assert (code, held(world)) == (1, {})
    assert "one of our roles must belong to the owner of the topic, edge.apps.example.iam.ewc" in err


def test_a_topic_of_another_type_is_left_alone(world: CommandWorld) -> None:
    world.hub.add_topic("telemetry", "<a/>", schema_type="XML")
    code, _, err = register(world, "--overwrite")
    assert (code, "is of type XML" in err) == (1, True)


def test_an_answer_that_was_lost_is_found_the_next_time(world: CommandWorld) -> None:
    world.hub.faults.put("lost", path="/topics", skip=1)
    code, _, err = register(world)
    assert (code, "closed the connection" in err) == (69, True), err
    assert register(world)[0] == 0
    assert held(world) == {"1.0.0": OURS}
    assert len(world.hub.state.topics) == 1


@pytest.mark.parametrize("path", ["/versions", "/versions/1.0.0"])
@pytest.mark.parametrize("fault", ["500", "html", "truncated"])
def test_a_failure_does_not_pass_for_a_version_that_is_not_there(world: CommandWorld, path: str, fault: str) -> None:
    world.hub.add_topic("telemetry", OPEN)
    world.hub.faults.put(fault, path=f"/topics/{world.hub.state.topics[0]['id']}{path}")
    assert register(world)[0] == 69
    assert held(world) == {"1.0.0": OPEN}


@pytest.mark.parametrize("there", [[], [{"id": TOPIC_ID, "version": "1.0.0"}]])
async def test_a_success_that_is_none_is_told(there: list[dict[str, str]]) -> None:
    topic = {"id": TOPIC_ID, "owner": OWNER, "name": "telemetry", "schemaType": "JSD7"}
    script = Script()
    script.answers["/topics"] = [(200, {"records": []}), (200, topic)]
    script.answers[f"/topics/{TOPIC_ID}/versions"] = [(200, {"records": there})]
    script.answers[f"/topics/{TOPIC_ID}/versions/1.0.0"] = [(200, topic | {"version": "1.0.0", "schema": OPEN})]
    wanted = DdhubTopic(owner=OWNER, name="telemetry", version="1.0.0")
    async with hub(script) as api:
        with pytest.raises(TransportError, match="does not show it as it was sent"):
            await registration.register(api, wanted, telemetry_schema())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ({**OPEN, "mystery": 1}, "no client gateway would take it"),
        ({**OPEN, "required": ["power"]}, "does not take what we send"),
        ({**OPEN, "required": ["records"], "properties": {"records": {"minItems": 1}}}, "/records: minItems"),
        ({**OPEN, "required": ["records"], "properties": {"records": {"maxItems": 0}}}, "/records: maxItems"),
    ],
)
def test_a_file_that_would_be_of_no_use_is_refused(world: CommandWorld, content: Any, words: str) -> None:
    code, _, err = register(world, "--schema", file(world, content))
    assert (code, words in err) == (2, True), err
    assert len(world.hub.served) == 0


@pytest.mark.parametrize(
    "arguments", [["--register", "--version", "1.0"], ["--version", "1.0.1"], ["--overwrite"], ["--json"]]
)
def test_arguments_that_make_no_sense_are_refused(world: CommandWorld, arguments: list[str]) -> None:
    assert world.run("topic", *arguments, "--config", str(world.config))[0] == 2


def test_a_hub_that_is_away(world: CommandWorld) -> None:
    world.configure(url=NOWHERE)
    assert register(world)[0] == 69


# ---- the rules ------------------------------------------------------------------------------------------------------

A, B, C = CREATOR_ROLES


@pytest.mark.parametrize(
    ("roles", "missing"),
    [
        ([A, B, C], []),
        ([C, B, A], []),
        ([A, B], ["topiccreator.roles.*.apps.*.*.ewc"]),
        ([A, A, B], ["topiccreator.roles.*.apps.*.*.ewc"]),
        ([B, C], ["topiccreator.roles.ddhub.apps.*energyweb.*.ewc"]),
        ([A, C], ["user.roles.*.apps.*energyweb.*.ewc"]),
        ([], list(TOPICCREATOR)),
    ],
)
def test_each_pattern_of_a_rule_needs_a_role_of_its_own(roles: list[str], missing: list[str]) -> None:
    assert rules.TOPIC_CREATOR.missing(roles) == missing
    assert permits(TOPICCREATOR, [*dict.fromkeys(roles)]) == (not missing)
    assert rules.USER.patterns == USER
    assert rules.of_users(roles) == [role for role in dict.fromkeys(roles) if role == B]


def test_whose_topics_a_role_is_for() -> None:
    assert rules.belongs_to(OWNER, CREATOR_ROLES)
    assert not rules.belongs_to("edge.apps.example.iam.ewc", CREATOR_ROLES)
    assert not rules.belongs_to(OWNER, ["edge", ""])
