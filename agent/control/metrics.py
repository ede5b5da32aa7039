"""The status of an agent as metrics in Prometheus' text format 0.0.4. Pure; docs/metrics.md explains each.

What is not known has no sample; what did not happen yet is 0, so that its first time is seen. Labels hold what the
configuration names (channels, devices, connections) and words of this code (causes, reasons, states): the number of
series is bounded by the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTBOX_STATES = ("ok", "blocked", "removed", "failed", "memory")
OUTCOMES = ("ok", "device_timeout", "device_exception", "link_down", "decode_error")
CAUSES = (*OUTCOMES[1:], "overrun", "source_silent", "clock_step", "agent_down", "not_stored")
_DROPS = {"dropped": "overflow", "refused": "refused", "unreadable": "disk_error", "given_up": "memory"}

Labels = Mapping[str, str]
Samples = Iterator[tuple[Labels, Any]]
Table = Mapping[str, Any]


class Metric(NamedTuple):
    """``kind``: counter, gauge or histogram. ``samples`` of a status: labels and a number, None: there is none; of a
    histogram its parts (agent/histogram.py).
    """

    name: str
    kind: str
    help: str
    samples: Callable[[Table], Samples]


def render(status: Table) -> bytes:
    """The page."""
    lines: list[str] = []
    for metric in METRICS:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for labels, value in metric.samples(status):
            if value is None:
                continue
            if metric.kind == "histogram":
                lines += _histogram(metric.name, labels, value)
            else:
                lines.append(f"{metric.name}{_labels(labels)} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


def _histogram(name: str, labels: Labels, value: Table) -> Iterator[str]:
    total = 0
    for bound, count in zip([*value["bounds"], "+Inf"], value["counts"], strict=True):
        total += count
        yield f"{name}_bucket{_labels({**labels, 'le': str(bound)})} {total}"
    yield f"{name}_sum{_labels(labels)} {_number(value['sum'])}"
    yield f"{name}_count{_labels(labels)} {total}"


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


def _escaped(value: str) -> str:
    return str(value).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, bool | int) else repr(value)


# ---- where the numbers stand in a status ------------------------------------------------------------------------


def _agent(*path: str, scale: float | None = None) -> Callable[[Table], Samples]:
    """One number, of the agent as a whole."""

    def samples(status: Table) -> Samples:
        value: Any = status
        for key in path:
            value = value[key]
        yield {}, value if scale is None or value is None else value * scale

    return samples


def _each(table: str, label: str, value: Callable[[Table], Any], id_: str = "id") -> Callable[[Table], Samples]:
    """One number of each channel, device or connection."""

    def samples(status: Table) -> Samples:
        for each in status[table]:
            yield {label: each[id_]}, value(each)

    return samples


def _by(table: str, label: str, by: str, counts: Callable[[Table], Mapping[str, Any]]) -> Callable[[Table], Samples]:
    """Several numbers of each, told apart by a second label."""

    def samples(status: Table) -> Samples:
        for each in status[table]:
            for name, count in counts(each).items():
                yield {label: each["id"], by: name}, count

    return samples


def _channel(key: str) -> Callable[[Table], Samples]:
    return _each("channels", "channel", lambda channel: channel[key])


def _connection(key: str) -> Callable[[Table], Samples]:
    return _each("connections", "connection", lambda connection: connection.get(key), "name")


def _info(status: Table) -> Samples:
    yield {key: status[key] for key in ("version", "site", "did")}, 1


def _requests(status: Table) -> Samples:
    for outcome, count in sorted(status["requests"].items()):
        yield {"outcome": outcome}, count


def _synchronised(status: Table) -> Samples:
    state = status["clock"]["state"]
    yield {}, None if state == "unknown" else state == "synchronised"


def _waiting_clock(status: Table) -> Samples:
    yield {}, status["clock"]["waiting_s"] is not None


def _outcomes(device: Table) -> dict[str, int]:
    """How often each came of trying to read a device, over all its groups."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for group in device["groups"]:
        counts["ok"] += group.get("frames", 0)
        for cause, count in group.get("failures", {}).items():
            counts[cause] = counts.get(cause, 0) + count
    return counts


def _fails(device: Table) -> bool:
    return any(group.get("state", "ok") != "ok" for group in device["groups"])


def _value_age(device: Table) -> float | None:
    return min((group["last_s"] for group in device["groups"] if group.get("last_s") is not None), default=None)


def _connected(connection: Table) -> bool | None:
    return connection["state"] == "connected" if "state" in connection else None


