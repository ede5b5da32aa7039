"""``edge-agent ddhub keys``, against the SSI Hub and the chain's node of testbed/ddhub: shown, published, rotated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.types import Receive, Scope, Send

from agent import kinds
from agent.cli import main
from agent.clock import SystemClock, boot_id
from agent.commands import ddhub_keys, ddhub_participant
from agent.signer import KeySigner, open_signer
from agent.tls import Tls
from agent.transports.ddhub.keys.exchange import Exchange
from agent.transports.ddhub.keys.key_folder import KEEP, KeyFolder, Moment
from agent.transports.ddhub.keys.key_source import open_key_source
from agent.transports.ddhub.keys.key_source_config import KeySourceConfig
from agent.transports.ddhub.keys.participant import ENCRYPTION_TAG, SIGNATURE_TAG, short
from agent.transports.ddhub.keys.publication import Publication
from agent.transports.ddhub.keys.rsa_key import public_pem
from testbed.ddhub.hub import DataHub
from tests.ddhub_keys import MINE, SMALL, SMALL_PUBLIC
from tests.ddhub_registry import ALICE, BOB, DDHUB, DID, KEY, PEM
from tests.leaks import holds
from tests.test_config_refusals import GOOD

SIGNER = KeySigner(bytes.fromhex(BOB["privateKey"][2:]), network="volta")
CANARY = "canary-4711"
RPC, HUB = "http://localhost/rpc", "http://localhost"
CHANNEL = """\
[[channel]]
id = "market"
transport = "ddhub"
url = "https://ddhub.example"
topic = { owner = "edge.apps.example.iam.ewc", name = "telemetry", version = "1.0.0" }
recipients = ["did:ethr:volta:0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"]
keys = KEYS
send = ["*"]
outbox = { size = "8MiB" }
"""


class World:
    """The hub and the node, the agent's folder, and the command."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.hub = DataHub("nats://127.0.0.1:1")  # no message is sent here
        self.hub.ssi_hub.origin = HUB
        self.chain = self.hub.chain
        self.folder = folder
        self.config = folder / "agent.toml"
        self.rsa = KeyFolder(folder / "state" / "ddhub", SIGNER)
        self.next_key = SMALL
        self._capfd = capfd
        (folder / "state").mkdir()
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_text(BOB["privateKey"])
        self.configure(f'{{ rpc = "{RPC}" }}')

    def configure(self, keys: str, *, did: str = DID) -> None:
        text = GOOD[: GOOD.index("[[channel]]")] + CHANNEL.replace("KEYS", keys)
        text = text.replace('key = "file:key"', f'key = "file:key"\ndid = "{did}"')
        self.config.write_text(f'{text}[agent]\nstate = "{self.folder}/state"\n')

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.hub.rpc if scope["path"] == "/rpc" else self.hub.ssi_hub
        await app(scope, receive, send)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self._capfd.readouterr()
        try:
            code = main(["ddhub", "keys", "--config", str(self.config), *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = self._capfd.readouterr()
        assert not holds((said.out + said.err).encode(), bytes.fromhex(BOB["privateKey"][2:]))
        return code, said.out, said.err

    def shown(self, *arguments: str) -> tuple[int, Any]:
        code, out, _ = self.run("--json", *arguments)
        return code, json.loads(out)

    def asked(self, **keys: Any) -> tuple[str | None, str | None]:
        """What another participant finds."""

        async def ask() -> tuple[str | None, str | None]:
            config = KeySourceConfig.model_validate(keys)
            alice = KeySigner(bytes.fromhex(ALICE["privateKey"][2:]), network="volta")
            exchange = Exchange(transport=httpx.ASGITransport(self))
            source = open_key_source(config, signer=alice, clock=SystemClock(), exchange=exchange)
            found = await source.keys(DID)
            return found.signature, found.encryption

        return anyio.run(ask)


@pytest.fixture
def world(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, capfd)
    kind = kinds.TransportKind(
        "agent.transports.ddhub.config:DdhubConfig", "agent.transports.ddhub.transport:DdhubTransport"
    )
    monkeypatch.setitem(kinds.TRANSPORTS, "ddhub", kind)
    monkeypatch.setattr(ddhub_keys, "Exchange", lambda _: Exchange(transport=httpx.ASGITransport(made)))
    monkeypatch.setattr(ddhub_keys, "generate", lambda: made.next_key)  # a real one takes seconds
    return made


def findings(shown: Any) -> list[tuple[str, str]]:
    return [(finding["key"], finding["what"]) for finding in shown["findings"]]


# ---- shown ----------------------------------------------------------------------------------------------------------


def test_at_first_nothing_is_there_and_nothing_is_made(world: World) -> None:
    code, shown = world.shown()
    assert (code, shown["did"], shown["source"]) == (1, DID, "node http://localhost")
    assert shown["keys"] == {
        SIGNATURE_TAG: {"ours": KEY, "published": None, "agrees": False},
        ENCRYPTION_TAG: {"ours": None, "published": None, "agrees": False},
    }
    assert findings(shown) == [
        (SIGNATURE_TAG, "it is not published"),
        (ENCRYPTION_TAG, "we have no RSA key yet"),
    ]
    assert all("--send" in finding["remedy"] for finding in shown["findings"])
    assert list((world.folder / "state").iterdir()) == []


@pytest.mark.parametrize("keys", [f'{{ rpc = "{RPC}" }}', f'{{ hub = "{HUB}" }}', '{ file = "p.json" }'])
def test_all_is_well_by_whatever_source(world: World, keys: str) -> None:
    world.configure(keys)
    world.rsa.add(SMALL, made=1_764_000_000_000_000_000)
    world.chain.publish_keys(DID, signature=KEY, encryption=SMALL_PUBLIC)
    (world.folder / "p.json").write_text(json.dumps({DID: {"signature": KEY, "encryption": SMALL_PUBLIC}}))
    code, out, err = world.run()
    sources = {"rpc": "node http://localhost", "hub": "SSI Hub http://localhost", "fil": f"{world.folder}/p.json"}
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"DID            {DID}",
        f"its document   {sources[keys[2:5]]}",
        "signature key  0x04466d7fcae563...f33e407797e1278a  published",
        f"RSA key        {short(public_pem(SMALL))}  published, made 2025-11-24 16:00 UTC",
    ]


def test_a_source_that_is_down_is_told_with_what_we_have(world: World) -> None:
    world.hub.faults.put("rpc-error", method="eth_chainId", message="out of order", times=9)
    code, out, _ = world.run()
    assert code == 69
    assert "signature key  0x04466d7fcae563...f33e407797e1278a  unknown" in out
    assert "- http://localhost refuses eth_chainId: out of order; try again" in out


def test_what_client_gateways_would_not_see_does_not_agree(world: World) -> None:
    world.rsa.add(SMALL, made=1)
    with world.chain.one_block():
        world.chain.publish_keys(DID, signature=KEY, encryption=SMALL_PUBLIC)
    code, shown = world.shown()
    assert code == 1
    assert [each["agrees"] for each in shown["keys"].values()] == [True, False]
    assert findings(shown) == [
        (ENCRYPTION_TAG, "block 10 has another change before it, and client gateways see only that")
    ]


@pytest.mark.parametrize(
    ("ours", "published", "what"),
    [
        ((SMALL, MINE), SMALL_PUBLIC, "the key before this one stands there"),
        ((SMALL,), PEM, "another key stands there: MIICCgKCAgEAr56s...UpcYBUkCAwEAAQ=="),
    ],
)
def test_another_rsa_key_stands_there(world: World, ours: tuple[Any, ...], published: str, what: str) -> None:
    for number, key in enumerate(ours):
        world.rsa.add(key, made=number)
    world.chain.publish_keys(DID, signature=KEY, encryption=published)
    code, shown = world.shown()
    assert (code, findings(shown)) == (1, [(ENCRYPTION_TAG, what)])


def test_a_publication_by_itself() -> None:
    unknown = Publication({SIGNATURE_TAG: KEY}, [], None)
    assert (unknown.findings(), unknown.missing, unknown.agrees(SIGNATURE_TAG)) == ([], [SIGNATURE_TAG], None)


# ---- published ------------------------------------------------------------------------------------------------------


def test_keys_are_published_and_everybody_finds_them(world: World) -> None:
    world.next_key = MINE
    world.chain.fund(DID, 10**16)
    code, shown = world.shown("--send")
    assert (code, shown["findings"]) == (0, [])
    blocks = [each["block"] for each in shown["transactions"]]
    assert [each["publishes"] for each in shown["transactions"]] == [SIGNATURE_TAG, ENCRYPTION_TAG]
    assert blocks[0] < blocks[1]
    world.chain.mine(12)
    for keys in ({"rpc": RPC}, {"hub": HUB}):
        assert world.asked(**keys) == (KEY, PEM)
    vectors = [bytes.fromhex(vector["valueHex"][2:]) for vector in DDHUB["e_didAttributes"]]
    data = [block["logs"][0]["data"] for block in world.chain.state.blocks if block["logs"]]
    assert all(value.hex() in log for value, log in zip(vectors, data, strict=True))
    assert world.run("--send")[::2] == (0, "")
    assert world.chain.nonce(DID) == 2


def test_only_what_is_missing_is_sent(world: World) -> None:
    world.rsa.add(SMALL, made=1)
    world.chain.fund(DID)
    world.chain.publish_keys(DID, encryption=SMALL_PUBLIC)
    code, out, err = world.run("--send")
    assert code == 0
    assert (err.count("is published: block"), world.chain.nonce(DID)) == (1, 1)
    assert "signature key  0x04466d7fcae563...f33e407797e1278a  published" in out


def test_a_call_that_was_interrupted_goes_on(world: World) -> None:
    world.chain.fund(DID)
    world.hub.faults.put("rpc-error", method="eth_sendRawTransaction", message="gone", skip=1)
    code, _, err = world.run("--send")
    assert (code, world.chain.nonce(DID)) == (69, 1)
    assert "refuses eth_sendRawTransaction: gone" in err
    assert world.run("--send")[0] == 0
    assert world.chain.nonce(DID) == 2


def test_without_money_nothing_is_sent_and_it_is_said_what_is_missing(world: World) -> None:
    code, _, err = world.run("--send")
    assert code == 69
    assert f"{BOB['address']} has 0.000000 VT, and" in err
    assert "send it 0.000" in err
    assert world.chain.head == 9


def test_a_did_that_belongs_to_somebody_else(world: World) -> None:
    world.chain.fund(DID)
    world.chain.change_owner(DID, ALICE["address"])
    code, _, err = world.run("--send")
    assert (code, world.chain.nonce(DID)) == (69, 0)
    assert f"the DID belongs to {ALICE['address']} now, and only that address can publish keys" in err


def test_for_a_wallet_without_a_network(world: World) -> None:
    world.next_key = MINE
    world.configure(f'{{ hub = "{HUB}" }}')
    world.hub.ssi_hub.origin = "http://elsewhere"  # so that it lets nobody in
    code, out, err = world.run("--unsigned", str(world.folder / "wallet.json"))
    assert code == 1
    written = json.loads((world.folder / "wallet.json").read_text())
    assert written["did"] == DID
    assert "never see the second" in written["note"]
    assert [each["publishes"] for each in written["transactions"]] == [SIGNATURE_TAG, ENCRYPTION_TAG]
    for each, vector in zip(written["transactions"], DDHUB["e_didAttributes"], strict=True):
        assert each["transaction"]["from"] == BOB["address"]
        assert vector["valueHex"][2:] in each["transaction"]["data"]
    assert "2 written to" in err
    assert "unknown" in out


def test_signed_ones_are_sent_by_hand(world: World) -> None:
    world.chain.fund(DID)
    code, out, err = world.run("--signed", "-")
    assert code == 1  # they are not published yet
    raw = [each["raw"] for each in json.loads(out)["transactions"]]
    assert "NOT published" in err
    assert world.chain.nonce(DID) == 0

    async def post() -> list[Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(world)) as client:
            body = {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction"}
            return [(await client.post(RPC, json={**body, "params": [each]})).json() for each in raw]

    assert all("result" in answer for answer in anyio.run(post))
    assert world.run()[0] == 0


def test_a_participant_without_a_configuration(world: World) -> None:
    who = ["--identity", f"file:{world.folder}/key", "--network", "volta", "--state", str(world.folder / "mine")]
    world.config.unlink()
    world.chain.fund(DID)
    assert world.run(*who, "--keys", f"rpc:{RPC}", "--send")[0] == 0
    code, shown = world.shown(*who, "--keys", f"rpc:{RPC}")
    assert (code, shown["did"], shown["keys"][ENCRYPTION_TAG]["agrees"]) == (0, DID, True)
    assert (world.folder / "mine" / "rsa-1.pem").stat().st_mode & 0o777 == 0o600
    assert world.run(*who, "--channel", "market")[0] == 2
    assert "say where our RSA keys are" in world.run(*who[:2])[2]
    assert "say who we are: --identity" in world.run("--network", "volta")[2]
    ewc = world.run(*who[:2], "--network", "ewc", "--state", "x", "--keys", "file:nowhere")
    assert ewc[0] != 2


@pytest.mark.parametrize("how", ["--send", "--signed=x"])
def test_a_node_is_needed(world: World, how: str) -> None:
    world.configure(f'{{ hub = "{HUB}" }}')
    assert world.run(how)[::2] == (
        2,
        "edge-agent ddhub keys: a node of the chain is needed: --rpc https://NODE, or rpc in keys of the channel\n",
    )
    world.chain.fund(DID)
    (world.folder / "node").write_text(RPC)
    assert world.run(how.replace("=x", f"={world.folder}/x"), "--rpc", f"file:{world.folder}/node")[0] in (0, 1)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("ftp://x", "a secret does not stand on a command line"),
        (f"http://node.example/{CANARY}", "--rpc: without TLS anybody on the way can put his keys"),
        (f"https://u:{CANARY}@node.example", "--rpc: a user or password stands in the address"),
    ],
)
def test_a_node_that_cannot_be(world: World, node: str, words: str) -> None:
    code, _, err = world.run("--rpc", node)
    assert code == 2
    assert words in err
    assert CANARY not in err


