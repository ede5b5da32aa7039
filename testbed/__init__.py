"""What demos, tests and campaigns run the agent against: simulated devices, real servers, processes that never outlive
us.

Nothing here imports ``agent`` or ``adapters``, and nothing there imports this: what is checked and what checks share no
code.
"""

from __future__ import annotations
