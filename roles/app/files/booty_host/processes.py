"""Run commands, and read which release a process runs."""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from booty_host.app import App

# The host program reads only these variables of a process, and the settings that BOOTY_SETTINGS names. Any other may be
# a secret. release.env sets all of them but the last, which is the unit's.
LABELS = (
    *("SENTRY_RELEASE", "SENTRY_ENVIRONMENT", "BOOTY_RELEASE_DIR", "BOOTY_CONFIG_DIR", "BOOTY_SETTINGS"),
    "BOOTY_UNIT",
)
# The variables with the health request of a process, and with the identifier that systemd gave its start.
QUESTION = ("BOOTY_HEALTH_PATH", "BOOTY_HEALTH_HOST", "INVOCATION_ID")

# An app may write a field of 768 MB to the journal, of which journalctl makes JSON of 40 times its size.
JOURNALCTL = ("prlimit", f"--data={2**28}", "journalctl", "--quiet", "--no-pager")

# The kernel starts no process with a larger environment (execve(2)), in bytes. A process can enlarge its own for free.
ENVIRON = 2**21
# The characters that str.splitlines() takes for the end of a line.
LINE_ENDS = re.compile(r"[\n-\r\x1c-\x1e\x85\u2028\u2029]")
# What is read of the list of files that a process has mapped, in bytes. A process can make it 250 MB long.
MAPS = 2**22


def run(*command: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its status, output and errors as text.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout`, in seconds.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=environment, check=False, timeout=timeout
    )


def run_tail(size: int, *command: str) -> str:
    """Run a command to its end and return the end of its output, in bytes: an app may write lines of any size."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        tail = subprocess.run(["tail", f"--bytes={size}"], stdin=process.stdout, capture_output=True, check=False)
    return tail.stdout.decode(errors="replace")


def run_head(size: int, *command: str) -> str:
    """Run a command until it has printed so many bytes, and return these as text."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        head = process.stdout.read(size)
        process.kill()
    return head.decode(errors="replace")


def parse_environ(environ: bytes, names: tuple[str, ...]) -> dict[str, str]:
    """Return only these variables of a process's `/proc/<pid>/environ`, and its settings if BOOTY_SETTINGS is asked.

    Each value is one line, as release.env and the unit give it. A process can write line ends there, to forge a line of
    a message.
    """
    text = LINE_ENDS.sub("\N{REPLACEMENT CHARACTER}", environ.decode(errors="replace"))
    pairs = (entry.partition("=") for entry in text.split("\0"))
    variables = {name: value for name, _, value in pairs if name}
    settings = variables.get("BOOTY_SETTINGS", "").split(",") if "BOOTY_SETTINGS" in names else []
    return {name: variables[name] for name in (*names, *settings) if name in variables}


def labels(app: App, pid: int, names: tuple[str, ...] = LABELS) -> dict[str, str]:
    """Return the labels and settings that a running process was started with; none if the process has ended."""
    try:
        with (app.root / f"proc/{pid}/environ").open("rb") as file:
            environ = file.read(ENVIRON + 1)
    except OSError:
        return {}
    return parse_environ(environ, names) if len(environ) <= ENVIRON else {}


def stat(app: App, pid: int) -> list[str]:
    """Return the fields of `/proc/<pid>/stat` from the state on; the parent is the next. None if it has ended."""
    try:
        return (app.root / f"proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def older_than(app: App, pid: int, file: Path) -> bool:
    """Tell whether a process was started before a file came to its place; no for one that has ended, or no file.

    The inode's change is compared, since a file that is moved there keeps the time of its content.
    """
    fields = stat(app, pid)
    if not fields or not file.exists():
        return False
    # Field 22 of proc(5), in ticks since the boot.
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return file.stat().st_ctime > time.time() - age


def alive(app: App, pid: int) -> bool:
    """Tell whether a process runs: it has not ended, and its parent has nothing of it left to read."""
    return stat(app, pid)[:1] not in ([], ["Z"], ["X"])


def family(app: App, pid: int) -> list[int]:
    """Return a process and its descendants."""
    parents = {int(path.name): stat(app, int(path.name))[1:2] for path in (app.root / "proc").glob("[0-9]*")}
    members = [pid]
    for parent in members:  # it grows meanwhile
        members += [child for child, fields in parents.items() if fields == [str(parent)]]
    return members


def in_use(app: App, label: str) -> set[Path]:
    """Return the directories that this label has in any process of the app's user or of root.

    A process of another app may have any label.
    """
    owners = {os.geteuid(), *(path.stat().st_uid for path in (app.var,) if path.exists())}
    used = set()
    for path in (app.root / "proc").glob("[0-9]*"):
        with suppress(FileNotFoundError):  # the process has ended
            if path.stat().st_uid in owners and (value := labels(app, int(path.name), (label,)).get(label)):
                used.add(Path(value))
    return used


def outdated(root: Path, pid: int) -> bool:
    """Tell whether a process runs a program or a library that an upgrade has replaced on disk."""
    try:
        program = os.readlink(root / f"proc/{pid}/exe")
        with (root / f"proc/{pid}/maps").open("rb") as file:
            maps = file.read(MAPS)
    except OSError:  # the process has ended
        return False
    return program.endswith(" (deleted)") or bool(re.search(rb"\.so[.\d]* \(deleted\)$", maps, re.MULTILINE))
