"""Whether the running agent is healthy, for a container's HEALTHCHECK: ``python3 -I -S healthcheck.py [SOCKET]``.

Exit status 0: it is, 1: it is not; a line says why. Healthy is what feeds the watchdog (agent/health.py): the event
loop answers at the control socket, and no vital part is stuck (agent/heartbeat.py). A device or a broker that is away
does not make it unhealthy, for a restart mends neither.

A script that imports nothing of the package: with what else ``edge-agent status`` loads a check would take three times
the memory and the time, each half minute for years.
"""

from __future__ import annotations

import json
import socket
import sys
import time

SOCKET = "/run/edge-agent/agent.sock"  # default of agent.socket
WITHIN = 5.0  # s, for all of it
_LONGEST = 4 << 20  # bytes of an answer


def trouble(path: str, within: float = WITHIN) -> str:
    """Why the agent that answers at ``path`` is not healthy; "": it is. Blocks for ``within`` seconds at most."""
    try:
        return judged(asked(path, within))
    except TimeoutError:
        return f"no answer within {within:g} s at {path}"
    except (FileNotFoundError, ConnectionRefusedError):
        return f"no agent answers at {path}"
    except BlockingIOError:  # more wait than the kernel lets
        return f"not taken on at {path}"
    except OSError as error:
        return f"cannot be asked at {path}: {error.strerror or error}"


def asked(path: str, within: float) -> bytes:
    """What the agent answers, up to the end of the stream or ``_LONGEST``. Raises OSError, of which TimeoutError."""
    until = time.monotonic() + within
    received = bytearray()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(within)
        connection.connect(path)
        connection.sendall(b'{"command": "status"}\n')
        while len(received) < _LONGEST:
            if (left := until - time.monotonic()) <= 0:
                raise TimeoutError
            connection.settimeout(left)
            piece = connection.recv(1 << 16)
            if not piece:
                break
            received += piece
    return bytes(received)


def judged(answer: bytes) -> str:
    """Why an agent that answers this is not healthy; "": it is."""
    try:
        lines = [json.loads(line) for line in answer.splitlines()]
        end = lines[-1]
        if end["end"]:
            return f"the agent refuses to answer: {end.get('error')}"
        stuck = [str(part) for part in lines[0]["stuck"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "the agent's answer cannot be understood"
    return f"no progress: {', '.join(stuck)}" if stuck else ""


def main(arguments: list[str]) -> int:
    """Say how it is, and return the exit status."""
    found = trouble(arguments[0] if arguments else SOCKET)
    print(found or "healthy")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
