"""The floors of docs/architecture.md: an import points down, and each edge wraps one outside library.

A new module states its place here, in one line. ``anyio`` is the language that everything above floor 1 speaks, not a
library that an edge wraps. Imports inside functions and under TYPE_CHECKING count like all others.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agent.kinds import TRANSPORTS

ROOT = Path(__file__).resolve().parent.parent
WORDS, PURE, EDGE, POLICY, WIRING = range(5)

Place = tuple[int, str]  # floor, and the outside libraries it may import

PLACES: Mapping[str, Place] = {
    "agent": (WORDS, ""),
    "agent.custody": (PURE, ""),
    "agent.eip191": (PURE, ""),
    "agent.errors": (WORDS, ""),
    "agent.fields": (PURE, "pydantic pydantic_core"),
    "agent.heartbeat": (WORDS, ""),
    "agent.histogram": (WORDS, ""),
    "agent.instant": (PURE, ""),
    "agent.model": (WORDS, ""),
    "agent.ports": (WORDS, ""),
    "agent.printable": (WORDS, ""),
    "agent.secret": (EDGE, "pydantic"),
    "agent.tls": (EDGE, "pydantic"),
    "agent.units": (PURE, "pydantic"),
    # evidence
    "agent.evidence": (WORDS, ""),
    "agent.evidence.block": (PURE, ""),
    "agent.evidence.cbor": (PURE, "cbor2"),
    "agent.evidence.coverage": (PURE, ""),
    "agent.evidence.did": (PURE, ""),
    "agent.evidence.envelope": (PURE, "cbor2 coincurve"),
    "agent.evidence.frames": (PURE, ""),
    "agent.evidence.history": (PURE, ""),
    "agent.evidence.keccak": (PURE, ""),
    "agent.evidence.record": (PURE, ""),
    "agent.evidence.recovery": (PURE, "coincurve"),
    "agent.evidence.shape": (PURE, ""),
    "agent.evidence.timetable": (PURE, ""),
    "agent.evidence.withdrawn": (PURE, ""),
    # the verifier, and how what it says is shown
    "agent.verifier": (PURE, ""),
    "agent.verifier.accepted": (PURE, ""),
    "agent.verifier.book": (PURE, ""),
    "agent.verifier.checkpoint": (PURE, "cbor2"),
    "agent.verifier.holes": (PURE, ""),
    "agent.verifier.judge": (PURE, ""),
    "agent.verifier.report": (PURE, ""),
    "agent.verifier.runs": (PURE, ""),
    "agent.verifier.span": (PURE, ""),
    "agent.verifier.verdict": (PURE, ""),
    "agent.verifier.verifier": (PURE, ""),
    "agent.rendering": (WORDS, ""),
    "agent.rendering.account": (PURE, ""),
    "agent.rendering.objects": (PURE, ""),
    "agent.rendering.page": (PURE, ""),
    "agent.rendering.readings": (PURE, ""),
    "agent.rendering.senml": (PURE, ""),
    "agent.rendering.table": (PURE, ""),
    "agent.rendering.text": (PURE, ""),
    "agent.rendering.words": (PURE, ""),
    # outbox
    "agent.outbox": (EDGE, ""),
    "agent.outbox.backlog": (PURE, ""),
    "agent.outbox.files": (EDGE, ""),
    "agent.outbox.filesystem": (EDGE, ""),
    "agent.outbox.look": (EDGE, ""),
    "agent.outbox.memory": (EDGE, ""),
    "agent.outbox.outbox": (EDGE, ""),
    "agent.outbox.reader": (EDGE, ""),
    "agent.outbox.rebuild": (EDGE, ""),
    "agent.outbox.recovery": (EDGE, ""),
    "agent.outbox.ring": (PURE, ""),
    "agent.outbox.survey": (EDGE, ""),
    # configuration
    "agent.config": (POLICY, ""),
    "agent.config.address": (PURE, "pydantic"),
    "agent.config.channels": (POLICY, "pydantic"),
    "agent.config.each_of": (PURE, "pydantic"),
    "agent.config.effective": (POLICY, "pydantic"),
    "agent.config.file": (POLICY, ""),
    "agent.config.identity_lines": (PURE, ""),
    "agent.config.levels": (POLICY, "pydantic"),
    "agent.config.problems": (POLICY, "pydantic"),
    "agent.config.rest": (PURE, ""),
    "agent.config.schema": (POLICY, "pydantic"),
    "agent.config.selection": (PURE, ""),
    "agent.config.shared": (POLICY, ""),
    "agent.config.shown": (POLICY, "pydantic"),
    "agent.config.tables": (POLICY, "pydantic"),
    "agent.config.template": (PURE, ""),
    "agent.config.toml_lines": (PURE, ""),
    "agent.config.toml_text": (PURE, ""),
    "agent.config.whole": (POLICY, "pydantic"),
    "agent.kinds": (POLICY, ""),
    # sealing
    "agent.sealing": (WORDS, ""),
    "agent.sealing.batch": (POLICY, ""),
    "agent.sealing.batcher": (POLICY, ""),
    "agent.sealing.committer": (POLICY, ""),
    "agent.sealing.sealer": (POLICY, ""),
    # delivery
    "agent.delivery": (WORDS, ""),
    "agent.delivery.drain": (POLICY, ""),
    "agent.delivery.errand": (POLICY, ""),
    "agent.delivery.plans": (POLICY, ""),
    "agent.delivery.flight": (POLICY, ""),
    "agent.delivery.latency": (POLICY, ""),
    "agent.delivery.publisher": (POLICY, ""),
    "agent.delivery.refusals": (WORDS, ""),
    "agent.delivery.resending": (POLICY, ""),
    "agent.delivery.settling": (POLICY, ""),
    # edges
    "agent.clock": (EDGE, ""),
    "agent.health": (EDGE, "sdnotify"),
    "agent.journal": (EDGE, ""),
    "agent.process": (EDGE, ""),
    "agent.signer": (EDGE, ""),
    "agent.signer.credential": (EDGE, ""),
    "agent.signer.files": (EDGE, ""),
    "agent.signer.key": (EDGE, "coincurve"),
    "agent.signer.keystore": (PURE, ""),
    "agent.signer.memory": (EDGE, ""),
    "agent.signer.places": (EDGE, ""),
    "agent.signer.unlock": (EDGE, "eth_account"),
    "agent.transports": (WORDS, ""),
    "agent.transports.ddhub": (WORDS, ""),
    "agent.transports.ddhub.content": (WORDS, ""),
    "agent.transports.ddhub.keys": (WORDS, ""),
    "agent.transports.ddhub.receiving": (WORDS, ""),
    "agent.transports.ddhub.content.cipher": (PURE, "Crypto"),
    "agent.transports.ddhub.keys.key_folder": (EDGE, "Crypto"),
    "agent.transports.ddhub.content.payload": (PURE, ""),
    "agent.transports.ddhub.content.pattern": (PURE, ""),
    "agent.transports.ddhub.content.copies": (PURE, ""),
    "agent.transports.ddhub.content.records": (PURE, ""),
    "agent.transports.ddhub.keys.rsa_key": (PURE, "Crypto"),
    "agent.transports.ddhub.content.schema": (PURE, "jsonschema"),
    "agent.transports.ddhub.content.signature": (PURE, "Crypto"),
    "agent.transports.ddhub.answers": (PURE, ""),
    "agent.transports.ddhub.broker": (EDGE, "httpx"),
    "agent.transports.ddhub.config": (PURE, "pydantic"),
    "agent.transports.ddhub.failures": (EDGE, "httpx"),
    "agent.transports.ddhub.keys.did_history": (EDGE, ""),
    "agent.transports.ddhub.keys.exchange": (EDGE, "httpx"),
    "agent.transports.ddhub.keys.key_source": (EDGE, ""),
    "agent.transports.ddhub.keys.key_source_config": (PURE, "pydantic"),
    "agent.transports.ddhub.receiving.consumer": (EDGE, ""),
    "agent.transports.ddhub.courier": (EDGE, ""),
    "agent.transports.ddhub.receiving.delivery": (PURE, ""),
    "agent.transports.ddhub.login": (EDGE, ""),
    "agent.transports.ddhub.receiving.mailbox": (EDGE, ""),
    "agent.transports.ddhub.receiving.mailbox_file": (EDGE, ""),
    "agent.transports.ddhub.message": (PURE, ""),
    "agent.transports.ddhub.receiving.our_keys": (EDGE, ""),
    "agent.transports.ddhub.recipients": (EDGE, ""),
    "agent.transports.ddhub.topics": (EDGE, ""),
    "agent.transports.ddhub.transport": (EDGE, "httpx"),
    "agent.transports.ddhub.keys.network": (PURE, ""),
    "agent.transports.ddhub.keys.participant": (PURE, "coincurve"),
    "agent.transports.ddhub.keys.participants_file": (PURE, ""),
    "agent.transports.ddhub.keys.publication": (PURE, ""),
    "agent.transports.ddhub.keys.publishing": (EDGE, ""),
    "agent.transports.ddhub.keys.registry": (PURE, ""),
    "agent.transports.ddhub.registration": (EDGE, ""),
    "agent.transports.ddhub.requests": (EDGE, "httpx"),
    "agent.transports.ddhub.roles": (PURE, ""),
    "agent.transports.ddhub.keys.rpc": (EDGE, ""),
    "agent.transports.ddhub.receiving.sorter": (EDGE, ""),
    "agent.transports.ddhub.receiving.source": (EDGE, "pydantic"),
    "agent.transports.ddhub.keys.ssi_hub": (EDGE, ""),
    "agent.transports.ddhub.survey": (EDGE, "httpx"),
    "agent.transports.ddhub.keys.transactions": (PURE, ""),
    "agent.transports.ddhub.content.unfold": (PURE, ""),
    "agent.transports.facts": (WORDS, ""),
    "agent.transports.nats": (WORDS, ""),
    "agent.transports.nats.config": (PURE, "pydantic"),
    "agent.transports.nats.connection": (EDGE, "nats"),
    "agent.transports.nats.consumer": (EDGE, "nats"),
    "agent.transports.nats.durable": (EDGE, "nats"),
    "agent.transports.nats.facts": (EDGE, "nats"),
    "agent.transports.nats.pull": (EDGE, "nats"),
    "agent.transports.nats.login": (EDGE, ""),
    "agent.transports.nats.lookup": (EDGE, ""),
    "agent.transports.nats.nkeys": (PURE, "Crypto"),
    "agent.transports.nats.failures": (EDGE, "nats"),
    "agent.transports.nats.stream": (EDGE, "nats"),
    "agent.transports.nats.transport": (EDGE, "nats"),
    "agent.transports.nats.wire": (EDGE, "nats"),
    # policy
    "agent.bus": (POLICY, ""),
    "agent.clock_wait": (POLICY, ""),
    "agent.listener": (POLICY, ""),
    "agent.reload": (POLICY, ""),
    "agent.router": (POLICY, ""),
    "agent.silences": (POLICY, ""),
    "agent.states": (POLICY, ""),
    "agent.supervisor": (POLICY, ""),
    "agent.term": (POLICY, ""),
    # wiring
    "agent.channel": (WIRING, ""),
    "agent.cli": (WIRING, ""),
    "agent.commands": (WIRING, ""),
    **dict.fromkeys(
        (
            *("agent.commands.check", "agent.commands.config_schema", "agent.commands.config_show"),
            *("agent.commands.doctor", "agent.commands.support"),
            *("agent.commands.identity_create", "agent.commands.identity_import", "agent.commands.identity_show"),
            *("agent.commands.ddhub_arguments", "agent.commands.ddhub_channel", "agent.commands.ddhub_keys"),
            *("agent.commands.credential", "agent.commands.which_key", "agent.commands.whole_file"),
            *("agent.commands.init", "agent.commands.outbox_export", "agent.commands.outbox_list"),
            *("agent.commands.outbox_repair", "agent.commands.outbox_resize", "agent.commands.outbox_verify"),
            "agent.commands.outbox_resend",
            *("agent.commands.outbox_status", "agent.commands.read", "agent.commands.reload", "agent.commands.run"),
            *("agent.commands.status", "agent.commands.tail", "agent.commands.tap", "agent.commands.target"),
            "agent.commands.top",
            *("agent.commands.ddhub_status", "agent.commands.ddhub_topic"),
            *("agent.commands.tail_arguments", "agent.commands.tail_nats", "agent.commands.tail_ddhub"),
            *("agent.commands.accepting", "agent.commands.decode", "agent.commands.printing", "agent.commands.verify"),
        ),
        (WIRING, ""),
    ),
    "agent.commands.ddhub_participant": (WIRING, "pydantic"),
    "agent.control": (WORDS, ""),
    "agent.control.answers": (WIRING, ""),
    "agent.control.client": (EDGE, ""),
    "agent.control.clients": (EDGE, ""),
    "agent.control.findings": (PURE, ""),
    "agent.control.healthcheck": (EDGE, ""),
    "agent.control.http": (EDGE, "h11"),
    "agent.control.metrics": (PURE, ""),
    "agent.control.server": (EDGE, ""),
    "agent.control.status_text": (PURE, ""),
    "agent.control.top_text": (PURE, ""),
    "agent.daemon": (WIRING, ""),
    "agent.doctor": (WORDS, ""),
    "agent.doctor.brokers": (WIRING, ""),
    "agent.doctor.case": (WIRING, ""),
    "agent.doctor.certificate": (PURE, ""),
    "agent.doctor.certificates": (WIRING, ""),
    "agent.doctor.clock": (WIRING, ""),
    "agent.doctor.examination": (EDGE, ""),
    "agent.doctor.finding": (PURE, ""),
    "agent.doctor.looks": (WIRING, ""),
    "agent.doctor.names": (WIRING, ""),
    "agent.doctor.outboxes": (WIRING, ""),
    "agent.doctor.rights": (EDGE, ""),
    "agent.doctor.serial": (WIRING, ""),
    "agent.doctor.service": (EDGE, ""),
    "agent.doctor.storage": (WIRING, ""),
    "agent.doctor.system": (EDGE, ""),
    "agent.doctor.wear": (WIRING, ""),
    "agent.foresight": (WORDS, ""),
    "agent.foresight.forecast": (POLICY, ""),
    "agent.foresight.probe": (WIRING, ""),
    "agent.foresight.prospect": (WIRING, ""),
    "agent.foresight.walk": (PURE, ""),
    "agent.run": (WIRING, ""),
    "agent.support": (WORDS, ""),
    "agent.support.bundle": (WIRING, "pydantic"),
    "agent.support.masking": (PURE, ""),
    "agent.support.pieces": (WIRING, ""),
    "agent.running": (WIRING, ""),
    "agent.scrape": (WIRING, ""),
    "agent.status": (WIRING, ""),
    "agent.tally": (WIRING, ""),
    "agent.source": (WIRING, ""),
    # adapters
    "adapters": (WORDS, ""),
    "adapters.conformance": (WIRING, ""),
    "adapters.conformance.event": (WIRING, "pytest"),
    "adapters.conformance.judge": (PURE, ""),
    "adapters.conformance.polled": (WIRING, "pytest"),
    "adapters.conformance.subject": (WORDS, ""),
    "adapters.conformance.tables": (WIRING, "pytest"),
    "adapters.conformance.watch": (EDGE, ""),
    "adapters.modbus": (EDGE, ""),
    "adapters.modbus.addresses": (PURE, ""),
    "adapters.modbus.adu": (PURE, ""),
    "adapters.modbus.client": (EDGE, ""),
    "adapters.modbus.config": (PURE, "pydantic"),
    "adapters.modbus.decode": (PURE, ""),
    "adapters.modbus.definitions": (PURE, ""),  # constant tables of pysunspec2, read when first needed
    "adapters.modbus.device": (EDGE, ""),
    "adapters.modbus.identification": (PURE, ""),
    "adapters.modbus.patience": (PURE, ""),
    "adapters.modbus.point": (PURE, "pydantic"),
    "adapters.modbus.registers": (PURE, ""),
    "adapters.modbus.requests": (PURE, ""),
    "adapters.modbus.sunspec": (PURE, ""),
    "adapters.modbus.sunspec_device": (EDGE, ""),
    "adapters.mqtt": (EDGE, ""),
    "adapters.mqtt.account": (EDGE, ""),
    "adapters.mqtt.broker": (EDGE, ""),
    "adapters.mqtt.client": (EDGE, "paho"),
    "adapters.mqtt.config": (PURE, "pydantic"),
    "adapters.mqtt.device": (EDGE, ""),
    "adapters.mqtt.dial": (EDGE, ""),
    "adapters.mqtt.kept": (EDGE, ""),
    "adapters.mqtt.message": (PURE, ""),
    "adapters.mqtt.packets": (PURE, ""),
    "adapters.mqtt.payload": (PURE, ""),
    "adapters.mqtt.point": (PURE, "pydantic"),
    "adapters.mqtt.subscriptions": (EDGE, "paho"),
    "adapters.mqtt.timestamps": (PURE, ""),
    "adapters.mqtt.topics": (PURE, ""),
    "adapters.mqtt.values": (PURE, ""),
    "adapters.mqtt.wire": (EDGE, ""),
}

FOLDERS = {
    "agent.control",
    "agent.outbox",
    "agent.signer",
    "agent.transports.ddhub",
    "agent.transports.nats",
}  # whose modules are one edge together
SECRETS = {"agent.secret", "agent.tls"}
HOLD_SECRETS = {  # references to secrets, as the tables of adapters do
    *("agent.config.tables", "agent.signer.places", "agent.tls"),
    *("agent.transports.ddhub.config", "agent.transports.ddhub.failures", "agent.transports.ddhub.requests"),
    *(
        "agent.transports.ddhub.keys.exchange",
        "agent.transports.ddhub.keys.key_source_config",
        "agent.transports.ddhub.keys.rpc",
    ),
    *("agent.transports.nats.config", "agent.transports.nats.login", "agent.transports.nats.failures"),
}
KEY_FILES = "agent.signer.files"
HOLD_KEYS = {"agent.transports.ddhub.keys.key_folder"}  # beside agent.signer
FOR_ADAPTERS = {"agent.fields", "agent.units", *SECRETS}  # beside floor 0: types of a configuration
BY_NAME = {path.partition(":")[0] for kind in TRANSPORTS.values() for path in (kind.config_model, kind.transport)}
VERIFIER = {"cbor2", "coincurve"}  # all that a consumer needs to install

Imports = Mapping[str, set[str]]  # module: what it imports, our own modules and the top names of outside libraries


def modules(*folders: str) -> dict[str, Path]:
    """The modules below folders of the checkout, by their dotted names."""
    found = {}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            names = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def imported(source: str, known: Mapping[str, Path]) -> Iterator[str]:
    """What a module's text imports, anywhere in it; the standard library is left out."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"a relative import: {ast.unparse(node)}"
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top = name.partition(".")[0]
            if top in {"agent", "adapters", "testbed", "bench", "tests"}:
                yield name if name in known else name.rpartition(".")[0]
            elif top not in sys.stdlib_module_names:
                yield top


