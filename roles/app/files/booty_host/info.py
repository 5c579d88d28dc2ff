"""Answer everything that a deploy asks of a host in one call. It does not change what serves."""

from __future__ import annotations

import platform
import pwd
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from booty_host import lease, programs, secrets, sockets
from booty_host.app import App
from booty_host.files import directories, read
from booty_host.processes import labels, older_than
from booty_host.programs import Programs
from booty_host.release import Release, labels_on_disk, layers_of, manifest, unsettled
from booty_host.state import State
from booty_host.systemd import Systemd

# The host's own firewall, one for all apps.
FIREWALL = Path("/etc/booty/firewall.nft")


def lets_in() -> list[int]:
    """Return the TCP ports that Booty's firewall accepts; none without that firewall."""
    rule = re.search(r"dport { ([\d, ]+) } accept", read(FIREWALL))
    return [int(port) for port in rule[1].split(",")] if rule else []


def owner(path: Path) -> str:
    """Return the name of a path's owner; "" if the path is missing, or its owner was removed."""
    try:
        return path.owner()
    except (FileNotFoundError, KeyError):
        return ""


def user_id(name: str) -> int | None:
    """Return a user's ID; None if the host has no such user."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def lacking(packages: list[str]) -> list[str]:
    """Return those Debian packages that are neither installed nor provided by an installed one."""
    if not packages:
        return []
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Package}, ${Provides}\n"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    installed = {name for line in lines if line.startswith("ii ") for name in re.split("[ ,]+", line)}
    return [name for name in packages if name not in installed]


def info(
    app: App,
    user: str,
    pointer: str,
    units: dict[str, str],
    check: bool,
    by: str = "",
    wait: int = 0,
    packages: list[str] | None = None,
) -> dict[str, Any]:
    """Return everything as `host`, each part under the name that the tasks use.

    Args:
        app: the app.
        user: the service's user.
        pointer: the text of release.env for the release to deploy.
        units: the text of each unit for it; none if the call has no release in mind.
        check: whether no run follows; then the call waits for no other run, and leaves no note.
        by: who asks and for what; the note for other runs if the host is in order.
        wait: how long to wait while another run holds the app's deploy lock, in seconds.
        packages: Debian packages that the release needs.

    Raises:
        HostError: another run still holds the lock.
    """
    systemd, release = Systemd(app), Release(app, pointer, units)
    run_follows = bool(units) and not check
    if run_follows:
        lease.wait_until_free(app, wait)
    # This is read first: the cutover refuses a host that another run changed after this line.
    seen = lease.seen(app)
    socket, service = systemd.units(app.socket, app.service)
    main = int(service.get("MainPID") or 0)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    staged = {path.name: manifest(path) for path in directories(app.releases)}
    layers = [path.name for path in directories(app.layers)]
    state = State.load(app)
    uid = user_id(user)
    answer = {
        "seen": seen,
        "python": python,
        "python_full": ".".join(map(str, sys.version_info[:3])),
        "machine": platform.machine() if sys.maxsize > 2**32 else f"32-bit {platform.machine()}",
        "clock": time.time(),
        "free": shutil.disk_usage(app.opt if app.opt.is_dir() else "/").free,
        "lets_in": lets_in(),
        "lacks": lacking(packages or []),
        "proxy": (app.unit_files / "booty-front.socket").exists(),
        "state_owner": owner(app.var),
        "port_taken": sockets.in_the_way(app, socket, units[app.socket]) if units else "",
        "user_id": uid,
        "ready": uid is not None and app.releases.is_dir() and app.etc.is_dir(),
        "pointer": labels_on_disk(app),
        "manifests": staged,
        "releases": [
            name for name, fields in staged.items() if fields.get("python") == python and layers_of(fields) <= {*layers}
        ],
        "layers": layers,
        "served": state.served,
        "commands": state.commands,
        "refused": state.refused,
        "running": labels(app, main),
        "places": state.places,
        "problems": programs.problems(app, release),
        "unsettled": unsettled(app, systemd, release) or Programs(app, systemd).unsettled(release, state.here)
        if units
        else "",
        "secrets": secrets.judge(app),
        "new_secrets": older_than(app, main, app.secrets_env),
    }
    if run_follows and not answer["unsettled"]:
        lease.note(app, f"{by}, and found it in order")
        seen["last"] = read(app.last)
        # A run that took the lock before the note was written does not see the note.
        lease.wait_until_free(app, 0)
    return {"host": answer}
