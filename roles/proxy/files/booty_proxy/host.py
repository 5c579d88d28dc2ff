"""The host as the proxy finds it: programs, commands, the lock, and who else has the ports of the web."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from booty_host import HostError
from booty_host.processes import run

from booty_proxy import paths
from booty_proxy.config import System
from booty_proxy.paths import Paths

PACKAGES = {"nginx": "/usr/sbin/nginx", "uacme": "/usr/bin/uacme", "openssl": "/usr/bin/openssl"}
# Programs that serve websites: Booty does not take their ports away.
SERVERS = ("nginx", "apache2", "caddy", "lighttpd", "haproxy", "traefik")


def checked(*command: str) -> str:
    """Run a command and return its output; raise HostError with its last line if it fails."""
    done = run(*command)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise HostError(f"{' '.join(command[:2])} failed: {lines[-1] if lines else f'status {done.returncode}'}")
    return done.stdout


def states(*units: str) -> list[str]:
    """Return the ActiveState of each unit."""
    return [line.strip() or "inactive" for line in run("systemctl", "is-active", *units).stdout.splitlines()]


def main_pid(unit: str) -> int:
    """Return the main PID of a service; 0 if it does not run."""
    return int(run("systemctl", "show", "--value", "--property=MainPID", unit).stdout or 0)


def system(host: Paths) -> System:
    """Return what shapes the configuration."""
    version = re.search(r"nginx/([\d.]+)", run("/usr/sbin/nginx", "-v").stderr)
    numbers = tuple(map(int, version[1].split("."))) if version else ()
    return System(numbers, (host.root / "proc/net/if_inet6").exists())


def others() -> Iterator[str]:
    """Name the other web servers of the host: those that listen on port 80 or 443, or would after a boot."""
    if states(paths.SOCKET) == ["active"]:
        return
    listening = run("ss", "-Hltnp", "( sport = :80 or sport = :443 )").stdout
    for line in listening.splitlines():
        program = re.search(r'users:\(\("([^"]+)",pid=(\d+)', line)
        port = line.split()[3].rpartition(":")[2]
        yield f"{program[1]} (PID {program[2]}) listens on port {port}" if program else f"port {port} is taken"
    if not listening:
        for unit in (f"{name}.service" for name in SERVERS):
            if run("systemctl", "is-enabled", unit).stdout.strip() == "enabled":
                yield f"{unit} is enabled, and takes the ports of the web at the next boot"


@contextmanager
def locked(host: Paths) -> Iterator[None]:
    """Hold the lock of the proxy: one change at a time."""
    with os.fdopen(os.open(host.lock, os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
