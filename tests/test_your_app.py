"""Apps of the kinds that people have, unchanged: each is deployed, changed under load, and rolled back."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import demo
from sandbox.machine import build_once, cache
from tests.conftest import ROOT, Play, Repository, Site, start
from tests.load import Load
from tests.test_telemetry import known, received

APPS = ROOT / "tests/apps"
# The command that writes each kind of lock which names the package index. The sample apps have no such lock in git:
# this project names no index, and a test must work with the index of its controller. `exclude-newer` in pyproject.toml
# makes the locks of all test runs equal.
LOCKS = {
    "uv.lock": ["lock"],
    "pylock.toml": ["pip", "compile", "--universal", "--format=pylock.toml", "-o=pylock.toml", "pyproject.toml"],
}


class Deployed:
    """One app on the shared host, with a repository of its own."""

    def __init__(self, site: Site, inventory: Path, repository: Repository, name: str) -> None:
        self.site = site
        self.name = name
        self.repository = repository
        self._inventory = inventory
        self.settings: dict[str, Any] = yaml.safe_load((inventory / f"apps/{name}.yml").read_text())
        self.address: str = self.settings.get("app_health_host", "app.example.com")

    def play(self, playbook: str, **variables: Any) -> Play:
        """Run a playbook for this app; fail the test if the exit status is not 0."""
        variables = {"app": self.name, "app_repository": str(self.repository.path), **variables}
        played = start(playbook, self._inventory, variables, "--limit", self.site.host.name).end()
        assert played.status == 0, played.output
        return played

    def ask(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request from outside the host, and return status, body and headers of the answer."""
        connection = http.client.HTTPConnection(self.site.host.address, self.settings["app_port"], timeout=20)
        with closing(connection):
            connection.request(method, path, body, {"Host": self.address, **headers})
            with connection.getresponse() as answer:
                return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}

    def get(self, path: str, **headers: str) -> Any:
        """Return the JSON of an answer, which must have the status 200."""
        status, body, _ = self.ask(path, **headers)
        assert status == 200, body
        return json.loads(body)

    def serves(self) -> str:
        """Return the release of the service's own processes, asked on its public port as Booty asks."""
        main = self.site.run(f"systemctl show {self.name}.service --property=MainPID --value")
        identifier = self.site.run(f"tr '\\0' '\\n' < /proc/{main}/environ | sed -n 's/^INVOCATION_ID=//p'")
        assert "x-booty-release" not in self.ask("/")[2]
        return self.ask("/", **{"X-Booty-Ask": identifier})[2]["x-booty-release"]

    def run(self, release: str, command: str) -> str:
        """Run a command of a release on the host, as docs/your-app.md says for migrations."""
        folder, etc = f"/opt/{self.name}/releases/{release}", f"/etc/{self.name}"
        options = [
            *(f"User={self.name}", f"StateDirectory={self.name}", f"Environment=HOME=/var/lib/{self.name}"),
            *(f"EnvironmentFile={etc}/secrets.env", f"EnvironmentFile={etc}/release.env"),
            f"WorkingDirectory={folder}/tree",
        ]
        properties = " ".join(f"-p {option}" for option in options)
        return self.site.run(f"systemd-run --quiet --pipe --wait {properties} {folder}/bin/{command}")

    def fails(self, release: str) -> list[dict[str, Any]]:
        """Request the route that raises, and return the events, which must have the labels of this release."""
        before = known(self.site)
        assert self.ask("/boom")[0] == 500
        events = received(self.site, before, 1)
        assert [(event["release"], event["environment"]) for event in events] == [(release, "production")]
        assert events[0]["exception"]["values"][-1]["value"] == "boom"
        return events


