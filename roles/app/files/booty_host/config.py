"""The files of app_config_dir on a host: a folder named after their hash, which release.env names."""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
from pathlib import Path

from booty_host import HostError, programs
from booty_host.app import App
from booty_host.files import parse_pointer
from booty_host.processes import in_use
from booty_host.release import labels_on_disk
from booty_host.stage import appearing
from booty_host.state import State
from booty_host.systemd import Systemd


def directory(labels: dict[str, str]) -> Path | None:
    """Return the folder that the labels of a release name; None if they name none."""
    return Path(named) if (named := labels.get("BOOTY_CONFIG_DIR")) else None


def stage(app: App, labels: dict[str, str], files: dict[str, str], user: str) -> None:
    """Make the folder that a release needs, complete or not at all. Only root and the service can read its files.

    Args:
        app: the app.
        labels: those of the release.
        files: the content of each file in base64, by its path in the folder.
        user: the service's.

    Raises:
        HostError: the folder can't be made.
    """
    dest = directory(labels)
    if not dest or dest.is_dir():
        return
    try:
        app.configs.mkdir(exist_ok=True)
        with appearing(dest) as partial:
            for name, content in files.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(content))
            group = pwd.getpwnam(user).pw_gid
            for path in (partial, *partial.rglob("*")):
                os.chown(path, -1, group)
                path.chmod(0o750 if path.is_dir() else 0o640)
    except OSError as error:
        raise HostError(f"{dest} can't be made: {error}") from error


def difference(app: App, labels: dict[str, str], files: dict[str, str]) -> list[dict[str, str]]:
    """Return which files change, as Ansible shows it: their names, each with the beginning of its SHA-256."""
    before, after = directory(labels_on_disk(app)), directory(labels)
    if before == after:
        return []
    paths = [path for path in before.rglob("*") if path.is_file()] if before else []
    old = {str(path.relative_to(before or path)): path.read_bytes() for path in paths}
    new = {name: base64.b64decode(content) for name, content in files.items()}
    headers = {"before_header": str(before or "no app_config_dir"), "after_header": str(after or "no app_config_dir")}
    return [{"before": listing(old), "after": listing(new), **headers}]


def listing(contents: dict[str, bytes]) -> str:
    """Return a line for each file."""
    return "".join(f"{name} {hashlib.sha256(contents[name]).hexdigest()[:12]}\n" for name in sorted(contents))


def unneeded(app: App, systemd: Systemd, state: State) -> list[Path]:
    """Return the folders that neither release.env, nor the way back, nor a process of the app names."""
    pointers = labels_on_disk(app), parse_pointer(state.previous.get("pointer", ""))
    needed = {directory(labels) for labels in pointers} | in_use(app, "BOOTY_CONFIG_DIR")
    needed |= programs.in_use(app, systemd, "BOOTY_CONFIG_DIR")
    return [path for path in app.configs.glob("[!.]*") if path not in needed]
