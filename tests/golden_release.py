"""What a release leaves on disk, written once when it is made and kept for ever: ``python -m tests.golden_release``.

It writes ``tests/golden/VERSION`` with the code of that version and never over a folder that is there. Later versions
only read it (tests/test_golden.py): what a box in the field holds must be opened, continued and verified by every
version that comes after.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from agent import __version__
from agent.cli import main
from agent.commands.accepting import Checkpoint
from agent.config import load
from agent.config.shown import as_file
from agent.model import Cause, ClockQuality, ClockState, EventCode, Gap
from agent.outbox.look import look
from agent.rendering import account
from agent.verifier import Verifier
from tests.runs import DID, SECRET, Run, S, frame, group
from tests.served_agent import Ring

GOLDEN = Path(__file__).parent / "golden"
SEGMENT = 16 * 1024  # of the small ring, so that it has gone round
SMALL = 8192 + 4 * SEGMENT
WHOLE = 5 << 20

CONFIG = """\
# The configuration of a site as 0.1.0 took it.
version = 1
include = ["conf.d/*.toml"]

[site]
id     = "solar-park-7"
labels = { dso = "westnet" }

[identity]
key = "file:key"

[clock]
wait = "30s"

[connection.hall]
url           = "modbus+tcp://192.0.2.20:502"
timeout       = "1s"
request_pause = "25ms"

[[device]]
id         = "grid-meter"
connection = "hall"
unit       = 12
asset      = "urn:nmi:4103512345"
word_order = "little"
forbidden  = ["40100-40119"]

[device.groups.electrical]
every  = "1s"
phase  = "auto"
points = [
  { name = "W", at = "40021", type = "int32", scale = 0.1, unit = "W", range = [-500e3, 500e3] },
  { name = "State", at = "40050", type = "enum16", values = { 0 = "off", 1 = "run" } },
]

[[device]]
id         = "pv-1"
connection = "hall"
unit       = 126
sunspec    = { base = [40000, 50000, 0] }
groups     = { ac = { every = "5s", points = ["103.W", "103.WH"] } }

[[channel]]
id               = "dso"
transport        = "nats"
servers          = ["tls://nats-1.dso.example:4222", "tls://nats-2.dso.example"]
creds            = { file = "dso.creds" }
stream           = "telemetry"
send             = ["grid-meter/*", "pv-1/ac/W"]
seal_within_away = "30s"
drain            = { spread = "60s", rate = "256KiB/s" }
tls              = { ca = "dso-ca.pem", server_name = "nats.dso.example" }
create           = { max_age = "365d", discard = "old" }
outbox           = { size = "16MiB", on_disk_failure = "memory" }

[agent]
state     = "state"
socket    = "agent.sock"
log_level = "info"
"""
BATTERY = """\
[connection.bms]
url      = "mqtts://192.0.2.2:8883?version=5"
username = "agent"
password = { credential = "bms-password" }
session  = "keep"

[[device]]
id           = "battery"
connection   = "bms"
topic        = "site/battery/state"
timestamp    = { at = "/ts", format = "unix-ms" }
silent_after = "2m"

[device.groups.state]
points = [{ name = "SoC", at = "/soc", unit = "%", range = [0, 100] }, { name = "W", at = "/power/w", decimals = 1 }]

[[channel]]
id        = "market"
transport = "nats"
servers   = ["nats://192.0.2.60"]
send      = ["battery/state/[SW]*"]
outbox    = { size = "16MiB", when_full = "block" }
"""
ALLOWED = f"""\
version = 1

[[signer]]
did      = "{DID}"
name     = "Solar park 7"
channels = ["dso"]
"""


def write(folder: Path) -> None:
    """Write all of it. Raises FileExistsError."""
    folder.mkdir()
    (folder / "agent.toml").write_text(CONFIG)
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "battery.toml").write_text(BATTERY)
    (folder / "configuration.json").write_text(text(shown(folder)))
    (folder / "allow.toml").write_text(ALLOWED)
    (folder / "bms.filters").write_text("site/+/alarms\nsite/battery/state\n")
    (folder / "key").write_text(SECRET.hex() + "\n")
    outboxes(folder)
    evidence(folder)


def text(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def shown(folder: Path) -> Any:
    """The effective configuration, wherever it lies."""
    told = json.dumps(as_file(load(folder / "agent.toml")))
    return json.loads(told.replace(str(folder), "/golden"))


def outboxes(folder: Path) -> None:
    """A small ring that has gone round twice, and one as an agent makes it, each half acknowledged."""
    small = Ring(folder / "small.ring", size=SMALL, segment_size=SEGMENT)
    while small.box.next_pos < 300:
        small.data(2)
        small.box.settle(max(0, small.box.next_pos - 6))
    whole = Ring(folder / "dso.ring", size=WHOLE)
    for _ in range(20):
        whole.data(3)
    whole.box.settle(10)
    whole.box.mark()
    told = {}
    for ring in (small, whole):
        ring.box.close()
        standing = look(ring.path, channel="dso").as_json()
        held = [[pos, hashlib.sha256(each).hexdigest()] for pos, each in ring.held if pos >= standing["first_pos"]]
        told[ring.path.name] = {"standing": {k: v for k, v in standing.items() if k != "ring"}, "records": held}
    (folder / "outboxes.json").write_text(text(told))
    (folder / "dso.ring.gz").write_bytes(gzip.compress((folder / "dso.ring").read_bytes(), mtime=0))
    (folder / "dso.ring").unlink()


def evidence(folder: Path) -> None:
    """Two runs with frames, a gap, a withdrawn record and events, cut in two: what a verifier says of both, and what it
    kept after the first.
    """
    first = Run()
    first.clock.good = ClockQuality(ClockState.SYNCHRONISED, 1200)
    first.begin([group(100), group(20, name="slow", period=5 * S)])
    first.event(EventCode.START, "0.1.0", True)
    for cycle in range(100, 110, 2):
        first.data([frame(cycle), frame(cycle + 1)])
        first.clock.now += 2 * S
    first.data([frame(20, group=1)], [Gap(0, 110, 112, Cause.LINK_DOWN, "cannot connect: no answer")])
    first.data([frame(113)])
    lost = len(first.sent)
    first.event(EventCode.STOP, "SIGTERM")
    second = Run(after=first, clock=first.clock)
    second.clock.now += 10 * S
    second.withdraw(lost, lost, Cause.OVERFLOW, stream=first.sealer.stream)
    second.begin([group(124), group(24, name="slow", period=5 * S)])
    second.data([frame(124), frame(125)])
    second.data([frame(24, group=1)])
    came = [envelope for number, envelope in enumerate(first.sent, 1) if number != lost]
    (folder / "evidence-1.cbor").write_bytes(b"".join(came))
    (folder / "evidence-2.cbor").write_bytes(b"".join(second.sent))
    verifier = Verifier([DID])
    for each in came:
        verifier.feed(each)
    Checkpoint("files", None, verifier.save()).write(folder / "checkpoint.cbor")
    for each in second.sent:
        verifier.feed(each)
    verifier.finish()
    (folder / "report.json").write_text(text(account.as_json(verifier.report)))


if __name__ == "__main__":
    write(GOLDEN / __version__)
    sys.exit(main(["verify", *(str(GOLDEN / __version__ / f"evidence-{n}.cbor") for n in (1, 2))]))
