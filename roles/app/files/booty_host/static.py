"""Publish the static files of releases (`app_static`) where the proxy serves them, in a tree that follows the release.

`/var/lib/booty-front/static/NAME` has a copy of each release's files in `copies`, and in `trees` hard links to those of
the last releases. The link `current` leads to the tree that is served: in it, the files of the running release come
first, and what only earlier releases have is there too. One rename of `current` exchanges all of them, and the files
that a page of either release asks for are in both trees. nginx sees nothing else of a release.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from booty_host import HostError
from booty_host.app import App
from booty_host.files import directories
from booty_host.release import labels_on_disk, shown, static_folders
from booty_host.stage import appearing
from booty_host.state import State


def offer(app: App, sha: str) -> None:
    """Add the files of a release to those that are served, before its candidate answers anything.

    Raises:
        HostError: the files can't be copied.
    """
    own, before = static_folders(app, sha), labels_on_disk(app).get("SENTRY_RELEASE", "")
    try:
        copy(app, sha, own)
        if own and before not in {"", sha}:
            # A release from before app_static was set may have the folders all the same.
            copy(app, before, static_folders(app, before) or own)
            publish(app, before)
    except OSError as error:
        raise HostError(f"its static files can't be copied to {app.static}: {error}") from error


def show(app: App, sha: str) -> None:
    """Serve the files of a release first, from the next request on."""
    if shown(app) != sha:
        copy(app, sha, static_folders(app, sha))
        publish(app, sha)


def copy(app: App, sha: str, of_release: dict[str, str]) -> None:
    """Copy the static files of a release, unless that was done.

    nginx makes an ETag from a file's time and size, so the copy's time is a hash of its content: an equal file has the
    same ETag in each release and on each host.
    """
    dest = app.static / "copies" / sha
    if of_release and not dest.is_dir():
        dest.parent.mkdir(parents=True, exist_ok=True)
        tree = app.releases / sha / "tree"
        with appearing(dest) as partial:
            partial.chmod(0o755)
            for prefix, folder in of_release.items():
                for name in public(tree, tree / folder):
                    target = partial / prefix.strip("/") / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(tree / folder / name, target)
                    with target.open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").digest()
                    seconds = int.from_bytes(digest[:4]) >> 1
                    os.utime(target, (seconds, seconds))


def public(tree: Path, folder: Path) -> Iterator[str]:
    """Yield the files of a folder, relative to it: no hidden ones, and no links that lead out of the folder."""
    top = folder.resolve()
    if not top.is_relative_to(tree.resolve()):
        return
    for parent, names_of_folders, names in os.walk(top):
        names_of_folders[:] = [name for name in names_of_folders if not name.startswith(".")]
        for name in (name for name in names if not name.startswith(".")):
            file = Path(parent, name)
            if file.is_file() and file.resolve().is_relative_to(top):
                yield str(file.relative_to(top))


def publish(app: App, sha: str) -> None:
    """Make the tree of a release's files, with those of the other copies behind them, and serve it."""
    current, prefixes = app.static / "current", static_folders(app, sha)
    if not prefixes:
        current.unlink(missing_ok=True)
        return
    copies = {path.name: path for path in directories(app.static / "copies")}
    order = dict.fromkeys([sha, *State.load(app).served, *copies])
    tree = app.static / "trees" / f"{sha}.{time.time_ns()}"
    for name in (name for name in order if name in copies):
        link(copies[name], tree / "files")
    for prefix in prefixes:  # nginx looks here which URLs are the proxy's
        mark = tree / "marks" / prefix.strip("/")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    new = app.static / ".current"
    new.unlink(missing_ok=True)
    new.symlink_to(tree.relative_to(app.static))
    new.replace(current)


def link(source: Path, dest: Path) -> None:
    """Link the files of a folder into another one, unless that has the name, or a file in the place of its folder."""
    for parent, _, names in os.walk(source):
        folder = dest / Path(parent).relative_to(source)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue
        for name in names:
            target = folder / name
            if not target.exists():
                os.link(Path(parent, name), target)


def unneeded(app: App, state: State, keep: int) -> list[Path]:
    """Return the copies and trees that nothing needs: the next release is shown with `keep` copies behind its own."""
    trees = (path for path in directories(app.static / "trees") if path != (app.static / "current").resolve())
    copies = (path for path in directories(app.static / "copies") if path.name not in state.served[:keep])
    return [*trees, *copies]
