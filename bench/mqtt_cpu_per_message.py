"""CPU per MQTT message, received, signed, on disk and delivered, beside paho that receives the same messages and throws
them away.

1,000 messages a second of about 100 bytes with four numbers each, evenly, so that neither is ever busy; agent,
publisher and both brokers are real processes. Only the steady state counts. With QoS 1 the broker of MQTT 3.1.1 sends
20 messages without an acknowledgement, and the agent seals when half of them wait for the disk; with MQTT 5 it is 256.
The figures hold only if everything arrived, which is checked: for the agent at its consumer, for the reference by its
own count.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench.figure import Figure, cpu_seconds, interleaved
from bench.mqtt_rig import AGENT, REFERENCE, MqttRig, said
from testbed.child import Process, wait_for

RATE = 1000
WARM_UP, SECONDS = 2.0, 10.0
TARGET = 2.5


def qos0() -> Figure:
    """At most once: nothing is acknowledged."""
    return _figure("mqtt_cpu_per_message_qos0", qos=0, version="3.1.1")


def qos1() -> Figure:
    """At least once: acknowledged when it is on disk."""
    return _figure("mqtt_cpu_per_message_qos1", qos=1, version="3.1.1")


def qos1_v5() -> Figure:
    """The same with MQTT 5, whose window is the agent's choice."""
    return _figure("mqtt_cpu_per_message_qos1_v5", qos=1, version="5")


def _figure(name: str, *, qos: int, version: str) -> Figure:
    """Measure in three interleaved rounds."""
    with tempfile.TemporaryDirectory() as folder, MqttRig(Path(folder), qos=qos, version=version) as rig:
        agent, reference = interleaved([lambda: _agent(rig), lambda: _reference(rig)])
        rig.judge()
    return Figure(name, agent, "us", reference, f"paho, MQTT {version} QoS {qos}, received and dropped", TARGET)


def _per_message(process: Process) -> float:
    """Microseconds of CPU per message over the measured span."""
    _pass(WARM_UP)
    began, used = time.monotonic(), cpu_seconds(process.pid)
    _pass(SECONDS)
    return (cpu_seconds(process.pid) - used) * 1e6 / ((time.monotonic() - began) * RATE)


def _pass(seconds: float) -> None:
    end = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= end or None, timeout=seconds + 10, what="the measured span")


def _agent(rig: MqttRig) -> float:
    with rig.agent() as agent, rig.publisher(AGENT, rate=RATE) as publisher:
        publisher.allow(sys.maxsize)
        value = _per_message(agent)
        rig.end(publisher)
    return value


def _reference(rig: MqttRig) -> float:
    arguments = [str(rig.mosquitto.port), REFERENCE, str(rig.qos), rig.version]
    command = [sys.executable, "-m", "bench.receive_and_drop", *arguments]
    with (
        Process(command, name="reference", folder=rig.folder) as reference,
        rig.publisher(REFERENCE, rate=RATE) as publisher,
    ):
        wait_for(lambda: "ready" in reference.log() or None, timeout=20, what="the reference to listen")
        publisher.allow(sys.maxsize)
        value = _per_message(reference)
        sent = publisher.end()
        reference.stop()
        if (received := said(reference, "received")) != sent:
            raise RuntimeError(f"the reference received {received} of {sent} messages")
    return value
