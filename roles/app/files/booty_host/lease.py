"""The lock that one run holds while it changes an app on a host, and the note that it leaves for other runs."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from booty_host import HostError, journal
from booty_host.app import App
from booty_host.files import parse_assignments, read


def holder(app: App, locks: str) -> str | None:
    """Say who holds the app's deploy lock, for what and since when; None if it is free.

    The function reads the kernel's table. Trying the lock would hold it for an instant, and refuse a deploy then.

    Args:
        app: the app.
        locks: the text of `/proc/locks`.
    """
    try:
        file = app.lock.stat()
    except FileNotFoundError:
        return None
    key = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    # The line of a waiting process begins with `->`. A process waits only while another one holds the lock.
    if any(key in line.split() for line in locks.splitlines()):
        return read(app.lock).strip() or "somebody"
    return None


def wait_until_free(app: App, wait: float) -> None:
    """Return once no run holds the app's deploy lock; raise HostError if one still does after `wait` seconds."""
    deadline = time.monotonic() + wait
    while by := holder(app, read(Path("/proc/locks"))):
        if time.monotonic() >= deadline:
            raise HostError(busy(by))
        time.sleep(0.1)


def busy(by: str) -> str:
    """Return the message for a run that meets another run on the host."""
    return (
        f"Another deploy is under way on this host: {by}. Nothing was changed. Deploy again when it is through, or"
        " have the next one wait for it: -e app_lock_wait=300 (seconds)."
    )


def seen(app: App) -> dict[str, str]:
    """Return the text and the release of release.env, and the last run's note. A cutover compares them with its own."""
    text = read(app.release_env)
    return {"pointer": text, "release": parse_assignments(text).get("SENTRY_RELEASE", ""), "last": read(app.last)}


def note(app: App, by: str) -> None:
    """Leave a note that a run changed the app on this host or found it in order.

    A run that has asked the host before, and has not switched it yet, sees by the note that its answer is out of date.
    """
    with suppress(OSError):  # /run is full: the text of release.env still shows a change
        app.last.write_text(f"{by}, at {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")


def detached(app: App, work: Callable[[], dict[str, Any]], by: str, wait: float = 0) -> dict[str, Any]:
    """Run `work` in a process of its own, which goes on when the connection or the caller dies.

    That process holds the app's deploy lock. The kernel releases the lock when the process ends, so a person never has
    to unlock it by hand.

    Args:
        app: the app.
        work: the steps.
        by: who asks and for what; a run that meets the lock shows it.
        wait: how long to wait for another run's lock, in seconds.

    Returns:
        the result of `work`, or `failed` and `msg` when it raised.

    Raises:
        HostError: another run still holds the lock.
    """
    deadline = time.monotonic() + wait
    with os.fdopen(os.open(app.lock, os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    lock.seek(0)
                    raise HostError(busy(lock.read().strip())) from None
                time.sleep(0.1)
        lock.seek(0)
        lock.truncate()
        lock.write(f"{by}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")
        lock.flush()
        journal.log(app, f"{by}, in {cgroup()}")
        # The lock belongs to the open file, which the process shares.
        reader = apart(work)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    if not answer:
        look = f"journalctl -t booty-deploy BOOTY_APP={app.name}"
        return {"failed": True, "msg": f"The cutover was killed on the host. Look at: {look}"}
    received: dict[str, Any] = json.loads(answer)
    return received


def apart(work: Callable[[], dict[str, Any]]) -> int:
    """Run `work` in a process of its own, and return the descriptor from which its result can be read."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(reader)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        try:
            result = work()
        except HostError as error:
            result = {"failed": True, "msg": str(error)}
        except BaseException as error:
            result = {"failed": True, "msg": f"{type(error).__name__}: {error}"}
        with suppress(BrokenPipeError), os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(result))
        os._exit(0)
    os.close(writer)
    return reader


def cgroup() -> str:
    """Return the systemd unit that this process belongs to, by the name of its control group."""
    return Path(read(Path("/proc/self/cgroup")).strip()).name
