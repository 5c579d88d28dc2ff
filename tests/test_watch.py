"""A watch: what it makes of a tracker's answers and of the hosts', with a stand-in for Sentry; see tests/sentry.py.

tests/test_watch_host.py has the tests with a real Bugsink and real hosts.
"""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import judge, trackers
from ansible_collections.booty.deploy.plugins.module_utils.controller import watch as watching
from ansible_collections.booty.deploy.plugins.module_utils.controller.trackers import Event, Issue, TrackerError
from ansible_collections.booty.deploy.plugins.module_utils.controller.watch import Found
from booty_host import status
from booty_host.app import App
from booty_host.state import State

from tests.conftest import Repository
from tests.sentry import TOKEN, Sentry, sentry

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[Sentry]:
    with sentry() as running:
        yield running


class Clock:
    """A clock that goes on when somebody waits; `events` happen at their time."""

    def __init__(self, **_: Any) -> None:
        self.now = 0.0
        self.events: list[tuple[float, Any]] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [call for at, call in self.events if at <= self.now]
        self.events = [(at, call) for at, call in self.events if at > self.now]
        for call in due:
            call()


def look(server: Sentry, clock: Clock | None = None, share: float = 1.0, proofs: tuple[str, ...] = ("web1",)) -> Found:
    """Watch the stand-in for 300 seconds; each host's proof is in the tracker."""
    clock = clock or Clock()
    ids = {host: server.add(NEW, "", "gate", level="info") for host in proofs}
    tracker = trackers.of_environment(server.environ)
    return watching.watch(tracker, NEW, ["staging"], time.time() - 60, ids, share, 300, clock=clock, sleep=clock.sleep)


def answer(**fields: Any) -> dict[str, Any]:
    """Return the answer of a host."""
    own = {
        "release": NEW, "environment": "staging", "previous": OLD, "pid": 7, "since": 0.0, "requests": 412, "lost": 0,
        "proof": "0" * 32, "sampled": 1.0, "faults": [], **fields,
    }  # fmt: skip
    return {"observed": own}


def verdict(found: Found, before: dict[str, Any] | None = None, **after: Any) -> tuple[str, str]:
    """Return the result and its sentence, for one host."""
    hosts = before or {"web1": answer()}
    ends = {host: answer(proof=None, sampled=None, **after) for host in hosts}
    return watching.verdict(found, NEW, watching.requests(hosts, ends), watching.blindness(found, hosts, ends))


# The decision


@pytest.mark.parametrize(
    ("requests", "failures", "share"),
    [(30, 0, 0.095), (100, 0, 0.03), (300, 0, 0.01), (1000, 0, 0.003), (100, 1, 0.047), (0, 0, 1)],
)
def test_the_bound(requests: int, failures: int, share: float) -> None:
    assert watching.upper_bound(requests, failures) == pytest.approx(share, rel=0.04)


def issue(*events: tuple[str, str, str], transaction: str = "/pay") -> Issue:
    """Return an issue with these events: release, host and request."""
    made = [
        Event(str(n), release, "staging", request, host, transaction)
        for n, (release, host, request) in enumerate(events)
    ]
    return Issue("1", "ValueError: x", "ValueError", transaction, "http://tracker/1", len(made), tuple(made))


@pytest.mark.parametrize(
    ("events", "share", "over", "state"),
    [
        ([], 1.0, True, "none"),
        ([(NEW, "web1", "r1")], 1.0, True, "suspect"),
        ([(NEW, "web1", "r1"), (NEW, "web1", "r1")], 1.0, True, "suspect"),  # twice in one request
        ([(NEW, "web1", "r1"), (NEW, "web1", "r2")], 1.0, False, "bad"),
        ([(NEW, "web1", ""), (NEW, "web1", "")], 1.0, False, "bad"),  # two jobs
        ([(NEW, "web1", "r1"), (NEW, "web2", "r1")], 1.0, False, "bad"),
        # Half of the hosts serve the old release: two events could come from here by chance.
        ([(NEW, "web1", "r1"), (NEW, "web1", "r2")], 0.5, False, "suspect"),
        ([(NEW, "web1", "r1"), (NEW, "web1", "r2")], 0.5, True, "bad"),
        ([(NEW, "web1", f"r{n}") for n in range(7)], 0.5, False, "bad"),
        ([(NEW, "web1", "r1"), (NEW, "web1", "r2")], 0.05, False, "bad"),
    ],
)
def test_the_decision(events: list[tuple[str, str, str]], share: float, over: bool, state: str) -> None:
    assert watching.decide([issue(*events)] if events else [], NEW, share, over) == state


