"""Keys of the Data Hub for tests: those of the vectors, and a small one of RSA, made for these tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from Crypto.PublicKey import RSA

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "ddhub.json").read_text())
MINE = RSA.import_key(VECTORS["c_rsa"]["privateKeyPemPkcs8"])
PUBLIC: str = VECTORS["c_rsa"]["publicKeyPemPkcs1"]
_P = int(
    "d2a4e694bbf2b345ba70958fa4fba2f0e3654665899d5cccf9c60fc393ed53af18b89f3b22a7ae4be448b677577d76093f7e"
    "1beea08704378eaf7638ac21a21ec7b92a53b8e0d8c538ad1ed35ec013bfddf7b9343cc5cf97ab05f5fc6bf7e462fb011e0e"
    "9f220008c897ecc5dd4e6c0b51b4df3d4d2fcf1b12f26167246741cb",
    16,
)
_Q = int(
    "ec8b763afe9d88515405192ba2a36c4aa57f72108ddefa44a67150bc6f0c78f8a08fc6a76c0bd6f645dbb7a1f0df97144ea7"
    "22362fd3c2d2c14e380be79cc0c0943b3e55890d3240d33c4ef5a5bb485c4f09cd52150a0fd968f57152eb914abe4b9d8df7"
    "c776ed3c01b120d790379ee263f33808ab0e599c04d6291ca745915d",
    16,
)
SMALL = RSA.construct((_P * _Q, 65537, pow(65537, -1, (_P - 1) * (_Q - 1)), _P, _Q))  # 2048 bits
SMALL_PUBLIC = SMALL.public_key().export_key().decode()
