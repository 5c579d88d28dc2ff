"""Ask a tracker which errors a release brought: Sentry, or Bugsink, by the same interface.

The tracker, the organization and the project come from the variables of sentry-cli in the environment of
ansible-playbook. Registration may have a token that can't read issues, so SENTRY_WATCH_TOKEN comes before
SENTRY_AUTH_TOKEN. A third tracker needs a class of its own and a line in `KINDS`.
"""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import mktime_tz, parsedate_tz
from http.client import HTTPException
from typing import Any

SENTRY = "https://sentry.io"
# The variables that may hold the token, in the order of preference.
TOKENS = ("SENTRY_WATCH_TOKEN", "SENTRY_AUTH_TOKEN")
# Sentry's organization tokens begin with this. They have only the scope org:ci, which can't read issues.
ORGANIZATION_TOKEN = "sntrys_"
# How long an answer may take, in seconds.
TIMEOUT_SECONDS = 10
# How long it may take in all, and how large it may be, in bytes.
ANSWER_SECONDS, ANSWER_BYTES = 60, 50_000_000
# How many pages of issues are read.
PAGES = 100
NOT_FOUND = 404
# The newest events of an issue that are read: enough to see other requests, other hosts and other releases.
EVENTS = 10
# How many older issues are read.
OLDER = 5
ERRORS = ("error", "fatal")
# `POST /raise` on the internal socket raises this error, to prove that errors arrive.
DELIBERATE = ("DeliberateError", "/raise")
# The message of the event by which the runner proves that its tracker accepts events.
PROOF = "Booty release is being proven"
# The largest difference between a host's clock and the tracker's that the runner accepts, in seconds.
CLOCK_SECONDS = 300


class TrackerError(Exception):
    """The tracker did not answer the question; the message has the reason.

    Attributes:
        status: the HTTP status of the answer; 0 without an answer.
        final: whether the same question will fail again.
    """

    def __init__(self, message: str, status: int = 0, final: bool = False) -> None:
        super().__init__(message)
        self.status, self.final = status, final


@dataclass(frozen=True)
class Event:
    """An event of an issue.

    Attributes:
        id: the id of the event; a tracker may have one of its own beside that of the SDK.
        request: the id of the request in which the error was raised, or "".
        host: the host that sent it.
        transaction: the route, or another place such as `startup`.
    """

    id: str
    release: str
    environment: str
    request: str
    host: str
    transaction: str


@dataclass(frozen=True)
class Issue:
    """An issue of the tracker, with its newest events.

    Attributes:
        title: the error and its message.
        kind: the type of the error.
        transaction: where it was raised.
        url: its page.
        count: the number of all its events.
        events: the newest ones, of any release, at most `EVENTS`.
    """

    id: str
    title: str
    kind: str
    transaction: str
    url: str
    count: int
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Frame:
    """A place in a stack."""

    file: str
    line: int
    function: str