def test_one_error_at_startup_is_enough() -> None:
    assert watching.decide([issue((NEW, "web1", ""), transaction="startup")], NEW, 0.5, False) == "bad"


@pytest.mark.parametrize(
    ("mode", "result", "forced", "ran", "follows", "words"),
    [
        ("back", "bad", False, False, "back", "The wave goes back."),
        ("back", "bad", False, True, "hold", "since its release command has run"),
        ("back", "bad", True, False, "hold", "since app_watch_force is set"),
        ("hold", "bad", False, False, "hold", "No other wave starts"),
        ("report", "bad", False, False, "", "back would have taken this wave back"),
        ("report", "bad", False, True, "", "back would have kept it"),
        ("now", "bad", False, False, "", ""),
        ("back", "blind", False, False, "", ""),
        ("hold", "blind", False, False, "hold", "-e app_watch=off"),
        ("hold", "quiet", False, False, "", ""),
        ("back", "clean", False, False, "", ""),
    ],
)
def test_what_follows(mode: str, result: str, forced: bool, ran: bool, follows: str, words: str) -> None:
    assert watching.acts(mode, result, forced, ran)[0] == follows
    assert words in watching.acts(mode, result, forced, ran)[1]


def test_a_change_of_settings_at_the_same_commit_is_never_taken_back() -> None:
    follows, words = watching.acts("back", "bad", False, False, arrived=False)
    assert follows == "hold"
    assert "no other release served before" in words


# A watch of Sentry


def test_a_release_without_new_errors_is_clean(server: Sentry) -> None:
    server.add(OLD)
    found = look(server)
    assert verdict(found) == ("clean", "no new errors in 412 requests: fewer than 0.7 % meet a new error, 95 % sure")
    assert found.seconds == 300
    # 31 looks in 300 s, one to see the proof, and one for older issues.
    assert found.asked == 33
    assert verdict(found, requests=28)[0] == "quiet"
    assert verdict(found, requests=29)[0] == "clean"
    assert verdict(found, requests=None) == (
        "quiet",
        "no new errors in 0 requests, which is too little traffic to say more",
    )


def test_events_in_older_issues_are_no_new_errors_and_are_named(server: Sentry) -> None:
    server.add(OLD)
    server.add(OLD, "KeyError")
    server.add(NEW, "KeyError", level="warning", environment="other")
    for _ in range(3):
        server.add(NEW)
    found = look(server)
    assert verdict(found) == ("clean", "no new errors, but at least 3 events in an older issue in 412 requests")
    assert verdict(found, requests=2) == (
        "quiet",
        "no new errors, but at least 3 events in an older issue in 2 requests, which is too little traffic to say more",
    )
    assert watching.found_of(json.loads(json.dumps(asdict(found)))) == found
    server.add(NEW, "KeyError")
    assert "at least 4 events in 2 older issues" in verdict(look(server))[1]


def test_two_requests_that_fail_are_bad(server: Sentry) -> None:
    clock = Clock()
    clock.events = [(20, lambda: server.add(NEW)), (400, lambda: server.add(NEW))]
    found = look(server, clock)
    # One event alone makes the watch go on, up to twice as long.
    assert (found.state, found.seconds) == ("bad", 400)
    assert verdict(found) == ("bad", f"{NEW} brought a new error, seen 2 times on web1")


def test_one_request_that_fails_is_not(server: Sentry) -> None:
    server.add(NEW)
    found = look(server)
    assert (found.state, found.seconds) == ("suspect", 600)
    assert verdict(found)[1].startswith("one new error, not repeated, in 412 requests: fewer than 1.1 % meet")


def test_a_flood_of_one_request_hides_no_other(server: Sentry) -> None:
    clock = Clock()

    def flood(request: str) -> None:
        for _ in range(20):
            server.add(NEW, request=request)

    clock.events = [(10 * n, lambda n=n: flood(f"r{n}")) for n in range(1, 5)]
    found = look(server, clock, share=0.25)
    assert (found.state, found.seconds) == ("bad", 40)


def test_warnings_and_deliberate_errors_are_left_out(server: Sentry) -> None:
    for _ in range(2):
        server.add(NEW, level="warning")
        server.add(NEW, "DeliberateError", "/raise")
        server.add(NEW, environment="production")
        server.add(NEW, project="other")
    assert look(server).state == "none"


