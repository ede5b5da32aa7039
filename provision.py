"""Install this checkout from requirements.lock: for work on it, or to run the agent from a folder of its own.

    python3 provision.py venv            make .venv/<version> ready, with all tools, and print the path of its python
    python3 provision.py runtime FOLDER  make FOLDER an environment with the agent and what it runs on, no pip, no tools
    python3 provision.py debian          find what tests use of Debian, and print the paths
    python3 provision.py emulators       the same for what runs programs of another machine

Needs Python 3.11 with venv, and the package index until the environment is complete; no network afterwards. Which
index pip asks is the user's choice (pip's configuration and PIP_ variables); every file is checked against the lock's
hashes.

``venv`` is complete when its stamp stands, which is written last: an interrupted set-up leaves none and is made anew
by the next one. Set-ups wait for each other. Progress and errors go to stderr; exit status 1: the set-up failed.

``debian`` and ``emulators`` need no root and change nothing outside this checkout: a program that is not installed is
unpacked, with the libraries that are missing, below .debian/<release>-<machine>, which appears only when it is
complete. No service is started. apt asks the archives that the machine is set up for, with package lists of its own,
and checks signatures.
"""

from __future__ import annotations

import compileall
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

# The interpreter below an activated environment: that one may be about to be removed.
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)
ROOT = Path(__file__).resolve().parent
LOCK = ROOT / "requirements.lock"
PROJECT = "dataexchange-edge-agent (pyproject.toml)"  # so the lock names who asked; "...:dev)" asks for tools
BUILDER = "setuptools"  # builds the project and sdnotify, which has no wheel
WHEELS_ONLY = ["--only-binary=:all:", "--no-binary=sdnotify"]  # nothing else may call for a compiler
DEBIAN = {  # packages, and the program of each, or its library, whose folder is named after the machine
    "mosquitto": "usr/sbin/mosquitto",
    "openssl": "usr/bin/openssl",
    "libfaketime": "usr/lib/*/faketime/libfaketime.so.1",
    "btrfs-progs": "**/sbin/mkfs.btrfs",  # below usr from Debian 13 on
    "mmdebstrap": "usr/bin/mmdebstrap",
    "systemd-container": "usr/bin/systemd-nspawn",
    "buildah": "usr/bin/buildah",
    "podman": "usr/bin/podman",
    "conmon": "usr/bin/conmon",
    "crun": "usr/bin/crun",
}
EMULATORS = {  # the same for what runs programs of another machine: large, and only the long campaigns need them
    "qemu-user-static": "usr/bin/qemu-aarch64-static",
    "qemu-system-arm": "usr/bin/qemu-system-aarch64",
    "busybox-static": "**/bin/busybox",
    "e2fsprogs": "**/sbin/mke2fs",
    "kmod": "**/bin/kmod",
}
PROGRAMS = DEBIAN | EMULATORS
SYSTEM = Path("/")
STARTED = time.monotonic()


class SetUpFailed(Exception):
    """A step failed; the message is what the operator needs."""


def say(text: str) -> None:
    """Print a line of progress after the elapsed seconds."""
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", file=sys.stderr, flush=True)


# ---- the lock --------------------------------------------------------------------------------------------------


def locked() -> dict[str, str]:
    """The lock's entries by name: requirement, hashes and the comment on who asked for it."""
    blocks = re.split(r"^(?=[a-z0-9])", LOCK.read_text(), flags=re.MULTILINE)[1:]
    return {block.partition("==")[0]: block for block in blocks}


def asked_by(block: str) -> set[str]:
    """Who asked for an entry of the lock: names of other entries, or PROJECT."""
    return set(re.findall(r"^ +# +(?:via +)?(.*\S)", block, re.MULTILINE))


def runtime(entries: Mapping[str, str]) -> dict[str, str]:
    """The entries that the project needs at run time: those it asks for itself and, in turn, what these ask for."""
    parents = {name: asked_by(block) for name, block in entries.items()}
    needed = {PROJECT}
    while more := {name for name, theirs in parents.items() if name not in needed and theirs & needed}:
        needed |= more
    return {name: block for name, block in entries.items() if name in needed}


# ---- pip -------------------------------------------------------------------------------------------------------


