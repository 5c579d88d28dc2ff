"""The files of app_config_dir: staged whole, listed in a diff, and removed when no release needs them."""

from __future__ import annotations

import base64
import pwd
from os import geteuid
from pathlib import Path

import pytest
from booty_host import HostError, config
from booty_host.app import App
from booty_host.state import State
from booty_host.systemd import Systemd

FILES = {"a.py": base64.b64encode(b"A = 1").decode(), "certs/ca.pem": base64.b64encode(b"\0\xff").decode()}


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App("shop", tmp_path)
    for directory in (app.etc, app.opt):
        directory.mkdir(parents=True)
    return app


def labels(app: App, name: str) -> dict[str, str]:
    return {"BOOTY_CONFIG_DIR": str(app.configs / name) if name else ""}


def stage(app: App, name: str, files: dict[str, str] = FILES) -> None:
    config.stage(app, labels(app, name), files, pwd.getpwuid(geteuid()).pw_name)


def test_the_files_appear_with_their_modes(app: App) -> None:
    stage(app, "1")
    place = app.configs / "1"
    modes = {str(path.relative_to(place)): path.stat().st_mode & 0o777 for path in (place, *place.rglob("*"))}
    assert modes == {".": 0o750, "a.py": 0o640, "certs": 0o750, "certs/ca.pem": 0o640}
    assert (place / "certs/ca.pem").read_bytes() == b"\0\xff"
    stage(app, "1", {})  # they are there
    assert (place / "a.py").exists()
    stage(app, "", {})
    assert [path.name for path in app.configs.iterdir()] == ["1"]


def test_a_failure_leaves_nothing_under_the_name(app: App) -> None:
    with pytest.raises(HostError, match=r"/config/1 can't be made: .*Is a directory"):
        stage(app, "1", {"certs/ca.pem": "", "certs": ""})
    assert [*app.configs.iterdir()] == []


def test_a_diff_has_names_and_hashes_alone(app: App) -> None:
    assert config.difference(app, labels(app, ""), {}) == []
    (first,) = config.difference(app, labels(app, "1"), FILES)
    assert (first["before"], first["before_header"]) == ("", "no app_config_dir")
    assert [line.split()[0] for line in first["after"].splitlines()] == ["a.py", "certs/ca.pem"]
    stage(app, "1")
    app.release_env.write_text(f"BOOTY_CONFIG_DIR={app.configs / '1'}\n")
    assert config.difference(app, labels(app, "1"), FILES) == []
    (second,) = config.difference(app, labels(app, "2"), {**FILES, "a.py": ""})
    assert second["before"] == first["after"]
    assert second["after"].splitlines()[1] == first["after"].splitlines()[1]
    assert second["after"] != first["after"]


def test_the_pointer_the_way_back_and_processes_need_theirs(app: App) -> None:
    for name in ("1", "2", "3", "4"):
        stage(app, name)
    app.release_env.write_text(f"BOOTY_CONFIG_DIR={app.configs / '1'}\n")
    (app.root / "proc/7").mkdir(parents=True)
    (app.root / "proc/7/environ").write_text(f"BOOTY_CONFIG_DIR={app.configs / '3'}\0")
    state = State(app, [], {}, {"pointer": f"BOOTY_CONFIG_DIR={app.configs / '2'}\n"}, [], {}, {})
    assert config.unneeded(app, Systemd(app), state) == [app.configs / "4"]
