"""A stand-in for the part of Sentry's API that a watch asks. No Sentry server runs here.

It refuses a request whose method, path, parameters or token are not as documented:
https://docs.sentry.io/api/events/list-an-organizations-issues/ (scope event:read)
https://docs.sentry.io/api/events/list-an-issues-events/ (scope event:read)
https://docs.sentry.io/api/events/retrieve-an-event-for-a-project/ (scope project:read)
It keeps events, and makes issues of them by their type and transaction.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "planted-token-0123456789abcdef"
ISSUES = "/api/0/organizations/acme/issues/"


class Sentry(ThreadingHTTPServer):
    """The stand-in, on loopback.

    Attributes:
        events: what it received; `issue` is the key of an event's issue.
        scopes: those of the token.
        refuse: the status that it answers to everything, or 0.
        hang: blocks all answers while it is cleared.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.events: list[dict[str, Any]] = []
        self.resolved: set[str] = set()
        self.scopes = {"event:read", "project:read"}
        self.calls: list[str] = []
        self.refuse = 0
        self.hang = threading.Event()
        self.hang.set()

    @property
    def environ(self) -> dict[str, str]:
        """The variables that an operator sets."""
        return {"SENTRY_URL": self.url, "SENTRY_AUTH_TOKEN": TOKEN, "SENTRY_ORG": "acme", "SENTRY_PROJECT": "shop"}

    def add(self, release: str, kind: str = "ValueError", transaction: str = "/pay", **fields: Any) -> str:
        """Receive an event, and return its id."""
        id = f"{len(self.events):032x}"
        event = {
            "id": id, "release": release, "environment": "staging", "level": "error", "kind": kind, "host": "web1",
            "transaction": transaction, "request": id, "project": "shop", "stack": "",
            "at": datetime.now(UTC).isoformat(), **fields,
        }  # fmt: skip
        event["issue"] = str(abs(hash((kind, transaction, event["stack"], event["project"]))) % 10**9)
        self.events.append(event)
        return id

    def of(self, issue: str, environment: str = "") -> list[dict[str, Any]]:
        """Return the events of an issue, the oldest first."""
        return [e for e in self.events if e["issue"] == issue and environment in {"", e["environment"]}]

    def demand(self, scope: str) -> None:
        """Refuse a request whose token lacks a scope."""
        if scope not in self.scopes:
            raise PermissionError(scope)

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        """Return status and answer of one request."""
        if path == ISSUES:
            self.demand("event:read")
            assert set(query) <= {"project", "environment", "query", "sort", "limit", "statsPeriod"}
            assert query["project"] == ["-1"]
            assert query["sort"] == ["new"]
            assert re.fullmatch(r"\d+[smhdw]", query["statsPeriod"][0])
            return 200, self.issues(query["query"][0], query["environment"][0])
        if match := re.fullmatch(rf"{ISSUES}(\d+)/events/", path):
            self.demand("event:read")
            assert set(query) <= {"environment", "statsPeriod", "start", "end", "full", "sample", "query"}
            return 200, [self.event(e) for e in reversed(self.of(match[1], query["environment"][0]))]
        if match := re.fullmatch(r"/api/0/projects/acme/(\w+)/events/([0-9a-f]{32})/", path):
            self.demand("project:read")
            found = [e for e in self.events if e["id"] == match[2] and e["project"] == match[1]]
            if not found:
                return 404, {"detail": "Event not found"}
            frames = [
                {"filename": "uvicorn/x.py", "lineNo": 1, "function": "outer", "inApp": False},
                {"filename": "shop/pay.py", "lineNo": 12, "function": "total", "inApp": True},
            ]
            values = [{"type": found[0]["kind"], "value": "", "stacktrace": {"frames": frames}}]
            return 200, {**self.event(found[0]), "entries": [{"type": "exception", "data": {"values": values}}]}
        return 404, {"detail": "The requested resource does not exist"}

    def issues(self, query: str, environment: str) -> list[dict[str, Any]]:
        """Return the issues of a search: with an environment, the first release is that of this environment."""
        terms = re.findall(r'(!?[\w.]+):(?:"([^"]*)"|(\S+))', query)
        found = []
        for issue in dict.fromkeys(e["issue"] for e in self.events):
            events = self.of(issue, environment)
            if not events:
                continue
            facts = {
                "is": "resolved" if issue in self.resolved else "unresolved",
                "firstRelease": events[0]["release"],
                "release": {event["release"] for event in events},
                "error.type": events[0]["kind"],
                "transaction": events[0]["transaction"],
            }
            if all(holds(facts[name.lstrip("!")], a or b) != name.startswith("!") for name, a, b in terms):
                found.append(self.issue(issue, events))
        return found

    def issue(self, issue: str, events: list[dict[str, Any]]) -> dict[str, Any]:
        """Return an issue as the API shows it."""
        first = events[0]
        return {
            "id": issue,
            # The message of an error may hold what a visitor wrote.
            "title": f"{first['kind']}: it is\n \x1b[2Jbad",
            "culprit": first["transaction"],
            "permalink": f"{self.url}/issues/{issue}/",
            "level": first["level"],
            "count": str(len(events)),
            "metadata": {"type": first["kind"], "value": "it is bad"},
            "project": {"id": "7", "slug": first["project"], "name": first["project"]},
        }

    @staticmethod
    def event(of: dict[str, Any]) -> dict[str, Any]:
        """Return an event as the API shows it."""
        names = {"release": "release", "environment": "environment", "request_id": "request", "server_name": "host"}
        tags = {**names, "level": "level", "transaction": "transaction"}
        return {
            "id": of["id"],
            "eventID": of["id"],
            "groupID": of["issue"],
            "title": of["kind"],
            "culprit": of["transaction"],
            "dateCreated": of["at"],
            "tags": [{"key": tag, "value": of[name]} for tag, name in tags.items()],
        }


def holds(fact: str | set[str], value: str) -> bool:
    """Return whether a term of a search is true of an issue; an issue has several releases."""
    return value in fact if isinstance(fact, set) else value == fact


class Handler(BaseHTTPRequestHandler):
    """Answers a request of a watch."""

    server: Sentry

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.server.calls.append(self.path)
        self.server.hang.wait(30)
        if self.server.refuse:
            status, answer = self.server.refuse, {"detail": f"not with {self.headers['Authorization']}"}
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            status, answer = 401, {"detail": "Invalid token"}
        else:
            try:
                status, answer = self.server.answer(parts.path, parse_qs(parts.query, strict_parsing=bool(parts.query)))
            except PermissionError as error:
                status, answer = 403, {"detail": f"You do not have permission to perform this action: {error}"}
            except (AssertionError, LookupError, ValueError) as error:
                status, answer = 400, {"detail": f"not as documented: {error!r} {self.path}"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no request."""


@contextmanager
def sentry() -> Iterator[Sentry]:
    """Run a stand-in."""
    with Sentry() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.hang.set()
        server.shutdown()
        thread.join()