def read(*folders: str) -> dict[str, set[str]]:
    """The imports of all modules below folders."""
    known = modules("agent", "adapters", "testbed")
    return {name: set(imported(path.read_text(), known)) for name, path in modules(*folders).items()}


def part(module: str) -> str:
    """The edge that a module belongs to."""
    if module.startswith("adapters."):
        return ".".join(module.split(".")[:2])
    return next((folder for folder in FOLDERS if module.startswith(f"{folder}.")), module)


def offence(module: str, target: str) -> str | None:
    """Why ``module`` must not import ``target``, None if it may."""
    floor, libraries = PLACES[module]
    if target.partition(".")[0] not in {"agent", "adapters"}:
        allowed = {*libraries.split(), *(["anyio"] if floor >= EDGE else [])}
        return None if target in allowed else "is not its library"
    if target not in PLACES:
        return "has no place"
    below = PLACES[target][0]
    if target in SECRETS and module in HOLD_SECRETS:
        return None
    if target == KEY_FILES and module in HOLD_KEYS:
        return None
    if module.startswith("agent"):
        if target.startswith("adapters"):
            return "is an adapter, loaded by name"
        if target in BY_NAME and not module.startswith("agent.transports."):
            return "is a transport, loaded by name"
    elif target.startswith("agent") and below != WORDS:
        return None if target in FOR_ADAPTERS else "is not for adapters"
    if below > floor:
        return "is above it"
    if floor == POLICY and below == EDGE:
        return "is an edge, reached through a port"
    if floor == EDGE == below and part(module) != part(target):
        return "is another edge"
    return None