def lock(repository: Repository, name: str) -> None:
    """Write a lock beside the repository's pyproject.toml with uv. It is cached by the projects that it locks."""
    projects = {str(path.relative_to(repository.path)): path for path in repository.path.rglob("pyproject.toml")}
    texts = "".join(f"{path}\n{projects[path].read_text()}" for path in sorted(projects))

    def build(directory: Path) -> None:
        shutil.copytree(repository.path, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
        subprocess.run([Path(sys.executable).parent / "uv", "--quiet", *LOCKS[name]], cwd=directory, check=True)

    made = build_once(cache() / "locks" / hashlib.sha256(f"{name}{texts}".encode()).hexdigest()[:20], build)
    shutil.copy(made / name, repository.path / name)


# --- what each sample shows, before and after a deploy ---------------------------------------------------

Across = Callable[[Deployed], AbstractContextManager[None]]


@contextmanager
def settings_of_the_inventory(app: Deployed) -> Iterator[None]:
    assert app.get("/")["currency"] == "EUR"
    yield
    assert app.get("/")["currency"] == "EUR"


@contextmanager
def rows_in_sqlite(app: Deployed) -> Iterator[None]:
    assert [app.get("/visits")["visits"] for _ in range(2)] == [1, 2]
    yield
    assert app.get("/visits") == {"visits": 3}
    assert app.ask("/admin/")[0] == 302
    # collectstatic ran on the controller, with the files of the app and of its dependencies.
    assert (
        app.site.run(
            f"grep -c --max-count=1 body /opt/{app.name}/releases/{app.serves()}/tree/staticfiles/admin/css/base.css"
        )
        == "1"
    )


@contextmanager
def instance_folder(app: Deployed) -> Iterator[None]:
    """Flask and Quart find their instance folder beside the app, in the service and in a command."""
    assert [app.get("/visits")["visits"] for _ in range(2)] == [1, 2]
    yield
    assert app.get("/visits") == {"visits": 3}
    assert app.site.run(f"ls /var/lib/{app.name}/instance") == "visits.txt"
    module = Path(next(each.greeting for each in LONG if each.name == app.name)).stem
    command = f"python -c 'import {module}; print({module}.visits.read_text())'"
    assert app.play("run.yml", command=command).output.splitlines()[:3] == ["visit"] * 3


@contextmanager
def files_in_the_tree(app: Deployed) -> Iterator[None]:
    assert app.get("/")["rate"] == "0.19"  # from the commit
    assert app.ask("/upload/one.txt", "POST", "1")[0] == 200
    yield
    assert app.get("/")["uploads"] == ["one.txt"]
    assert app.site.run(f"ls /var/lib/{app.name}/data") == "rate.txt\nstarted.txt"


@contextmanager
def sessions(app: Deployed) -> Iterator[None]:
    """Show that a session is known to both workers, and to those of the next release."""
    cookie = app.ask("/login/ada", "POST")[2]["set-cookie"].partition(";")[0]

    def all_know() -> None:
        assert {app.get("/me", Cookie=cookie)["name"] for _ in range(20)} == {"ada"}

    all_know()
    yield
    all_know()


@contextmanager
def console_script(app: Deployed) -> Iterator[None]:
    command = f"/opt/{app.name}/releases/{app.serves()}/bin/tally"
    assert app.site.run(command) == "tally 1.4.0 first"
    yield
    assert app.site.run(command) == "tally 1.4.0 first"
    assert app.site.run(f"/opt/{app.name}/releases/{app.serves()}/bin/tally") == "tally 1.4.0 second"


@contextmanager
def shared_folder(app: Deployed) -> Iterator[None]:
    assert app.get("/")["plans"] == {"small": "€5.00", "large": "€20.00"}
    yield


@contextmanager
def sockets(app: Deployed) -> Iterator[None]:
    """Show that a WebSocket is answered, closed with 1012 by the deploy, and answered by the next release."""
    with WebSocket(app) as first:
        first.send(b"one")
        assert first.receive() == (1, b"one")
        yield
        kind, data = first.receive()
        assert (kind, int.from_bytes(data[:2], "big")) == (8, 1012)
    with WebSocket(app) as second:
        second.send(b"two")
        assert second.receive() == (1, b"two")


class WebSocket:
    """A client of `/ws/` with the frames of RFC 6455, which shows each frame that the server sends."""

    def __init__(self, app: Deployed) -> None:
        self._socket = socket.create_connection((app.site.host.address, app.settings["app_port"]), timeout=20)
        self._file = self._socket.makefile("rb")
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        self._socket.sendall(f"GET /ws/ HTTP/1.1\r\nHost: load\r\n{upgrade}\r\n{key}\r\n\r\n".encode())
        assert b" 101 " in self._file.readline()
        while self._file.readline().strip():
            pass

    def send(self, text: bytes) -> None:
        """Send a short message, masked with zeros."""
        self._socket.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)

    def receive(self) -> tuple[int, bytes]:
        """Return the kind (1 text, 8 close) and the data of the next short frame."""
        kind, length = self._file.read(2)
        return kind & 0x0F, self._file.read(length)

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._socket.close()


# --- the samples ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A sample app; `greeting` is the file that has the answer of `/`."""

    name: str
    greeting: str
    lock: str = ""
    across: Across = lambda app: nullcontext()
    slow: bool = False
    sdk: str = ""


SHORT = [
    Sample("django-wsgi", "notes/views.py", across=rows_in_sqlite, slow=True),
    Sample("own-sentry", "main.py", sdk="1.45.1"),
]
LONG = [
    Sample("flask-pins", "shop.py", across=instance_folder, slow=True),
    Sample("fastapi-ranges", "main.py", across=settings_of_the_inventory, slow=True),
    Sample("django-channels", "chat/urls.py", across=sockets),
    Sample("litestar-factory", "app.py"),
    Sample("quart-hashes", "asgi.py", across=instance_folder),
    Sample("src-uv", "src/tally/__init__.py", "uv.lock", console_script),
    Sample("workspace-uv", "services/api/main.py", "uv.lock", shared_folder),
    Sample("poetry", "blog/__init__.py"),
    Sample("pdm", "app/main.py"),
    Sample("pipenv", "app.py"),
    Sample("pylock", "main.py", "pylock.toml"),
    Sample("writes-tree", "main.py", across=files_in_the_tree),
    Sample("random-keys", "app.py", across=sessions),
]


