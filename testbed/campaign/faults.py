"""The faults, one class per kind: what is done, and what puts it right. What faults touch tells which may overlap."""

from __future__ import annotations

import errno
import random
import re
import signal
import threading
import time
from typing import ClassVar

from testbed.campaign.world import World
from testbed.child import wait_for

_SETTINGS = (  # of the configuration: where a value stands, and what it may be
    (r'(?<=seal_within = ")\w+', ("100ms", "200ms", "300ms")),
    (r'(?<=power = { every = ")\w+', ("100ms", "150ms", "250ms")),
    (r'(?<=energy = { every = ")\w+', ("400ms", "500ms", "1s")),
    (r'(?<=timeout = ")\d+ms', ("250ms", "350ms")),
    (r'(?<=unit = "V", decimals = )\d', ("2", "3")),
)


def pause(seconds: float) -> None:
    """Let all of them work: what they do in that time is what a campaign is about."""
    time.sleep(seconds)


class Fault:
    """One fault: ``inject``, some time, ``heal``. No two that touch the same overlap."""

    kind: ClassVar[str]
    touches: ClassVar[frozenset[str]]

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world = world
        self.chance = chance

    def inject(self) -> None:
        """Do it."""

    def heal(self) -> None:
        """Put it right; that it works again takes longer."""


# ---- who is killed ----------------------------------------------------------------------------------------------


class KillAgent(Fault):
    """Sometimes again while it starts."""

    kind, touches = "agent killed", frozenset({"agent"})

    def inject(self) -> None:
        """Do it."""
        self.world.agent.kill()
        for _ in range(self.chance.choice((0, 0, 1, 2))):
            self.world.agent.start()
            pause(self.chance.uniform(0.1, 1.2))
            self.world.agent.kill()

    def heal(self) -> None:
        """Put it right."""
        self.world.agent.start()


class StopAgent(Fault):
    """In order, whatever else is broken at the time."""

    kind, touches = "agent stopped", frozenset({"agent"})

    def inject(self) -> None:
        """Do it."""
        if self.world.ready:
            self.world.stop(timeout=20)
        else:
            self.world.agent.kill()

    def heal(self) -> None:
        """Put it right."""
        self.world.agent.start()


class KillBroker(Fault):
    """With records on their way."""

    kind, touches = "broker killed", frozenset({"broker"})

    def inject(self) -> None:
        """Do it."""
        self.world.broker.kill()

    def heal(self) -> None:
        """Put it right."""
        self.world.broker.start()


class KillBoth(Fault):
    """Agent and broker at once."""

    kind, touches = "agent and broker killed", frozenset({"agent", "broker"})

    def inject(self) -> None:
        """Do it."""
        both = [self.world.agent, self.world.broker]
        self.chance.shuffle(both)
        for each in both:
            each.kill()

    def heal(self) -> None:
        """Put it right."""
        both = [self.world.agent, self.world.broker]
        self.chance.shuffle(both)
        for each in both:
            each.start()


class BrokerHangs(Fault):
    """It takes connections and says nothing."""

    kind, touches = "broker hangs", frozenset({"broker"})

    def inject(self) -> None:
        """Do it."""
        self.world.broker.signal(signal.SIGSTOP)

    def heal(self) -> None:
        """Put it right."""
        self.world.broker.signal(signal.SIGCONT)


# ---- the disk ---------------------------------------------------------------------------------------------------


class PowerCut(Fault):
    """What was not synced is gone; the agent may see the disk vanish before it goes, or not."""

    kind, touches = "power cut", frozenset({"agent"})

    def inject(self) -> None:
        """Do it."""
        disk, agent = self.world.disk, self.world.agent
        if self.chance.random() < 0.5:
            agent.kill()
            disk.cut_power()
        else:
            disk.cut_power()
            pause(self.chance.uniform(0.0, 0.3))
            agent.kill()
        disk.unmount()
        disk.mount()

    def heal(self) -> None:
        """Put it right."""
        self.world.agent.start()


class Snapshot(Fault):
    """What is on the device at any moment is what the agent finds afterwards."""

    kind, touches = "power cut at any moment", frozenset({"agent"})

    def inject(self) -> None:
        """Do it."""
        agent, disk = self.world.agent, self.world.disk
        if agent.alive:
            agent.signal(signal.SIGSTOP)  # nothing may leave that the copy does not have
        disk.snapshot()
        agent.kill()
        disk.go_back()

    def heal(self) -> None:
        """Put it right."""
        self.world.agent.start()


