"""The outbox: a ring file per channel, which holds sealed records until they are delivered, and after
(docs/outbox.md).
"""

from agent.outbox.memory import MemoryStore
from agent.outbox.outbox import Outbox, Pending, Stored

__all__ = ["MemoryStore", "Outbox", "Pending", "Stored"]
