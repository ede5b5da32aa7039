"""Mosquitto, the MQTT broker of Debian, as a real process: MQTT 3.1.1 and 5 on one port (provision.py gets it)."""

from __future__ import annotations

import base64
import hashlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import provision
from testbed.certificates import Authority
from testbed.processes import Process, ProcessError, wait_for, with_free_port

_ROUNDS = 101  # of PBKDF2: what mosquitto_passwd takes


class Mosquitto(Process):
    """A broker that keeps sessions, queued and retained messages in a file; later starts keep port and file.

    ``users``: passwords by name; without, anybody may connect. ``tls``: clients must use TLS and trust ``authority``.
    ``max_inflight``: messages on their way to one client; ``max_queued``: that wait for it behind these, 0: no limit
    (those beyond it are dropped though their publisher was told that they were taken). ``settings``: more lines for its
    configuration file.

    The file is written every one to two seconds, at ``stop`` and by ``save``: what came behind is lost with a kill.
    """

    LOSES = 2.5  # s before a kill: what was taken then may be lost with it

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        *,
        users: Mapping[str, str] | None = None,
        tls: bool = False,
        max_inflight: int = 20,
        max_queued: int = 0,
        settings: str = "",
        name: str = "mosquitto",
    ) -> None:
        found = provision.program("mosquitto")
        if found is None:
            raise ProcessError("no mosquitto: python3 provision.py debian makes it ready")
        binary, environment = found
        self.port = port or 0
        self.authority = Authority(folder / f"{name}.tls") if tls else None
        self.store = folder / f"{name}.store"
        self._config = folder / f"{name}.conf"
        self._lines = [
            *("user root", "persistence true", f"persistence_location {self.store}", "autosave_interval 1"),
            *(f"max_inflight_messages {max_inflight}", f"max_queued_messages {max_queued}"),
            *("log_dest stderr", "connection_messages true", "set_tcp_nodelay true"),
            *self._access(folder / f"{name}.passwords", users),
            *self._tls(),
            settings,
        ]
        super().__init__([binary, "-c", self._config], name=name, folder=folder, environment=environment)

    @property
    def url(self) -> str:
        """Where clients connect, as the agent's configuration writes it; ``?version=5`` may be added."""
        return f"{'mqtts' if self.authority else 'mqtt'}://127.0.0.1:{self.port}"

    def start(self, timeout: float = 10.0) -> Self:
        """Start it and wait until it takes connections."""
        self.store.mkdir(exist_ok=True)
        if self.port:
            self._start(self.port, timeout)
        else:
            self.port = with_free_port(lambda port: self._start(port, timeout))
        return self

    def _start(self, port: int, timeout: float) -> None:
        self._config.write_text("\n".join([f"listener {port} 127.0.0.1", *self._lines]) + "\n", encoding="utf-8")
        super().start()
        # its word and not a connection: another server may hold the port, and would take it
        self._await(lambda: " running\n" in self.log(), timeout=timeout, what=f"it to listen on port {port}")

    def save(self, timeout: float = 5.0) -> None:
        """Have it write its file now; returns when that is done."""
        file = self.store / "mosquitto.db"

        def state() -> tuple[int, int] | None:
            return (file.stat().st_ino, file.stat().st_mtime_ns) if file.exists() else None

        before = state()
        self.signal(signal.SIGUSR1)
        wait_for(lambda: state() not in (None, before), timeout=timeout, what=f"{self.name} to write {file.name}")

    @staticmethod
    def _access(file: Path, users: Mapping[str, str] | None) -> list[str]:
        if users is None:
            return ["allow_anonymous true"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        file.write_text("".join(f"{name}:{_hashed(password)}\n" for name, password in users.items()), encoding="utf-8")
        return ["allow_anonymous false", f"password_file {file}"]

    def _tls(self) -> list[str]:
        if self.authority is None:
            return []
        own = self.authority.issue("server")
        return [f"certfile {own.path}", f"keyfile {own.key}"]


def _hashed(password: str) -> str:
    """As mosquitto_passwd writes it; the salt need not be secret, and a fixed one makes files alike."""
    salt = hashlib.sha256(password.encode()).digest()[:12]
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS)
    return f"$7${_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
