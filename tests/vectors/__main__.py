"""Write the golden vectors anew: ``python -m tests.vectors``. tests/golden/evidence/README.md says what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.vectors import chains, histories, invalid, items, stored, valid
from tests.vectors.writing import DIDS, SECRETS


def files() -> Iterator[tuple[Path, str]]:
    """Every file and what it should hold."""
    yield _file("keys.json", {name: {"secret": SECRETS[name].hex(), "did": DIDS[name]} for name in DIDS})
    yield _file("cbor.json", items.files())
    yield _file("valid.json", [vector.as_json() for vector in valid.vectors()])
    yield _file("invalid.json", [vector.as_json() for vector in invalid.vectors()])
    envelopes = {name: envelope.hex() for name, envelope in chains.envelopes().items()}
    yield _file("chains.json", {"envelopes": envelopes, "chains": [chain.as_json() for chain in chains.chains()]})
    yield _file("histories.json", [history.as_json() for history in histories.histories()])
    yield _file("packed.json", stored.used)


def _file(name: str, content: Any) -> tuple[Path, str]:
    return stored.GOLDEN / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write them."""
    for path, text in files():
        path.write_text(text)


if __name__ == "__main__":
    main()
