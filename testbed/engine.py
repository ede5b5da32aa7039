"""A container engine without a daemon: buildah and podman in namespaces of their own (testbed/apart.py). Needs root.

Images, containers and volumes lie below its folder; what runs ends with it. Containers share the network of the
machine, so that brokers and devices of a test are on their loopback address. Limits of memory and processes do not
hold, and health checks do not run by themselves (``healthcheck run`` does one). Commands are those of docker as far as
podman has them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from testbed.namespaces import Namespaces, program

_MEMORY = "/dev/shm"  # of the namespace; podman refuses to clean up behind a path of more than 50 characters
_SETTINGS = """\
[containers]
cgroups = "disabled"
default_sysctls = []
log_driver = "k8s-file"
netns = "host"
seccomp_profile = {seccomp}
[engine]
cgroup_manager = "cgroupfs"
conmon_path = [{conmon}]
env = ["DISABLE_HC_SYSTEMD=true"]  # it would have systemd run the health checks
events_logger = "file"
lock_type = "file"
runtime = "crun"
static_dir = {static}
tmp_dir = {tmp}
volume_path = {volumes}
[engine.runtimes]
crun = [{crun}]
"""

# Root of a box may not be allowed to raise limits, and would be asked to; docker mounts nothing beside what it is told.
_RUN = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--read-only-tmpfs=false")
_DOCKER = f"""\
#!/bin/sh
[ "$1" != run ] || {{ shift; set -- run {" ".join(_RUN)} "$@"; }}
exec podman "$@"
"""


class Engine(Namespaces):
    """buildah and podman, for images of one ``machine`` ("amd64", "arm64"): another than ours is emulated. Commands in
    there find ``buildah`` and ``docker``. Images, containers and volumes stay in its folder.
    """

    def __init__(self, folder: Path, *, machine: str) -> None:
        super().__init__(name="engine", folder=folder, machine=machine, environment=os.environ | _set_up(folder))

    def start(self, timeout: float = 20.0) -> Self:
        """Make the namespaces."""
        super().start(timeout)
        if libraries := program("podman")[1].get("LD_LIBRARY_PATH"):
            # not by the variable: both start themselves anew, and with nothing of their environment
            folders = self.folder / "settings" / "ld.so.conf"
            folders.write_text(libraries.replace(os.pathsep, "\n") + "\ninclude /etc/ld.so.conf\n")
            self.run("ldconfig", "-X", "-f", folders, "-C", self.folder / "ld.so.cache")
            self.run("mount", "--bind", self.folder / "ld.so.cache", "/etc/ld.so.cache")
        return self

    def docker(self, *arguments: str | Path, check: bool = True, timeout: float = 300.0) -> str:
        """What ``docker ARGUMENTS`` writes to stdout. Raises BoxError if its exit status is not 0."""
        return self.run("docker", *arguments, check=check, timeout=timeout).strip()

    def take_in(self, root: Path, image: str) -> None:
        """Make an image of the files of a folder, whose pip asks the package index that ours asks."""
        etc = self.folder / "beside" / "etc"
        etc.mkdir(parents=True, exist_ok=True)
        settings = _pip()
        if authorities := settings.get("cert"):
            shutil.copy(authorities, etc / "pip.pem")
            settings["cert"] = "/etc/pip.pem"
        (etc / "pip.conf").write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items()))
        packed = shlex.join(
            ["tar", "-c", "-C", str(root), ".", "-C", str(etc.parent), *(f"etc/{each.name}" for each in etc.iterdir())]
        )
        taken = shlex.join(["docker", "import", "--quiet", "--os=linux", f"--arch={self.machine}", "-", image])
        self.run("bash", "-o", "pipefail", "-c", f"{packed} | {taken}")

    def build(self, context: Path, recipe: str, image: str, **arguments: str) -> str:
        """Build an image as ``docker build`` does; returns what was said. ``arguments``: of the build."""
        options = [
            *("--isolation=chroot", "--pull=never", "--network=host", f"--arch={self.machine}", "--format=docker"),
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        ]
        return self.run("buildah", "bud", *options, f"--tag={image}", f"--file={context / recipe}", context)


def _pip() -> dict[str, str]:
    """Which package index pip asks here and whom it trusts: its settings, from files and environment."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = dict(re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    wanted = ("index-url", "extra-index-url", "trusted-host", "cert")
    return {name: found[name] for name in wanted if name in found}


def _set_up(folder: Path) -> Mapping[str, str]:
    """Write what the programs are told below ``folder``; returns their environment."""
    bin_, settings = folder / "bin", folder / "settings"
    podman = program("podman")[0]
    programs = dict.fromkeys(str(program(name)[0].parent) for name in ("buildah", "podman"))
    environment = {
        "HOME": str(settings),
        "PATH": os.pathsep.join([str(bin_), *programs, os.environ.get("PATH", os.defpath)]),
        "CONTAINERS_CONF": str(settings / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(settings / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(settings / "registries.conf"),
        "BUILDAH_ISOLATION": "chroot",
    }
    values = {
        "conmon": program("conmon")[0],
        "crun": bin_ / "crun",
        "seccomp": podman.parents[2] / "usr" / "share" / "containers" / "seccomp.json",
        "static": folder / "graph" / "libpod",  # where podman looks when it is started anew
        "tmp": f"{_MEMORY}/libpod",
        "volumes": folder / "volumes",
    }
    storage = {"driver": "overlay", "runroot": f"{_MEMORY}/run", "graphroot": str(folder / "graph")}
    texts = {
        settings / "containers.conf": _SETTINGS.format_map({name: json.dumps(str(at)) for name, at in values.items()}),
        settings / "storage.conf": "[storage]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in storage.items()),
        settings / "registries.conf": 'unqualified-search-registries = ["localhost"]\nshort-name-mode = "permissive"\n',
        settings / ".config/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}\n',
    }
    crun = shlex.join([str(program("crun")[0]), f"--root={_MEMORY}/crun"])
    texts[bin_ / "crun"] = f'#!/bin/sh\nexec {crun} "$@"\n'
    texts[bin_ / "docker"] = _DOCKER
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return environment
