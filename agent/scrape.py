"""What the agent says over HTTP: /metrics for Prometheus, /healthz for whoever restarts what hangs.

Imported, with all that it needs, only where ``[agent] http`` is set.
"""

from __future__ import annotations

import json

from agent.control.http import Page, serve
from agent.control.metrics import CONTENT_TYPE, render
from agent.running import Running


async def scrape(running: Running) -> None:
    """Answer where the configuration says, until cancelled."""
    address, token = running.config.agent.http, running.config.agent.token
    if address is not None:
        pages = {"/metrics": lambda: _metrics(running), "/healthz": lambda: _healthz(running)}
        read = None if token is None else token.read
        await serve(address.host, address.port, pages, counts=running.condition.requests, token=read)


def _metrics(running: Running) -> Page:
    return Page(200, CONTENT_TYPE, render(running.status()))


def _healthz(running: Running) -> Page:
    """200 while all vital parts make progress, be devices and brokers as they may; else 503."""
    stuck = running.condition.stuck
    body = {"status": "stuck" if stuck else "ok", "stuck": stuck}
    return Page(503 if stuck else 200, "application/json", json.dumps(body).encode() + b"\n")