@pytest.mark.parametrize(("keys", "name"), [(f'{{ hub = "{HUB}"', None), (f'{{ rpc = "{RPC}"', "node.example")])
def test_a_node_is_trusted_by_what_is_said_of_nodes(
    world: World, monkeypatch: pytest.MonkeyPatch, keys: str, name: str | None
) -> None:
    given = []

    def exchange(tls: Tls | None) -> Exchange:
        given.append(tls)
        return Exchange(transport=httpx.ASGITransport(world))

    monkeypatch.setattr(ddhub_keys, "Exchange", exchange)
    world.configure(f'{keys}, tls = {{ server_name = "node.example" }} }}')
    assert world.run("--rpc", RPC)[0] == 1
    assert [tls and tls.server_name for tls in given] == [name]


def test_a_key_in_the_address_of_a_node_is_not_shown(world: World) -> None:
    for arguments in ((), ("--send",), ("--json",)):
        _, out, err = world.run("--rpc", f"https://localhost/{CANARY}", *arguments)
        assert CANARY not in out + err


# ---- rotated --------------------------------------------------------------------------------------------------------


def test_a_new_rsa_key_is_made_first_and_then_published(world: World) -> None:
    world.next_key = MINE
    world.rsa.add(SMALL, made=1)
    world.chain.publish_keys(DID, signature=KEY, encryption=SMALL_PUBLIC)
    code, shown = world.shown("--rotate")
    assert code == 1
    assert findings(shown) == [(ENCRYPTION_TAG, "the key before this one stands there")]
    assert [key.private for key in world.rsa.read().keys] == [MINE, SMALL]
    world.chain.fund(DID)
    assert world.run("--send")[0] == 0
    assert world.chain.nonce(DID) == 1
    assert len(world.rsa.read().keys) == 2


