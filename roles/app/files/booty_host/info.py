"""Tell in one answer all that a deploy asks of a host. Changes nothing of what serves."""

from __future__ import annotations

import platform
import pwd
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from booty_host import host

STATE_DIRECTORY = Path("/var/lib/booty")


def lets_in() -> list[int]:
    """Return the TCP ports that Booty's own firewall lets in; none when there is no such firewall."""
    found = re.search(r"dport { ([\d, ]+) } accept", host.read(host.ETC / "firewall.nft"))
    return [int(port) for port in found[1].split(",")] if found else []


def owner(path: Path) -> str:
    """Return who owns a path; nobody when it is not there, or is a user's who is gone."""
    try:
        return path.owner()
    except (FileNotFoundError, KeyError):
        return ""


def user_id(name: str) -> int | None:
    """Return a user's number; None when the host does not know the user."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def info(user: str, pointer: str, units: dict[str, str], check: bool, by: str = "", wait: int = 0) -> dict[str, Any]:
    """Return everything as `host`, each part under the name that the tasks use.

    Args:
        user: the service's user.
        pointer: the text of the release.env that is wanted.
        units: the text of each unit that is wanted.
        check: whether no run follows: then nobody is waited for, and no note is left.
        by: who asks and for what; a host that is in order keeps it as a note for other runs.
        wait: how long to wait while another run holds the host's deploy lock, in seconds.

    Raises:
        host.HostError: another run still holds the lock.
    """
    run_follows = bool(units) and not check
    if run_follows:
        host.wait_for_lease(wait)
    # Read first: should another run switch the host from here on, the cutover finds something else than this.
    seen = host.seen()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    staged = {path.name: host.manifest(path) for path in host.directories(host.RELEASES)}
    layers = [path.name for path in host.directories(host.LAYERS)]
    uid = user_id(user)
    found = {
        "seen": seen,
        "python": python,
        "python_full": ".".join(map(str, sys.version_info[:3])),
        "machine": platform.machine() if sys.maxsize > 2**32 else f"32-bit {platform.machine()}",
        "clock": time.time(),
        "free": shutil.disk_usage(host.OPT if host.OPT.is_dir() else "/").free,
        "lets_in": lets_in(),
        "state_owner": owner(STATE_DIRECTORY),
        "port_taken": host.takers(*host.Release(pointer, units).address) if units else "",
        "user_id": uid,
        "ready": uid is not None and host.RELEASES.is_dir() and host.ETC.is_dir(),
        "pointer": host.pointer(),
        "manifests": staged,
        "releases": [
            release
            for release, manifest in staged.items()
            if manifest.get("python") == python and host.layers_of(manifest) <= {*layers}
        ],
        "layers": layers,
        "served": host.State.load().served,
        "running": host.labels(int(host.unit(host.SERVICE)["MainPID"])),
        "unsettled": host.unsettled(host.Release(pointer, units)) if units else "",
        "secrets": host.secrets(),
    }
    if run_follows and not found["unsettled"]:
        host.note(f"{by}, and found it in order")
        seen["last"] = host.read(host.LAST)
        # A run that took the lock before the note was there does not see it.
        host.wait_for_lease(0)
    return {"host": found}
