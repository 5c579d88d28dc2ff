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
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from booty_host import HostError
from booty_host.app import App
from booty_host.files import directories
from booty_host.release import labels_on_disk, static_folders
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
            show(app, before)
        tree(app, sha)  # the switch finds it, and takes no time for it
    except OSError as error:
        raise HostError(f"its static files can't be copied to {app.static}: {error}") from error


def show(app: App, sha: str) -> None:
    """Serve the files of a release first, and those of the other copies behind them, from the next request on."""
    current, new = app.static / "current", app.static / ".current"
    copy(app, sha, static_folders(app, sha))
    if wanted := tree(app, sha):
        new.unlink(missing_ok=True)
        new.symlink_to(wanted.relative_to(app.static))
        new.replace(current)
    else:
        current.unlink(missing_ok=True)


def copy(app: App, sha: str, of_release: dict[str, str]) -> None:
    """Copy the static files of a release, unless that was done.

    nginx makes an ETag from a file's time and size, so the copy's time is a hash of its content: an equal file has the
    same ETag in each release and on each host.
    """
    dest, top = app.static / "copies" / sha, app.releases / sha / "tree"
    if of_release and not dest.is_dir():
        dest.parent.mkdir(parents=True, exist_ok=True)
        with appearing(dest) as partial:
            partial.chmod(0o755)
            copied: dict[str, Path] = {}
            for prefix, folder in of_release.items():
                for name, source in public(top, top / folder):
                    target = partial / prefix.strip("/") / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if source in copied:  # by a link: many links to a large file must not fill the disk
                        os.link(copied[source], target)
                        continue
                    copied[source] = target
                    shutil.copyfile(source, target)
                    with target.open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").digest()
                    seconds = int.from_bytes(digest[:4]) >> 1
                    os.utime(target, (seconds, seconds))


def public(top: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of a folder of a tree: no hidden ones, no links that lead out of the folder.

    A link can pass through a state path, where the app can change it at any time. So each file comes with its path
    without links: in a tree, where root alone writes, this path leads to the same file when it is copied.

    Returns:
        the name of each file, relative to the folder; and its path.
    """
    try:
        real = os.path.realpath(folder, strict=True)
    except OSError:
        return
    if not f"{real}/".startswith(f"{os.path.realpath(top)}/"):
        return
    for parent, inner, names in os.walk(real):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in (name for name in names if not name.startswith(".")):
            try:
                # Without `strict`, the path of a link that leads nowhere now would still have the link in it.
                file = os.path.realpath(os.path.join(parent, name), strict=True)
            except OSError:
                continue
            if file.startswith(f"{real}/") and os.path.isfile(file):
                yield os.path.relpath(os.path.join(parent, name), real), file


def tree(app: App, sha: str) -> Path | None:
    """Return the tree in which a release's files come first, and make it if it is not there; None without files."""
    prefixes, copies = static_folders(app, sha), {path.name: path for path in directories(app.static / "copies")}
    if not prefixes:
        return None
    order = [name for name in dict.fromkeys([sha, *State.load(app).served, *sorted(copies)]) if name in copies]
    dest = app.static / "trees" / f"{sha}.{hashlib.sha256(' '.join(order).encode()).hexdigest()[:12]}"
    if dest.is_dir():
        return dest
    partial = dest.with_name(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in order:
        link(copies[name], partial / "files")
    for prefix in prefixes:  # nginx looks here which URLs are the proxy's
        mark = partial / "marks" / prefix.strip("/")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    partial.rename(dest)
    return dest


def link(source: Path, dest: Path) -> None:
    """Link the files of a folder into another one, unless that has the name, or a file in the place of its folder."""
    for parent, _, names in os.walk(source):
        folder = dest / Path(parent).relative_to(source)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue
        for name in names:
            with suppress(FileExistsError):
                os.link(f"{parent}/{name}", f"{folder}/{name}")


def unneeded(app: App, state: State, keep: int) -> list[Path]:
    """Return the copies and trees that nothing needs: the next release is shown with `keep` copies behind its own."""
    trees = (path for path in directories(app.static / "trees") if path != (app.static / "current").resolve())
    copies = (path for path in directories(app.static / "copies") if path.name not in state.served[:keep])
    return [*trees, *copies]
