"""The health request: a request that the app must answer before the process is ready, without a connection."""

import asyncio
import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from booty_runner.place import Place
from booty_runner.settings import Settings

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
# A refusal shows this much of the answer.
_EXCERPT = 200
_ADVICE = {
    400: "if the app checks the Host header (Django's ALLOWED_HOSTS), set app_health_host to a name that it accepts",
    401: "set app_health_path to a path that answers without a login",
    403: "set app_health_path to a path that answers without a login",
    404: "set app_health_path to a path that the app has",
    405: "set app_health_path to a path that takes GET",
}
# Parts of the paths to which apps redirect those who are not logged in.
_LOGIN = ("login", "signin", "sign-in", "auth", "sso", "account")


@dataclass(frozen=True)
class Question:
    """`GET path` with a Host header.

    Attributes:
        path: what to ask for, also with a query.
        host: the Host header.
        named: whether the inventory or the commit names the path. Only then must the answer be 2xx; else any status
            below 500 counts.
    """

    path: str = "/"
    host: str = "localhost"
    named: bool = False

    @classmethod
    def of(cls, settings: Settings, place: Place) -> "Question":
        """Return the question that the inventory or else the commit asks for."""
        path = settings.booty_health_path or place.health_path
        host = settings.booty_health_host or place.health_host or cls.host
        return cls(path or cls.path, host, bool(path))

    async def flaw(self, app: Any, state: Mapping[str, Any], behind_proxy: bool = False) -> str | None:
        """Ask the app, and return in one line why its answer is not accepted and what to write, or None.

        Args:
            app: the ASGI app.
            state: the lifespan's.
            behind_proxy: whether the request came over HTTPS as far as the app can tell, as a known proxy's would.
        """
        asked = f"GET {self.path} with Host {self.host}"
        answer = _Answer()
        task = asyncio.ensure_future(app(self._scope(state, behind_proxy), answer.receive, answer.send))
        done, _ = await asyncio.wait({task}, timeout=ANSWER_SECONDS)
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=1)
            if not answer.status:
                return f"{asked} has no answer after {ANSWER_SECONDS:g} s{self._hint()}"
        elif error := task.exception():
            log.error("the app failed to answer %s", asked, exc_info=error)
            if answer.status < 400:
                return f"{asked} fails: {type(error).__name__}: {error}"
        if flaw := self._judge(answer):
            return f"{asked} {flaw}"
        if not self.named:
            log.info(
                "%s answers %d. No health path is set, so this proves little: set app_health_path", asked, answer.status
            )
        return None

    def _scope(self, state: Mapping[str, Any], behind_proxy: bool) -> dict[str, Any]:
        raw_path, _, query = self.path.partition("?")
        # As through a proxy with HTTPS: apps that redirect all HTTP to HTTPS look at this header.
        headers = {"host": self.host, "user-agent": "booty-health", "accept": "*/*", "x-forwarded-proto": "https"}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "https" if behind_proxy else "http",
            "path": unquote(raw_path),
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 80),
            "state": dict(state),
        }

    def _judge(self, answer: "_Answer") -> str | None:
        status = answer.status
        if not status:
            return "gets no answer: the app returned without one"
        if status < (300 if self.named else 500):
            return None
        return f"answers {_phrase(status)}{answer.location}{answer.excerpt}{self._advice(answer)}"

    def _advice(self, answer: "_Answer") -> str:
        if answer.status >= 500:
            return "; the app's own error is in the lines above, if it logged one" + self._hint()
        if 300 <= answer.status < 400:
            return f"; {self._advice_on_redirect(urlsplit(answer.target))}"
        return "; " + _ADVICE.get(answer.status, "set app_health_path to a path that answers 200")

    def _advice_on_redirect(self, target: SplitResult) -> str:
        if any(word in target.path.lower() for word in _LOGIN):
            return "that is a login: set app_health_path to a path that answers without one"
        if target.scheme != "https" or unquote(target.path or "/") != unquote(self.path.partition("?")[0]):
            name = f": {target.path}, if that answers 200" if target.path else " to a path that answers 200"
            return f"set app_health_path{name}"
        if target.hostname not in {None, self.host.partition(":")[0]}:
            return f"set app_health_host: {target.hostname}"
        return (
            "the app wants HTTPS and does not take X-Forwarded-Proto for it: set app_trusted_proxies, let the app trust"
            " that header (Django's SECURE_PROXY_SSL_HEADER), or exempt this path"
        )

    def _hint(self) -> str:
        return "" if self.named else "; if the app has a better path than /, set app_health_path"


class _Answer:
    """Takes the app's response."""

    def __init__(self) -> None:
        self.status = 0
        self.target = ""
        self._body = b""
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if self._asked:
            await asyncio.Event().wait()  # the client stays
        self._asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = {bytes(name).lower(): bytes(value) for name, value in message.get("headers", ())}
            self.target = headers.get(b"location", b"").decode("latin-1")
        elif len(self._body) < _EXCERPT:
            self._body += message.get("body", b"")

    @property
    def location(self) -> str:
        target = self.target.partition("?")[0][:_EXCERPT]
        return f" and leads to {target}" if 300 <= self.status < 400 and target else ""

    @property
    def excerpt(self) -> str:
        text = " ".join(self._body[:_EXCERPT].decode(errors="replace").split())
        return f" ({text})" if text and not text.startswith("<") and not 300 <= self.status < 400 else ""


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
