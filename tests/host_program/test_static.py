"""The tree of static files: which files are public, which release's comes first, and what goes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from booty_host import HostError, static
from booty_host.app import App
from booty_host.files import write_atomically
from booty_host.release import shown
from booty_host.state import State


@pytest.fixture
def app(tmp_path: Path) -> App:
    """Return an app in a directory of the test."""
    app = App("booty", tmp_path)
    for directory in (app.releases, app.etc, app.static.parent):
        directory.mkdir(parents=True)
    return app


def stage(app: App, sha: str, files: dict[str, str], folders: dict[str, str] | None = None) -> None:
    """Stage a release with files below `web/`."""
    fields = {"layer": "", "python": "", "path": "web", **({} if folders is None else {"static": folders})}
    for name, text in files.items():
        path = app.releases / sha / "tree/web" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (app.releases / sha / "release.json").write_text(json.dumps(fields))


def switch(app: App, sha: str) -> None:
    """Do what a cutover does."""
    static.offer(app, sha)
    write_atomically(app.release_env, f"SENTRY_RELEASE={sha}\n")
    static.show(app, sha)
    State.load(app).serve(sha)


def served(app: App) -> dict[str, str]:
    """Return the text of each file that is served."""
    top = app.static / "current/files"
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}


FOLDERS = {"/static/": "public"}


def test_the_running_release_comes_first_and_the_others_behind_it(app: App) -> None:
    stage(app, "aa", {"public/style.css": "a", "public/a.js": "a", "public/sub": "file"}, FOLDERS)
    stage(app, "bb", {"public/style.css": "b", "public/b.js": "b", "public/sub/x.js": "b"}, FOLDERS)
    switch(app, "aa")
    static.offer(app, "bb")  # the candidate may answer, and aa is still the service
    assert served(app) == {"static/style.css": "a", "static/a.js": "a", "static/b.js": "b", "static/sub": "file"}
    switch(app, "bb")
    expected = {"static/style.css": "b", "static/a.js": "a", "static/b.js": "b", "static/sub/x.js": "b"}
    assert served(app) == expected
    assert (app.static / "current/marks/static").is_file()
    before = (app.static / "current").readlink()
    static.show(app, "bb")
    assert (app.static / "current").readlink() == before
    switch(app, "aa")
    assert served(app)["static/style.css"] == "a"
    assert served(app)["static/b.js"] == "b"


def test_what_is_public(app: App) -> None:
    stage(app, "aa", {"public/a.css": "a", "public/.env": "x", "public/.git/x": "x", "public/b c\n.txt": "a"}, FOLDERS)
    public = app.releases / "aa/tree/web/public"
    (public.parent / "secret.py").write_text("x")
    for name, target in (("in", "a.css"), ("out", "../secret.py"), ("etc", "/etc"), ("passwd", "/etc/passwd"),
                         ("folder", "."), ("loop", "loop"), ("gone", "missing")):  # fmt: skip
        (public / name).symlink_to(target)
    os.mkfifo(public / "fifo")
    switch(app, "aa")
    assert served(app) == {"static/a.css": "a", "static/in": "a", "static/b c\n.txt": "a"}
    assert not any(path.is_symlink() for path in (app.static / "current/files").rglob("*"))
    # Nor is a folder that is a link out of the release.
    stage(app, "bb", {"x": "x"}, {"/static/": "linked"})
    (app.releases / "bb/tree/web/linked").symlink_to("/etc")
    switch(app, "bb")
    assert not any(text for name, text in served(app).items() if "passwd" in name and text != "a")
    assert "static/passwd" not in served(app)


@pytest.mark.parametrize("link", ["static/link.css", "static"])
def test_root_copies_through_no_link_that_the_app_changes_meanwhile(
    app: App, link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link of the commit leads into a state path, whose own link leads back into the folder: until root copies."""
    secret, stolen = tmp_path / "secrets.env", tmp_path / "state"
    secret.write_text("a secret")
    stage(app, "aa", {"public/a.css": "a"}, {"/static/": "static" if link == "static" else "public"})
    tree = app.releases / "aa/tree/web"
    own = tree / "public" if link == "static" else tree / "public/a.css"
    stolen.symlink_to(own)
    (tree / link.replace("static/", "public/")).symlink_to(stolen)
    copyfile = shutil.copyfile

    def swap_and_copy(source: str, target: Path) -> None:
        stolen.unlink()
        stolen.symlink_to(secret.parent if link == "static" else secret)
        copyfile(source, target)
        stolen.unlink()
        stolen.symlink_to(own)

    (tmp_path / "a.css").write_text("a secret")
    monkeypatch.setattr(shutil, "copyfile", swap_and_copy)
    static.offer(app, "aa")
    static.show(app, "aa")
    assert {*served(app).values()} == {"a"}


def test_links_to_one_file_take_the_room_of_one(app: App) -> None:
    """A commit with many links to a large file is small."""
    stage(app, "aa", {"public/a.css": "a"}, FOLDERS)
    for number in range(9):
        (app.releases / f"aa/tree/web/public/{number}.css").symlink_to("a.css")
    switch(app, "aa")
    assert [*served(app).values()] == ["a"] * 10
    assert len({path.stat().st_ino for path in (app.static / "current/files/static").iterdir()}) == 1


def test_equal_files_keep_their_time(app: App) -> None:
    for sha, text in (("aa", "one"), ("bb", "one"), ("cc", "two")):
        stage(app, sha, {"public/style.css": text}, FOLDERS)
    times = []
    for sha in ("aa", "bb", "cc"):
        switch(app, sha)
        times.append((app.static / "current/files/static/style.css").stat().st_mtime)
    assert times[0] == times[1] != times[2]


def test_the_release_before_app_static_was_set_has_its_folder(app: App) -> None:
    stage(app, "aa", {"public/a.js": "a"})
    stage(app, "bb", {"public/b.js": "b"}, FOLDERS)
    switch(app, "aa")
    assert shown(app) == ""
    switch(app, "bb")
    assert served(app) == {"static/a.js": "a", "static/b.js": "b"}
    switch(app, "aa")  # it serves them itself
    assert shown(app) == ""


def test_only_the_last_releases_are_kept(app: App) -> None:
    for sha in ("aa", "bb", "cc"):
        stage(app, sha, {f"public/{sha}.js": sha}, FOLDERS)
        switch(app, sha)
    names = sorted(path.name.partition(".")[0] for path in static.unneeded(app, State.load(app), 2))
    # The copy of aa, and the trees that were made for the switches and are not served now.
    assert names == ["aa", "aa", "aa", "bb", "bb"]
    assert {path.name for path in static.unneeded(app, State.load(app), 0)} > {"aa", "bb", "cc"}


def test_files_that_cannot_be_copied(app: App) -> None:
    stage(app, "aa", {"public/a.js": "a"}, FOLDERS)
    app.static.write_text("in the way")
    with pytest.raises(HostError, match="its static files can't be copied to"):
        static.offer(app, "aa")
