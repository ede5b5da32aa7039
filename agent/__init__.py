"""The edge agent: reads telemetry, signs it at capture, keeps it in a local outbox and delivers it.

The folder is built in floors (docs/architecture.md); an import may only point down, and a test walks the imports.
"""

from __future__ import annotations

__version__ = "0.1.0"
