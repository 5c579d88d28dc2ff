"""Only the labels of a process are read, and only those of the app's own processes count."""

from __future__ import annotations

from pathlib import Path

from booty_host import processes
from booty_host.app import App

PLANTED = "hunter2hunter2"


def test_parse_environ_returns_labels_alone() -> None:
    environ = f"SENTRY_DSN={PLANTED}\0SENTRY_RELEASE=abc\0PATH=/bin\0SENTRY_ENVIRONMENT=a=b\0".encode()
    assert processes.parse_environ(environ) == {"SENTRY_RELEASE": "abc", "SENTRY_ENVIRONMENT": "a=b"}


def test_releases_in_use_are_those_of_the_app(tmp_path: Path) -> None:
    app, other = App("shop", tmp_path), App("shop-api", tmp_path)
    directories = (app.releases / "a", app.releases / "b", other.releases / "c", Path("/opt/shop/releases/d"))
    for pid, directory in enumerate(directories, start=10):
        process = tmp_path / f"proc/{pid}"
        process.mkdir(parents=True)
        (process / "environ").write_text(f"PATH=/bin\0BOOTY_RELEASE_DIR={directory}\0")
    (tmp_path / "proc/99").mkdir()
    assert processes.releases_in_use(app) == {"a", "b"}
    assert processes.releases_in_use(other) == {"c"}
