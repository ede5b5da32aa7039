"""The configuration that ``edge-agent init`` writes: short, commented, good as it stands, with a pointer to the manual.

It names one SunSpec inverter and one NATS server at addresses that belong to nobody (RFC 5737): the operator puts in
his own.
"""

from __future__ import annotations

from agent.config.toml_text import quoted

_TEXT = """\
# edge-agent: the configuration. The project's config/agent.toml and docs/configuration.md list all keys and defaults.
# Put in your own addresses, prove it with `edge-agent check agent.toml`, then `edge-agent read --config agent.toml`.
# Relative paths start at the folder of this file.
version = 1

[site]
id = {site}                               # the name of this place; signed into the data

[identity]
key = {key}                            # readable by the agent's user only; never leaves this machine
did = {did}   # for whoever reads the data

[clock]
wait = "60s"                                # at start, wait so long at most for a synchronised clock; "0s": do not

[connection.inverter]
url = "modbus+tcp://192.0.2.20:502"         # address of the device or of its gateway

[[device]]
id         = "pv-1"                         # the name in every record
connection = "inverter"
unit       = 1                              # Modbus unit address
sunspec    = {{}}                             # the device describes itself; registers by hand: see the manual
groups     = {{ ac = {{ every = "5s", points = ["103.W", "103.WH", "103.Hz", "103.St"] }} }}   # model 103: three phases

[[channel]]
id        = "telemetry"
transport = "nats"
servers   = ["nats://192.0.2.50:4222"]      # a JetStream stream that takes the subject must exist;
subject   = "dx.{{site}}.{{channel}}"           # or stream = "NAME" and create = {{}} here: the agent makes it
send      = ["pv-1/*"]                      # device/group/point; what is not named never leaves
outbox    = {{ size = "64MiB", when_full = "drop-oldest" }}

[agent]
state = {state}                             # the outbox; a real disk, not tmpfs
"""


def agent_toml(*, did: str, site: str = "site-1", key: str = "key", state: str = "state") -> str:
    """The text of agent.toml for a new agent. ``key``: file of the key; ``state``: folder; relative to the file."""
    return _TEXT.format(site=quoted(site), key=quoted(f"file:{key}"), did=quoted(did), state=quoted(state))
