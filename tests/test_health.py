"""A real host asks an app that knows nothing of Booty whether it is healthy, and which process answers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.conftest import Play, Site, words
from tests.load import Load

# `/` is not found, /health wants a Host header, and fails while a file exists.
APP = """
import mmap, os
if "WRITES_CODE" in os.environ:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)

def application(environ, start_response):
    status, path = "404 Not Found", environ["PATH_INFO"]
    if path in {"/health", "/slow"}:
        status = "200 OK" if environ["HTTP_HOST"] in {"shop.test", "load"} else "400 Bad Request"
    if path == "/health" and os.path.exists("/var/lib/booty/ill"):
        status = "503 Service Unavailable"
    if path == "/login":
        start_response("302 Found", [("Location", "/elsewhere")])
        return [b""]
    body = b'{"reason": "no database"}'
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""
OPTIONS = {"app_path": "plain", "app_serve": "app:application"}
WARNING = "No health path is set"


@pytest.fixture
def plain(site: Site) -> Iterator[Site]:
    """Yield the site with a release of that app to deploy, and take the app off again."""
    site.repository.write("plain/app.py", f"{APP}# {site.repository.git('rev-parse', 'HEAD')}\n")
    site.repository.commit("An app of one file")
    yield site
    site.run("rm -f /var/lib/booty/ill")
    site.release()
    site.deploy()


def identified(site: Site, invocation: str) -> str | None:
    """Return the PID in the answer to a client that asks for the process of a start."""
    with closing(http.client.HTTPConnection(site.host.address, 8000, timeout=5)) as connection:
        connection.request("GET", "/missing", headers={"X-Booty-Ask": invocation, "Connection": "close"})
        answer = connection.getresponse()
        answer.read()
        return answer.headers.get("X-Booty-Pid")


def deploy(site: Site, **variables: str) -> Play:
    return site.play("deploy.yml", on=None, **{**OPTIONS, **variables})


def test_without_a_health_path_a_deploy_says_that_it_proves_little(plain: Site) -> None:
    played = deploy(plain)
    assert played.status == 0, played.output
    assert words(played).count(WARNING) == 1
    assert WARNING not in deploy(plain).output
    played = plain.play("status.yml", on=None, status_format="json", **OPTIONS)
    (row,) = json.loads(played.output)["hosts"]
    assert (row["level"] == "broken", row["health"]["status"], row["health"]["reason"]) == (False, 404, ""), row
    assert row["health"]["release"] == row["memory"]["release"]


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("/health", "app_health_host"),
        ("/login", "app_health_path"),
        ("/missing", "app_health_path"),
    ],
)
def test_a_candidate_that_is_not_healthy_switches_nothing(plain: Site, path: str, step: str) -> None:
    pid = plain.pid()
    played = deploy(plain, app_health_path=path)
    assert played.status != 0
    assert f"GET {path}" in words(played)
    assert step in words(played), played.output
    assert plain.pid() == pid


def test_the_health_path_is_asked_with_its_host_under_load(plain: Site) -> None:
    options = {"app_health_path": "/health", "app_health_host": "shop.test", "app_workers": "2"}
    assert deploy(plain, **options).status == 0
    plain.repository.write("plain/app.py", f"{APP}# anew\n")
    plain.repository.commit("Anew")
    with Load(plain.host.address) as load:
        played = deploy(plain, **options)
    assert played.status == 0, played.output
    assert WARNING not in played.output
    assert load.report["failures"] == []
    # Only root knows the identifier of a start.
    invocation = plain.run(f"tr '\\0' '\\n' </proc/{plain.pid()}/environ | sed -n s/^INVOCATION_ID=//p")
    assert identified(plain, "0" * 32) is None
    assert identified(plain, invocation) == plain.pid()
    plain.run("touch /var/lib/booty/ill")
    played = plain.play("status.yml", on=None, **OPTIONS, **options)
    assert played.status != 0
    assert "GET /health answers 503: no database" in words(played), played.output


def test_code_that_is_written_at_run_time_needs_a_hole(plain: Site) -> None:
    options = {"app_settings": '{"WRITES_CODE": "1"}'}
    assert deploy(plain, **options).status != 0
    played = deploy(plain, **options, app_sandbox_allow="jit")
    assert played.status == 0, played.output
