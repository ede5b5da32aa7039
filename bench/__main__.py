"""``bench/run [NAME...] [--json]``: print each figure beside its reference and target."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

MODULES = {"cpu_per_reading": "bench.cpu_per_reading"}


def main() -> int:
    """Exit code 0 if every target is met, else 1."""
    parser = argparse.ArgumentParser(
        prog="bench/run", description="Measures, each figure beside its reference in the same run."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object, name to figure")
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODULES):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are: {', '.join(MODULES)}")
    found = []
    for name in options.names or MODULES:
        for figure in importlib.import_module(MODULES[name]).figures():
            found.append(figure)
            if not options.json:
                print(figure.line(), flush=True)
    if options.json:
        print(json.dumps({figure.name: figure.as_json() for figure in found}))
    return 0 if all(figure.met for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
