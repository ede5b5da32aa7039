"""The verifier: who measured what, that nothing is missing, and why where something is (docs/evidence.md section 6).

``Verifier`` is fed envelopes and judges them; its ``report`` is the account. It needs no network and no agent, and
besides the standard library only cbor2 and coincurve.
"""

from agent.verifier.accepted import Accepted, Signer, read_allow_list
from agent.verifier.book import WINDOW
from agent.verifier.report import ChannelReport, Hole, HoleState, Join, Report, Run
from agent.verifier.verdict import Finding, Judged, Level, Outcome
from agent.verifier.verifier import Verifier

__all__ = [
    "WINDOW",
    "Accepted",
    "ChannelReport",
    "Finding",
    "Hole",
    "HoleState",
    "Join",
    "Judged",
    "Level",
    "Outcome",
    "Report",
    "Run",
    "Signer",
    "Verifier",
    "read_allow_list",
]
