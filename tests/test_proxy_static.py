"""The static files of an app behind the proxy, on a real host: what is served how, and what a switch does to it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandbox import hosts as sandbox
from tests.conftest import INSTANCE, words
from tests.test_proxy_host import NAME, Front

# Each release has a page that names a file of its own, as a page of a real app does.
PAGE = """
from fastapi import APIRouter
router = APIRouter()
@router.get("/page")
async def page() -> dict[str, str]:
    return {{"file": "/static/{name}"}}
@router.get("/static/{{path:path}}")
async def by_the_app(path: str) -> dict[str, str]:
    return {{"app": path}}
{more}
"""
STATIC: dict[str, Any] = {"app_static": {"/static/": "static"}}
IMMUTABLE = "public, max-age=31536000, immutable"


class Site(Front):
    """The host, with an app that has static files."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.count = 0

    def commit_files(self, more: str = "", **files: str) -> str:
        """Commit a release with a page and its file, and others; return the name of its file."""
        self.count += 1
        name = f"page.{self.count:07x}a0.js"
        static = self.repository.path / "app/static"
        for old in static.glob("page.*"):
            old.unlink()
        self.repository.write(f"app/static/{name}", f"// {name}\n")
        self.repository.write("app/static/style.css", f"/* {name} */\n" + "body { color: red; }\n" * 200)
        for path, text in files.items():
            self.repository.write(f"app/static/{path}", text)
        self.repository.write("app/src/booty/routes.py", PAGE.format(name=name, more=more))
        self.repository.commit(name)
        return name

    def deploy(self, **variables: Any) -> None:
        """Deploy HEAD with its static files."""
        self.good("deploy.yml", **{**STATIC, **variables})

    def file(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return the answer for a file of /static/; further headers may follow the path."""
        status, head, body = self.ask(f"GET /static/{path}")
        return status, headers(head), body


def headers(head: str) -> dict[str, str]:
    """Return the headers of an answer by their names in lower case."""
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in head.splitlines()[1:])}


@contextmanager
def browsers(site: Site, count: int = 6) -> Iterator[list[str]]:
    """Run browsers that load the page and its file, now and a while later; yield their failures."""
    failures: list[str] = []
    stop, seen = threading.Event(), list[str]()

    def browse() -> None:
        while not stop.is_set():
            try:
                _, _, body = site.ask("GET /page")
                path = re.search(rb'"file":"([^"]+)"', body)
                if path:
                    seen.append(path[1].decode())
                # The page itself, and pages that were loaded before the last switches.
                for each in {*seen[-1:], *seen[-40:-39], "/static/style.css"}:
                    status, _, body = site.ask(f"GET {each}")
                    if status != 200 or b"app" in body:
                        failures.append(f"{status} {each} {body[:60]!r}")
            except OSError as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=browse) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(seen) > 50


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return a host with the proxy, and an app with static files that served them itself before."""
    directory, name = tmp_path_factory.mktemp("static"), f"{INSTANCE}-static"
    try:
        (host,) = sandbox.up(name, 1, with_tracker=False, with_acme=True, inventory=directory / "inventory/hosts.yml")
        site = Site(host, directory)
        site.ca.point(NAME, [host.address])
        site.good("bootstrap.yml")
        yield site
    finally:
        sandbox.down(name)


@pytest.mark.long
def test_the_first_release_with_app_static_has_the_files_of_the_one_before(site: Site) -> None:
    before = site.commit_files()
    played = site.good("deploy.yml")
    assert "app_static" not in words(played)
    assert b"app" in site.file(before)[2]
    processes = site.instances()
    after = site.commit_files()
    site.deploy()
    for name in (before, after):
        status, _, body = site.file(name)
        assert (status, body) == (200, f"// {name}\n".encode())
    assert site.instances() == processes


@pytest.mark.long
def test_files_are_cached_compressed_and_served_in_parts(site: Site) -> None:
    name = site.commit_files(**{
        "vite-BxK3lQ9a.js": "x", "report-20240101.txt": "x", "my-settings.js": "x", "img/logo.svg": "<svg/>" * 400,
        "module.mjs": "x", "a b ü.txt": "x"})  # fmt: skip
    site.deploy()
    status, hashed, _ = site.file(name)
    assert (status, hashed["cache-control"]) == (200, IMMUTABLE)
    assert hashed["strict-transport-security"] == "max-age=86400"
    assert "javascript" in hashed["content-type"]
    assert "last-modified" not in hashed
    assert site.file("vite-BxK3lQ9a.js")[1]["cache-control"] == IMMUTABLE
    for plain in ("style.css", "report-20240101.txt", "my-settings.js"):
        assert site.file(plain)[1]["cache-control"] == "no-cache"
    assert "javascript" in site.file("module.mjs")[1]["content-type"]
    assert site.file("a%20b%20%C3%BC.txt")[0] == 200
    status, style, body = site.file("style.css")
    assert style["content-length"] == str(len(body))
    assert len(body) > 4000
    status, again, _ = site.file(f"style.css\r\nIf-None-Match: {style['etag']}\r\n")
    assert (status, again["etag"], again["cache-control"]) == (304, style["etag"], "no-cache")
    status, part, some = site.file("style.css\r\nRange: bytes=3-6\r\n")
    assert (status, part["content-range"], some) == (206, f"bytes 3-6/{len(body)}", body[3:7])
    _, small, packed = site.file("style.css\r\nAccept-Encoding: gzip\r\n")
    assert (small["content-encoding"], small["vary"]) == ("gzip", "Accept-Encoding")
    assert len(packed) < 500
    status, head, none = site.ask("HEAD /static/style.css")
    assert (status, none, headers(head)["content-length"]) == (200, b"", style["content-length"])
    # An equal file keeps its ETag in the next release; a changed one has another, though both are of the same second.
    logo = site.file("img/logo.svg")[1]["etag"]
    site.commit_files()
    site.deploy()
    assert site.file("img/logo.svg")[1]["etag"] == logo
    assert site.file("style.css")[1]["etag"] != style["etag"]
    assert site.file(f"style.css\r\nIf-None-Match: {style['etag']}\r\n")[0] == 200


@pytest.mark.long
def test_what_is_no_file_of_app_static_is_not_served(site: Site) -> None:
    static = site.repository.path / "app/static"
    static.mkdir(exist_ok=True)
    (static / "inside.css").symlink_to("style.css")
    (static / "lock.txt").symlink_to("../requirements.txt")
    (static / "tree").symlink_to("../src")
    site.commit_files(**{".env": "SECRET=1", ".git/config": "x", "img/.hidden": "x", "sub/index.html": "x"})
    site.deploy()
    assert site.file("inside.css")[0] == 200
    for path in (
        *("lock.txt", "tree/booty/main.py", ".env", ".git/config", "img/.hidden"),
        *("", "img", "img/", "sub/", "missing.css", "style.css/", "style.css/x", "missing.css?x=/static/style.css"),
        *("../static/missing", "%2e%2e/static/nothing", "..%2fstatic/nothing", "a" * 3000, "%ff%fe", "\\..\\x"),
    ):
        status, _, body = site.file(path)
        assert status == 404, (path, status, body)
        assert b'"app"' not in body, path
    for path in ("/static../src/booty/main.py", "/static/../src/booty/main.py", "/static/..%2f..%2fetc/passwd",
                 "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "//static/../../etc/passwd", "/static//../../marks/static",
                 "/marks/static", "/static/%00", "/static/style.css%00.txt", "/static/\x01", "/./static/./../files",
                 "/current/files/static/style.css", "/static/....//....//etc/passwd", "/static/..;/x"):  # fmt: skip
        status, _, body = site.ask(f"GET {path}")
        assert status in {400, 404} or body.startswith(b'{"app":'), (path, status, body)
        assert b"root:" not in body
        assert b"import" not in body
    assert site.ask("GET //static//style.css")[0] == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert site.ask(f"{method} /static/style.css", body=b"x" * 100)[0] == 405, method
    # nginx can read these copies, and nothing of a release.
    worker = site.run("pgrep -u booty-front -f 'nginx: worker' | head -1")
    assert site.run(f"ls -A /proc/{worker}/root/opt") == ""
    assert site.run(f"stat -c %a /proc/{worker}/root/opt") == "0"
    for link in ("inside.css", "lock.txt", "tree"):
        (static / link).unlink()


@pytest.mark.long
def test_no_switch_loses_a_file(site: Site) -> None:
    processes, restarts = site.instances(), "journalctl -t booty-deploy -o cat | grep -c ^restarting || true"
    site.commit_files()
    site.deploy()
    before = site.run(restarts)
    with browsers(site) as failures:
        for _ in range(2):
            site.commit_files()
            site.deploy()
        site.good("rollback.yml")
        site.commit_files(more="raise RuntimeError('broken')")
        assert site.play("deploy.yml", **STATIC).status == 2
        site.commit_files()
        site.deploy()
    assert failures == []
    assert site.instances() == processes
    # Other files are no reason to start the release twice.
    assert site.run(restarts) == before
    # The file of the release that serves comes first, whichever way it came.
    style = site.file("style.css")[2]
    site.good("rollback.yml")
    assert site.file("style.css")[2] != style
    site.deploy()
    assert site.file("style.css")[2] == style


@pytest.mark.long
def test_old_files_go_when_they_are_not_kept(site: Site) -> None:
    names = []
    for _ in range(3):
        names.append(site.commit_files())
        site.deploy(app_keep_assets=1)
    assert [site.file(name)[0] for name in names] == [404, 200, 200]
    site.deploy(app_keep_assets=1)
    assert len(site.run("ls /var/lib/booty-front/static/booty/copies").split()) == 1
    assert len(site.run("ls /var/lib/booty-front/static/booty/trees").split()) == 1


@pytest.mark.long
def test_files_that_are_not_those_of_the_release_are_mended_by_a_deploy(site: Site) -> None:
    name = site.commit_files()
    site.deploy()
    site.run("rm /var/lib/booty-front/static/booty/current")
    assert b'"app"' in site.file(name)[2]
    site.deploy()
    assert site.file(name)[0] == 200
    assert site.good("deploy.yml", **STATIC).recap(site.host.name)["changed"] == 0


@pytest.mark.long
def test_files_that_cannot_be_copied_keep_the_release_from_starting(site: Site) -> None:
    name = site.commit_files()
    site.deploy()
    site.run("cd /var/lib/booty-front/static/booty && mv copies kept && touch copies")
    site.commit_files()
    refused = site.play("deploy.yml", **STATIC)
    assert refused.status == 2
    assert "its static files can't be copied to /var/lib/booty-front/static/booty: " in words(refused)
    assert site.file(name)[0] == 200
    site.run("cd /var/lib/booty-front/static/booty && rm copies && mv kept copies")
    site.deploy()


@pytest.mark.long
def test_maintenance_covers_the_files_too(site: Site) -> None:
    site.good("maintenance.yml", "-e", "maintenance=on")
    assert site.file("style.css")[0] == 503
    site.good("maintenance.yml", "-e", "maintenance=off")
    assert site.file("style.css")[0] == 200


@pytest.mark.long
def test_a_swap_serves_and_ends_connections_for_files_too(site: Site) -> None:
    with site.connect() as connection:
        request = f"GET /static/style.css HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
        connection.sendall(request)
        assert b"200 OK" in connection.recv(100)
        time.sleep(1)
        site.deploy(app_hsts_seconds=100)
        while len(connection.recv(65536)) == 65536:
            pass
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert b"200 OK" in answer
    assert b"Connection: close" in answer
    site.settle()
    site.deploy()
    site.settle()


@pytest.mark.long
def test_without_app_static_the_app_answers_again(site: Site) -> None:
    name = site.commit_files()
    site.good("deploy.yml")
    assert b'"app"' in site.file(name)[2]
    again = site.play("deploy.yml", **STATIC)
    assert again.status == 2
    assert "Two builds of one commit can't differ" in words(again)
    site.commit_files()
    without = site.good("deploy.yml", app_domains=[], **STATIC)
    assert "app_static needs the proxy, which is there with app_domains alone" in words(without)
    site.deploy()
    assert site.file("style.css")[0] == 200


@pytest.mark.long
def test_a_removed_app_leaves_no_files(site: Site) -> None:
    played = site.good("remove.yml", "-e", "remove=booty")
    assert "/var/lib/booty-front/static/booty" in words(played)
    assert site.run("ls /var/lib/booty-front/static") == ""
