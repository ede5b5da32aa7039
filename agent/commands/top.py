"""``edge-agent top``: the status of the running agent, live, until q or Ctrl-C.

On a terminal the page is drawn in place and fits it; colour only marks what stands out by ``!`` anyway, and NO_COLOR
takes it away. Elsewhere page follows page. The terminal is left as it was found, whatever ends the command.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from agent.commands import GOOD, USAGE, say
from agent.commands.target import running
from agent.control.client import ControlError
from agent.control.top_text import page
from agent.units import MS, S, duration_ns

_SHORTEST = 100 * MS
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen without a cursor, and back
_HOME, _REST, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_ALARM, _PLAIN = "\x1b[1;31m", "\x1b[0m"
_QUIT = b"qQ\x03\x04"


def main(options: argparse.Namespace) -> int:
    """Ends at once if no agent answers at first; later it waits for one that restarts. Raises ControlError,
    ConfigError, PermissionError.
    """
    try:
        every = duration_ns(options.every)
    except ValueError as error:
        say(f"edge-agent top: --every: {error}")
        return USAGE
    if every < _SHORTEST or (options.count is not None and options.count < 1):
        say("edge-agent top: --every is 100ms or more, --count 1 or more")
        return USAGE
    with suppress(KeyboardInterrupt):
        _live(options, every / S)
    return GOOD


def _live(options: argparse.Namespace, every: float) -> None:
    status: dict[str, Any] = _asked(options)
    screen = sys.stdout.isatty() and not options.json and os.environ.get("TERM", "dumb") != "dumb"
    shown, before, trouble = 0, None, ""
    with _screen() if screen else _pages() as draw:
        while True:
            began = time.monotonic()
            if options.json:
                if not trouble:
                    print(json.dumps(status), flush=True)
            else:
                draw(status, before, trouble)
            shown += 1
            if shown == options.count or _quits(began + every, watch=screen and sys.stdin.isatty()):
                return
            before = status
            try:
                status, trouble = _asked(options), ""
            except ControlError as error:  # it is restarting, perhaps
                if options.json and not trouble:
                    say(f"edge-agent: {error}")
                trouble = str(error)


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    with running(options, "status") as answer:
        status: dict[str, Any] = next(answer, {})
        return status


Draw = Callable[[dict[str, Any], dict[str, Any] | None, str], None]


@contextmanager
def _pages() -> Iterator[Draw]:
    """One page behind the other."""

    def draw(status: dict[str, Any], before: dict[str, Any] | None, trouble: str) -> None:
        if before is not None:
            print()
        if trouble:
            print(f"! {trouble}", flush=True)
            return
        print("\n".join(line.text for line in page(status, before, width=10_000)), flush=True)

    yield draw


@contextmanager
def _screen() -> Iterator[Draw]:
    """A screen of its own, drawn in place."""
    colour = not os.environ.get("NO_COLOR")

    def draw(status: dict[str, Any], before: dict[str, Any] | None, trouble: str) -> None:
        width, height = shutil.get_terminal_size()
        lines = page(status, before, width=width, height=max(1, height - 1))
        if trouble:
            lines[0] = lines[0]._replace(text=f"! {trouble}"[:width], alarm=True)
        shown = [f"{_ALARM}{line.text}{_PLAIN}" if line.alarm and colour else line.text for line in lines]
        shown.append("q quits"[:width])
        sys.stdout.write(_HOME + "\n".join(line + _REST for line in shown) + _BELOW)
        sys.stdout.flush()

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    found = None if keys is None else termios.tcgetattr(keys)
    earlier = signal.signal(signal.SIGTERM, end)
    try:
        if keys is not None:
            tty.setcbreak(keys)
        sys.stdout.write(_ENTER)
        yield draw
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if keys is not None and found is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, found)
        signal.signal(signal.SIGTERM, earlier)


def _quits(until: float, *, watch: bool) -> bool:
    """Wait, and return whether somebody quits meanwhile."""
    while (left := until - time.monotonic()) > 0:
        if not watch:
            time.sleep(left)
        elif select.select([sys.stdin], [], [], left)[0]:
            pressed = os.read(sys.stdin.fileno(), 16)
            if not pressed or any(key in _QUIT for key in pressed):
                return True
    return False
