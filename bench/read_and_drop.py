"""The reference: pymodbus's client reads the registers of some units at a fixed rate and throws them away.

Run as ``python -m bench.read_and_drop PORT UNITS REGISTERS HERTZ``; on uvloop if that is installed, as the agent.
"""

from __future__ import annotations

import asyncio
import sys

from pymodbus.client import AsyncModbusTcpClient

from bench.on_uvloop import run


async def read(port: int, units: int, registers: int, hertz: float) -> None:
    """Until killed."""
    client = AsyncModbusTcpClient("127.0.0.1", port=port, retries=0)
    await client.connect()
    print("ready", flush=True)
    loop = asyncio.get_running_loop()

    async def poll(unit: int) -> None:
        due = loop.time()
        while True:
            answer = await client.read_holding_registers(0, count=registers, device_id=unit)
            assert len(answer.registers) == registers
            due += 1 / hertz
            await asyncio.sleep(due - loop.time())

    await asyncio.gather(*(poll(10 + unit) for unit in range(units)))


if __name__ == "__main__":
    port_, units_, registers_, hertz_ = sys.argv[1:]
    run(read(int(port_), int(units_), int(registers_), float(hertz_)))