def run(command: Sequence[str | Path], *, of: int = 0) -> None:
    """Run a command quietly; ``of`` packages to count in the progress. Raises SetUpFailed with the command's output."""
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    lines, seen, told = [], 0, time.monotonic()
    child = subprocess.Popen(  # close_fds=False: see alone()
        command,
        cwd=ROOT,
        env=environment,
        close_fds=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with child:  # which waits for its end
        try:
            assert child.stdout is not None
            for line in child.stdout:
                lines.append(line)
                seen += line.startswith("Collecting ")
                if of and time.monotonic() - told > 3:
                    told = time.monotonic()
                    say(f"  {seen} of {of} packages" if seen < of else "  unpacking and compiling")
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        words = " ".join(map(str, command))
        raise SetUpFailed(f"{''.join(lines[-40:])}\nset-up failed: exit status {child.returncode} of: {words}")


def pip(python: Path, verb: str, *arguments: str | Path, entries: Mapping[str, str] | None = None) -> None:
    """Let ``python``'s pip do ``verb`` with ``arguments``, or with ``entries`` of the lock, whose hashes are checked.

    Nothing is resolved (the lock is complete) and nothing is built in an environment from the index.
    """
    command: list[str | Path] = [python, "-m", "pip", verb, *arguments]
    command += ["--no-deps", "--no-build-isolation", "--use-pep517", "--progress-bar=off"]
    if entries is None:
        run(command)
        return
    with tempfile.NamedTemporaryFile("w", prefix="requirements-", suffix=".txt") as requirements:
        requirements.write("".join(entries.values()))
        requirements.flush()
        run([*command, *WHEELS_ONLY, "--require-hashes", "-r", requirements.name], of=len(entries))


# ---- the environment -------------------------------------------------------------------------------------------


def fingerprint() -> str:
    """What a complete environment was made from: lock, packaging, interpreter, machine and place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packaging = [project["build-system"], project["project"], project["tool"]["setuptools"]]
    parts = [LOCK.read_text(), json.dumps(packaging), sys.version, sys.base_prefix, os.uname().machine, str(ROOT)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the set-up lock. The kernel lets go of it when this process and its pip, which inherits it, have ended."""
    with path.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def venv() -> Path:
    """Make the environment ready and return its python. Raises SetUpFailed."""
    home = ROOT / ".venv" / ".".join(map(str, sys.version_info[:3]))
    python, stamp, wanted = home / "bin" / "python", home / "stamp", fingerprint()

    def ready() -> bool:
        return python.exists() and stamp.exists() and stamp.read_text() == wanted

    if ready():
        return python
    if home.parent.is_symlink():
        raise SetUpFailed(f"{home.parent} leads to the environment of another checkout: remove the link, not that")
    home.parent.mkdir(exist_ok=True)
    with alone(home.parent / "lock"):
        if ready():
            return python
        entries = locked()
        say(f"setting up {home.relative_to(ROOT)}, once; this takes about half a minute")
        stamp.unlink(missing_ok=True)  # before anything else goes
        shutil.rmtree(home, ignore_errors=True)
        run([BASE_PYTHON, "-m", "venv", home])
        pip(python, "install", entries={BUILDER: entries[BUILDER]})
        say(f"installing {len(entries)} packages from requirements.lock")
        pip(python, "install", entries=entries)
        say("installing the agent, editable")
        pip(python, "install", "--no-index", "--editable", ROOT)
        stamp.write_text(wanted)
        say("ready")
    return python


def compile_modules() -> None:
    """Write the bytecode of this checkout's modules where it is not up to date: each start of the agent takes a third
    less, also where PYTHONDONTWRITEBYTECODE says that nobody else writes it.
    """
    for folder in ("agent", "adapters", "testbed", "bench"):
        compileall.compile_dir(ROOT / folder, quiet=2)


def deploy(folder: Path) -> None:
    """Make ``folder`` an environment that runs the agent and can build and install nothing. Raises SetUpFailed."""
    needed = runtime(entries := locked())
    with tempfile.TemporaryDirectory() as scratch:
        python, wheels = Path(scratch, "bin", "python"), Path(scratch, "wheels")
        run([BASE_PYTHON, "-m", "venv", scratch])
        pip(python, "install", entries={BUILDER: entries[BUILDER]})
        say(f"fetching {len(needed)} packages from requirements.lock")
        pip(python, "wheel", f"--wheel-dir={wheels}", entries=needed)
        source = Path(scratch, "source")  # setuptools leaves build/ where it works, and would ship it next time
        for name in ("agent", "adapters"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        pip(python, "wheel", "--no-index", f"--wheel-dir={wheels}", source)
        say(f"installing them into {folder}")
        run([BASE_PYTHON, "-m", "venv", "--without-pip", folder])
        target = folder / "bin" / "python"
        run([python, "-m", "pip", f"--python={target}", "install", "--no-index", "--no-deps", *wheels.iterdir()])
    say("ready")


# ---- programs of Debian ----------------------------------------------------------------------------------------


def debian_folder(programs: Mapping[str, str] = DEBIAN) -> Path:
    """Where these programs of this machine's release are unpacked."""
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    release = system.get("VERSION_ID") or system.get("VERSION_CODENAME", "rolling")
    name = f"{system.get('ID', 'unknown')}-{release}-{os.uname().machine}"
    return ROOT / ".debian" / (name if programs is DEBIAN else f"{name}-emulators")


def installed(name: str) -> Path | None:
    """The machine's own program or library of that name; root's programs are not on everybody's PATH."""
    if ".so" in PROGRAMS[name]:
        return next(SYSTEM.glob(PROGRAMS[name]), None)
    found = shutil.which(
        Path(PROGRAMS[name]).name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    )
    return Path(found) if found else None


def program(name: str) -> tuple[Path, dict[str, str]] | None:
    """A program or library of ``PROGRAMS`` and the environment it needs: installed, else unpacked; None: neither."""
    if path := installed(name):
        return path, {}
    home = debian_folder(EMULATORS if name in EMULATORS else DEBIAN)
    shared = [folder for top in ("usr/lib", "lib") for folder in home.glob(f"{top}/*-linux-gnu*")]
    libraries = [str(folder) for each in shared for folder in (each, each / "systemd") if folder.is_dir()]
    path = next(home.glob(PROGRAMS[name]), None)
    return (path, {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}) if path else None


def debian(programs: Mapping[str, str] = DEBIAN) -> list[Path]:
    """Make ``DEBIAN`` or ``EMULATORS`` ready; returns their paths. Raises SetUpFailed."""

    def ready() -> list[Path]:
        return [found[0] for name in programs if (found := program(name))]

    if len(ready()) < len(programs):
        home = debian_folder(programs)
        home.parent.mkdir(exist_ok=True)
        (home.parent / ".gitignore").write_text("*\n")
        with alone(home.parent / "lock"):
            if len(ready()) < len(programs):
                unpack([name for name in programs if not installed(name)], home)
    return ready()


def unpack(names: Sequence[str], home: Path) -> None:
    """Unpack packages, and what they need and the machine does not have, into ``home``. Raises SetUpFailed."""
    wanted = ", ".join(names)
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SetUpFailed(f"no apt here: install {wanted} with your distribution's means")
    say(f"fetching {wanted} from the Debian archive, once; this takes about five seconds")
    with tempfile.TemporaryDirectory(prefix="new-", dir=home.parent) as scratch:
        lists, archives, root = (Path(scratch, name) for name in ("lists", "archives", "root"))
        for folder in (lists / "partial", archives / "partial", root):
            folder.mkdir(parents=True)
        settings = {
            "Dir::State::Lists": lists,
            "Dir::Cache": scratch,
            "Dir::Cache::Archives": archives,
            "Debug::NoLocking": "true",  # of folders that are not ours; ours have a lock
            "APT::Sandbox::User": "root",  # root's other user may have no way into this checkout
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "20",
            "Acquire::https::Timeout": "20",
        }
        apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in settings.items())]
        trouble = ""
        try:
            run([*apt, "update"])
        except SetUpFailed as error:  # of one archive among several, or of a hook that only root may run
            trouble = f"{error}\n\n"
        try:
            run([*apt, "install", "--yes", "--no-install-recommends", "--download-only", *names])
        except SetUpFailed as error:
            hint = f"without network here, install {wanted} with apt as root, or run this once where there is one"
            raise SetUpFailed(f"{trouble}{error}\n{wanted}: not to be had from the Debian archive; {hint}") from None
        for package in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "--extract", package, root])
        for name in names:
            if not any(root.glob(PROGRAMS[name])):
                raise SetUpFailed(f"the package {name} holds no {PROGRAMS[name]}")
        shutil.rmtree(home, ignore_errors=True)
        root.rename(home)
    say("ready")


def terminated(signum: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that pip does not outlive us."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit status."""
    signal.signal(signal.SIGTERM, terminated)
    try:
        match arguments:
            case ["venv"]:
                python = venv()
                compile_modules()
                print(python)
            case ["runtime", folder]:
                deploy(Path(folder).absolute())
            case ["debian"]:
                print(*debian(), sep="\n")
            case ["emulators"]:
                print(*debian(EMULATORS), sep="\n")
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except SetUpFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