def test_a_resolved_issue_is_left_out(server: Sentry) -> None:
    server.add(NEW)
    server.add(NEW)
    server.resolved.add(server.events[0]["issue"])
    assert look(server).state == "none"


def test_an_error_that_only_moved_is_reported(server: Sentry) -> None:
    server.add(OLD, stack="before")
    for _ in range(9):
        server.add(NEW, stack="after")
    found = look(server)
    assert found.state == "none"
    assert "only moved" in found.reported[0][1]
    # If somebody had resolved the old one, the release brought it back.
    server.resolved.add(server.events[0]["issue"])
    assert look(server).state == "bad"


def test_an_error_that_old_hosts_show_too_is_reported(server: Sentry) -> None:
    clock = Clock()
    server.add(NEW)
    clock.events = [(10, lambda: server.add(NEW)), (20, lambda: server.add(OLD, host="web2"))]
    found = look(server, clock, share=0.5)
    assert found.state == "none"
    assert found.reported[0][1] == "hosts of another release show it too"


def test_events_of_an_earlier_deploy_do_not_count(server: Sentry) -> None:
    server.add(NEW, at="2026-01-01T00:00:00+00:00")
    server.add(NEW, at="2026-01-01T00:00:00+00:00")
    assert look(server).state == "none"


def test_frames_and_the_commits_that_touch_them(server: Sentry, repository: Repository) -> None:
    old = repository.git("rev-parse", "HEAD")
    repository.write("src/shop/pay.py", "1")
    first = repository.commit("Round the \x1b[31mtotal\u2028")
    repository.write("other.py", "1")
    new = repository.commit("Unrelated")
    server.add(new)
    server.add(new)
    tracker = trackers.of_environment(server.environ)
    (found,) = tracker.issues(new, "staging", time.time() - 60)
    told = watching.details(tracker, found, str(repository.path), [old, "f" * 40], new)
    assert told["frames"] == ["shop/pay.py:12 in total"]
    assert told["commits"] == [f"{repository.git('rev-parse', '--short', first)} Test: Round the total"]
    assert told["title"] == "ValueError: it is bad (/pay)"
    assert told["url"].startswith(server.url)


# Blind: never clean


@pytest.mark.parametrize(
    ("status", "words", "seconds"),
    [(401, "the token is not valid", 0), (403, "docs/watch.md names the scopes", 0),
     (404, "see SENTRY_URL, SENTRY_ORG (acme)", 0), (429, "takes no more questions", 300), (500, "answers 500", 300)],
)  # fmt: skip
def test_a_tracker_that_refuses_is_blind(server: Sentry, status: int, words: str, seconds: int) -> None:
    server.refuse = status
    if status in {429, 500}:
        with pytest.raises(TrackerError, match=words):
            trackers.of_environment(server.environ)
    clock = Clock()
    tracker = trackers.Sentry(server.environ)
    found = watching.watch(tracker, NEW, ["staging"], 0, {"web1": "1"}, 1.0, 300, clock=clock, sleep=clock.sleep)
    result, sentence = verdict(found)
    assert (result, found.seconds) == ("blind", seconds)
    assert words in sentence
    assert TOKEN not in sentence


def test_a_scope_that_is_missing_is_blind(server: Sentry) -> None:
    server.scopes = {"project:read"}
    result, sentence = verdict(look(server))
    assert result == "blind"
    assert "403" in sentence


