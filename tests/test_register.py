"""Registration in Sentry: what the real sentry-cli sends from real deploys.

No Sentry server runs here. A stand-in answers the part of Sentry's documented API that a release needs, keeps the
registered data, and refuses a request whose method, path, token or body is not as documented.
https://docs.sentry.io/api/releases/
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import register

from tests.conftest import Repository, Site

TOKEN = "planted-token-0123456789abcdef"
PLANTED = "planted-variable-0123456789"
RELEASES = "/api/0/organizations/acme/releases/"


class Sentry(ThreadingHTTPServer):
    """The stand-in, on loopback: `calls` lists all requests, `deploys` and `commits` hold the registered data."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: list[dict[str, Any]] = []
        self.refuse = 0
        self.hang = threading.Event()
        self.hang.set()
        self.forget()

    def forget(self) -> None:
        """Remove all data."""
        self.calls: list[tuple[str, str]] = []
        self.deploys: dict[str, list[str]] = {}
        self.commits: dict[str, list[str]] = {}
        self.refs: dict[str, list[dict[str, str]]] = {}
        self.received = ""
        self.processes = ""

    def changes(self) -> list[str]:
        """Return the calls that change something, without their common prefix."""
        return [f"{method} {path.removeprefix(RELEASES)}" for method, path in self.calls if method != "GET"]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Return status and answer of one request."""
        sha, _, rest = path.removeprefix(RELEASES).partition("/")
        status, answer = 404, {"detail": f"no {method} of {path}"}
        match method, rest if path.startswith(RELEASES) else path:
            case "GET", "/api/0/organizations/acme/repos/":
                return 200, self.repositories
            case "POST", "" if not sha:
                assert set(body) <= {"version", "projects", "dateStarted"}
                assert body["projects"] == ["shop"]
                assert re.fullmatch("[0-9a-f]{40}", body["version"])
                self.deploys.setdefault(body["version"], [])
                status, answer = 201, release(body["version"])
            case _ if sha not in self.deploys:
                pass
            case "GET", "previous-with-commits/":
                before = [known for known in self.commits if known != sha]
                status, answer = 200, release(before[-1]) if before else {}
            case "PUT", "" if "refs" in body:
                self.refs[sha] = body["refs"]
                status, answer = 200, release(sha)
            case "PUT", "":
                assert all(set(commit) >= {"id", "message", "author_email"} for commit in body["commits"])
                self.commits[sha] = [commit["id"] for commit in body["commits"]]
                status, answer = 200, release(sha)
            case "GET", "deploys/":
                return 200, [deploy(name) for name in self.deploys[sha]]
            case "POST", "deploys/":
                assert set(body) <= {"environment", "name", "url", "dateStarted", "dateFinished", "projects"}
                self.deploys[sha].append(body["environment"])
                status, answer = 201, deploy(body["environment"])
        return status, answer


def release(sha: str) -> dict[str, Any]:
    return {
        "version": sha,
        "dateCreated": "2026-01-01T00:00:00Z",
        "newGroups": 0,
        "projects": [{"slug": "shop", "name": "shop"}],
        "lastCommit": {"id": sha},
    }


def deploy(environment: str) -> dict[str, Any]:
    return {"id": "1", "environment": environment, "name": None, "dateFinished": "2026-01-01T00:00:00Z"}


class Handler(BaseHTTPRequestHandler):
    """Answers a request of sentry-cli."""

    server: Sentry

    def do_GET(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.calls.append((self.command, path))
        headers = {name: value for name, value in self.headers.items() if name != "Authorization"}
        self.server.received += f"{self.path} {headers} {content.decode()}"
        # sentry-cli is running now, so its command line is in /proc.
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                self.server.processes += file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
        self.server.hang.wait(30)
        if self.server.refuse:
            status, answer = self.server.refuse, {"detail": f"not with {self.headers['Authorization']}"}
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            status, answer = 401, {"detail": "Invalid token"}
        else:
            try:
                status, answer = self.server.answer(self.command, path, json.loads(content or "null"))
            except (AssertionError, KeyError, TypeError) as error:
                status, answer = 400, {"detail": f"not as documented: {error!r} {content.decode()}"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Log no request."""


@pytest.fixture
def sentry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sentry]:
    """Start a stand-in, and set the environment variables that an operator sets."""
    with Sentry() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        for name, value in {
            "SENTRY_URL": server.url,
            "SENTRY_AUTH_TOKEN": TOKEN,
            "SENTRY_ORG": "acme",
            "SENTRY_PROJECT": "shop",
            "PLANTED": PLANTED,
            "NO_PROXY": "*",
        }.items():
            monkeypatch.setenv(name, value)
        yield server
        server.hang.set()
        server.shutdown()
        thread.join()