# booty_host/health.py has this too, and neither program imports the other.
@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer."""

    def end(*_: object) -> None:
        raise TimeoutError(f"it takes longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Tracker(ABC):
    """A tracker and one of its projects.

    Attributes:
        asked: the number of requests so far.
        ahead: the tracker's clock minus that of this machine, in seconds.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.url = (environ.get("SENTRY_URL") or SENTRY).rstrip("/")
        self.organization, self.project = environ.get("SENTRY_ORG", ""), environ.get("SENTRY_PROJECT", "")
        self._token = token(environ)
        self.asked = 0
        self.ahead = 0.0

    @abstractmethod
    def issues(self, release: str, environment: str, since: float) -> list[Issue]:
        """Return the unresolved errors that were first seen in a release and an environment.

        Args:
            release: the commit.
            environment: the environment.
            since: the time before which events do not count, in seconds since 1970 on this machine's clock.

        Raises:
            TrackerError: the tracker does not answer.
        """

    @abstractmethod
    def older(self, release: str, environment: str, since: float) -> list[Issue]:
        """Return the unresolved errors of older releases that events of this release are in, at most `OLDER`.

        The arguments and TrackerError are those of `issues`; each issue has the events of this release alone.
        """

    @abstractmethod
    def shown(self, proofs: set[str], since: float) -> set[str]:
        """Return which of these events can be read; raise TrackerError if the tracker does not answer.

        Args:
            proofs: the ids that the runner gave the events of its proofs.
            since: as for `issues`.
        """

    @abstractmethod
    def elsewhere(self, issue: Issue, release: str, environment: str) -> str:
        """Return the page of an unresolved issue of an older release with the same error at the same place, or ""."""

    @abstractmethod
    def frames(self, issue: Issue) -> list[Frame]:
        """Return the app's frames of an issue's newest event, the innermost first."""

    def get(self, path: str, parameters: list[tuple[str, str]] | None = None, final: bool = True) -> Any:
        """Return the JSON at a path.

        Args:
            path: below `/`.
            parameters: the names and values after the question mark.
            final: whether a refusal (401, 403, 404) will not change while the watch lasts.

        Raises:
            TrackerError: there is no such answer. The message never has the token.
        """
        self.asked += 1
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        address = path if path.startswith(f"{self.url}/") else f"{self.url}{path}{query}"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {self._token}"})
        place = urllib.parse.urlsplit(self.url).netloc
        try:
            # The timeout of a socket bounds each part of an answer alone.
            with within(ANSWER_SECONDS), OPENER.open(request, timeout=TIMEOUT_SECONDS) as response:
                if date := parsedate_tz(response.headers.get("Date", "")):
                    self.ahead = mktime_tz(date) - time.time()
                body = response.read(ANSWER_BYTES + 1)
            if len(body) > ANSWER_BYTES:
                raise ValueError(f"it is longer than {ANSWER_BYTES:,} bytes")
            return json.loads(body)
        except urllib.error.HTTPError as error:
            error.close()
            hint = self.hints().get(error.code, "")
            refused = final and error.code in {400, 401, 403, 404}
            raise TrackerError(f"{place} answers {error.code} to GET {path}{hint}", error.code, refused) from None
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            reason = getattr(error, "reason", None) or error
            raise TrackerError(f"{place} gives no answer to GET {path}: {reason or type(error).__name__}") from None

    def hints(self) -> dict[int, str]:
        """Return what to do about a status, by the status."""
        return {
            401: ": the token is not valid; set SENTRY_WATCH_TOKEN",
            403: ": the token may not read that; docs/watch.md names the scopes",
            404: f": there is no such project; see SENTRY_URL, SENTRY_ORG ({self.organization or 'not set'}) and"
            f" SENTRY_PROJECT ({self.project or 'not set'})",
            429: ": it takes no more questions for now",
        }


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuse redirects: one may lead to a login page, which answers 200 and would get the token."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request, so that urllib does not follow."""


# The exceptions of code that reads an answer with another form than the documented one.
ODD = (LookupError, TypeError, ValueError, AttributeError)
OPENER = urllib.request.build_opener(NoRedirects)


class Sentry(Tracker):
    """Sentry, by its documented API. The token needs the scopes event:read and project:read."""

    def issues(self, release: str, environment: str, since: float) -> list[Issue]:
        """Search by `firstRelease`: with an environment, Sentry compares the first release within that environment."""
        found = self._issues(f'is:unresolved firstRelease:"{release}"', environment)
        return [self._issue(entry, environment, since) for entry in found if self._is_error(entry)]

    def older(self, release: str, environment: str, since: float) -> list[Issue]:
        """Ask for the issues that have the release, and that it did not bring."""
        query = f'is:unresolved release:"{release}" !firstRelease:"{release}"'
        entries = [entry for entry in self._issues(query, environment) if self._is_error(entry)][:OLDER]
        return of_release((self._issue(entry, environment, since) for entry in entries), release)

    def shown(self, proofs: set[str], since: float) -> set[str]:
        """Ask for each event; a 404 says that it can't be read yet."""
        shown = set()
        for proof in proofs:
            try:
                self.get(f"/api/0/projects/{self.organization}/{self.project}/events/{proof}/", final=False)
                shown.add(proof)
            except TrackerError as error:
                if error.status != NOT_FOUND:
                    raise
        return shown

    def elsewhere(self, issue: Issue, release: str, environment: str) -> str:
        """Ask for an issue with the same type and transaction that an older release brought."""
        query = f'is:unresolved !firstRelease:"{release}" error.type:"{issue.kind}" transaction:"{issue.transaction}"'
        return next((entry["permalink"] for entry in self._issues(query, environment)), "")

    def frames(self, issue: Issue) -> list[Frame]:
        """Read the newest event."""
        event = self.get(
            f"/api/0/projects/{self.organization}/{self.project}/events/{issue.events[0].id}/", final=False
        )
        exceptions = [entry["data"] for entry in event["entries"] if entry["type"] == "exception"]
        frames = [
            {**frame, "lineno": frame.get("lineNo"), "in_app": frame.get("inApp")}
            for exception in exceptions
            for value in exception["values"]
            for frame in (value.get("stacktrace") or {}).get("frames") or ()
        ]
        return own(frames)

    def _issues(self, query: str, environment: str) -> list[dict[str, Any]]:
        found = self.get(
            f"/api/0/organizations/{self.organization}/issues/",
            [
                # The parameter takes no slug, so the answer's issues of other projects are dropped.
                ("project", "-1"),
                ("environment", environment),
                ("query", query),
                ("sort", "new"),
                ("limit", "100"),
                ("statsPeriod", "14d"),
            ],
        )
        return [entry for entry in found if self.project in {entry["project"]["slug"], str(entry["project"]["id"])}]

    @staticmethod
    def _is_error(entry: Mapping[str, Any]) -> bool:
        return entry["level"] in ERRORS and (entry["metadata"].get("type"), entry.get("culprit")) != DELIBERATE

    def _issue(self, entry: dict[str, Any], environment: str, since: float) -> Issue:
        listed = self.get(
            f"/api/0/organizations/{self.organization}/issues/{entry['id']}/events/",
            [("environment", environment), ("statsPeriod", "14d")],
            final=False,
        )
        events = []
        for event in listed[:EVENTS]:
            # The time is that of the host's clock.
            if datetime.fromisoformat(event["dateCreated"]).timestamp() < since + self.ahead - CLOCK_SECONDS:
                continue
            tags = {tag["key"]: tag["value"] for tag in event["tags"]}
            events.append(
                Event(
                    text(event["eventID"]),
                    text(tags.get("release")),
                    text(tags.get("environment")),
                    text(tags.get("request_id")),
                    text(tags.get("server_name")),
                    text(tags.get("transaction") or event.get("culprit")),
                )
            )
        return Issue(
            text(entry["id"]),
            text(entry["title"]),
            text(entry["metadata"].get("type")),
            text(entry["culprit"]),
            text(entry["permalink"]),
            int(entry["count"]),
            (*events,),
        )