def test_an_answer_of_an_unknown_form_is_blind(server: Sentry, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = trackers.of_environment(server.environ)
    monkeypatch.setattr(server, "answer", lambda path, query: (200, {"detail": "moved"}))
    clock = Clock()
    found = watching.watch(tracker, NEW, ["staging"], 0, {"web1": "1"}, 1.0, 10, clock=clock, sleep=clock.sleep)
    assert verdict(found)[0] == "blind"
    assert "unknown form" in verdict(found)[1]


def test_a_tracker_that_hangs_is_blind(server: Sentry, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = trackers.Sentry(server.environ)
    monkeypatch.setattr(trackers, "TIMEOUT_SECONDS", 0.2)
    server.hang.clear()
    clock = Clock()
    found = watching.watch(tracker, NEW, ["staging"], 0, {"web1": "1"}, 1.0, 10, clock=clock, sleep=clock.sleep)
    assert verdict(found)[0] == "blind"
    assert "timed out" in verdict(found)[1]


class Nonsense(http.server.BaseHTTPRequestHandler):
    """Writes what its server has, again and again, until the client is gone."""

    def do_GET(self) -> None:
        server: Any = self.server
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            for _ in range(server.times):
                self.wfile.write(server.piece)
                time.sleep(server.pause)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("piece", "times", "pause", "words"),
    [
        (b" " * 1000, 10**9, 0, "it is longer than 100,000 bytes"),
        (b" ", 10**9, 0.05, "it takes longer than 1 s"),
        (b"[" * 50_000, 1, 0, "recursion"),
        (b"<html>", 1, 0, "Expecting value"),
    ],
)
def test_a_tracker_that_answers_nonsense_gives_no_answer(
    monkeypatch: pytest.MonkeyPatch, piece: bytes, times: int, pause: float, words: str
) -> None:
    monkeypatch.setattr(trackers, "ANSWER_BYTES", 100_000)
    monkeypatch.setattr(trackers, "ANSWER_SECONDS", 1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as serving:
        serving.piece, serving.times, serving.pause = piece, times, pause  # type: ignore[attr-defined]
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}).start()
        environ = {"SENTRY_URL": f"http://127.0.0.1:{serving.server_port}", "SENTRY_AUTH_TOKEN": "x"}
        try:
            with pytest.raises(TrackerError, match=words):
                trackers.Sentry(environ).get("/")
        finally:
            serving.shutdown()


def test_values_of_another_kind_are_text() -> None:
    values: list[Any] = [None, "a", ["x"], {}, 5]
    assert [trackers.text(value) for value in values] == ["", "a", "['x']", "", "5"]


def test_a_tracker_that_is_away_is_blind() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        tracker = trackers.Sentry({"SENTRY_URL": f"http://127.0.0.1:{free.getsockname()[1]}", "SENTRY_AUTH_TOKEN": "x"})
        with pytest.raises(TrackerError, match="Connection refused"):
            tracker.issues(NEW, "staging", 0)


def test_a_proof_in_another_project_is_blind(server: Sentry) -> None:
    proof = server.add(NEW, "", "gate", level="info", project="other")
    clock = Clock()
    tracker = trackers.of_environment(server.environ)
    found = watching.watch(tracker, NEW, ["staging"], 0, {"web1": proof}, 1.0, 300, clock=clock, sleep=clock.sleep)
    result, sentence = verdict(found)
    assert result == "blind"
    assert f"accepted the event {proof} of web1 and does not show it" in sentence


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"faults": ["clock: it is 900 s behind the tracker's"]}, {}, "900 s behind"),
        ({"sampled": 0.25}, {}, "reports only 25% of its errors"),
        ({"proof": None}, {}, "sent no event as a proof"),
        ({}, {"lost": 3}, "lost 3 events"),
        ({"lost": 3}, {"lost": 1, "pid": 8}, "lost 1 event on"),
        ({}, {"faults": ["its service gives no status: [Errno 111]"]}, "gives no status"),
    ],
)
def test_a_host_whose_errors_may_not_arrive_is_blind(before: dict[str, Any], after: dict[str, Any], words: str) -> None:
    result, sentence = verdict(Found(), {"web1": answer(**before)}, **after)
    assert result == "blind"
    assert words in sentence


def test_a_tracker_that_refuses_the_proof_is_blind_and_one_that_is_late_is_not() -> None:
    hosts = {"web1": answer(faults=["tracker: the tracker at t:1 is not reached: no answer within 5 s"])}
    assert "no answer within 5 s" in verdict(Found(unseen={"web1": "0" * 32}), hosts)[1]
    assert verdict(Found(), hosts, lost=1)[0] == "clean"
    assert "lost 1 event" in verdict(Found(), hosts, lost=2)[1]
    # Without the tracker's word nothing is known.
    assert verdict(Found(blind="it is down"), hosts)[0] == "blind"


def test_a_host_that_is_gone_is_blind() -> None:
    hosts = {"web1": answer(), "web2": {"unreachable": True, "msg": "no route to host"}}
    assert watching.blindness(Found(), hosts, {}) == [
        "web1 gave no answer at the end of the watch",
        "web2 gave no answer: no route to host",
    ]


def test_a_bad_release_is_bad_although_the_watch_is_blind() -> None:
    found = Found(new=[issue((NEW, "web1", "r1"), (NEW, "web1", "r2"))], state="bad", blind="it is down")
    assert verdict(found)[0] == "bad"


