"""An agent under load: units of plain registers, read at one rate and sent on one channel."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import nats

from agent.evidence.envelope import unpack
from agent.evidence.record import decode_head, decode_record
from agent.model import Data, Plan
from bench.modbus_device import FIRST_UNIT
from testbed.broker import create_stream
from testbed.child import wait_for
from testbed.processes import Agent, edge_agent

SITE, CHANNEL, STREAM = "bench", "bench", "BENCH"
TOPIC = f"dx.{SITE}.{CHANNEL}"


def configuration(
    device: int,
    broker: str,
    *,
    units: int,
    registers: int,
    every: str,
    connections: int = 1,
    channel: str = "",
    state: Path | None = None,
    to: str = "",
) -> str:
    """The agent's: every register of every unit, at the device's port, to the broker's URL. ``every``: a duration;
    ``connections`` share the units out; ``channel``: more lines for it; ``state``: else beside the file; ``to``: the
    channel's kind and where it goes, in place of NATS.
    """
    links = "".join(
        f'[connection.site-{number}]\nurl = "modbus+tcp://127.0.0.1:{device}"\n' for number in range(connections)
    )
    points = ", ".join(f'{{ name = "R{i}", at = "holding:{i}", type = "uint16" }}' for i in range(registers))
    devices = "".join(
        f'[[device]]\nid = "d{unit}"\nconnection = "site-{unit % connections}"\nunit = {FIRST_UNIT + unit}\n'
        f'[device.groups.all]\nevery = "{every}"\npoints = [{points}]\n'
        for unit in range(units)
    )
    to = to or f'transport = "nats"\nservers = ["{broker}"]'
    return (
        f'version = 1\n[site]\nid = "{SITE}"\n[clock]\nwait = "0s"\n[identity]\nkey = "file:key"\n'
        f"{links}{devices}"
        f'[[channel]]\nid = "{CHANNEL}"\n{to}\nsend = ["*"]\n{channel}\n'
        f'[agent]\nstate = "{state or "state"}"\nlog_level = "warning"\n'
    )


def prepare(folder: Path, broker: str, text: str) -> Path:
    """A key, the configuration, and the stream at the broker's URL. Returns the configuration's path."""
    asyncio.run(create_stream(broker, STREAM, ["dx.>"]))
    subprocess.run([*edge_agent(), "init", str(folder), "--network", "volta"], check=True, capture_output=True)
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def wait_delivering(agent: Agent, timeout: float = 30) -> None:
    """Return when the agent has delivered all that waited."""
    agent.wait_ready()
    wait_for(
        lambda: "0 waiting, broker connected" in agent.status and " 0 delivered" not in agent.status,
        timeout=timeout,
        what="the agent to deliver",
    )


def report(config: Path, timeout: float = 300) -> dict[str, Any]:
    """What a consumer's verifier says of all that is in the stream."""
    command = [*edge_agent(), "tail", "--config", str(config), "--until-idle", "--jsonl"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["report"]
    return found


def lost(found: dict[str, Any]) -> dict[str, int]:
    """Of such a report the cycles that are not there, by cause, but for those between two runs."""
    causes: dict[str, int] = {}
    for group in (group for channel in found["channels"] for group in channel["groups"]):
        for cause, number in (*group["gaps"].items(), ("missing", group["missing"])):
            if number and cause != "agent_down":
                causes[cause] = causes.get(cause, 0) + number
    return causes


async def cycles_stored(url: str, began: int, ended: int) -> int:
    """How many cycles the stream at the broker's URL took between two times, ns since 1970."""
    client = await nats.connect(url)
    stream = client.jetstream()
    held = (await stream.stream_info(STREAM)).state.messages
    subscription = await stream.subscribe(TOPIC, ordered_consumer=True)
    plan: Plan | None = None
    cycles = 0
    for _ in range(held):
        message = await subscription.next_msg(timeout=10)
        body = decode_record(decode_head(unpack(message.data).payload), plan).body
        if isinstance(body, Plan):
            plan = body
        elif isinstance(body, Data) and began <= message.metadata.timestamp.timestamp() * 1e9 < ended:
            cycles += len(body.frames)
    await client.close()
    return cycles