class Bugsink(Tracker):
    """Bugsink 2, by its API. It can filter only by project, so this class reads the first event of each issue, once.

    The project is its number, as in its DSN. An organization is not needed.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self._first: dict[str, Event] = {}
        self._events: dict[str, dict[str, Any]] = {}

    def issues(self, release: str, environment: str, since: float) -> list[Issue]:
        """Look through the issues that had an event after `since`."""
        recent = [entry for entry in self._recent(since) if self._first_event(entry).release == release]
        found = [self._issue(entry, environment, since) for entry in recent]
        return [issue for issue in found if issue and issue.events]

    def older(self, release: str, environment: str, since: float) -> list[Issue]:
        """Look through the issues that had an event since. Bugsink makes one issue of errors of one type and value."""
        recent = [entry for entry in self._recent(since) if self._first_event(entry).release != release][:OLDER]
        return of_release(filter(None, (self._issue(entry, environment, since) for entry in recent)), release)

    def shown(self, proofs: set[str], since: float) -> set[str]:
        """Look through the events of the issue that has the proofs."""
        shown: set[str] = set()
        for entry in self._recent(since):
            if entry["calculated_value"].startswith(PROOF):
                listed = self._page("events", ("issue", entry["id"]), ("order", "desc"))
                shown |= {event["event_id"].replace("-", "") for event in listed["results"]} & proofs
        return shown

    def elsewhere(self, issue: Issue, release: str, environment: str) -> str:
        """Look through the issues, the newest activity first, on one page."""
        for entry in self._page("issues", ("project", self.project), ("sort", "last_seen"), ("order", "desc"))[
            "results"
        ]:
            same = (entry["calculated_type"], entry["transaction"]) == (issue.kind, issue.transaction)
            if (
                same
                and entry["id"] != issue.id
                and not entry["is_resolved"]
                and self._first_event(entry).release != release
            ):
                return self._url(entry)
        return ""

    def frames(self, issue: Issue) -> list[Frame]:
        """Return the frames of the newest event, which `issues` has read."""
        values = (self._data(issue.events[0].id).get("exception") or {}).get("values") or ()
        return own([frame for value in values for frame in (value.get("stacktrace") or {}).get("frames") or ()])

    def hints(self) -> dict[int, str]:
        """Bugsink has no scopes and no organizations."""
        return {
            **super().hints(),
            400: f": SENTRY_PROJECT must be the number in the project's DSN, and is {self.project or 'not set'}",
            404: f": there is no such project; SENTRY_PROJECT is {self.project or 'not set'}",
        }

    def _page(self, what: str, *parameters: tuple[str, str]) -> Any:
        return self.get(f"/api/canonical/0/{what}/", [*parameters], final=what == "issues")

    def _recent(self, since: float) -> Iterator[dict[str, Any]]:
        """Yield the unresolved issues that had an event after `since`, the newest activity first."""
        page = self._page("issues", ("project", self.project), ("sort", "last_seen"), ("order", "desc"))
        for _ in range(PAGES):
            for entry in page["results"]:
                # `ahead` comes from the Date header, which has whole seconds, so allow one second more.
                if moment(entry["last_seen"]) < since + self.ahead - 1:
                    return
                if not entry["is_resolved"] and not entry["is_muted"]:
                    yield entry
            if not page["next"]:
                return
            page = self.get(page["next"])
        raise TrackerError(f"the tracker has more than {PAGES} pages of issues")

    def _issue(self, entry: dict[str, Any], environment: str, since: float) -> Issue | None:
        if (entry["calculated_type"], entry["transaction"]) == DELIBERATE:
            return None
        listed = self._page("events", ("issue", entry["id"]), ("order", "desc"))["results"]
        recent = [event for event in listed[:EVENTS] if moment(event["ingested_at"]) >= since + self.ahead - 1]
        events = [self._event(event["id"]) for event in recent]
        if not any(self._data(event.id).get("level", "error") in ERRORS for event in events):
            return None
        title = ": ".join(filter(None, (entry["calculated_type"], entry["calculated_value"])))
        return Issue(
            text(entry["id"]),
            title,
            text(entry["calculated_type"]),
            text(entry["transaction"]),
            self._url(entry),
            int(entry["digested_event_count"]),
            tuple(event for event in events if event.environment == environment),
        )

    def _url(self, entry: Mapping[str, Any]) -> str:
        return f"{self.url}/issues/issue/{entry['id']}/"

    def _first_event(self, entry: Mapping[str, Any]) -> Event:
        if entry["id"] not in self._first:
            (first, *_) = self._page("events", ("issue", entry["id"]), ("order", "asc"))["results"]
            self._first[entry["id"]] = self._event(first["id"])
        return self._first[entry["id"]]

    def _data(self, event: str) -> dict[str, Any]:
        if event not in self._events:
            self._events[event] = self.get(f"/api/canonical/0/events/{event}/", final=False)["data"]
        return self._events[event]

    def _event(self, event: str) -> Event:
        data = self._data(event)
        tags = data.get("tags") or {}
        tags = dict(tags) if isinstance(tags, list) else tags
        return Event(
            text(event),
            text(data.get("release")),
            text(data.get("environment")),
            text(tags.get("request_id")),
            text(data.get("server_name")),
            text(data.get("transaction")),
        )


# The kinds of trackers, each with a path that only this kind answers. Any other server is of the kind without a path.
KINDS: tuple[tuple[type[Tracker], str], ...] = ((Bugsink, "/api/canonical/0/projects/"), (Sentry, ""))


def of_environment(environ: Mapping[str, str]) -> Tracker:
    """Return the tracker that the environment names; ask it which kind it is.

    Raises:
        TrackerError: it does not answer.
    """
    for kind, path in KINDS:
        tracker = kind(environ)
        if not path:
            return tracker
        try:
            tracker.get(path)
        except TrackerError as error:
            # A server that knows the path refuses the token; another one does not know the path.
            if error.status == NOT_FOUND:
                continue
            if not error.final:
                raise
        return tracker
    raise TrackerError("the tracker is neither Sentry nor Bugsink", final=True)


def token(environ: Mapping[str, str]) -> str:
    """Return the token that may read issues, or ""."""
    return next((value for name in TOKENS if (value := environ.get(name, "")) and usable(value)), "")


def usable(value: str) -> bool:
    """Return whether a token may be one that reads issues."""
    return not value.startswith(ORGANIZATION_TOKEN)


def why_not(environ: Mapping[str, str]) -> str:
    """Return why no tracker can be asked, and what to do; "" if one can."""
    if token(environ):
        return ""
    if any(environ.get(name) for name in TOKENS):
        return (
            "SENTRY_AUTH_TOKEN is an organization token, which can't read issues. Set SENTRY_WATCH_TOKEN: docs/watch.md"
        )
    return "there is no SENTRY_WATCH_TOKEN or SENTRY_AUTH_TOKEN in the environment of ansible-playbook: docs/watch.md"


def of_release(issues: Iterable[Issue], release: str) -> list[Issue]:
    """Return the issues that have events of a release, with these alone."""
    kept = [replace(each, events=tuple(event for event in each.events if event.release == release)) for each in issues]
    return [issue for issue in kept if issue.events]


def text(value: Any) -> str:
    """Return a value of an answer as text, "" for none; a tracker may give anything."""
    return str(value or "")


def moment(value: str) -> float:
    """Return a time of ISO 8601 in seconds since 1970."""
    return datetime.fromisoformat(value).timestamp()


def own(frames: Sequence[Mapping[str, Any]]) -> list[Frame]:
    """Return the frames of the app's own code, or else all, the innermost first."""
    kept = [frame for frame in frames if frame.get("in_app")] or frames
    return [
        Frame(
            str(frame.get("filename") or frame.get("module") or "?"), int(frame.get("lineno") or 0), frame["function"]
        )
        for frame in reversed(kept)
        if frame.get("function")
    ]
