"""The outbox: a ring file per channel, which holds sealed records until they are delivered, and after
(docs/outbox.md).
"""

from agent.outbox.outbox import Outbox, Pending, Stored

__all__ = ["Outbox", "Pending", "Stored"]
