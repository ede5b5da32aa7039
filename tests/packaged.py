"""The package for tests: made from this checkout, and installed on a machine that has a device and a broker."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Protocol

from release import deb, source, wheels
from release.target import Target
from testbed.processes import NatsServer, Site, edge_agent, wait_for

STREAM = "TELEMETRY"
SUBJECT = "dx.site-1.telemetry"
CONFIG, KEY, RING = "/etc/edge-agent/agent.toml", "/var/lib/edge-agent/key", "/var/lib/edge-agent/telemetry.ring"
CREDENTIAL = "/etc/edge-agent/agent-key.cred"
LARGE_PAGES = 1 << 14  # of the Raspberry Pi 5's own kernel; a library that is aligned to less does not load there
_PT_LOAD = 1
DROP_IN = "/etc/systemd/system/edge-agent.service.d/credential.conf"
VECTORS = Path(__file__).parent / "golden" / "evidence" / "cbor.json"
_READS = """\
import json, sys
from agent.errors import EvidenceError
from agent.evidence import cbor

for kind, vectors in json.load(open(sys.argv[1])).items():
    for vector in vectors:
        try:
            cbor.decode(bytes.fromhex(vector["cbor"]))
            said = "allowed"
        except EvidenceError:
            said = "refused"
        print(said == kind, vector["name"])
"""


class Kit:
    """What packages for a target are made from, fetched once."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.own = wheels.read(source.wheel(source.copy(folder / "source"), folder / "own"))
        self.wheels = wheels.fetch(target, folder / "wheels")

    def build(self, into: Path, *, revision: int = 1) -> Path:
        # compressed as little as xz can: half a minute less each, and nothing else is different
        return deb.build(self.target, into, own=self.own, wheels=self.wheels, revision=revision, level=0)


def alignments(package: Path) -> dict[str, set[int]]:
    """How the segments that are loaded of each library in a package are aligned, in bytes (ELF-64, program header)."""
    files = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True, timeout=60).stdout
    found: dict[str, set[int]] = {}
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        for member in filter(tarfile.TarInfo.isreg, archive):
            content = archive.extractfile(member)
            if content is None or not (elf := content.read()).startswith(b"\x7fELF\x02\x01"):
                continue
            first, size, count = *struct.unpack_from("<Q", elf, 32), *struct.unpack_from("<HH", elf, 54)
            headers = [struct.unpack_from("<II6Q", elf, first + n * size) for n in range(count)]
            found[member.name] = {header[7] for header in headers if header[0] == _PT_LOAD}
    return found


class Machine(Protocol):
    """Where the package is installed: a box, or a virtual machine."""

    def run(self, *command: str, check: bool = True) -> str:
        """What a command there writes to stdout."""


class Life:
    """A machine with our packages in sight, and a device and a broker that it reaches at ``host``."""

    def __init__(self, box: Machine, site: Site, server: NatsServer, *, host: str = "127.0.0.1") -> None:
        self.box = box
        self.site = site
        self.server = server
        self._host = host

    def run(self, script: str, *, check: bool = True) -> str:
        return self.box.run("sh", "-c", f"exec 2>&1; {script}", check=check)

    def install(self, package: str) -> str:
        return self.run(f"DEBIAN_FRONTEND=noninteractive apt-get -q -y install {package}")

    def show(self, name: str) -> str:
        return self.box.run("systemctl", "show", "edge-agent", "--value", f"--property={name}").strip()

    def owner(self, path: str) -> str:
        return self.box.run("stat", "--format=%U:%G %a", path).strip()

    def content(self, *paths: str) -> str:
        return self.box.run("sha256sum", *paths)

    def there(self, *paths: str) -> list[str]:
        found = self.run(f"ls -1d {' '.join(paths)} 2>/dev/null", check=False)
        return found.split()

    def configure(self) -> None:
        """Put our device and our broker, and shorter times, into what ``init`` wrote."""
        edits = {
            "192.0.2.20:502": f"{self._host}:{self.site.port}",
            "nats://192.0.2.50:4222": f"nats://{self._host}:{self.server.port}",
            'wait = "60s"': 'wait = "0s"',
            'every = "5s"': 'every = "1s"',
        }
        for old, new in edits.items():
            self.run(f"sed -i 's#{old}#{new}#' {CONFIG}")

    def reads_as_written(self, vectors: str) -> None:
        """The package reads CBOR, of a file with ``VECTORS``, as it is read here: two verifiers must not differ by the
        Python that they run on.
        """
        said = self.box.run("/usr/lib/edge-agent/bin/python3", "-I", "-c", _READS, vectors).splitlines()
        assert len(said) > 100
        assert [line for line in said if not line.startswith("True ")] == []

    def hang(self, *, watchdog: int) -> None:
        """Stop the process without ending it, and return when systemd has started it again: after ``watchdog`` s."""
        hasty = f"{Path(DROP_IN).parent}/hasty.conf"
        lines = rf"[Service]\nWatchdogSec={watchdog}\nTimeoutAbortSec=1\nRestartSec=0\n"
        self.run(f"mkdir -p {Path(hasty).parent}; printf '{lines}' > {hasty}; systemctl daemon-reload")
        self.run("systemctl restart edge-agent; systemctl kill --kill-who=main --signal=STOP edge-agent")
        wait_for(lambda: self.show("NRestarts") == "1", timeout=10.0 * watchdog, what="a start after the watchdog")
        wait_for(lambda: self.show("ActiveState") == "active", timeout=10.0 * watchdog, what="READY")
        assert "watchdog" in self.run("journalctl -u edge-agent -n 50 | cat").lower()
        self.run(f"rm {hasty}; systemctl daemon-reload")

    def told(self, what: str) -> int:
        """How many records are ``waiting`` or ``delivered``, as the agent told systemd last; -1: it has not yet."""
        found = re.search(rf"(\d+) {what}", self.show("StatusText"))
        return int(found[1]) if found else -1

    def delivers(self, more: int = 2, *, timeout: float = 60.0) -> None:
        """Wait until it has delivered so many records since it started."""
        wait_for(lambda: self.told("delivered") >= more, timeout=timeout, what="records at the broker")

    def consumed(self, did: str) -> list[dict[str, Any]]:
        """What a consumer gets who knows nothing but broker and DID: all records, and the report at last."""
        source = f"{self.server.url}/{STREAM}?subject={SUBJECT}"
        command = [*edge_agent(), "tail", source, "--did", did, "--until-idle", "--jsonl"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert said.returncode == 0, said.stdout[-2000:] + said.stderr
        return [json.loads(line) for line in said.stdout.splitlines()]

    def at_the_other_end(self, did: str) -> dict[str, Any]:
        """The report; everything in it is good."""
        report: dict[str, Any] = self.consumed(did)[-1]["report"]
        assert (report["failed"], {*report["levels"].values()}) == (0, {"ok"})
        return report
