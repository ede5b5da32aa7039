"""The device's key: opened by where it is kept (agent/custody.py), made, taken over, and signed with.

One thing is signed inside, a digest of 32 bytes (the ``Signer`` port). What is signed for which purpose is said
outside: records in agent/evidence/envelope.py, logins in agent/eip191.py.
"""

from __future__ import annotations

from agent.signer.key import DEFAULT_NETWORK, KeySigner
from agent.signer.places import create_key, encrypt_key, import_key, open_signer

__all__ = ["DEFAULT_NETWORK", "KeySigner", "create_key", "encrypt_key", "import_key", "open_signer"]
