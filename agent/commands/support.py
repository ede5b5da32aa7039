"""``edge-agent support``: pack everything a supporter needs, secrets masked."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from pathlib import Path

from agent.commands import GOOD, USAGE, say
from agent.doctor.case import take
from agent.doctor.examination import examine, in_time
from agent.doctor.looks import looks
from agent.signer.memory import keep_to_ourselves
from agent.support import bundle
from agent.support.pieces import pieces

_SECRETS_WITHIN = 10.0  # s


def main(options: argparse.Namespace) -> int:
    """Raises OSError if it cannot be written, or if a secret that is to be masked hangs."""
    keep_to_ourselves()
    logging.getLogger("agent").addHandler(logging.NullHandler())
    made = time.time()
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", os.uname().nodename) or "box"
    name = f"edge-agent-{host}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(made))}"
    path: Path = options.file or Path(f"{name}.tar.gz")
    to_stdout = str(path) == "-"
    if not to_stdout and os.path.lexists(path):
        return _taken(path)
    case = take(options.config)
    hidden = in_time(_SECRETS_WITHIN, lambda: bundle.secrets(options.config))
    findings = examine(looks(case, offline=options.offline))
    content = bundle.pack(pieces(case, findings), hidden=hidden, folder=name, host=host, made=made)
    if to_stdout:
        sys.stdout.buffer.write(content)
        return GOOD
    try:
        bundle.write(path, content)
    except FileExistsError:
        return _taken(path)
    print(path)
    say("look through it before you send it: it names sites, devices, hosts and users; secrets are masked")
    return GOOD


def _taken(path: Path) -> int:
    say(f"edge-agent support: {path} is there already; name another file")
    return USAGE
