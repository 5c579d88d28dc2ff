"""Detect a dead controller before the switch: nobody could take this host back with its wave afterwards."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from booty_host.processes import run


class Controller:
    """The other end of the SSH connection that a call came over."""

    def __init__(self, over_ssh: bool) -> None:
        """Find the connection, while the process is a descendant of sshd's."""
        connection = ports() if over_ssh else None
        # Later, a connection that `ss` never shows would look like one that has ended.
        self.ports = connection if connection and acknowledged(*connection) is not None else None
        # `lease.detached` replaces the caller's standard output by /dev/null.
        self.output = os.dup(1)

    def gone(self, patience: float = 10) -> bool:
        """Send empty lines; tell whether sending fails, or TCP gets no acknowledgement within `patience` seconds.

        ssh itself gives up a little later. Without SSH or `ss`, the controller counts as alive.
        """
        with os.fdopen(self.output, "wb", buffering=0) as output:
            if self.ports is None:
                return False
            if (before := acknowledged(*self.ports)) is None:
                return True
            deadline = time.monotonic() + patience
            try:
                # TCP acknowledges more than one packet at once; it may delay the acknowledgement of less by 40 ms.
                output.write(b"\n" * 4096)
            except OSError:
                return True
            while (now := acknowledged(*self.ports)) is not None and now <= before:
                if time.monotonic() > deadline:
                    return True
                time.sleep(0.01)
            return now is None


def ports() -> tuple[int, int] | None:
    """Return the controller's port and the host's, of the SSH connection; None if no process above has one."""
    pid = os.getppid()
    try:
        while pid > 1:
            process = Path(f"/proc/{pid}")
            # sudo removes SSH_CONNECTION from the environment, so the processes above it are read.
            environ = (process / "environ").read_bytes()
            if connection := re.search(rb"(?:^|\0)SSH_CONNECTION=\S+ (\d+) \S+ (\d+)", environ):
                return int(connection[1]), int(connection[2])
            pid = int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:  # one of these processes has just ended
        pass
    return None


def acknowledged(remote: int, local: int) -> int | None:
    """Return how many bytes the other end of a TCP connection has acknowledged; None if `ss` does not show it."""
    try:
        table = run("ss", "-tinHO", f"dport = :{remote} and sport = :{local}").stdout
    except FileNotFoundError:
        return None
    counts = re.findall(r"\bbytes_acked:(\d+)", table)
    return int(counts[0]) if len(counts) == 1 else None