def test_the_old_key_goes_a_day_after_the_new_one_was_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = 0

    class Later(SystemClock):
        def boot(self) -> int:
            return super().boot() + passed

    monkeypatch.setattr(ddhub_keys, "SystemClock", Later)
    for key in (SMALL, MINE):
        world.rsa.add(key, made=1)
    kept = [world.folder / "state" / "ddhub" / f"rsa-{number}.pem" for number in (1, 2)]
    world.chain.publish_keys(DID, signature=KEY, encryption=SMALL_PUBLIC)
    world.run()
    passed = KEEP
    world.chain.publish_keys(DID, signature=KEY, encryption=public_pem(MINE))
    assert world.run()[0] == 0
    assert all(path.exists() for path in kept), "nobody could know the new one until now"
    passed += KEEP
    code, _, err = world.run()
    assert code == 0
    assert "1 RSA key(s) removed" in err
    assert [path.exists() for path in kept] == [False, True]


def test_an_old_key_that_stood_there_until_now_is_kept_for_a_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(SystemClock):
        def boot(self) -> int:
            return super().boot() + KEEP

    monkeypatch.setattr(ddhub_keys, "SystemClock", Later)
    for key in (SMALL, MINE):
        world.rsa.add(key, made=1)
    world.rsa.settle(newest_published=True, now=Moment.now(SystemClock(), boot_id()))
    world.chain.publish_keys(DID, signature=KEY, encryption=SMALL_PUBLIC)  # by a gateway with our identity, say
    world.chain.fund(DID)
    assert world.run("--send")[0] == 0
    assert (world.folder / "state" / "ddhub" / "rsa-1.pem").exists(), "until now others encrypted for it"


