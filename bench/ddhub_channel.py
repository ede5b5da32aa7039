"""What delivery through a Data Hub costs the agent, beside NATS with the same load: of a whole agent per reading, and
of the transport alone per message.

Ten units of 100 holding registers at 20 Hz, 20,000 readings a second, so that a full message (450 KiB, encrypted)
leaves each few seconds; one recipient, whose public key is a number of the right form with 4096 bits. The hub is
testbed/ddhub in a process of its own, over the same NATS server that the other channel delivers to. Steady state only:
it is measured from the delivery of one message to that of another.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from agent.clock import SystemClock
from agent.custody import parse
from agent.ports import Message
from agent.signer import KeySigner, open_signer
from agent.transports.ddhub.config import DdhubConfig
from agent.transports.ddhub.content.payload import clear_size, largest_clear
from agent.transports.ddhub.content.schema import telemetry_schema
from agent.transports.ddhub.transport import DdhubTransport
from agent.transports.nats.config import NatsConfig
from agent.transports.nats.transport import NatsTransport
from bench import load
from bench.cpu_per_reading import messages
from bench.ddhub import public_key
from bench.figure import Figure, Others, cpu_seconds, interleaved, resident_mib
from bench.modbus_device import ModbusDevice
from testbed.broker import create_stream
from testbed.ddhub.hub import OWNER
from testbed.ddhub.process import DataHubProcess
from testbed.processes import Agent, NatsServer

UNITS, REGISTERS, HERTZ = 10, 100, 20
RATE = UNITS * REGISTERS * HERTZ
SPAN = 3  # messages
WITHIN = 120.0  # s for each of them
RECIPIENT = "did:ethr:volta:0x1563915e194D8CfBA1943570603F7606A3115508"
_SECRET = bytes(31) + b"\x01"
_ENVELOPE = 1500  # bytes


class Rig:
    """Device, NATS server and hub, in a folder, within its stack."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.notes: dict[str, str] = {}  # by channel; of the last round
        self.folder = folder
        self.nats = stack.enter_context(NatsServer(folder, sync="2m"))
        self.hub = stack.enter_context(DataHubProcess(folder, self.nats.url))
        self._device = stack.enter_context(ModbusDevice(folder, units=UNITS, registers=REGISTERS))
        self._prepared = False
        self._span = 20.0  # s; as long as the last measure over the hub took
        self._participants = folder / "participants.json"
        self._participants.write_text(json.dumps({RECIPIENT: {"encryption": public_key(random.Random(1))}}))
        schema = folder / "schema.json"
        schema.write_text(telemetry_schema())
        self.hub.command(f"topic {OWNER} telemetry {schema}")
        self.hub.command(f"open {RECIPIENT}", timeout=20)

    def settings(self) -> dict[str, Any]:
        """Of a channel to the hub, full messages."""
        topic = {"owner": OWNER, "name": "telemetry", "version": "1.0.0"}
        keys = {"file": str(self._participants)}
        return {"url": self.hub.url, "topic": topic, "recipients": [RECIPIENT], "keys": keys, "send_every": "1h"}

    def delivered(self) -> int:
        """Messages that the recipient has."""
        return messages(self.nats.url, RECIPIENT)

    def agent(self, *, over_hub: bool) -> float:
        """Microseconds of CPU per reading."""
        config = self._configured(over_hub=over_hub)
        with Agent(self.folder, config, name="ddhub" if over_hub else "nats") as agent:
            agent.wait_ready()
            return self._measure(agent, over_hub=over_hub)

    def _configured(self, *, over_hub: bool) -> Path:
        to = ""
        if over_hub:
            found = self.settings()
            topic, keys = (
                f"{{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in found[name].items())} }}"
                for name in ("topic", "keys")
            )
            to = (
                f'transport = "ddhub"\nurl = "{found["url"]}"\ntopic = {topic}\nkeys = {keys}\n'
                f'recipients = ["{RECIPIENT}"]\nsend_every = "1h"'
            )
        text = load.configuration(
            self._device.port,
            self.nats.url,
            units=UNITS,
            registers=REGISTERS,
            every=f"{1000 // HERTZ}ms",
            to=to,
            state=self.folder / ("over-hub" if over_hub else "over-nats"),
        )
        if not self._prepared:
            load.prepare(self.folder, self.nats.url, text)
            self._prepared = True
        text = text.replace('key = "file:key"', f'key = "file:key"\ndid = "{self._did}"')
        path = self.folder / ("ddhub.toml" if over_hub else "nats.toml")
        path.write_text(text)
        if over_hub:
            self.hub.command(f"enrol {self._did}")
        return path

    @property
    def _did(self) -> str:
        return open_signer(parse(f"file:{self.folder / 'key'}"), network="volta").did

    def _measure(self, process: Agent, *, over_hub: bool) -> float:
        """Over the hub from one message to the third behind it; else as long."""
        if over_hub:
            self._await(self.delivered() + 2)  # the first brought the start with it
        else:
            time.sleep(5)
        others, began, used, had = Others(), time.monotonic(), cpu_seconds(process.pid), self.delivered()
        if over_hub:
            self._await(had + SPAN)
        else:
            time.sleep(self._span)
        used, span = cpu_seconds(process.pid) - used, time.monotonic() - began
        self._span = span
        name, count = ("ddhub", f", {self.delivered() - had} messages") if over_hub else ("nats", "")
        self.notes[name] = (
            f"{name}: {used / span:.1%} of a core in {span:.0f} s{count}, {resident_mib(process.pid):.0f} MiB, "
            f"other programs took {others.share():.0%} of the machine"
        )
        return used * 1e6 / (span * RATE)

    def _await(self, count: int) -> None:
        deadline = time.monotonic() + WITHIN * SPAN
        while self.delivered() < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the hub has {self.delivered()} of {count} messages")
            time.sleep(0.05)