def words(output: str) -> str:
    return " ".join(output.split())


# sentry-cli alone


def test_the_commits_are_those_up_to_the_release_and_not_up_to_head(sentry: Sentry, repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    shas = []
    for name in ("second", "third", "fourth"):
        repository.write(name, name)
        shas.append(repository.commit(name))
    register.register(first, ["staging"], ["staging"], str(repository.path), 30)
    register.register(shas[1], ["staging"], ["staging"], str(repository.path), 30)
    assert sentry.commits == {first: [first], shas[1]: [shas[1], shas[0]]}
    assert sentry.deploys == {first: ["staging"], shas[1]: ["staging"]}
    assert repository.git("status", "--porcelain") == ""
    assert repository.git("rev-parse", "HEAD") == shas[2]


def test_a_previous_commit_that_the_repository_lacks(sentry: Sentry, repository: Repository) -> None:
    elsewhere, sha = "f" * 40, repository.git("rev-parse", "HEAD")
    sentry.deploys[elsewhere], sentry.commits[elsewhere] = [], [elsewhere]
    register.register(sha, ["staging"], ["staging"], str(repository.path), 30)
    assert sentry.commits[sha] == [sha]


def test_a_shallow_clone_registers_its_commits(sentry: Sentry, repository: Repository, tmp_path: Path) -> None:
    repository.write("second", "")
    sha = repository.commit("second")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{repository.path}", clone], check=True)
    register.register(sha, ["staging"], ["staging"], str(clone), 30)
    assert sentry.commits == {sha: [sha]}
    assert sentry.deploys == {sha: ["staging"]}


def test_a_repository_that_sentry_knows_is_named_instead_of_commits(sentry: Sentry, repository: Repository) -> None:
    older = repository.git("rev-parse", "HEAD")
    repository.write("second", "")
    repository.commit("second")
    repository.git("remote", "add", "origin", "git@github.com:acme/shop.git")
    sentry.repositories = [
        {
            "id": "1",
            "name": "acme/shop",
            "url": "https://github.com/acme/shop",
            "provider": {"id": "integrations:github", "name": "GitHub"},
            "status": "active",
            "dateCreated": "2026-01-01T00:00:00Z",
        }
    ]
    register.register(older, ["staging"], ["staging"], str(repository.path), 30)
    assert [(ref["repository"], ref["commit"]) for ref in sentry.refs[older]] == [("acme/shop", older)]
    assert sentry.deploys == {older: ["staging"]}


def test_only_environments_without_a_deploy_get_one(sentry: Sentry, repository: Repository) -> None:
    sha = repository.git("rev-parse", "HEAD")
    assert register.register(sha, ["production"], [], None, 30) == ["production"]
    assert register.register(sha, ["prod", "production", "test"], ["test"], None, 30) == ["prod", "test"]
    assert register.register(sha, ["prod", "production", "test"], [], None, 30) == []
    assert sentry.deploys == {sha: ["production", "prod", "test"]}
    assert sentry.commits == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SENTRY_AUTH_TOKEN", "wrong-token", "Invalid token (http status: 401)"),
        ("SENTRY_ORG", None, "An organization ID or slug is required"),
        ("SENTRY_PROJECT", None, "A project ID or slug is required"),
        ("SENTRY_URL", "http://127.0.0.1:9", "Could not connect to server"),
    ],
)
def test_the_cause_of_a_failure_is_one_line(
    sentry: Sentry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    value: str | None,
    message: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no .sentryclirc of the developer
    monkeypatch.setenv("RUST_BACKTRACE", "1")
    monkeypatch.setenv("SENTRY_LOG_LEVEL", "debug")
    if value:
        monkeypatch.setenv(name, value)
    else:
        monkeypatch.delenv(name)
    with pytest.raises(register.RegistrationError) as caught:
        register.register("a" * 40, ["staging"], ["staging"], None, 30)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "log-level" not in str(caught.value)


def test_a_directory_that_is_no_repository(sentry: Sentry, tmp_path: Path) -> None:
    with pytest.raises(register.RegistrationError, match="not a git repository"):
        register.register("a" * 40, ["staging"], ["staging"], str(tmp_path), 30)


# Whole deploys


def test_a_deploy_is_registered_once(site: Site, sentry: Sentry) -> None:
    site.deploy()  # HEAD serves first, so that the release below is one commit newer
    sentry.forget()
    sha = site.release()
    played = site.deploy("-vvv", "--diff")
    assert f"Registered in Sentry: {sha}, with its deploy to staging." in words(played.output)
    assert site.health() == {"status": "ok", "release": sha, "environment": "staging"}
    # Each of the first two commands of sentry-cli creates the release.
    assert sentry.changes() == ["POST ", "POST ", f"PUT {sha}/", f"POST {sha}/deploys/"]
    assert sentry.deploys == {sha: ["staging"]}
    assert sentry.commits[sha][0] == sha
    assert "sentry-cli releases set-commits" in sentry.processes
    everywhere = {"output": played.output, "processes": sentry.processes}
    assert [place for place, text in everywhere.items() if TOKEN in text] == []
    assert PLANTED not in sentry.received

    again = site.deploy()
    assert again.recap(site.host.name)["changed"] == 0
    assert f"Sentry has {sha} and its deploy to staging already." in words(again.output)
    assert sentry.deploys == {sha: ["staging"]}


def test_a_rollback_is_a_deploy_of_the_old_release(site: Site, sentry: Sentry) -> None:
    old, new = site.release(), site.release()
    site.deploy(app_release=old)
    site.deploy(app_release=new)
    commits = dict(sentry.commits)
    sentry.calls.clear()
    played = site.play("rollback.yml")
    assert played.status == 0, played.output
    assert site.health()["release"] == old
    assert f"Registered in Sentry: {old}, with its deploy to staging." in words(played.output)
    assert sentry.changes() == ["POST ", f"POST {old}/deploys/"]
    assert sentry.deploys == {old: ["staging", "staging"], new: ["staging"]}
    assert sentry.commits == commits


def test_without_a_token_nothing_is_sent(site: Site, sentry: Sentry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENTRY_AUTH_TOKEN")
    refused = site.play("deploy.yml", app_registration_required="true")
    assert refused.status != 0
    assert "the environment of ansible-playbook has no SENTRY_AUTH_TOKEN" in words(refused.output)
    played = site.deploy()
    assert "Registration in Sentry is not configured" in words(played.output)
    assert sentry.calls == []


def test_registration_can_be_switched_off(site: Site, sentry: Sentry) -> None:
    played = site.deploy(app_registration="false")
    assert "in Sentry" not in played.output
    assert sentry.calls == []


def test_check_shows_the_registration_and_calls_nothing(site: Site, sentry: Sentry) -> None:
    sha = site.release()
    played = site.deploy("--check", "--diff")
    assert f"Would register in Sentry: {sha}, with its deploy to staging." in words(played.output)
    assert sentry.calls == []


def test_the_next_run_repeats_a_refused_registration(site: Site, sentry: Sentry) -> None:
    sha = site.release()
    sentry.refuse = 403
    played = site.deploy("-vvv")
    assert "Registration in Sentry failed: API request failed: sentry reported an error: not with" in words(
        played.output
    )
    assert "(http status: 403)" in played.output
    assert TOKEN not in played.output
    assert site.health()["release"] == sha
    sentry.refuse = 0
    assert f"Registered in Sentry: {sha}, with its deploy to staging." in words(site.deploy().output)
    assert sentry.deploys == {sha: ["staging"]}


def test_a_required_registration_fails_the_run_and_leaves_the_release(site: Site, sentry: Sentry) -> None:
    sha = site.release()
    sentry.hang.clear()
    played = site.play("deploy.yml", app_registration_required="true", app_registration_seconds="2")
    assert played.status != 0
    assert "Registration in Sentry failed: no answer within 2 s" in words(played.output)
    assert f"{sha} serves all the same" in words(played.output)
    assert site.health()["release"] == sha
    played = site.deploy(app_registration_seconds="2")
    assert "Registration in Sentry failed: no answer within 2 s" in words(played.output)


def test_a_run_with_an_unreachable_host_registers_nothing(site: Site, sentry: Sentry, tmp_path: Path) -> None:
    site.release()
    (tmp_path / "hosts").write_text("[booty]\ngone ansible_host=127.0.0.1 ansible_port=9 app_environment=staging\n")
    played = site.play("deploy.yml", "-i", str(tmp_path / "hosts"), "--limit", f"{site.host.name},gone")
    assert played.status != 0
    assert "UNREACHABLE" in played.output
    assert sentry.calls == []


def test_commits_are_those_of_the_repository_also_in_a_hook_of_another(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = repository.git("rev-parse", "HEAD")
    repository.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    subprocess.run(["git", "init", "--quiet", "--bare", tmp_path / "other.git"], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other.git"))
    with register.commit_as_head(str(tmp_path / "bare.git"), sha) as directory:
        assert Path(directory, "commondir").read_text() == f"{tmp_path / 'bare.git'}\n"
