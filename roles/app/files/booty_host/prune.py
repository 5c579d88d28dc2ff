"""Remove the releases, layers and configurations of an app that no process and no rollback needs any more."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from booty_host import config, journal, programs, static
from booty_host.app import App
from booty_host.files import directories, remove
from booty_host.processes import in_use
from booty_host.release import labels_on_disk, layers_of, manifest
from booty_host.state import State
from booty_host.systemd import Systemd

DAY = 86400


def prune(app: App, systemd: Systemd, state: State, keep: int, keep_assets: int) -> tuple[list[str], list[str]]:
    """Remove what is not needed; return the names of the removed releases, and why others could not be removed."""
    now, removed, failures = time.time(), [], []

    def attempt(remove: Callable[[Path], Any], path: Path) -> bool:
        try:
            remove(path)
        except OSError as error:  # go on with the others
            failures.append(f"{path}: {error.strerror or error}")
            return False
        return True

    # A killed run leaves partial or partly removed directories, and archives that did not arrive whole, some of them in
    # the directory that Ansible's copy makes in the login's home. They are listed first, since a release whose removal
    # fails below gets such a name too.
    arriving = (*app.incoming.glob("*"), *login_home(app).glob(".ansible/tmp/ansible-tmp-*"))
    parents = (app.releases, app.layers, app.configs, app.static / "copies", app.static / "trees")
    leftovers = (*(path for parent in parents for path in parent.glob(".*")), *arriving)
    staged = {path.name: path.stat().st_mtime for path in directories(app.releases)}
    used = in_use(app, "BOOTY_RELEASE_DIR") | programs.in_use(app, systemd, "BOOTY_RELEASE_DIR")
    run = {path.name for path in used if path.parent == app.releases}
    needed_now = {labels_on_disk(app).get("SENTRY_RELEASE", ""), *run}
    for name in removable(staged, state.served, {*state.abandoned}, needed_now, keep, now):
        journal.log(app, f"removing {name}")
        if attempt(remove, app.releases / name):
            removed.append(name)
    attempt(lambda _: state.forget(set(staged) - {*removed}), app.state)
    manifests = [manifest(path) for path in directories(app.releases)]
    needed = {layer for fields in manifests for layer in layers_of(fields)}
    # A release with a damaged manifest does not say which layers it needs; then all layers stay.
    for path in directories(app.layers) if all(manifests) else []:
        # A layer that another deploy has just staged has no release yet.
        if path.name not in needed and path.stat().st_mtime < now - DAY:
            attempt(remove, path)
    for path in (*config.unneeded(app, systemd, state), *static.unneeded(app, state, keep_assets)):
        attempt(remove, path)
    for path in leftovers:
        if path.lstat().st_mtime < now - DAY:
            if path.is_dir() and not path.is_symlink():
                attempt(shutil.rmtree, path)
            elif path in arriving:
                attempt(Path.unlink, path)
    return removed, failures


def login_home(app: App) -> Path:
    """Return the home of the user that Ansible logged in as: root's, unless the call came through sudo."""
    return app.root / os.path.expanduser(f"~{os.environ.get('SUDO_USER') or 'root'}").lstrip("/")


def removable(
    staged: dict[str, float], served: list[str], abandoned: set[str], in_use: set[str], keep: int, now: float
) -> list[str]:
    """Choose the releases to remove.

    Args:
        staged: when each release was staged, in seconds since 1970.
        served: the releases that were proven, the newest first.
        abandoned: the releases that failed.
        in_use: releases that release.env names or a process runs.
        keep: how many of the proven releases stay.
        now: the time, in seconds since 1970.

    Returns:
        names; never of a release in use, of the one to roll back to, or of one that may still come to its first proof.
    """
    proven = [name for name in served if name in staged]
    kept = {*proven[: max(keep, 2)], *in_use}
    fresh = {name for name, at in staged.items() if name not in {*served, *abandoned} and at > now - DAY}
    return sorted(set(staged) - kept - fresh)