def per_reading() -> Figure:
    """The whole agent, Modbus to the recipient's mailbox."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        rig = Rig(Path(folder), stack)
        value, reference = interleaved([partial(rig.agent, over_hub=True), partial(rig.agent, over_hub=False)])
    note = f"last round: {rig.notes['ddhub']}; {rig.notes['nats']}"
    return Figure("ddhub_cpu_per_reading", value, "us", reference, "a channel to NATS", None, note)


def per_message() -> Figure:
    """The transport alone: the records of a full message handed over until they are acknowledged."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        rig = Rig(Path(folder), stack)
        config = DdhubConfig.model_validate(rig.settings())
        records = 0
        while clear_size([_ENVELOPE] * (records + 1)) <= largest_clear(config.max_message):
            records += 1
        signer = KeySigner(_SECRET, network="volta")
        rig.hub.command(f"enrol {signer.did}")
        asyncio.run(create_stream(rig.nats.url, load.STREAM, ["dx.>"]))

        def over_hub() -> float:
            transport = DdhubTransport(config, topic=str(config.topic), signer=signer, clock=SystemClock())
            return asyncio.run(_deliver(transport, records))

        def over_nats() -> float:
            to = NatsConfig.model_validate({"servers": [rig.nats.url]})
            return asyncio.run(_deliver(NatsTransport(to, topic=load.TOPIC), records))

        value, reference = (each * 1000 for each in interleaved([over_hub, over_nats]))
    note = f"{records} records of {_ENVELOPE} bytes, {value / records:.3f} ms each, one recipient"
    return Figure("ddhub_cpu_per_message", value, "ms", reference, "the same records over NATS", None, note)


_runs = iter(range(1 << 30))


async def _deliver(transport: DdhubTransport | NatsTransport, records: int, *, times: int = 5) -> float:
    """Seconds of this process's CPU for a message, once a session is there."""
    chance = random.Random(1)
    async with AsyncExitStack() as stack:
        session: Any = await stack.enter_async_context(transport.session())
        acks = session.acks()
        used = 0.0
        for time_ in range(times + 1):  # the first one warms up
            run = f"{next(_runs):032x}"
            batch = [Message(seq, f"{run}-{seq}-{seq:08x}", chance.randbytes(_ENVELOPE)) for seq in range(records)]
            began = time.process_time()
            await _send(session, acks, batch, at_once=transport.window)
            used += (time.process_time() - began) * bool(time_)
        return used / times


async def _send(session: Any, acks: Any, batch: Sequence[Message], *, at_once: int) -> None:
    """As the publisher does: so many ahead."""
    acked = 0
    for number, message in enumerate(batch):
        if number - acked >= at_once:
            await anext(acks)
            acked += 1
        await session.send(message)
    if hasattr(session, "hasten"):
        session.hasten()
    for _ in range(len(batch) - acked):
        await anext(acks)
