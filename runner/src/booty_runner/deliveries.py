"""Deliveries: what became of the events that a process sent to its tracker, and the log lines about losses."""

import math
import os
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from booty_runner import tally

# At most one log line a minute reports that events are being dropped.
QUIET_SECONDS = 60.0

# The outcome of an event: the tracker's HTTP status, or the reason in words why there is none.
Outcome = int | str

TOO_LARGE = 413
RATE_LIMITED = 429
# OpenSSL's codes X509_V_ERR_… (x509_vfy.h) for a certificate whose issuer is not trusted.
_UNTRUSTED = frozenset((2, 18, 19, 20, 21))
# Likewise, for a CA's certificate without keyUsage, which Python 3.13 and newer want.
_NO_KEY_USAGE = 92
_RENEW_CA = "; Python 3.13 and newer want it: make the CA's certificate anew with keyUsage=critical,keyCertSign"
_ADD_CA = "; add its CA to the host's (update-ca-certificates), or set SSL_CERT_FILE to a file that has it"


class Deliveries:
    """Records the outcomes of events, and decides when a log line about them is due."""

    def __init__(self, place: str, dsn: str = "SENTRY_DSN") -> None:
        self._place = place
        self._dsn = dsn
        self.last: Outcome | None = None
        self._dropped = 0
        self._logged_at = self._logged_large_at = -math.inf
        self._dropped_before: int | None = None  # the count before the losses that a line reported as begun

    @property
    def status(self) -> dict[str, Any]:
        """The outcome of the service's last event, since when (in UTC), and how many events this process lost."""
        event = self._event
        since = datetime.fromtimestamp(event["since"], UTC).isoformat(timespec="seconds") if event else None
        return {"status": event.get("status"), "since": since, "dropped": self._dropped}

    @property
    def _event(self) -> dict[str, Any]:
        """The service's last event, if it went to this tracker."""
        event = tally.event.value
        return event if event.get("place") == self._place else {}

    @property
    def last_flaw(self) -> str | None:
        """Why the tracker did not accept the last event; None if it did, or before the first event."""
        return None if self.last is None or accepted(self.last) else self.describe(self.last)

    def record(self, outcome: Outcome, drained: bool, now: float) -> str | None:
        """Record one event, and return a log line when losses begin and when they are over.

        Args:
            outcome: the event's outcome.
            drained: whether the queue is nearly empty; before that, a slow tracker has not caught up.
            now: the time, in seconds since the epoch.
        """
        self.last = outcome
        if outcome != self._event.get("status"):
            tally.event.set({"place": self._place, "status": outcome, "since": now})
        if not accepted(outcome):
            self._dropped += 1
            tally.lost.add()
            if outcome == TOO_LARGE:  # concerns this event only
                if now - self._logged_large_at < QUIET_SECONDS:
                    return None
                self._logged_large_at = now
                return f"an error was not reported: {self.describe(outcome)}"
            if self._dropped_before is None and now - self._logged_at >= QUIET_SECONDS:
                self._logged_at, self._dropped_before = now, self._dropped - 1
                return f"errors are no longer reported: {self.describe(outcome)}"
        elif drained and self._dropped_before is not None:
            lost, self._dropped_before = self._dropped - self._dropped_before, None
            return f"errors are reported again; {lost} were lost"
        return None

    def describe(self, outcome: Outcome) -> str:
        """Return an outcome in words; the text names the tracker by host and port, never by its key."""
        if isinstance(outcome, str):
            return f"the tracker at {self._place} is not reached: {outcome}"
        meaning = {
            401: f"refuses the key in {self._dsn}",
            403: f"refuses the key in {self._dsn}",
            404: f"has no such project as {self._dsn} names",
            TOO_LARGE: "finds the event too large",
            RATE_LIMITED: "takes no more events for now",
        }.get(outcome, "fails" if outcome >= 500 else "does not accept the event")
        return f"the tracker at {self._place} {meaning} ({outcome})"


def accepted(outcome: Outcome) -> bool:
    """Whether the tracker accepted the event."""
    return isinstance(outcome, int) and 200 <= outcome < 300


def describe_error(error: BaseException) -> str:
    """Return in few words why a request got no answer."""
    causes = list(_causes(error))
    file = next((name for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if os.environ.get(name)), None)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = _ADD_CA if cause.verify_code in _UNTRUSTED else ""
            hint = _RENEW_CA if cause.verify_code == _NO_KEY_USAGE else hint
            return f"its certificate is not accepted: {cause.verify_message}{hint}"
        if isinstance(cause, (FileNotFoundError, PermissionError)) and file:
            return f"its certificate can't be checked, since {file} names a file that can't be read: {cause.strerror}"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, OSError) and str(cause).startswith("Tunnel connection failed: "):  # http.client's
            return str(cause)
    # Last of all, because urllib3's ConnectTimeoutError is the base class of its error for a refused connection. By
    # name, because an SDK may use any copy of urllib3.
    timeouts = {"TimeoutError", "ConnectTimeoutError", "ReadTimeoutError"}
    timeout = any(base.__name__ in timeouts for cause in causes for base in type(cause).__mro__)
    return "it does not answer in time" if timeout else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__
