"""The place of an app: the manifest, its folder, the import path, and the paths that persist."""

import json
import subprocess
import sys

import pytest
from runner.tests.conftest import SRC

from booty_runner.place import Place
from booty_runner.settings import Refusal, Settings

MANIFEST = {
    "release": "abc",
    "layer": "l1",
    "contract": 3,
    "path": "services/web",
    "import_paths": ["src", "../../shared"],
    "health": {"path": "/up", "host": "shop.example"},
    "state_paths": ["db/shop.sqlite3", "media/"],
}


@pytest.fixture
def release(tmp_path):
    """Return a release's directory, with a seed."""
    release = tmp_path / "opt/shop/releases/abc"
    (release / "tree/services/web/src").mkdir(parents=True)
    (release / "tree/shared").mkdir()
    (release / "seed/db").mkdir(parents=True)
    (release / "seed/db/shop.sqlite3").write_text("first")
    (release / "seed/media/deep").mkdir(parents=True)
    (release / "seed/media/deep/a.txt").write_text("a")
    (release / "release.json").write_text(json.dumps(MANIFEST))
    for path in sorted((release / "seed").rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return release


@pytest.fixture
def state(tmp_path):
    state = tmp_path / "var/lib/shop"
    state.mkdir(parents=True)
    return state


@pytest.fixture(autouse=True)
def stay(monkeypatch):
    """Undo the changes that enter() makes to this process."""
    monkeypatch.chdir(".")
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_the_manifest_names_folder_layer_and_health(release):
    place = Place.read(release)
    tree = release / "tree"
    assert (place.folder, place.import_paths) == (tree / "services/web", (tree / "services/web/src", tree / "shared"))
    assert place.layer == release.parents[1] / "layers/l1"
    assert (place.health_path, place.health_host) == ("/up", "shop.example")


@pytest.mark.parametrize("manifest", [None, {"release": "abc", "contract": 2, "path": "."}])
def test_without_a_tree_the_working_directory_is_the_folder(release, tmp_path, monkeypatch, manifest):
    (release / "release.json").unlink()
    if manifest:
        (release / "release.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    assert Place.read(release) == Place(tmp_path)


def test_a_manifest_that_can_not_be_read_is_refused(release):
    (release / "release.json").write_text("{")
    with pytest.raises(Refusal, match=r"release\.json can't be read"):
        Place.read(release)


def test_the_app_s_folder_is_entered_and_first_on_the_import_path(release, state, tmp_path):
    config = tmp_path / "config"
    Place.read(release).enter(Settings(state_directory=state, booty_config_dir=config))
    tree = release / "tree"
    assert sys.path[:4] == [
        str(path) for path in (config, tree / "services/web", tree / "services/web/src", tree / "shared")
    ]


def test_a_folder_that_is_missing_is_refused(release):
    (release / "tree/services/web/src").rmdir()
    (release / "tree/services/web").rmdir()
    with pytest.raises(Refusal, match=r"the app's folder .*services/web can't be entered: No such file or directory"):
        Place.read(release).enter(Settings())


def test_state_paths_get_their_seed_once(release, state):
    place = Place.read(release)
    place.enter(Settings(state_directory=state))
    file, deep = state / "db/shop.sqlite3", state / "media/deep/a.txt"
    assert (file.read_text(), deep.read_text()) == ("first", "a")
    # The files of the release are read-only, but the copies must be writable.
    assert all(path.stat().st_mode & 0o200 for path in (file, file.parent, deep, deep.parent, state / "media"))
    file.write_text("second")
    deep.unlink()
    place.enter(Settings(state_directory=state))
    assert file.read_text() == "second"
    assert not deep.exists()
    assert sorted(path.name for path in state.iterdir()) == ["db", "media"]  # no temporary file is left


def test_state_paths_without_a_seed_are_folders_and_parents(release, state):
    (release / "release.json").write_text(json.dumps({**MANIFEST, "state_paths": ["a/b/new.db", "c/d/"]}))
    Place.read(release).enter(Settings(state_directory=state))
    assert (state / "a/b").is_dir()
    assert not (state / "a/b/new.db").exists()
    assert (state / "c/d").is_dir()


def test_a_state_path_that_can_not_be_made_is_refused(release, state):
    (state / "media").symlink_to("/nowhere")  # a link is there already, so it stays
    (state / "db").write_text("a file, where a folder should be")
    with pytest.raises(
        Refusal, match=r"the state path db/shop.sqlite3 can't be made in .*: (File exists|Not a directory)"
    ):
        Place.read(release).enter(Settings(state_directory=state))


def test_a_file_where_a_state_path_is_a_folder_is_refused(release, state):
    (release / "release.json").write_text(json.dumps({**MANIFEST, "state_paths": ["c/"]}))
    (state / "c").write_text("a file")
    with pytest.raises(Refusal, match=r"the state path c/ can't be made in .*/c: a file is there"):
        Place.read(release).enter(Settings(state_directory=state))


def test_the_runner_serves_the_app_of_its_release(release, state, start, tcp, tmp_path):
    """A Python whose prefix is the release's, as bin/serve runs it."""
    (release / "tree/services/web/src/shop.py").write_text(
        "import os, sys\nimport plan\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [repr((os.getcwd(), plan.NAME, open('media/deep/a.txt').read())).encode()]\n"
    )
    (release / "tree/shared/plan.py").write_text("NAME = 'the plan'\n")
    (release / "tree/services/web/media").symlink_to(state / "media")
    code = (
        "import sys\nfrom pathlib import Path\n"
        f"sys.prefix = {f'{release}/venv'!r}\n"
        "from booty_runner.__main__ import main\n"
        "from booty_runner.health import Question\n"
        "import booty_runner.server as server\n"
        "def run(settings, app, listeners, identity, question, report):\n"
        "    def start(status, headers): print(status)\n"
        "    print(question.path, question.host, question.named)\n"
        "    print(app._app({}, start))\n"
        "server.run = run\n"
        "main(['shop:app', '--port=0'])\n"
    )
    environment = {
        "PYTHONPATH": SRC, "STATE_DIRECTORY": str(state), "BOOTY_RELEASE_DIR": str(release), "SENTRY_RELEASE": "abc",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "/up shop.example True",
        "200 OK",
        f"[b\"({str(release / 'tree/services/web')!r}, 'the plan', 'a')\"]",
    ], done.stderr
