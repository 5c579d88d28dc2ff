"""app_notify_command: what it gets, when, and that it can neither stop nor fail a run."""

from __future__ import annotations

import email
import email.policy
import http.server
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ansible_collections.booty.deploy.plugins.module_utils.controller import notify

from tests.conftest import ROOT, Repository, Site
from tests.test_run import playbook

SCHEMA = json.loads((ROOT / "docs/notify.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
A, B = "a1" * 20, "b2" * 20


def received(file: Path) -> list[dict[str, Any]]:
    """Return the documents in a file, one a line, after a check with the schema; a second read returns newer ones."""
    documents = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    for document in documents:
        VALIDATOR.validate(document)
        assert {*document} == {*SCHEMA["properties"]}
    return documents


def run(states: dict[str, str] | None = None, **changes: Any) -> notify.Run:
    """Return a run that deploys B over A to three hosts; the fourth had nothing to do, and the last did not answer."""
    answer = {"release": B, "environment": "production", "due": True, "problems": [], "serves": A}
    answers = dict.fromkeys(("web1", "web2", "web3"), answer)
    options = {"app_name": "shop", "app_domains": [], "app_notify_command": "true"}
    values = {
        "answers": {**answers, "web4": {**answer, "due": False, "serves": B}},
        "unreachable": {"web5"},
        "states": states or {},
        "options": options,
        "commits": {"commits": [], "removed": []},
        **changes,
    }
    return notify.Run(**values)


@pytest.mark.parametrize(
    ("states", "expected", "text"),
    [
        ({}, "not switched", "no host was switched"),
        ({"web1": "not switched"}, "not switched", "no host was switched"),
        ({"web1": "went back"}, "went back", "its hosts went back"),
        ({"web1": "taken back", "web2": "not switched"}, "went back", "its hosts went back"),
        ({"web1": "switched", "web2": "went back"}, "mixed", "some hosts serve it"),
        ({"web1": "switched", "web2": "unreachable"}, "unknown", "it is unknown what its hosts serve"),
        ({"web1": "switched", "web2": "under way"}, "unknown", "it is unknown what its hosts serve"),
        (dict.fromkeys(("web1", "web2", "web3"), "switched"), "switched", "its hosts serve it anyway"),
    ],
)
def test_the_result_says_what_the_hosts_serve(states: dict[str, str], expected: str, text: str) -> None:
    document = notify.document(run(states, reason="It broke."), "failure")
    VALIDATOR.validate(document)
    assert document["result"] == expected
    assert document["reason"] == "It broke."
    assert document["text"].startswith(f"shop: the deploy of production to b2b2b2b2b failed; {text} (")
    hosts = {host: state for state, hosts in document["hosts"].items() for host in hosts}
    assert hosts == {**dict.fromkeys(("web1", "web2", "web3"), "untouched"), **states} | {
        "web4": "unchanged",
        "web5": "unreachable",
    }


def test_the_links_that_are_known() -> None:
    options = {"app_domains": ["shop.example.com", "www.example.com"]}
    github = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "me/shop", "GITHUB_RUN_ID": "7"}
    assert notify.links({"app_domains": []}, A, {}) == {}
    assert notify.links(options, A, {"SENTRY_ORG": "acme", **github}) == {
        "app": "https://shop.example.com/",
        "release": f"https://sentry.io/organizations/acme/releases/{A}/",
        "run": "https://github.com/me/shop/actions/runs/7",
    }
    assert notify.links(options, A, {"CI_JOB_URL": "https://gitlab.com/me/shop/-/jobs/7"})["run"].endswith("/jobs/7")


def test_the_commits_between_two_releases(repository: Repository) -> None:
    before = repository.git("rev-parse", "HEAD")
    repository.write("a", "")
    repository.commit("Käse: \x1b[31m|\x1f\nmore")
    repository.write("b", "")
    after = repository.commit("Newest")
    arrived, removed = notify.commits_between(str(repository.path), before, after).values()
    assert [commit["subject"] for commit in arrived] == ["Newest", "Käse: \x1b[31m|\x1f more"]
    assert arrived[0]["sha"] == after
    assert arrived[0]["author"] == "Test"
    assert arrived[0]["email"] == "test@example.com"
    assert removed == []
    back = notify.commits_between(str(repository.path), after, before)
    assert back == {"commits": [], "removed": arrived}
    for older, newer in ((before, B), (B, before), ("", after)):
        nothing = notify.commits_between(str(repository.path), older, newer)
        assert nothing == {"commits": [], "removed": []}
    assert notify.commits_between("/nowhere", before, after) == {"commits": [], "removed": []}


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("true", ""),
        ("exit 3", "app_notify_command failed at begin with status 3"),
        (
            "echo start; echo curl: no answer from https://hooks.example.com/T0/hunter2 >&2; exit 22",
            "app_notify_command failed at begin with status 22: curl: no answer from https://hooks.example.com/…",
        ),
        ("trap '' TERM; sleep 60 & wait", "app_notify_command was ended at begin: it took 1 s"),
        # It holds its output open after it has ended.
        ("sleep 60 &", ""),
    ],
)
def test_a_command_is_bounded_and_its_failure_is_one_line(command: str, problem: str) -> None:
    began = time.monotonic()
    sender = notify.Sender(command, 1)
    # More than a pipe holds.
    sender.send("begin", {"text": "x" * 200_000})
    assert time.monotonic() - began < 0.5
    sender.look(wait=True)
    assert time.monotonic() - began < 3
    assert sender.problems == [problem] * bool(problem)


