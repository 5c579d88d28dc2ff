"""Helpers for the machine that the sandbox runs on: commands, processes, locks, and a cache."""

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

# The package of each needed program or file; apt installs what is missing.
_PACKAGES = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "ssh-keygen": "openssh-client",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
# A user's PATH often lacks the directories of system programs.
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}


class SandboxError(Exception):
    """An error as one line for the user: the cause and the next step."""


def say(message: str) -> None:
    """Print a message on stderr; stdout carries only output that a caller may parse."""
    print(message, file=sys.stderr, flush=True)


def run(*argv: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without input and return its output.

    Raises:
        SandboxError: the command can't be run, or it failed and `check` is true. The message has its error output.
    """
    env = {**_ENVIRONMENT, **environment}
    try:
        result = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SandboxError(f"{argv[0]} can't be run ({error.strerror}): install it and try again") from error
    if check and result.returncode:
        lines = [line.strip() for line in (result.stderr or result.stdout).splitlines()]
        # apt marks errors with "E:"; for other programs, the last two lines are taken.
        cause = [line for line in lines if line.startswith("E:")][:2] or lines[-2:] or ["no output"]
        raise SandboxError(f"{argv[0]} failed with status {result.returncode}: {' / '.join(cause)}")
    return result


def spawn(argv: list[str], log: Path, **environment: str) -> None:
    """Start a command in a session of its own, so that it outlives this process; its output goes to `log`."""
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
    """Run `python -m sandbox` with these arguments through sudo, which asks for a password only at a terminal.

    Raises:
        SandboxError: there is no sudo, or the run failed after it printed the reason.
    """
    if not shutil.which("sudo"):
        raise SandboxError("the sandbox needs root and there is no sudo: run this as root")
    proxies = [f"{name}={value}" for name, value in os.environ.items() if name.lower().endswith("_proxy")]
    command = ["sudo", *([] if sys.stdin.isatty() else ["-n"]), "env", f"XDG_CACHE_HOME={cache().parent}"]
    # sudo drops most of the environment, and -E is not allowed everywhere, so the needed variables are passed by `env`.
    command += [*proxies, sys.executable, "-m", "sandbox", *arguments]
    # The run's own report on stdout is dropped, because this process prints one too.
    status = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, check=False).returncode
    if status:
        raise SandboxError(f"`sudo … -m sandbox {' '.join(arguments)}` failed: see the message above")


def give(*paths: Path) -> None:
    """Change the owner of files that root made to the user who called sudo."""
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        for path in paths:
            os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


def ensure_tools() -> None:
    """Install missing packages, as root, and load overlayfs.

    Raises:
        SandboxError: a package can't be installed, or the kernel has no overlayfs.
    """
    path = _ENVIRONMENT["PATH"]
    missing = [p for file, p in _PACKAGES.items() if not (Path(file).is_file() or shutil.which(file, path=path))]
    if missing:
        if not shutil.which("apt-get"):
            raise SandboxError(f"install {', '.join(missing)}: this machine has no apt")
        say(f"installing {', '.join(missing)}")
        run("apt-get", "update", "-q")
        run("apt-get", "install", "-qy", "--no-install-recommends", *missing, DEBIAN_FRONTEND="noninteractive")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        run("modprobe", "overlay", check=False)
        if "\toverlay\n" not in Path("/proc/filesystems").read_text():
            raise SandboxError("this kernel has no overlayfs: load the overlay module on the machine itself")


def arguments(pid: int) -> list[str]:
    """Return a process's command line; empty after the process has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def processes(argument: str) -> list[int]:
    """Return the ids of the processes that were started with exactly this argument.

    Unlike a file with an id, this finds processes of a crashed run, and never one that reuses the id.
    """
    ids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in ids if argument in arguments(pid)]


def kill(argument: str, patience: float = 10) -> None:
    """Kill the processes started with this argument, and wait until they have ended.

    Raises:
        SandboxError: one still runs after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while pids := processes(argument):  # repeated, because a process may have started another one meanwhile
        for pid in pids:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                try:
                    # Checked again: from now on, the pidfd refers to this process even if its id is reused.
                    if argument in arguments(pid):
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                        wait_gone(descriptor, deadline)
                finally:
                    os.close(descriptor)
        if time.monotonic() > deadline:
            raise SandboxError(f"process {pids[0]} can't be killed: see /proc/{pids[0]}/status, then try again")


def wait_gone(descriptor: int, deadline: float) -> bool:
    """Wait until the process of a pidfd has ended; return False if it still runs at the deadline."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock (flock) that the kernel releases when this process ends, even if it crashes."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache() -> Path:
    """Return the user's cache directory for Booty."""
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "booty"
    if not directory.is_dir():
        directory.mkdir(parents=True)
        give(directory)
    return directory


def unmount(directory: Path) -> None:
    """Unmount all mounts below a directory."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted(mounted, reverse=True):
        if point.startswith(f"{directory}/") and run("umount", point, check=False).returncode:
            run("umount", "--lazy", point)


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Build a directory unless it exists. It is built under a temporary name, so that no run finds it incomplete.

    Args:
        target: the directory's path; its name must change when its sources do.
        build: fills the empty temporary directory that it gets, which is then renamed to `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / ".lock"):
        for leftover in target.parent.glob(".tmp-*"):
            unmount(leftover)  # a killed build leaves /proc and /sys mounted in its root
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