@pytest.fixture(scope="module")
def inventory(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an inventory of the shared host that describes all sample apps."""
    folder = tmp_path_factory.mktemp("samples") / "inventory"
    shutil.copytree(APPS, folder / "apps", ignore=lambda _, names: {name for name in names if "." not in name})
    shutil.copy(site.inventory / "hosts.yml", folder)
    (folder / "group_vars").mkdir()
    shared = {"app_environment": "production", "app_registration": False, "host_security_updates": False}
    (folder / "group_vars/booty.yml").write_text(yaml.safe_dump(shared))
    return folder


@contextmanager
def ready(site: Site, inventory: Path, name: str, repository: Repository) -> Iterator[Deployed]:
    """Make the host ready for an app, and remove the app at the end."""
    app = Deployed(site, inventory, repository, name)
    app.play("bootstrap.yml")
    demo.place_secrets(site.host, f"SENTRY_DSN={site.tracker.dsn}\nSECRET_KEY={os.urandom(20).hex()}\n", name)
    try:
        yield app
    finally:
        app.play("remove.yml", remove=name)
        site.run(f"rm -r /etc/{name} /var/lib/{name}; userdel {name}")


@pytest.mark.parametrize(
    "sample",
    [*SHORT, *(pytest.param(sample, marks=pytest.mark.long) for sample in LONG)],
    ids=[sample.name for sample in (*SHORT, *LONG)],
)
def test_an_app_as_it_is(site: Site, inventory: Path, tmp_path: Path, sample: Sample) -> None:
    """Deploy, deploy another commit under load, roll back under load; each error has the SHA that serves."""
    repository = Repository(tmp_path / sample.name, f"tests/apps/{sample.name}", top=True)
    if sample.lock:
        lock(repository, sample.lock)
    first = repository.commit("Lock") if sample.lock else repository.git("rev-parse", "HEAD")
    with ready(site, inventory, sample.name, repository) as app:
        app.play("deploy.yml")
        assert (app.serves(), app.get("/")["greeting"]) == (first, "first")
        text = (repository.path / sample.greeting).read_text()
        assert text.count('"first"') == 1
        repository.write(sample.greeting, text.replace('"first"', '"second"'))
        second = repository.commit("Say it in another way")
        clients = (4, 4, 2 if sample.slow else 0)
        port = app.settings["app_port"]
        with Load(site.host.address, clients=clients, port=port, quick="/", key="greeting", host=app.address) as load:
            with sample.across(app):
                app.play("deploy.yml")
                assert (app.serves(), app.get("/")["greeting"]) == (second, "second")
            (event,) = app.fails(second)
            app.play("rollback.yml")
        assert (load.report["failures"], set(load.report["releases"])) == ([], {"first", "second"})
        assert (app.serves(), app.get("/")["greeting"]) == (first, "first")
        app.fails(first)
        if sample.sdk:
            assert event["sdk"]["version"] == sample.sdk
        assert app.play("deploy.yml", app_release=first).recap(site.host.name)["changed"] == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "path", "text"),
    [
        ("real-httpbin", "/anything/here", b'"method": "GET"'),
        ("real-datasette", "/_memory.json?sql=select+6*7", b'"rows": [[42]]'),
        ("real-bugsink", "/accounts/login/", b'name="password"'),
    ],
)
def test_an_app_from_the_package_index(
    site: Site, inventory: Path, tmp_path: Path, name: str, path: str, text: bytes
) -> None:
    """The repository is a pyproject.toml that depends on the app, and at most its settings."""
    repository = Repository(tmp_path / name, f"tests/apps/{name}", top=True)
    with ready(site, inventory, name, repository) as app:
        app.play("deploy.yml")
        first = app.serves()
        if name == "real-bugsink":
            app.run(first, "bugsink-manage migrate --verbosity 0")
        repository.write("README", "Nothing of the app changes.")
        second = repository.commit("Add a README")
        health = app.settings["app_health_path"]
        service = {"port": app.settings["app_port"], "quick": health, "key": "", "host": app.address}
        with Load(site.host.address, clients=(4, 4, 0), **service) as load:
            app.play("deploy.yml")
        assert (load.report["failures"], app.serves()) == ([], second)
        assert load.report["requests"] > 50
        status, body, _ = app.ask(path)
        assert (status, text in body) == (200, True), body