class TornWrite(Fault):
    """A power cut in the middle of a write, of which any beginning or any end has reached the disk; sometimes of a
    start and of the next one: what is left of the first may then stand right behind the second's first record.
    """

    kind, touches = "power cut in a write", frozenset({"agent"})

    def inject(self) -> None:
        """Do it."""
        agent, writes = self.world.agent, self.world.writes
        if self.chance.random() < 0.3:
            writes.tear(self.chance.randrange(1 << 30))
            self._dies()
            return
        agent.kill()
        for keep in ("last", "first") if self.chance.random() < 0.75 else (None, None):
            writes.tear(self.chance.randrange(1 << 30), behind=1, keep=keep)  # start writes the tail again first
            agent.start()
            self._dies()

    def _dies(self) -> None:
        agent = self.world.agent
        wait_for(lambda: not agent.alive, timeout=30, what="the agent to write")
        agent.kill()
        self.world.writes.heal()

    def heal(self) -> None:
        """Put it right."""
        self.world.agent.start()


class DiskErrors(Fault):
    """EIO, once or until healed; the call may have been carried out nevertheless."""

    kind, touches = "disk errors", frozenset({"agent"})

    def inject(self) -> None:
        """Do it."""
        chance = self.chance
        calls = chance.choice((["pwrite"], ["fdatasync"], ["pwrite", "fdatasync"], ["pread", "pwrite", "fdatasync"]))
        self.world.errors.fail(
            *calls,
            how=chance.choice(("failed", "applied")),
            times=chance.choice((1, 2, 1 << 30)),
            error=chance.choice((errno.EIO, errno.ENOSPC)),
        )

    def heal(self) -> None:
        """Put it right."""
        self.world.errors.heal()


class SlowDisk(Fault):
    """Each fsync takes long."""

    kind, touches = "slow fsync", frozenset({"agent"})

    def inject(self) -> None:
        """Do it."""
        self.world.writes.slow(self.chance.uniform(0.1, 0.8))

    def heal(self) -> None:
        """Put it right."""
        self.world.writes.heal()


class StuckDisk(Fault):
    """A write does not come back for a while."""

    kind, touches = "stuck disk", frozenset({"agent", "disk"})

    def inject(self) -> None:
        """Do it."""
        self.world.disk.freeze()
        self._thaw = threading.Timer(self.chance.uniform(0.3, 1.5), self.world.disk.thaw)
        self._thaw.start()

    def heal(self) -> None:
        """Put it right."""
        self._thaw.join()


class ReadOnlyDisk(Fault):
    """The kernel makes the disk read-only under the agent; it has to be mounted anew, and the agent started."""

    kind, touches = "read-only remount", frozenset({"agent", "disk"})

    def inject(self) -> None:
        """Do it."""
        self.world.disk.break_down()

    def heal(self) -> None:
        """Put it right."""
        self.world.agent.kill()
        self.world.disk.unmount()
        self.world.disk.mount()
        self.world.agent.start()


class FullDisk(Fault):
    """Somebody fills it to the last byte."""

    kind, touches = "full disk", frozenset({"disk"})

    def inject(self) -> None:
        """Do it."""
        self.world.disk.fill()

    def heal(self) -> None:
        """Put it right."""
        self.world.disk.clear()


# ---- the line, the certificates, the clock ------------------------------------------------------------------------


class BlackHole(Fault):
    """What is sent to the broker vanishes, and so do its answers."""

    kind, touches = "broker black-holed", frozenset({"line"})

    def inject(self) -> None:
        """Do it."""
        self.world.wan.line(loss=100)

    def heal(self) -> None:
        """Put it right."""
        self.world.wan.line()


class BadLine(Fault):
    """300 ms to the broker and back, and some of it gets lost."""

    kind, touches = "300 ms and loss", frozenset({"line"})

    def inject(self) -> None:
        """Do it."""
        self.world.wan.line(delay_ms=120, jitter_ms=60, loss=self.chance.uniform(1, 8))

    def heal(self) -> None:
        """Put it right."""
        self.world.wan.line()


