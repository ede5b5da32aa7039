"""The Data Hub as a program: ``python -m testbed.ddhub --nats URL --state FILE``.

stdout: ``ssi-hub URL``, ``rpc URL`` and ``ready URL`` (proxy and broker) once, then a line per command. stdin:
commands, one a line, each answered with ``done COMMAND`` or ``refused COMMAND: REASON`` when it is in force:

``enrol DID [ROLE...]`` gives a DID roles (without any: those of a user), ``topic OWNER NAME FILE [VERSION]`` makes a
topic with a JSON Schema, ``open DID`` opens a channel as a login does, ``fund DID`` gives it gas, ``key DID TAG FILE``
sets a key in its DID document, ``mine COUNT``, ``move SECONDS`` lets time pass, ``fault NAME [PATH [TIMES]]`` puts a
fault (TIMES 0: until ``clear [NAME]``), ``revoke`` refuses all access tokens.

Ends on SIGTERM, SIGINT, and when stdin ends: it does not outlive the program that holds the other side of the pipe.
Killed and started again with the same ports, state and NATS server it goes on; faults and moves of the clock are gone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from testbed.ddhub.hub import USER_ROLE, DataHub
from testbed.ddhub.serving import Tls
from testbed.ddhub.settings import Settings


def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")


async def command(hub: DataHub, text: str) -> str:
    """Do what a line says; what to answer."""
    try:
        match text.split():
            case ["enrol", did, *roles]:
                hub.enrol(did, roles or (USER_ROLE,))
            case ["topic", owner, name, file]:
                hub.add_topic(name, _text(file), owner=owner)
            case ["topic", owner, name, file, version]:
                hub.add_topic(name, _text(file), owner=owner, version=version)
            case ["open", did]:
                await hub.open_channel(did)
            case ["fund", did]:
                hub.chain.fund(did)
            case ["key", did, tag, file]:
                hub.chain.set_key(did, tag, _text(file))
            case ["mine", count]:
                hub.chain.mine(int(count))
            case ["move", seconds]:
                await hub.move(float(seconds))
            case ["fault", name]:
                hub.faults.put(name)
            case ["fault", name, path]:
                hub.faults.put(name, path=path)
            case ["fault", name, path, times]:
                hub.faults.put(name, path=path, times=int(times) or None)
            case ["clear"]:
                hub.faults.clear()
            case ["clear", name]:
                hub.faults.clear(name)
            case ["revoke"]:
                hub.proxy.revoke()
            case _:
                return f"refused {text}: unknown command"
    except Exception as error:  # noqa: BLE001  # whatever is wrong with a command, we go on
        return f"refused {text}: {error!r}"
    return f"done {text}"


async def serve(options: argparse.Namespace) -> None:
    """Serve until told to end."""
    tls = None
    if options.certificate:
        tls = Tls(options.certificate, options.key, options.clients)
    hub = DataHub(
        options.nats,
        settings=Settings(chain=options.chain),
        state=options.state,
        port=options.port,
        hub_port=options.hub_port,
        tls=tls,
        keep=0,
    )
    lines, loop = asyncio.Queue[str | None](), asyncio.get_running_loop()
    waiting = b""

    def listen() -> None:
        nonlocal waiting
        data = os.read(sys.stdin.fileno(), 65536)
        if not data:
            loop.remove_reader(sys.stdin.fileno())
            lines.put_nowait(None)
            return
        *whole, waiting = (waiting + data).split(b"\n")
        for line in whole:
            lines.put_nowait(line.decode("utf-8", "replace"))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lines.put_nowait, None)
    async with hub:
        loop.add_reader(sys.stdin.fileno(), listen)
        print(f"ssi-hub {hub.hub_url}\nrpc {hub.rpc_url}\nready {hub.url}", flush=True)
        while (line := await lines.get()) is not None:
            print(await command(hub, line), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="testbed.ddhub", description="Energy Web's Data Hub over a NATS server")
    parser.add_argument("--nats", required=True, metavar="URL", help="a server with JetStream")
    parser.add_argument("--port", type=int, default=0, help="of proxy and broker")
    parser.add_argument("--hub-port", type=int, default=0, help="of SSI Hub and JSON-RPC")
    parser.add_argument("--state", type=Path, metavar="FILE", help="keeps everything but messages")
    parser.add_argument("--chain", default="volta", choices=("volta", "ewc"))
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="PEM; proxy and broker then speak TLS")
    parser.add_argument("--key", type=Path, metavar="FILE", help="PEM")
    parser.add_argument("--clients", type=Path, metavar="FILE", help="PEM; whom clients' certificates must come from")
    asyncio.run(serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
