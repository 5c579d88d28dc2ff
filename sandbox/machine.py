"""What the sandbox needs of the machine it runs on: commands, processes, locks, things built once."""

import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

# What each needed file comes from; apt installs what is missing.
_NEEDED = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "ssh-keygen": "openssh-client",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
# A user's PATH often lacks the directories of what only root runs.
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}


class SandboxError(Exception):
    """One line for the user: what is wrong, and the next step."""


def say(message: str) -> None:
    """Tell the user what happens; stdout is left to what a caller may want to parse."""
    print(message, file=sys.stderr, flush=True)


def run(*argv: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without input and return its output.

    Raises:
        SandboxError: it failed and `check` is true; carries what it said.
    """
    env = {**_ENVIRONMENT, **environment}
    try:
        result = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SandboxError(f"{argv[0]} can't be run ({error.strerror}): install it and try again") from error
    if check and result.returncode:
        lines = [line.strip() for line in (result.stderr or result.stdout).splitlines()]
        # The cause is what apt and its like mark with E:, else what was said last.
        cause = [line for line in lines if line.startswith("E:")][:2] or lines[-2:] or ["no output"]
        raise SandboxError(f"{argv[0]} failed with status {result.returncode}: {' / '.join(cause)}")
    return result


def spawn(argv: list[str], log: Path, **environment: str) -> None:
    """Start a command that outlives us, in a session of its own and as nobody's child, output to `log`."""
    with log.open("ab") as output:
        subprocess.run(
            ["setsid", "--fork", *argv],
            env={**_ENVIRONMENT, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )


def as_root(*arguments: str) -> None:
    """Run `python -m sandbox` with these arguments through sudo; it asks for a password only at a terminal.

    Raises:
        SandboxError: there is no sudo, or the run failed; it has said why.
    """
    if not shutil.which("sudo"):
        raise SandboxError("the sandbox needs root and there is no sudo: run this as root")
    passed = [f"{name}={value}" for name, value in os.environ.items() if name.lower().endswith("_proxy")]
    command = ["sudo", *([] if sys.stdin.isatty() else ["-n"]), "env", f"XDG_CACHE_HOME={cache().parent}"]
    # sudo forgets most of the environment, and -E is not allowed everywhere: name what matters instead.
    command += [*passed, sys.executable, "-m", "sandbox", *arguments]
    # What it did is told once, by us.
    status = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, check=False).returncode
    if status:
        raise SandboxError(f"`sudo … -m sandbox {' '.join(arguments)}` failed, as said above")


def give(*paths: Path) -> None:
    """Hand files that root made to the user who called sudo."""
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        for path in paths:
            os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


def ensure_tools() -> None:
    """Install what is missing, as root.

    Raises:
        SandboxError: something is missing that apt can't give.
    """
    path = _ENVIRONMENT["PATH"]
    missing = [p for f, p in _NEEDED.items() if not (Path(f).is_file() or shutil.which(f, path=path))]
    if missing:
        if not shutil.which("apt-get"):
            raise SandboxError(f"install {', '.join(missing)}: there is no apt here to do it")
        say(f"installing {', '.join(missing)}")
        run("apt-get", "update", "-q")
        run("apt-get", "install", "-qy", "--no-install-recommends", *missing, DEBIAN_FRONTEND="noninteractive")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        run("modprobe", "overlay", check=False)
        if "\toverlay\n" not in Path("/proc/filesystems").read_text():
            raise SandboxError("this kernel has no overlayfs: load the overlay module on the machine itself")


def arguments(pid: int) -> list[str]:
    """Give a process's command line; empty once it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def processes(argument: str) -> list[int]:
    """Find the processes that were started with exactly this argument.

    Looking for what a process is, not for a number written down, finds those that a crashed run forgot, and
    never one that was given a recycled id.
    """
    ids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in ids if argument in arguments(pid)]


def kill(argument: str, patience: float = 10) -> None:
    """Kill the processes started with this argument, and wait until they are gone.

    Raises:
        SandboxError: one is still there after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while found := processes(argument):  # again, as one may have started another meanwhile
        for pid in found:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                try:
                    # Looked at again now that the descriptor holds it: the id can't pass to another any more.
                    if argument in arguments(pid):
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                        wait_gone(descriptor, deadline)
                finally:
                    os.close(descriptor)
        if time.monotonic() > deadline:
            raise SandboxError(f"process {found[0]} can't be killed: see /proc/{found[0]}/status, then try again")


def wait_gone(descriptor: int, deadline: float) -> bool:
    """Wait until the process behind a pidfd has ended; False when it still runs at the deadline."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with its owner, so that a crashed run leaves nothing to clean."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache() -> Path:
    """Give the user's cache directory for Booty."""
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "booty"
    if not directory.is_dir():
        directory.mkdir(parents=True)
        give(directory)
    return directory


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Build a directory unless it is there, so that nobody ever sees a half-built one.

    Args:
        target: where it will be; its name changes with what it is built from.
        build: fills the (empty, temporary) directory it is given, which is then renamed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / ".lock"):
        for leftover in target.parent.glob(".tmp-*"):
            shutil.rmtree(leftover)
        if not target.is_dir():
            work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
            try:
                build(work)
                work.chmod(0o755)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return target