def test_a_tracker_that_is_slow_to_show_events_is_waited_for(server: Sentry) -> None:
    clock = Clock()
    proof = f"{999:032x}"
    clock.events = [(60, lambda: server.add(NEW, "", "gate", level="info", id=proof))]
    clock.events += [(350, lambda: server.add(NEW)), (350, lambda: server.add(NEW))]
    tracker = trackers.of_environment(server.environ)
    found = watching.watch(
        tracker, NEW, ["staging"], time.time() - 60, {"web1": proof}, 1.0, 300, clock=clock, sleep=clock.sleep
    )
    # The proof took 60 s, so the watch goes on for as long, to see what was raised at its end.
    assert (found.state, found.seconds) == ("bad", 350)


# The host


def test_the_last_watch_of_the_release_that_serves() -> None:
    def record(**fields: str) -> str:
        named = {f"BOOTY_{name.upper()}": value for name, value in fields.items()}
        return json.dumps({"__REALTIME_TIMESTAMP": "1764000000000000", "MESSAGE": "m", **named})

    began, ended = record(watch="began", release=NEW, until="100"), record(watch="bad", release=NEW)
    at = "2025-11-24T16:00:00+00:00"
    assert status.watch("", NEW, 0) is None
    assert status.watch(record(watch="bad", release=OLD), NEW, 0) is None
    assert status.watch(f"{record(result='switched')}\n{began}", NEW, 99) == {
        "result": "began",
        "message": "m",
        "at": at,
    }
    assert status.watch(began, NEW, 101) == {"result": "cut off", "message": "m", "at": at}
    assert status.watch(f"{ended}\n{began}", NEW, 101) == {"result": "bad", "message": "m", "at": at}


def test_a_release_that_was_taken_back_is_refused_until_it_serves(tmp_path: Path) -> None:
    app = App("shop", tmp_path)
    app.opt.mkdir(parents=True)
    state = State(app, [OLD], {}, {}, [], {}, {NEW: "a watch found ValueError"})
    state.save()
    host = {"refused": State.load(app).refused}
    (problem,) = judge.taken_back(host, {"app_watch_force": False}, NEW, "web1")
    assert "was taken back from web1: a watch found ValueError." in problem
    assert [*judge.taken_back(host, {"app_watch_force": True}, NEW, "web1")] == []
    State.load(app).serve(NEW)
    assert State.load(app).refused == {}


def test_a_watch_that_should_act_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*judge.unwatchable({"app_watch": "report"})] == []
    (problem,) = judge.unwatchable({"app_watch": "back"})
    assert problem.startswith("app_watch is back, and the tracker can't be asked: there is no SENTRY_WATCH_TOKEN")
    assert watching.mode_of("report") == "off"
    monkeypatch.setenv("SENTRY_WATCH_TOKEN", "x")
    assert [*judge.unwatchable({"app_watch": "back"})] == []
    assert watching.mode_of("report") == "report"


# The tokens


@pytest.mark.parametrize(
    ("environ", "token", "reason"),
    [
        ({}, "", "there is no SENTRY_WATCH_TOKEN or SENTRY_AUTH_TOKEN"),
        ({"SENTRY_AUTH_TOKEN": "sntrys_x"}, "", "is an organization token, which can't read issues"),
        ({"SENTRY_AUTH_TOKEN": "sntryu_x"}, "sntryu_x", ""),
        ({"SENTRY_AUTH_TOKEN": "sntrys_x", "SENTRY_WATCH_TOKEN": "sntryu_y"}, "sntryu_y", ""),
    ],
)
def test_the_token(environ: dict[str, str], token: str, reason: str) -> None:
    assert trackers.token(environ) == token
    assert reason in trackers.why_not(environ)


def test_a_watch_without_a_token_leaves_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"found": asdict(Found(blind="there is no token")), "issues": [], "reported": []}
    arguments: dict[str, Any] = {"mode": "now", "release": NEW, "hosts": {}, "counted": {}, "found": found}
    arguments |= {"commands": [], "forced": False, "before": []}
    for name in trackers.TOKENS:
        monkeypatch.delenv(name, raising=False)
    judged = watching.WatchAction.judge(object.__new__(watching.WatchAction), arguments)
    assert (judged["result"], judged["status"], judged["record"]) == ("blind", 12, "off")
    monkeypatch.setenv("SENTRY_WATCH_TOKEN", "x")
    assert watching.WatchAction.judge(object.__new__(watching.WatchAction), arguments)["record"] == "blind"