def test_root_may_look_at_the_agents_keys_and_leaves_what_the_agent_can_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rsa.add(SMALL, made=1)
    world.chain.publish_keys(DID, signature=KEY, encryption=SMALL_PUBLIC)
    folder = world.folder / "state" / "ddhub"
    shutil.copy(folder / "rsa-1.pem", folder / "rsa-2.pem")
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    else:
        for each in (world.folder / "key", folder, *folder.iterdir()):
            os.chown(each, 4711, 4712)
    assert world.run()[::2] == (0, "")
    owner, group = folder.stat().st_uid, folder.stat().st_gid
    assert owner != os.geteuid()
    found = {
        each.name: (each.stat().st_uid, each.stat().st_gid, each.stat().st_mode & 0o777) for each in folder.iterdir()
    }
    assert found == dict.fromkeys(("rsa-1.pem", "rsa-1.replaced", "rsa-2.pem"), (owner, group, 0o600))


def test_root_makes_no_key_that_the_agent_could_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    somebody = os.geteuid() + 1

    def opened(*arguments: Any, **options: Any) -> KeySigner:
        signer = open_signer(*arguments, **options)
        monkeypatch.setattr(os, "geteuid", lambda: somebody)
        return signer

    monkeypatch.setattr(ddhub_participant, "open_signer", opened)
    code, _, err = world.run("--rotate")
    assert code == 78
    assert "run it as that user: sudo -u" in err
    assert world.rsa.read().keys == ()


