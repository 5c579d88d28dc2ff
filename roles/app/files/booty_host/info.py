"""Tell in one answer all that a deploy asks of a host. Changes nothing."""

from __future__ import annotations

import json
import platform
import pwd
import sys
from typing import Any

from booty_host import host


def releases(python: str) -> list[str]:
    """Return the releases that are staged for this Python: a half-made one has a leading dot, and no manifest yet."""
    found = host.RELEASES.glob("[!.]*/release.json")
    return sorted(path.parent.name for path in found if json.loads(path.read_text())["python"] == python)


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
    found = {
        "python": python,
        "machine": platform.machine(),
        "ready": user_exists(user) and host.RELEASES.is_dir() and host.ETC.is_dir(),
        "pointer": host.pointer(),
        "releases": releases(python),
        "layers": sorted(path.name for path in host.LAYERS.glob("[!.]*")),
        "served": host.State.load().served,
        "running": host.labels(int(host.unit(host.SERVICE)["MainPID"])),
        "unsettled": host.unsettled(host.Release(pointer, units)) if units else "",
        "secrets": host.secrets(),
    }
    return {"host": found}
