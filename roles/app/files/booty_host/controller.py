"""Tell whether the controller is still there: a host that it can't reach any more, it can't take back with its wave."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from booty_host import host


class Controller:
    """The other end of the SSH connection that a call came over."""

    def __init__(self, over_ssh: bool) -> None:
        """Find the connection, while the process is a descendant of sshd's."""
        found = ports() if over_ssh else None
        # A connection that `ss` does not show at the start can't be told from one that has ended.
        self.ports = found if found and acknowledged(*found) is not None else None
        # A process of its own has none of the caller's.
        self.output = os.dup(1)

    def gone(self, patience: float = 10) -> bool:
        """Send it some empty lines; tell whether they can't be, or are not acknowledged within so many seconds.

        ssh itself gives up a little later. Nobody can tell where there is no SSH, or no `ss`: then it counts as there.
        """
        with os.fdopen(self.output, "wb", buffering=0) as output:
            if self.ports is None:
                return False
            if (before := acknowledged(*self.ports)) is None:
                return True
            deadline = time.monotonic() + patience
            try:
                # More than a packet, which TCP acknowledges at once; less may take it 40 ms.
                output.write(b"\n" * 4096)
            except OSError:
                return True
            while (now := acknowledged(*self.ports)) is not None and now <= before:
                if time.monotonic() > deadline:
                    return True
                time.sleep(0.01)
            return now is None


def ports() -> tuple[int, int] | None:
    """Return the controller's port and the host's, of the SSH connection; None when nobody knows."""
    pid = os.getppid()
    try:
        while pid > 1:
            process = Path(f"/proc/{pid}")
            # sudo does not hand it on.
            if found := re.search(rb"(?:^|\0)SSH_CONNECTION=\S+ (\d+) \S+ (\d+)", (process / "environ").read_bytes()):
                return int(found[1]), int(found[2])
            pid = int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:  # one of them has just ended
        pass
    return None


def acknowledged(there: int, here: int) -> int | None:
    """Return how many bytes of a TCP connection between two ports the other end has; None when nobody knows."""
    try:
        told = host.run("ss", "-tinHO", f"dport = :{there} and sport = :{here}").stdout
    except FileNotFoundError:
        return None
    found = re.findall(r"\bbytes_acked:(\d+)", told)
    return int(found[0]) if len(found) == 1 else None
