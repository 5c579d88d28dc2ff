"""Measures the watch: 50 good and 50 bad releases at several rates of requests, over a real Bugsink.

    PYTHONPATH=collections .venv/bin/python -m tests.bench.watch [--rates 0.1 1 20] [--each 5]

The watch is the real one, the tracker is a real Bugsink, and the events reach it as an SDK sends them. Time is
virtual: while the watch sleeps, the requests of this time are drawn (a Poisson process, by a seed), and each one that
fails sends its event at once. So 300 s with a look every 10 s cost no 300 s. Of four hosts, one serves the new release.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.booty.deploy.plugins.module_utils.controller import trackers, watch

from sandbox import tracker as sandbox

HOSTS = ("web1", "web2", "web3", "web4")
SECONDS = 300
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# The length of the SDK's queue: the SDK drops events of a flood beyond it.
QUEUE = 100
# Bugsink accepts 1,000 events in 5 minutes. So in the kinds that are watched to the end, at most so many requests fail
# in a second.
MOST = 0.5


class Bugsink:
    """A tracker that gets events as from an SDK."""

    def __init__(self, directory: Path) -> None:
        self.local = sandbox.start(directory)
        self.environ = {
            "SENTRY_URL": self.local.url,
            "SENTRY_WATCH_TOKEN": self.local.token,
            "SENTRY_PROJECT": str(self.local.project),
        }

    def send(self, event: dict[str, Any]) -> bool:
        """Send an event; return whether the tracker accepted it."""
        dsn = urlsplit(self.local.dsn)
        fields = {
            "event_id": uuid.uuid4().hex,
            "timestamp": time.time(),
            "platform": "python",
            "level": "error",
            **event,
        }
        lines = [{"event_id": fields["event_id"], "dsn": self.local.dsn}, {"type": "event"}, fields]
        request = urllib.request.Request(
            f"{dsn.scheme}://{dsn.hostname}:{dsn.port}/api{dsn.path}/envelope/",
            data="\n".join(map(json.dumps, lines)).encode(),
            headers={"X-Sentry-Auth": f"Sentry sentry_version=7, sentry_key={dsn.username}"},
        )
        try:
            OPENER.open(request, timeout=30).close()
        except urllib.error.HTTPError as error:
            error.close()
            return False
        return True


@dataclass(frozen=True)
class Failure:
    """The events of a failed request.

    Attributes:
        events: how many events.
        request: whether they have the id of the request; those of a job have none.
        transaction: the transaction of the events.
        value: the message of the error. Another message makes another issue.
    """

    events: int = 1
    request: bool = True
    transaction: str = "/pay"
    value: str = "it is bad"
    level: str = "error"


@dataclass(frozen=True)
class Kind:
    """A kind of release.

    Attributes:
        name: in words.
        expected: `bad` if the release brought the error; else `kept`.
        share: of the requests to the new release that fail.
        failure: what each of them sends.
        old_share: of the requests to the old release that fail from `begins` on.
        begins: the second of the first failure.
        known: whether the old release had sent the same error before.
        once: how many requests fail at most; 0 for no limit.
        startup: whether the start itself fails on the new host.
        delay: the seconds until the tracker shows an event.
    """

    name: str
    expected: str
    share: float = 0.3
    failure: Failure = Failure()
    old_share: float = 0.0
    begins: float = 0.0
    known: str = ""
    once: int = 0
    startup: bool = False
    delay: float = 0.0


BAD = (
    Kind("a route that fails always", "bad"),
    Kind("1 % of requests", "bad", 0.01),
    Kind("only for POST", "bad", 0.1),
    Kind("in a job", "bad", 0.1, Failure(request=False, transaction="send_mail")),
    Kind("at startup on one host", "bad", 0, startup=True),
    Kind("in a process", "bad", 0.2, Failure(request=False, transaction="worker")),
    Kind("an error of the old release that moved", "kept", known="it was bad elsewhere"),
    Kind("a third party down", "kept", old_share=0.3, begins=60),
    Kind("a flood", "bad", 1.0, Failure(events=5)),
    Kind("a tracker slow to show events (60 s)", "bad", delay=60),
)
GOOD = (
    Kind("no error", "kept", 0),
    Kind("an error of the old release goes on", "kept", old_share=0.3, known="it is bad"),
    Kind("one error, once", "kept", once=1),
    Kind("warnings", "kept", failure=Failure(level="warning")),
    Kind(
        "an old error moves, and a third party is down", "kept", old_share=0.3, begins=30, known="it was bad elsewhere"
    ),
)


class Service:
    """Four hosts under load on a virtual clock, one of them on the new release."""

    def __init__(self, tracker: Bugsink, kind: Kind, rate: float, seed: int) -> None:
        self.tracker, self.kind = tracker, kind
        self.random = random.Random(f"{kind.name} {rate} {seed}")
        self.new, self.old = uuid.uuid4().hex.ljust(40, "0"), "0" * 40
        self.error = f"Error{uuid.uuid4().hex[:8]}"
        self.now = 0.0
        self.requests = self.failed = self.lost = 0
        self.at: list[float] = []  # the times of the requests that failed on the new release
        self.delayed: list[tuple[float, dict[str, Any]]] = []
        self.most = MOST / rate if kind.expected == "kept" else 1.0
        self.arrivals = self.draw(rate)
        self.next = next(self.arrivals)
        if kind.known:
            self.send(self.old, "web2", Failure(value=kind.known))
        if kind.startup:
            self.failed += 2
            self.at += [0.0, 0.0]
            self.send(self.new, "web1", Failure(request=False, transaction="startup"))
        self.proof = uuid.uuid4().hex
        self.post(
            {
                "event_id": self.proof,
                "level": "info",
                "message": trackers.PROOF,
                "release": self.new,
                "environment": "staging",
            }
        )

    def draw(self, rate: float) -> Iterator[float]:
        """Yield the times of requests."""
        at = 0.0
        while True:
            at += self.random.expovariate(rate)
            yield at

    def clock(self) -> float:
        """Return the virtual time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let the requests of some seconds happen."""
        self.now += seconds
        while self.next <= self.now:
            self.request(self.next)
            self.next = next(self.arrivals)
        due = [event for at, event in self.delayed if at <= self.now]
        self.delayed = [(at, event) for at, event in self.delayed if at > self.now]
        for event in due:
            self.lost += not self.tracker.send(event)

    def request(self, at: float) -> None:
        """Let one request happen."""
        kind, host = self.kind, self.random.choice(HOSTS)
        new = host == "web1"
        self.requests += new
        share = min(kind.share if new else kind.old_share, self.most)
        if at >= kind.begins and self.random.random() < share and not (kind.once and self.failed >= kind.once):
            if new:
                self.failed += 1
                self.at.append(at)
            self.send(self.new if new else self.old, host, kind.failure)

    def send(self, release: str, host: str, failure: Failure) -> None:
        """Send the events of a failure."""
        request = uuid.uuid4().hex
        for _ in range(failure.events):
            self.post(
                {
                    "release": release,
                    "environment": "staging",
                    "server_name": host,
                    "transaction": failure.transaction,
                    "level": failure.level,
                    "tags": {"request_id": request} if failure.request else {},
                    "exception": {"values": [{"type": self.error, "value": failure.value}]},
                }
            )

    def post(self, event: dict[str, Any]) -> None:
        """Send an event, or put it into the queue of delayed events."""
        if self.kind.delay:
            self.delayed.append((self.now + self.kind.delay, event))
        elif sum(at == self.now for at, _ in self.delayed) < QUEUE:
            # Events between two looks are visible at the next look.
            self.delayed.append((self.now, event))
        else:
            self.lost += 1

    def watched(self) -> tuple[str, float, int]:
        """Watch, and return the result, the seconds until it, and the requests to the tracker in a minute."""
        tracker = trackers.of_environment(self.tracker.environ)
        since = time.time() - 1
        self.sleep(0)
        found = watch.watch(
            tracker, self.new, ["staging"], since, {"web1": self.proof}, 1 / len(HOSTS), SECONDS,
            clock=self.clock, sleep=self.sleep,
        )  # fmt: skip
        observed = {"faults": [], "sampled": 1.0, "proof": self.proof, "pid": 1, "lost": 0, "requests": self.requests}
        hosts = {"web1": {"observed": observed}}
        ends = {"web1": {"observed": {**observed, "lost": self.lost}}}
        blind = watch.blindness(found, hosts, ends)
        result, _ = watch.verdict(found, self.new, watch.requests(hosts, ends), blind)
        return result, found.seconds, round(found.asked / max(found.seconds, 60) * 60)

    @property
    def met_two(self) -> bool:
        """Whether two requests met the error during the watch: the first in its time, the second in twice its time."""
        seen = [at for at in self.at if at + self.kind.delay <= 2 * SECONDS]
        return len(seen) > 1 and seen[0] + self.kind.delay <= SECONDS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the kinds whose names have this text")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 1.0, 20.0])
    parser.add_argument(
        "--each", type=int, default=5, help="releases of each bad kind (%(default)s); good ones are doubled"
    )
    options = parser.parse_args()
    trackers.TIMEOUT_SECONDS = 60  # of real time, which a busy machine needs
    print("| release | requests/s | releases | met two requests | bad | others | seconds until bad | asked a minute |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    wrong = 0
    for rate in options.rates:
        for kinds, count in ((BAD, options.each), (GOOD, 2 * options.each)):
            for kind in (kind for kind in kinds if options.only in kind.name):
                wrong += row(kind, rate, count)
    print(f"\n{wrong} wrong")


def row(kind: Kind, rate: float, count: int) -> int:
    """Watch releases of a kind, print their row, and return how many results are wrong."""
    results: list[tuple[str, float, int]] = []
    met = wrong = 0
    for seed in range(count):
        # A tracker of its own for each release, because of the limit.
        directory = Path(tempfile.mkdtemp(prefix="booty-watch-"))
        try:
            service = Service(Bugsink(directory), kind, rate, seed)
            results.append(service.watched())
        finally:
            sandbox.stop(directory)
            shutil.rmtree(directory)
        met += service.met_two
        found = results[-1][0] == "bad"
        wrong += found if kind.expected == "kept" else service.met_two and not found
    bad = [seconds for result, seconds, _ in results if result == "bad"]
    others = {name: sum(result == name for result, _, _ in results) for name in ("clean", "quiet", "blind")}
    words = ", ".join(f"{number} {name}" for name, number in others.items() if number) or "-"
    until = f"{statistics.median(bad):.0f}" if bad else "-"
    asked = max(each for _, _, each in results)
    print(f"| {kind.name} | {rate:g} | {count} | {met} | {len(bad)} | {words} | {until} | {asked} |", flush=True)
    return wrong


if __name__ == "__main__":
    main()
