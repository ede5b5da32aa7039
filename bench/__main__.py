"""``bench/run [NAME...] [--json]``: print each figure beside its reference and target.

Without a name all of them but the long ones, which take minutes or need another program's environment and run when they
are named. docs/performance.md tells how to read what is printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator, Sequence

from bench.figure import Figure

# Where each is measured: a function that returns one Figure; or ``figures``, which takes the names of those that are
# wanted, measures them together and returns a list.
FIGURES = {
    "cpu_per_reading": "bench.cpu_per_reading:figures",
    "cpu_per_reading_vs_rows": "bench.cpu_per_reading:figures",
    "cpu_per_reading_vs_thingsboard": "bench.cpu_per_reading:figures",
    "cpu_per_reading_vs_thingsboard_blocks": "bench.cpu_per_reading:figures",
    "idle_memory": "bench.idle:idle_memory",
    "start_cpu": "bench.idle:start_cpu",
    "mqtt_cpu_per_message_qos0": "bench.mqtt_cpu_per_message:qos0",
    "mqtt_cpu_per_message_qos1": "bench.mqtt_cpu_per_message:qos1",
    "mqtt_cpu_per_message_qos1_v5": "bench.mqtt_cpu_per_message:qos1_v5",
    "mqtt_memory": "bench.mqtt_memory:figure",
    "verify_per_record": "bench.evidence:verify_per_record",
    "verify_per_record_50_points": "bench.evidence:verify_per_record_50_points",
    "verify_file": "bench.evidence:verify_file",
    "bytes_per_reading_50": "bench.evidence:bytes_per_reading_50",
    "bytes_per_reading_50_points": "bench.evidence:bytes_per_reading_50_points",
    "bytes_per_reading_1000": "bench.evidence:bytes_per_reading_1000",
    "encode_per_reading": "bench.evidence:encode_per_reading",
    "flat_out": "bench.flat_out:figures",
    "overload": "bench.flat_out:figures",
    "latency_p99": "bench.latency:figure",
    "scaling_devices": "bench.scaling:devices",
    "scaling_pending": "bench.scaling:pending",
    "wire_bytes_per_reading": "bench.bytes_per_reading:figures",
    "device_bytes_per_reading": "bench.bytes_per_reading:figures",
    "device_bytes_per_payload_byte": "bench.device_bytes:figure",
    "ddhub_wrap_1": "bench.ddhub:wrap_1",
    "ddhub_wrap_10": "bench.ddhub:wrap_10",
    "ddhub_wrap_100": "bench.ddhub:wrap_100",
    "ddhub_message": "bench.ddhub:message",
    "ddhub_cpu_per_message": "bench.ddhub_channel:per_message",
    "ddhub_cpu_per_reading": "bench.ddhub_channel:per_reading",
    "outbox_start": "bench.outbox_start:figure",
    "drain": "bench.drain:figure",
}
LONG = (  # only when named
    "cpu_per_reading_vs_thingsboard",
    "cpu_per_reading_vs_thingsboard_blocks",
    "idle_memory",
    "start_cpu",
    "mqtt_memory",
    "ddhub_cpu_per_reading",
    "flat_out",
    "overload",
    "scaling_devices",
    "scaling_pending",
    "drain",
)


def chosen(names: Sequence[str]) -> list[str]:
    """The figures to measure; without names all but the long ones."""
    return list(names) or [name for name in FIGURES if name not in LONG]


def measured(names: Sequence[str]) -> Iterator[Figure]:
    """Measure them, one place after the other."""
    places: dict[str, list[str]] = {}
    for name in names:
        places.setdefault(FIGURES[name], []).append(name)
    for place, wanted in places.items():
        module, _, function = place.partition(":")
        measure = getattr(importlib.import_module(module), function)
        yield from measure(wanted) if function == "figures" else [measure()]


def main() -> int:
    """Exit code 0 if every target is met, else 1."""
    parser = argparse.ArgumentParser(
        prog="bench/run", description="Measures, each figure beside its reference in the same run."
    )
    default = f"default: all but {', '.join(LONG)}, which must be named"
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)} ({default})")
    parser.add_argument("--json", action="store_true", help="one JSON object, name to figure")
    options = parser.parse_args()
    if unknown := set(options.names) - set(FIGURES):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are: {', '.join(FIGURES)}")
    found = []
    for figure in measured(chosen(options.names)):
        found.append(figure)
        if not options.json:
            print(figure.line(), flush=True)
    if options.json:
        print(json.dumps({figure.name: figure.as_json() for figure in found}))
    return 0 if all(figure.met for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
