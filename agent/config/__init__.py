"""The configuration: read, judged as a whole, and what comes of it (docs/configuration.md). ``load`` is the way in."""

from agent.config.effective import AdapterPlan, Channel, Config
from agent.config.problems import render
from agent.config.whole import load

__all__ = ["AdapterPlan", "Channel", "Config", "load", "render"]
