"""The wire: one MQTT connection that its devices share, over paho (with adapters/mqtt/subscriptions.py).

A ``Session`` is one connection, made by adapters/mqtt/broker.py. A crash loses nothing that a broker keeps: a message
is acknowledged (PUBACK, PUBREC) by ``acknowledge`` only.

paho (2.2) keeps the session: CONNECT, CONNACK, SUBSCRIBE, SUBACK, PINGREQ, DISCONNECT. It runs in the event loop and
sees a socket made here (its private ``_create_socket`` is overridden, nothing else of its private parts is used)
that carries everything but PUBLISH, PUBREL and what answers them. These three are handled here, because paho sends
PUBREC before it hands a message over, so that a crash would lose it; cannot bound a packet's size; and reads byte by
byte. Its own reconnecting is switched off.

QoS 2: the message is handed over at PUBLISH, PUBREC goes out when it is acknowledged, PUBCOMP answers each PUBREL at
once. After a lost connection the broker sends what had no PUBREC again, with DUP; nothing of the exchange is kept here.

A broker that sends a message again within a connection (NATS does) uses the same packet identifier: only the last copy
is acknowledged, for the identifier may mean another message after that.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from adapters.mqtt.account import CLOSED, Account, certificate_hint, link_down, reason
from adapters.mqtt.config import MqttConnection
from adapters.mqtt.message import Message
from adapters.mqtt.packets import Malformed, Packets, acknowledgement
from adapters.mqtt.subscriptions import Subscriptions
from adapters.mqtt.wire import Wire
from agent.ports import Arrival

S = 1_000_000_000
_PUBACK, _PUBREC, _PUBCOMP = 0x40, 0x50, 0x70
_PINGRESP = b"\xd0\x00"
_TICK = 1.0  # s between looks at the keep-alive
_MOST_WAITING = 512  # messages that nobody fetched; then nothing is read until somebody does
_MOST_BYTES = 4 << 20  # of them, and of those that were fetched and are not acknowledged
_MOST_BYTES_BEFORE = 64 << 20  # until the broker has confirmed the subscriptions, which may come behind them
_MESSAGE_BYTES = 500  # that a message takes beside topic and payload, about
_LEAST_FAILURE = 0x80

_HINTS = {
    132: "write ?version=3.1.1 or ?version=5 behind the url of the connection",
    133: "set a client_id that the broker takes; MQTT 3.1.1 promises 1 to 23 letters and digits",
    134: "check username and password of the connection",
    135: "are username and password right, and may that user use this client_id? see the broker's access rules",
    138: "the broker has banned this client; see its log",
}
"""By the reason code of CONNACK (MQTT 5.0, 3.2.2.2); paho brings those of 3.1.1 to the same numbers."""

log = logging.getLogger(__name__)


class _Socket:
    """What paho takes for its socket (paho.mqtt.client.SocketLike)."""

    def __init__(self, packets: Packets, write: Callable[[bytes], None], fileno: int) -> None:
        self._packets = packets
        self._write = write
        self._fileno = fileno

    def recv(self, buffer_size: int) -> bytes:
        others = self._packets.others
        if not others:
            raise BlockingIOError
        data = bytes(others[:buffer_size])
        del others[:buffer_size]
        return data

    def send(self, buffer: bytes | bytearray) -> int:
        self._write(bytes(buffer))
        return len(buffer)

    def close(self) -> None:
        """The session closes the real one."""

    def fileno(self) -> int:
        return self._fileno

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""


class _Client(paho.Client):
    """paho on a socket that is connected already."""

    connected: _Socket

    def _create_socket(self) -> paho.SocketLike:
        return self.connected


class Session:
    """One connection, from connected to lost (agent.ports.Subscription)."""

    def __init__(self, account: Account, connected: socket.socket, password: str | None) -> None:
        config = account.config
        self._window = config.window if any(account.filters.values()) else None
        self.resumed = False
        self._account = account
        self._clock = account.clock
        self._heard = self._seen = self._clock.boot()
        self._since: int | None = None
        self._loop = asyncio.get_running_loop()
        self._packets = Packets(version5=config.version == "5")
        self._waiting: list[Arrival] = []
        self._bytes = 0
        self._unacknowledged: dict[int, Message] = {}  # the last with each packet identifier
        self._owed = 0  # bytes of what is not acknowledged
        self._unasked = False  # it was said that messages come which nobody asked for
        self._fetcher: asyncio.Future[None] | None = None
        self._trouble: tuple[str, str] | None = None  # why it ended, and a hint
        self._subscribed = False
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._client = self._paho(config, account.client_id, password)  # raises, so before anything must be closed
        self._subscriptions = Subscriptions(account, self._client)
        self._wire = Wire(connected, received=self._received, lost=self._failed)
        self._ticking = self._loop.call_later(_TICK, self._tick)
        self._client.connected = _Socket(self._packets, self._wire.write, connected.fileno())

    @property
    def window(self) -> int | None:
        """So many messages at most does the broker send without an acknowledgement; 1 as soon as half of the bytes that
        we take without one wait for it, for then each message more may be the last that is read.
        """
        return 1 if 2 * self._owed >= _MOST_BYTES else self._window

    @property
    def since(self) -> int:
        """Boot time from which on messages could come: a kept session's come behind CONNACK, before SUBACK."""
        return self._heard if self._since is None else self._since

    @property
    def heard(self) -> int:
        """Boot time of the last bytes from the broker."""
        return self._heard

    async def receive(self) -> Sequence[Arrival]:
        """What came, in order, at least one. Raises AcquisitionError (LINK_DOWN)."""
        while not self._waiting:
            self._raise_if_ended()
            self._fetcher = self._loop.create_future()
            try:
                await self._fetcher
            finally:
                self._fetcher = None
        arrivals, self._waiting = self._waiting, []
        self._bytes = 0
        self._go_on()
        return arrivals

    def acknowledge(self, arrival: Arrival) -> None:
        """It is on disk."""
        message: Message = arrival.message
        if message.qos:
            self._owed -= message.size
            self._go_on()
        if message.qos and self._trouble is None and self._unacknowledged.get(message.mid) is message:
            del self._unacknowledged[message.mid]
            self._wire.write(acknowledgement(_PUBACK if message.qos == 1 else _PUBREC, message.mid))

    async def open(self) -> None:
        """Connect and subscribe. Raises AcquisitionError; the caller bounds the time."""
        config = self._account.config
        await self._subscriptions.recall()
        try:
            if config.version == "5":
                properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
                keep = config.session == "keep"
                properties.SessionExpiryInterval = -(-config.session_expiry // S) if keep else 0
                properties.ReceiveMaximum = config.window
                # No MaximumPacketSize: the broker would drop what is larger without a word; so it is stated.
                self._client.connect(
                    config.host, config.port, config.keepalive // S, clean_start=not keep, properties=properties
                )
            else:
                self._client.connect(config.host, config.port, config.keepalive // S)
        except (ValueError, struct.error):
            # The text of the error, or what it holds, may be the password.
            raise link_down("user, password or client_id cannot be sent", "are they UTF-8, and not too long?") from None
        await self._connack
        await self._subscriptions.renew()
        self._subscribed = True
        if self._since is None:
            self._since = self._heard
        self._hold_up()

    async def close(self) -> None:
        """Say goodbye and close. Never raises."""
        self._end(CLOSED, "")
        if self._subscribed:
            self._client.disconnect()
            await self._wire.close()
        self._wire.abort()

    def abort(self) -> None:
        """Close at once. Never raises."""
        self._end(CLOSED, "")
        self._wire.abort()

    # ---- paho -----------------------------------------------------------------------------------------------

    def _paho(self, config: MqttConnection, client_id: str, password: str | None) -> _Client:
        five = config.version == "5"
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if five else config.session == "clean",
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        if config.username is not None:
            try:
                client.username_pw_set(config.username, password)
            except ValueError:
                raise link_down("the password cannot be sent", "is it UTF-8?") from None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        return client

    def _on_connect(self, client: paho.Client, data: Any, flags: Any, code: Any, properties: Any) -> None:
        if code.value >= _LEAST_FAILURE:
            self._lost(f"the broker refuses us: {code}", _HINTS.get(code.value, "see the broker's log"))
        elif not self._connack.done():
            self.resumed = self._subscriptions.connected(present=bool(flags.session_present))
            if flags.session_present:
                self._since = self._heard
            self._connack.set_result(None)

    def _on_disconnect(self, client: paho.Client, data: Any, flags: Any, code: Any, properties: Any) -> None:
        if self._trouble is not None:
            return  # it was told why, or it was we
        if flags.is_disconnect_packet_from_server:
            hint = self._account.taken_over if code.value == 142 else "see the broker's log"
            self._lost(f"the broker ended the connection: {code}", hint)
        elif not self._connack.done():
            # paho ends it without a word when a 3.1.1 broker does not speak that version.
            self._lost(f"the broker does not speak MQTT {self._account.config.version} with us", _HINTS[132])
        else:
            self._lost(f"the connection failed: {code}")

    # ---- from the event loop --------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        self._heard = self._clock.boot()
        packets = self._packets
        try:
            try:
                packets.feed(data)
            finally:
                if packets.messages:
                    self._take(packets.messages)
                    packets.messages = []
            if packets.released:
                self._wire.write(b"".join(acknowledgement(_PUBCOMP, mid) for mid in packets.released))
                packets.released.clear()
            while packets.others and self._trouble is None:
                if self._client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    self._lost("the broker does not keep to MQTT")
        except Malformed as error:
            self._lost(f"the broker does not keep to MQTT: {error}", self._account.doubt)
        except Exception as error:  # noqa: BLE001 - paho on bytes from anywhere; it ends this connection, no more
            self._lost(f"the broker does not keep to MQTT: {type(error).__name__}")

    def _take(self, messages: list[Message]) -> None:
        routes, now = self._account.routes, self._heard
        if self._since is None:
            self._since = now
        for message in messages:
            if message.qos:
                self._owed += message.size
                self._unacknowledged[message.mid] = message
            if self._subscriptions.second_copy(message, now):
                message.dup = True
            concerns = routes.concerns(message.topic)
            if not concerns:
                self._unasked_for()
            self._waiting.append(Arrival(message, now, concerns, owed=message.qos > 0))
            self._bytes += message.size + _MESSAGE_BYTES
        self._hold_up()
        self._wake()

    def _hold_up(self) -> None:
        """Read no more when too much waits."""
        if self._subscribed:
            full = len(self._waiting) >= _MOST_WAITING or max(self._bytes, self._owed) >= _MOST_BYTES
        else:
            full = self._bytes >= _MOST_BYTES_BEFORE
        if full and self._trouble is None:
            self._wire.pause()

    def _go_on(self) -> None:
        """Read again when there is room."""
        if self._wire.paused and not self._waiting and self._owed < _MOST_BYTES:
            self._wire.resume()

    def _unasked_for(self) -> None:
        if not self._unasked:
            self._unasked = True
            log.warning(
                "broker sends what nothing is configured for, acknowledged and ignored connection=%s hint=%s",
                self._account.name,
                'an earlier configuration subscribed it; if it lasts, connect once with session = "clean"',
            )

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(_TICK, self._tick)
        try:
            if self._wire.paused or self._heard > self._seen:
                # Any byte is a sign of life, and while nothing is read its answer to PINGREQ waits among the rest.
                self._seen = self._heard
                self._packets.others += _PINGRESP
                self._client.loop_read()
            self._client.loop_misc()
        except Exception as error:  # noqa: BLE001 - as above
            self._lost(f"the connection failed: {type(error).__name__}")

    def _failed(self, error: OSError | None) -> None:
        self._lost(reason(error), certificate_hint(error, self._account))

    def _lost(self, why: str, hint: str | None = None) -> None:
        """It ended; the first reason stands."""
        if hint is None:
            hint = self._account.taken_over if self._subscribed else self._account.doubt
        self._end(why, hint)
        self._wire.abort()

    def _end(self, why: str, hint: str) -> None:
        if self._trouble is not None:
            return
        self._trouble = (why, hint)
        self._ticking.cancel()
        if not self._connack.done():
            self._connack.set_exception(link_down(why, hint))
            self._connack.exception()  # nobody may wait for it
        self._subscriptions.end(link_down(why, hint))
        self._wake()

    def _wake(self) -> None:
        if self._fetcher is not None and not self._fetcher.done():
            self._fetcher.set_result(None)

    def _raise_if_ended(self) -> None:
        if self._trouble is not None:
            raise link_down(*self._trouble)