# ---- which channel --------------------------------------------------------------------------------------------------


def test_no_channel_goes_to_a_data_hub(world: World) -> None:
    world.config.write_text(GOOD)
    code, _, err = world.run()
    assert code == 2
    assert 'no channel goes to a Data Hub; a channel with transport = "ddhub" does' in err
    assert "the channel dso does not go to a Data Hub" in world.run("--channel", "dso")[2]


def test_which_of_several(world: World) -> None:
    text = world.config.read_text()
    more = CHANNEL.replace("KEYS", "{}").replace('"market"', '"other"')
    world.config.write_text(text.replace("[agent]", f"{more}[agent]"))
    assert "several channels go to a Data Hub; name one with --channel: market, other" in world.run()[2]
    assert world.run("--channel", "market")[0] == 1


def test_a_did_without_a_data_hub(world: World) -> None:
    world.configure(f'{{ rpc = "{RPC}" }}', did=DID.replace("volta", "mainnet"))
    code, _, err = world.run()
    assert code == 78
    assert "not a DID of a chain with a Data Hub" in err


def test_two_ways_at_once_are_refused(world: World) -> None:
    assert world.run("--send", "--unsigned", "x")[0] == 2
    assert "both want stdout" in world.run("--json", "--unsigned", "-")[2]
