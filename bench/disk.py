"""What a file system writes to its device: an ext4 behind a loop device, in a mount namespace of its own. Root only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from testbed.campaign.disk import SmallDisk

_SECTOR, _WRITTEN = 512, 6  # bytes; the place of the sectors written in /sys/block/*/stat (Linux, block/stat.rst)


class MeasuredDisk(SmallDisk):
    """Mounted at ``place``; ``written`` bytes have reached the device so far, its journal's and metadata's too."""

    @property
    def written(self) -> int:
        """Bytes, of all that is on its way by now."""
        self.sync()
        for stat in Path("/sys/block").glob("loop*/stat"):
            backing = stat.parent / "loop" / "backing_file"
            if backing.exists() and backing.read_text().strip() == str(self._image):
                return int(stat.read_text().split()[_WRITTEN]) * _SECTOR
        raise FileNotFoundError(f"no loop device shows {self._image}")


def inside(module: str, *arguments: str) -> Any:
    """Run ``python -m module`` where it may mount; returns what its last line says, as JSON. Raises RuntimeError."""
    if os.geteuid():
        raise RuntimeError("what a device writes is measured on a file system of its own, which takes root")
    command = ["unshare", "--mount", sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