def offences(imports: Imports) -> list[str]:
    """All that breaks a rule, as sentences."""
    found = []
    for module, targets in sorted(imports.items()):
        if module not in PLACES:
            found.append(f"{module}: state its floor in PLACES")
            continue
        found += [
            f"{module} imports {target}, which {why}" for target in sorted(targets) if (why := offence(module, target))
        ]
    return found


def closure(module: str, imports: Imports) -> set[str]:
    """All that comes with a module."""
    seen, waiting = set[str](), {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= imports.get(name, set()) - seen
    return seen


def test_imports_point_down() -> None:
    found = offences(read("agent", "adapters"))
    assert not found, "\n".join(found)


def test_an_edge_wraps_one_library() -> None:
    assert [name for name, (floor, libraries) in PLACES.items() if floor >= EDGE and len(libraries.split()) > 1] == []


def test_the_verifier_needs_two_libraries_only() -> None:
    outside = {name for name in closure("agent.verifier", read("agent")) if not name.startswith("agent")}
    assert outside == VERIFIER


def test_the_oracle_judges_without_the_code_that_it_judges() -> None:
    imports = read("testbed", "agent", "adapters")
    assert "testbed.oracle" in imports
    ours = {name for name in closure("testbed.oracle", imports) if name.startswith("testbed")}
    used = {target for name in ours for target in imports[name] if target.startswith(("agent", "adapters"))}
    allowed = {name for name, (floor, _) in PLACES.items() if floor == WORDS} | {
        "agent.verifier",
    }
    assert used <= allowed, f"{used - allowed}: the oracle must not share code with what it judges"


@pytest.mark.parametrize(
    ("module", "target", "why"),
    [
        ("agent.model", "anyio", "is not its library"),
        ("agent.model", "agent.evidence.cbor", "is above it"),
        ("agent.evidence.cbor", "agent.outbox", "is above it"),
        ("agent.evidence.cbor", "nats", "is not its library"),
        ("agent.outbox", "agent.outbox.files", None),
        ("agent.outbox", "agent.signer", "is another edge"),
        ("agent.outbox", "anyio", None),
        ("agent.delivery.publisher", "agent.outbox", "is an edge, reached through a port"),
        ("agent.delivery.publisher", "agent.daemon", "is above it"),
        ("agent.daemon", "agent.outbox", None),
        ("agent.daemon", "adapters.modbus", "is an adapter, loaded by name"),
        ("agent.daemon", "agent.transports.nats.transport", "is a transport, loaded by name"),
        ("agent.commands.tail_nats", "agent.transports.nats.consumer", None),
        ("agent.transports.nats.transport", "agent.transports.nats.config", None),
        ("agent.transports.nats.transport", "pymodbus", "is not its library"),
        ("adapters.modbus.client", "agent.errors", None),
        ("adapters.modbus.client", "pymodbus", "is not its library"),
        ("adapters.modbus.point", "agent.units", None),
        ("adapters.modbus.decode", "agent.evidence.record", "is not for adapters"),
        ("adapters.modbus.device", "adapters.modbus.client", None),
        ("adapters.modbus.decode", "adapters.modbus.client", "is above it"),
        ("agent.daemon", "agent.new", "has no place"),
    ],
)
def test_the_rules(module: str, target: str, why: str | None) -> None:
    assert offence(module, target) == why


def test_a_module_without_a_place_is_found() -> None:
    assert offences({"agent.new": set()}) == ["agent.new: state its floor in PLACES"]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import os, json", []),
        ("import nats.errors", ["nats"]),
        ("from agent.evidence import cbor", ["agent.evidence.cbor"]),
        ("from agent.evidence.cbor import encode", ["agent.evidence.cbor"]),
        ("def f():\n    import uvloop", ["uvloop"]),
    ],
)
def test_imports_are_read(source: str, names: list[str]) -> None:
    assert list(imported(source, {"agent.evidence.cbor": Path()})) == names