METRICS = (
    Metric("agent_info", "gauge", "What runs; always 1.", _info),
    Metric("agent_uptime_seconds", "gauge", "Time since the agent started.", _agent("uptime_s")),
    Metric("agent_memory_bytes", "gauge", "Resident memory of the agent.", _agent("process", "memory_bytes")),
    Metric("agent_cpu_seconds_total", "counter", "CPU time of the agent.", _agent("process", "cpu_s")),
    Metric("agent_stuck_parts", "gauge", "Vital parts that make no progress.", lambda s: iter([({}, len(s["stuck"]))])),
    Metric("agent_http_requests_total", "counter", "Requests to this page and to /healthz.", _requests),
    # the clock
    Metric("agent_clock_synchronised", "gauge", "1 while a time service keeps the wall clock.", _synchronised),
    Metric(
        "agent_clock_error_seconds",
        "gauge",
        "By how much the wall clock is off at most, while it is synchronised.",
        _agent("clock", "error_us", scale=1e-6),
    ),
    Metric("agent_clock_steps_total", "counter", "Steps of the wall clock.", _agent("clock", "steps")),
    Metric("agent_clock_waiting", "gauge", "1 while nothing is read for want of a clock.", _waiting_clock),
    # channels: what was sealed
    Metric("agent_records_total", "counter", "Records signed and on disk.", _channel("records")),
    Metric("agent_frames_total", "counter", "Readings of a group in records on disk.", _channel("frames")),
    Metric(
        "agent_gap_cycles_total",
        "counter",
        "Readings that records on disk state as missing, by cause.",
        _by("channels", "channel", "cause", lambda channel: {**dict.fromkeys(CAUSES, 0), **channel["gaps"]}),
    ),
    Metric(
        "agent_dropped_records_total",
        "counter",
        "Records that the broker will not get, by reason.",
        _by("channels", "channel", "reason", lambda channel: {_DROPS[key]: channel[key] for key in _DROPS}),
    ),
    Metric(
        "agent_dropped_frames_total",
        "counter",
        "Readings that were not stored, by reason.",
        _by("channels", "channel", "reason", lambda channel: {"not_stored": channel["not_stored"]}),
    ),
    # channels: the outbox
    Metric(
        "agent_outbox_state",
        "gauge",
        "1 for the state that the outbox is in.",
        _by(
            "channels",
            "channel",
            "state",
            lambda channel: {state: channel["outbox"]["state"] == state for state in OUTBOX_STATES},
        ),
    ),
    Metric("agent_outbox_records", "gauge", "Records that wait for the broker.", _channel("pending_records")),
    Metric("agent_outbox_bytes", "gauge", "Bytes that wait for the broker.", _channel("pending_bytes")),
    Metric(
        "agent_outbox_size_bytes",
        "gauge",
        "Size of the outbox.",
        _each("channels", "channel", lambda channel: channel["outbox"]["size"]),
    ),
    Metric(
        "agent_outbox_oldest_seconds",
        "gauge",
        "For how long the oldest record has waited; 0: none waits.",
        _each("channels", "channel", lambda c: c["oldest_s"] if c["pending_records"] else 0),
    ),
    # channels: delivery
    Metric("agent_channel_connected", "gauge", "1 while records come through.", _channel("connected")),
    Metric("agent_sent_records_total", "counter", "Records handed to the broker.", _channel("sent")),
    Metric("agent_repeated_records_total", "counter", "Of these, once more.", _channel("repeated")),
    Metric("agent_resent_records_total", "counter", "Records sent again by order.", _channel("resent")),
    Metric("agent_acknowledged_records_total", "counter", "Records that the broker has.", _channel("acknowledged")),
    Metric(
        "agent_delivery_failures_total",
        "counter",
        "Tries to deliver that failed, by reason.",
        _by("channels", "channel", "reason", lambda channel: channel["failures"]),
    ),
    Metric(
        "agent_publish_latency_seconds",
        "histogram",
        "From a commit on disk to its acknowledgement.",
        _channel("latency"),
    ),
    Metric("agent_head_seq", "gauge", "Number of the last record of the run.", _channel("seq")),
    Metric("agent_acknowledged_seq", "gauge", "All of the run up to here is acknowledged.", _channel("acked_seq")),
    # devices and connections
    Metric(
        "agent_acquisitions_total",
        "counter",
        "Readings and messages of a device, by what came of them.",
        _by("devices", "device", "outcome", _outcomes),
    ),
    Metric("agent_device_failing", "gauge", "1 while a group of it fails.", _each("devices", "device", _fails)),
    Metric(
        "agent_device_value_age_seconds",
        "gauge",
        "Time since the last value of a device.",
        _each("devices", "device", _value_age),
    ),
    Metric(
        "agent_connection_busy_seconds_total",
        "counter",
        "Time in which a polled connection was busy.",
        _connection("busy_s"),
    ),
    Metric(
        "agent_poll_lateness_seconds",
        "histogram",
        "From due time to the beginning of a reading.",
        _connection("late"),
    ),
    Metric(
        "agent_connection_connected",
        "gauge",
        "1 while a source of messages is listened to.",
        _each("connections", "connection", _connected, "name"),
    ),
    Metric(
        "agent_connection_connects_total",
        "counter",
        "Connections made to a source of messages.",
        _connection("connects"),
    ),
)
