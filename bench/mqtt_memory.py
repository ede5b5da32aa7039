"""Memory of the agent over a million MQTT messages of QoS 1: its resident set after the last, beside that after the
first hundred thousand.

They come as fast as the agent takes them: more than it ever holds always wait for it, so that it must stop reading when
it has no room. (Mosquitto 2.0.11 of Debian 12 does not keep to the client's window once messages queue, whatever the
version of MQTT: the agent's own bounds are what is measured.) The resident set rises and falls with what is on its way:
on both sides the highest of the last 50,000 messages counts. All of them must be at the consumer in the end. Takes a
few minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench.figure import Figure, resident_mib
from bench.mqtt_rig import AGENT, MqttRig
from testbed.child import wait_for

MESSAGES, WARM_UP, LAST = 1_000_000, 100_000, 50_000
AHEAD = 20_000  # messages on their way; the agent holds some 4,500 of them at most
TARGET = 1.1
HOUR = 3600.0


def figure() -> Figure:
    """Measure once."""
    samples: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder, MqttRig(Path(folder), qos=1, version="5") as rig:
        with rig.agent() as agent, rig.publisher(AGENT, rate=0) as publisher:
            began = time.monotonic()

            def all_taken() -> bool:
                taken = rig.frames()
                publisher.allow(min(MESSAGES, taken + AHEAD))
                samples.append((taken, resident_mib(agent.pid)))
                return taken >= MESSAGES

            wait_for(all_taken, timeout=HOUR, what=f"the agent to take {MESSAGES} messages")
            print(f"{MESSAGES / (time.monotonic() - began):.0f} messages a second", file=sys.stderr, flush=True)
            rig.end(publisher)
        rig.judge()
    reference, value = highest(samples, WARM_UP), highest(samples, MESSAGES)
    return Figure("mqtt_memory", value, "MiB", reference, f"after {WARM_UP:,} messages", TARGET)


def highest(samples: list[tuple[int, float]], messages: int) -> float:
    """The highest resident set while the last ``LAST`` before ``messages`` were taken."""
    return max(mib for taken, mib in samples if messages - LAST < taken <= messages)
