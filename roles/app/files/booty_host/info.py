"""Tell in one answer all that a deploy asks of a host. Changes nothing."""

from __future__ import annotations

import json
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


def manifests() -> dict[str, dict[str, str]]:
    """Return what each staged release says of itself: a half-made one has a leading dot, and no manifest yet."""
    found = sorted(host.RELEASES.glob("[!.]*/release.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


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


def user_exists(name: str) -> bool:
    """Tell whether the host knows a user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def info(user: str, pointer: str, units: dict[str, str], check: bool) -> dict[str, Any]:
    """Return everything as `host`, each part under the name that the tasks use.

    Args:
        user: the service's user.
        pointer: the text of the release.env that is wanted.
        units: the text of each unit that is wanted.
        check: makes no difference, since nothing is changed.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    staged = manifests()
    found = {
        "python": python,
        "machine": platform.machine() if sys.maxsize > 2**32 else f"32-bit {platform.machine()}",
        "clock": time.time(),
        "free": shutil.disk_usage(host.OPT if host.OPT.is_dir() else "/").free,
        "lets_in": lets_in(),
        "state_owner": owner(STATE_DIRECTORY),
        "port_taken": host.takers(*host.Release(pointer, units).address) if units else "",
        "ready": user_exists(user) and host.RELEASES.is_dir() and host.ETC.is_dir(),
        "pointer": host.pointer(),
        "manifests": staged,
        "releases": [release for release, manifest in staged.items() if manifest["python"] == python],
        "layers": sorted(path.name for path in host.LAYERS.glob("[!.]*")),
        "served": host.State.load().served,
        "running": host.labels(int(host.unit(host.SERVICE)["MainPID"])),
        "unsettled": host.unsettled(host.Release(pointer, units)) if units else "",
        "secrets": host.secrets(),
    }
    return {"host": found}
