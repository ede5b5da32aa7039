"""The independent verifier of tests/independent: that it is independent, and that its own mathematics is right."""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

import coincurve
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.independent import secp256k1
from tests.independent.keccak import keccak256

FOLDER = Path(__file__).resolve().parent / "independent"
MODULES = sorted(FOLDER.glob("*.py"))


def imported(path: Path) -> set[str]:
    """What a module imports, by its whole name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_it_imports_itself_cryptography_and_the_standard_library_only(path: Path) -> None:
    others = {name for name in imported(path) if not name.startswith("tests.independent")}
    outside = {name.partition(".")[0] for name in others} - sys.stdlib_module_names
    assert outside <= {"cryptography"}
    assert "import_module" not in path.read_text()
    assert "__import__" not in path.read_text()


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
        (b"abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
    ],
)
def test_keccak_gives_the_published_digests(data: bytes, digest: str) -> None:
    assert keccak256(data).hex() == digest


def test_keccak_agrees_with_the_agents_on_all_lengths_around_a_block() -> None:
    from agent.evidence import keccak

    for length in [*range(130, 140), 271, 272, 273]:
        data = bytes(range(256)) * 2
        assert keccak256(data[:length]) == keccak.keccak256(data[:length])


def test_the_curves_order_times_its_generator_is_nowhere() -> None:
    assert secp256k1.combined(secp256k1.N, secp256k1.G, 0, secp256k1.G)[2] == 0
    assert secp256k1.combined(secp256k1.N - 1, secp256k1.G, 1, secp256k1.G)[2] == 0


@given(st.integers(1, secp256k1.N - 1), st.binary(min_size=32, max_size=32))
@settings(max_examples=10, deadline=None)
def test_keys_come_out_of_signatures_as_another_library_knows_them(secret: int, digest: bytes) -> None:
    key = coincurve.PrivateKey(secret.to_bytes(32, "big"))
    signature = key.sign_recoverable(digest, hasher=None)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    public = key.public_key.format(compressed=False)[1:]
    found = secp256k1.recovered(digest, r, s)
    assert found[signature[64]] == public
    assert len(set(found)) == 2
    assert all(secp256k1.verifies(each, digest, r, s) for each in found)
    assert not secp256k1.verifies(public, hashlib.sha256(digest).digest(), r, s)


def test_impossible_signatures_have_no_key() -> None:
    digest = bytes(32)
    assert [secp256k1.recovered(digest, r, s) for r, s in ((0, 1), (1, 0), (secp256k1.N, 1), (5, 1))] == [[]] * 4