class RenewedCertificates(Fault):
    """Of both sides; the broker is started again with its own."""

    kind, touches = "renewed certificates", frozenset({"broker"})

    def inject(self) -> None:
        """Do it."""
        self.world.issue()
        self.world.broker.kill()
        self.world.broker.start()


class ExpiredCertificate(Fault):
    """The broker comes back with a certificate that is not valid any more, until it gets a new one."""

    kind, touches = "expired certificate", frozenset({"broker"})

    def inject(self) -> None:
        """Do it."""
        self.world.issue(expired=True)
        self.world.broker.kill()
        self.world.broker.start()

    def heal(self) -> None:
        """Put it right."""
        self.world.issue()
        self.world.broker.kill()
        self.world.broker.start()


class ClockStep(Fault):
    """The wall clock is set, and set right again."""

    kind, touches = "clock stepped", frozenset({"clock"})

    def inject(self) -> None:
        """Do it."""
        small = self.chance.uniform(-1.5, 1.5)
        self.world.clock.step(self.chance.choice((small, small / 10, 3600.0, -3600.0, 3600.0 * 12)))
        pause(1.0)  # the agent's clock looks once a second where it stands (testbed/campaign/world.py)

    def heal(self) -> None:
        """Put it right."""
        self.world.clock.step(-self.world.clock.offset)


# ---- the devices, the configuration -------------------------------------------------------------------------------


class DeviceRestarts(Fault):
    """All Modbus devices go and come back."""

    kind, touches = "devices killed", frozenset({"site"})

    def inject(self) -> None:
        """Do it."""
        self.world.site.kill()

    def heal(self) -> None:
        """Put it right."""
        self.world.site.start()


class DeviceChurn(Fault):
    """One is silent, or refuses, or all connections are closed."""

    kind, touches = "device silent, refusing, cut off", frozenset({"site"})

    def inject(self) -> None:
        """Do it."""
        self.unit = self.chance.choice((1, 2))
        what = self.chance.choice((f"silence {self.unit}", f"exception {self.unit} 4", "drop"))
        self.world.site.command(what)

    def heal(self) -> None:
        """Put it right."""
        self.world.site.command(f"resume {self.unit}")


class MqttBrokerRestarts(Fault):
    """The battery's broker is killed, or stopped in order."""

    kind, touches = "MQTT broker restarted", frozenset({"mqtt"})

    def inject(self) -> None:
        """Do it."""
        if self.chance.random() < 0.5:
            self.world.mosquitto.kill()
        else:
            self.world.mosquitto.stop()

    def heal(self) -> None:
        """Put it right."""
        self.world.mosquitto.start()


class MessageBurst(Fault):
    """The battery says a lot at once, not all of it in order."""

    kind, touches = "burst of messages", frozenset({"battery"})

    def inject(self) -> None:
        """Do it."""
        self.world.battery.command(f"burst {self.chance.randrange(20, 100)}")
        self.world.battery.command(self.chance.choice(("garbage cut", "missing soc", "null power/w")))


class Reload(Fault):
    """Another value in the configuration, taken up by SIGHUP or by a start that is under way."""

    kind, touches = "reload under load", frozenset({"configuration"})

    def inject(self) -> None:
        """Do it."""
        for _ in range(self.chance.choice((1, 2))):
            pattern, values = self.chance.choice(_SETTINGS)
            text = self.world.config.read_text()
            self.world.config.write_text(re.sub(pattern, self.chance.choice(values), text))
            if self.world.ready:
                self.world.agent.signal(signal.SIGHUP)
            pause(self.chance.uniform(0.0, 0.3))


KINDS: tuple[type[Fault], ...] = (
    KillAgent,
    StopAgent,
    KillBroker,
    KillBoth,
    BrokerHangs,
    PowerCut,
    Snapshot,
    TornWrite,
    DiskErrors,
    SlowDisk,
    StuckDisk,
    ReadOnlyDisk,
    FullDisk,
    BlackHole,
    BadLine,
    RenewedCertificates,
    ExpiredCertificate,
    ClockStep,
    DeviceRestarts,
    DeviceChurn,
    MqttBrokerRestarts,
    MessageBurst,
    Reload,
)
