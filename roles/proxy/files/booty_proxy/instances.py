"""Start the proxy, and replace it by a second instance on the same sockets, so that no connection is cut."""

from __future__ import annotations

import re
import time

from booty_host import HostError
from booty_host.files import read, write_atomically
from booty_host.processes import run

from booty_proxy import paths
from booty_proxy.host import checked, main_pid, states
from booty_proxy.paths import Paths

# A client that keeps a connection may send its next request for as long as keepalive_timeout, and a bit.
DRAIN_SECONDS = 80
PYTHON = ("/usr/bin/python3", "-I")


def serving(host: Paths) -> str:
    """Return the instance that serves, which is the one that starts at boot; "" if it does not run."""
    for instance in paths.INSTANCES:
        unit = paths.service(instance)
        if (host.units / f"multi-user.target.wants/{unit}").is_symlink() and states(unit) == ["active"]:
            return instance
    return ""


def draining(host: Paths) -> list[str]:
    """Return the instances that finish the clients that they have."""
    others = [instance for instance in paths.INSTANCES if instance != serving(host)]
    active = zip(others, states(*map(paths.service, others)), strict=True)
    return [instance for instance, state in active if state in {"active", "deactivating"}]


def digest(host: Paths, instance: str) -> str:
    """Return the digest of the configuration that an instance was started with."""
    command = read(host.root / f"proc/{main_pid(paths.service(instance))}/cmdline")
    label = re.search(r"BOOTY_FRONT=(\w+)", command)
    return label[1] if label else ""


def start(host: Paths) -> str:
    """Start an instance with the present configuration, and let the one that serves drain; return the new one.

    Raises:
        HostError: the new instance does not start. What serves was not touched.
    """
    before = serving(host)
    free = [i for i, state in zip(paths.INSTANCES, states(*map(paths.service, paths.INSTANCES)), strict=True)
            if state in {"inactive", "failed", "unknown"}]  # fmt: skip
    if not free:
        raise HostError(
            f"{len(paths.INSTANCES)} instances of the proxy still finish their clients, which takes an hour at most."
            " Wait, or stop the oldest: systemctl list-units 'booty-front@*'"
        )
    unit = paths.service(free[0])
    run("systemctl", "reset-failed", unit)
    if not before:
        checked("systemctl", "enable", "--now", paths.SOCKET)
    done = run("systemctl", "start", unit)
    if done.returncode:
        journal = run("journalctl", "--unit", unit, "--lines=8", "--output=cat", "--quiet").stdout.strip()
        run("systemctl", "stop", unit)
        run("systemctl", "reset-failed", unit)
        raise HostError(f"nginx does not start:\n{journal}")
    checked("systemctl", "--quiet", "enable", unit)
    for other in (other for other in paths.INSTANCES if other != free[0]):
        if (host.units / f"multi-user.target.wants/{paths.service(other)}").is_symlink():
            checked("systemctl", "--quiet", "disable", paths.service(other))
    if before:
        program = (*PYTHON, str(host.program), "drain", before)
        checked("systemd-run", "--quiet", "--collect", f"--unit=booty-front-drain-{before}", *program)
    return free[0]


def drain(host: Paths, instance: str) -> None:
    """Let an instance end each connection after its next answer, then stop it; its last clients may take an hour."""
    host.drain.mkdir(parents=True, exist_ok=True)
    pid, marked = main_pid(paths.service(instance)), set()
    deadline = time.monotonic() + DRAIN_SECONDS
    try:
        while time.monotonic() < deadline:
            # A worker that dies is replaced.
            for worker in (host.root / f"proc/{pid}/task/{pid}/children").read_text().split():
                if worker not in marked:
                    write_atomically(host.drain / worker, "")
                    marked.add(worker)
            time.sleep(1)
    except FileNotFoundError:  # the instance has ended
        pass
    run("systemctl", "stop", paths.service(instance))
    for worker in marked:  # another process may get the same PID
        (host.drain / worker).unlink(missing_ok=True)


def wait_until_alone(host: Paths, before: str) -> None:
    """Wait until an instance that is being replaced takes no more connections."""
    deadline = time.monotonic() + DRAIN_SECONDS + 30
    while states(paths.service(before)) == ["active"] and time.monotonic() < deadline:
        time.sleep(0.5)
