"""The reference: paho receives the messages of a topic and throws them away; it only counts them.

Run as ``python -m bench.receive_and_drop PORT TOPIC QOS VERSION``; VERSION of MQTT: 3.1.1 or 5. On SIGTERM it
publishes an empty message to the topic, and when that comes back, behind all that the broker had queued for it, prints
``received N`` and ends. paho does all of it: ``loop_forever``, and the acknowledgements of QoS 1.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

VERSIONS = {"3.1.1": MQTTProtocolVersion.MQTTv311, "5": MQTTProtocolVersion.MQTTv5}


def receive(port: int, topic: str, qos: int, version: str) -> None:
    """Until SIGTERM."""
    client = paho.Client(CallbackAPIVersion.VERSION2, "reference", protocol=VERSIONS[version])
    received = 0

    def connected(*_: Any) -> None:
        client.subscribe(topic, qos)

    def subscribed(client: paho.Client, data: Any, mid: int, codes: Any, properties: Any) -> None:
        assert [code.value for code in codes] == [qos]
        print("ready", flush=True)

    def dropped(client: paho.Client, data: Any, message: paho.MQTTMessage) -> None:
        nonlocal received
        if message.payload:
            received += 1
        else:
            client.disconnect()

    def end(*_: Any) -> None:
        # In a thread: the handler may have interrupted paho with its locks held, and must not break a message off.
        threading.Thread(target=client.publish, args=[topic, b"", qos]).start()

    client.on_connect, client.on_subscribe, client.on_message = connected, subscribed, dropped
    signal.signal(signal.SIGTERM, end)
    client.connect("127.0.0.1", port)
    client.loop_forever()
    print(f"received {received}", flush=True)


if __name__ == "__main__":
    port_, topic_, qos_, version_ = sys.argv[1:]
    receive(int(port_), topic_, int(qos_), version_)