PAGE = (ROOT / "docs/notify.md").read_text()
EXAMPLES = ROOT / "docs/examples/notify"
COMMIT = {
    "sha": B, "author": "Anna", "email": "anna@example.com", "at": "2026-11-28T13:05:11+01:00",
    "subject": "Käse & <b>",
}  # fmt: skip


def examples(event: str) -> bytes:
    """Return the document of an event for the examples of the page."""
    of_commits = {"commits": [COMMIT], "removed": []}
    values = notify.document(run({"web1": "went back"}, reason="No <database>.\nmore", commits=of_commits), event)
    VALIDATOR.validate(values)
    return json.dumps(values).encode()


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Serve a webhook, and return the list of the messages that it got."""
    messages: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/services/T0/secret"
            assert self.headers["Content-Type"] == "application/json"
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("SLACK_WEBHOOK", f"http://127.0.0.1:{server.server_port}/services/T0/secret")
        yield messages
        server.shutdown()


def call(command: str, event: str) -> list[str]:
    """Run a command with the document of an event, as a run does, and return its problems."""
    sender = notify.Sender(command, 10)
    sender.send(event, json.loads(examples(event)))
    sender.look(wait=True)
    return sender.problems


COMMANDS = [yaml.safe_load(block)["app_notify_command"] for block in re.findall("```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("curl")), reason="the examples need jq and curl")
@pytest.mark.parametrize(("command", "events"), [*zip(COMMANDS, (["begin", "failure"], ["failure"]), strict=True)])
def test_the_commands_of_the_page(webhook: list[dict[str, Any]], command: str, events: list[str]) -> None:
    assert [call(command, event) for event in ("begin", "failure")] == [[], []]
    assert webhook == [{"text": json.loads(examples(event))["text"]} for event in events]


def test_the_example_for_slack(webhook: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    command = str(EXAMPLES / "slack.py")
    assert command.rpartition("/")[2] in PAGE
    assert call(command, "begin") == []
    assert "\n• Käse &amp; &lt;b&gt; (Anna)" in webhook[0]["text"]
    assert call(command, "failure") == []
    assert "its hosts went back" in webhook[1]["text"]
    assert "\n```\nNo &lt;database&gt;.\nmore\n```" in webhook[1]["text"]
    monkeypatch.setenv("SLACK_WEBHOOK", "http://127.0.0.1:1/services/T0/secret")
    (problem,) = call(command, "failure")
    assert "Connection refused" in problem
    assert "secret" not in problem


def test_the_example_for_mail(tmp_path: Path) -> None:
    stored, stand_in = tmp_path / "mail", tmp_path / "sendmail"
    stand_in.write_text(f'#!/bin/sh\ntest "$*" = "-t -i" && cat > {stored}\n')
    stand_in.chmod(0o755)
    example = (EXAMPLES / "mail.py").read_text()
    assert "/usr/sbin/sendmail" in example
    script = tmp_path / "mail.py"
    script.write_text(example.replace("/usr/sbin/sendmail", str(stand_in)))
    command = f"{sys.executable} {script} team@example.com"
    assert call(command, "begin") == []
    assert not stored.exists()
    assert call(command, "failure") == []
    message = email.message_from_bytes(stored.read_bytes(), policy=email.policy.default)
    assert message["To"] == "team@example.com"
    assert message["Subject"].startswith("shop: the deploy of production to b2b2b2b2b failed; its hosts went back")
    text = message.get_content()
    assert "went back: web1\n" in text
    assert "commits: b2b2b2b2b Käse & <b> (Anna)" in text
    assert "No <database>.\nmore" in text


def test_the_document_of_the_page_fits_the_schema() -> None:
    (block,) = re.findall("```json\n(.*?)```", PAGE, re.DOTALL)
    document = json.loads(block)
    VALIDATOR.validate(document)
    assert {*document} == {*SCHEMA["properties"]}


def to(file: Path) -> str:
    """Return a command that appends the documents to a file."""
    return f"cat >> {file} && echo >> {file}"


def test_a_deploy_tells_its_begin_and_its_end(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "documents"
    after = site.release()
    site.deploy(app_notify_command=to(file))
    begin, success = received(file)
    assert (begin["event"], begin["verb"], begin["app"], begin["environment"]) == (
        "begin", "deploy", "booty", "staging",
    )  # fmt: skip
    assert (begin["to"], begin["result"]) == (after, None)
    assert begin["hosts"] == {"untouched": [site.host.name]}
    assert (success["event"], success["result"]) == ("success", "switched")
    assert success["hosts"] == {"switched": [site.host.name]}
    assert success["seconds"] > begin["seconds"]
    assert f"staging serves {after[:9]} on 1 host after " in success["text"]


@pytest.mark.long
def test_the_events_of_other_runs(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "documents"
    before = site.release()
    site.deploy()
    after = site.release()
    checked = site.deploy("--check", app_notify_command=to(file))
    assert not file.exists(), checked.output
    site.deploy(app_notify_command=to(file))
    begin, _ = received(file)
    assert (begin["from"], begin["to"], begin["removed"]) == (before, after, [])
    assert [commit["sha"] for commit in begin["commits"]] == [after]
    again = site.deploy(app_notify_command=to(file))
    assert not file.exists(), again.output
    refused = site.play("deploy.yml", app_release=before, app_require_ancestor="true", app_notify_command=to(file))
    assert "no ancestor" in refused.output
    assert not file.exists()
    back = site.play("rollback.yml", app_notify_command=to(file))
    assert back.status == 0, back.output
    begin, success = received(file)
    assert (begin["verb"], begin["from"], begin["to"], begin["commits"]) == ("rollback", after, before, [])
    assert [commit["sha"] for commit in begin["removed"]] == [after]
    assert (success["event"], success["result"]) == ("success", "switched")
    broken = site.release(text="raise RuntimeError('no database')\n")
    failed = site.play("deploy.yml", app_notify_command=to(file))
    assert failed.status == 2
    _, failure = received(file)
    assert (failure["event"], failure["result"], failure["to"]) == ("failure", "not switched", broken)
    assert failure["hosts"] == {"not switched": [site.host.name]}
    assert "no database" in failure["reason"]
    assert all(line.strip() in failed.output for line in failure["reason"].splitlines())
    site.repository.write("app/requirements.txt", "")
    site.repository.commit("No dependencies")
    unbuilt = site.play("deploy.yml", app_notify_command=to(file))
    assert unbuilt.status == 2
    assert [document["event"] for document in received(file)] == ["begin", "failure"]
    site.repository.git("reset", "--hard", "--quiet", after)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_that_is_cut_off_tells_its_failure(site: Site, tmp_path: Path, number: int) -> None:
    file = tmp_path / "documents"
    site.release()
    site.deploy()
    site.release(text="import time\ntime.sleep(8)\nfrom fastapi import APIRouter\nrouter = APIRouter()\n")
    with site.journal() as lines:
        running = site.start("deploy.yml", app_notify_command=to(file))
        next(line for line in lines if "proving" in line)
    os.kill(running.processes()[0], number)
    played = running.end()
    assert played.status != 0
    _, failure = received(file)
    assert (failure["event"], failure["result"]) == ("failure", "unknown")
    assert failure["hosts"] == {"under way": [site.host.name]}
    assert failure["reason"].startswith("The run was cut off on the controller.")
    # The host ends what it has begun.
    site.release()
    site.deploy(app_lock_wait="60")


@pytest.mark.long
def test_a_command_that_hangs_or_fails_changes_nothing_of_the_run(site: Site, tmp_path: Path) -> None:
    site.release()
    played = site.deploy(app_notify_command="echo no hunter2-webhook >&2; exit 7")
    for event in ("begin", "success"):
        assert f"app_notify_command failed at {event} with status 7: no hunter2-webhook\n" in played.output
    site.release()
    began = time.monotonic()
    played = site.deploy(app_notify_command="sleep 300", app_notify_seconds="2")
    assert time.monotonic() - began < 100
    for event in ("begin", "success"):
        assert f"app_notify_command was ended at {event}: it took 2 s\n" in played.output


@pytest.mark.long
def test_the_command_and_the_secrets_are_shown_nowhere(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "documents"
    secret = f"hunter2-{time.monotonic_ns()}"
    command = {"app_notify_command": f": {secret} && {to(file)}"}
    site.inventory.joinpath("group_vars").mkdir(exist_ok=True)
    site.inventory.joinpath("group_vars/booty.yml").write_text(yaml.safe_dump(command))
    site.release(text="import os\nprint(os.environ['SENTRY_DSN'])\nraise RuntimeError(os.environ['SENTRY_DSN'])\n")
    try:
        played = site.play("deploy.yml", "-vvv", "--diff")
    finally:
        site.inventory.joinpath("group_vars/booty.yml").unlink()
        site.repository.git("reset", "--hard", "--quiet", "HEAD~1")
    assert played.status == 2
    assert secret not in played.output
    _, failure = received(file)
    assert site.tracker.dsn not in json.dumps(failure)
    assert "RuntimeError" in failure["reason"]
    assert secret not in site.run("journalctl --boot")


def test_a_run_without_the_callback_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("[booty]\nnowhere.invalid app_environment=staging app_notify_command=true\n")
    status, output = playbook("deploy.yml", "-i", tmp_path / "hosts", ANSIBLE_CALLBACKS_ENABLED="ansible.posix.timer")
    assert status == 4, output
    line = "callbacks_enabled = booty.deploy.notify Nothing was changed."
    assert f"app_notify_command needs a line in your ansible.cfg, under [defaults]: {line}" in output
