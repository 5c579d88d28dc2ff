"""Notify people about a deploy or a rollback: a command on the controller gets a JSON document for each event.

The callback `booty.deploy.notify` follows the run and calls the functions here. docs/notify.schema.json describes the
document.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from . import variables
from .git import git
from .host_program import who
from .process import BuildError

# The options that a notification needs. They are equal on all hosts of a run.
OPTIONS = ("app_name", "app_repository", "app_domains", "app_failed_run", "app_notify_command", "app_notify_seconds")
# The largest number of commits in a document, and the largest number of characters of a reason.
COMMITS = 50
REASON = 4000
# An address in the output of the command, which may have a secret in its path.
ADDRESS = re.compile(r"\b([a-z]+://[^\s/]*)/\S*")


@dataclass
class Run:
    """The state of a run.

    Attributes:
        verb: `deploy` or `rollback`.
        answers: for each host that answered preflight its `release`, `environment`, `due` and `problems`, and the
            release that it `serves` before the run.
        states: what became of a host's cutover, by host; hosts whose cutover has not begun are missing.
        unreachable: the hosts that gave preflight no answer.
        reason: the message of the first failure; "" without one.
        watch: the last result of the watch; None without a watch.
        began: the start of the run, by the monotonic clock.
        options: the values of OPTIONS.
        commits: the commits that arrive and those that are removed, as in the document.
    """

    verb: str = "deploy"
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)
    reason: str = ""
    watch: dict[str, Any] | None = None
    began: float = field(default_factory=time.monotonic)
    options: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def answered(self, host: str, result: dict[str, Any]) -> None:
        """Keep the fields of a result of booty.deploy.preflight that a document needs."""
        self.answers[host] = {name: result[name] for name in ("release", "environment", "due", "problems", "serves")}

    def due(self) -> list[str]:
        """Return the hosts that this run is to switch."""
        return [host for host, answer in self.answers.items() if answer["due"] and not answer["problems"]]

    def releases(self) -> tuple[str, str]:
        """Return the release that serves before the run, "" for none, and the release to deploy.

        If the hosts differ, return that of most hosts.
        """
        due = self.due()
        before = Counter(self.answers[host]["serves"] for host in due)
        after = Counter(self.answers[host]["release"] for host in due)
        return before.most_common(1)[0][0], after.most_common(1)[0][0]

    def hosts(self) -> dict[str, list[str]]:
        """Return the hosts by their states."""
        due, by_state = set(self.due()), dict[str, list[str]]()
        for host in sorted({*self.answers, *self.unreachable}):
            if host in self.states:
                state = self.states[host]
            elif host in self.unreachable:
                state = "unreachable"
            else:
                state = "untouched" if host in due or self.answers[host]["problems"] else "unchanged"
            by_state.setdefault(state, []).append(host)
        return by_state

    def result(self) -> str:
        """Return in one or two words what the hosts serve when the run has ended."""
        return outcome({self.states.get(host, "untouched") for host in self.due()})


def outcome(states: set[str]) -> str:
    """Return in one or two words what hosts with these states serve."""
    if states & {"under way", "unreachable"}:
        return "unknown"
    if states == {"switched"}:
        return "switched"
    if "switched" in states:
        return "mixed"
    return "went back" if states & {"went back", "taken back"} else "not switched"


def document(run: Run, event: str) -> dict[str, Any]:
    """Return the document of an event."""
    before, after = run.releases()
    ended = event in {"success", "failure"}
    environments = {run.answers[host]["environment"] for host in run.due()}
    values = {
        "event": event,
        "verb": run.verb,
        "app": run.options["app_name"],
        "environment": ", ".join(sorted(environments)),
        "from": before or None,
        "to": after,
        **run.commits,
        "hosts": run.hosts(),
        "seconds": round(time.monotonic() - run.began, 1),
        "by": who(),
        "result": run.result() if ended else None,
        "reason": run.reason[:REASON] or None if event in {"failure", "going back"} else None,
        "watch": run.watch,
        "links": links(run.options, after, os.environ),
    }
    return {"text": sentence(values), **values}


def sentence(values: dict[str, Any]) -> str:
    """Return the line that a person reads first.

    Args:
        values: the other fields of the document.
    """
    app, verb, environment = values["app"], values["verb"], values["environment"]
    before, to = (values["from"] or "none")[:9], values["to"][:9]
    count = sum(len(hosts) for state, hosts in values["hosts"].items() if state == "switched")
    outcomes = {
        "switched": "its hosts serve it anyway",
        "mixed": "some hosts serve it",
        "went back": "its hosts went back",
        "not switched": "no host was switched",
        "unknown": "it is unknown what its hosts serve",
    }
    match values["event"]:
        case "begin":
            rest = f"the {verb} of {environment} from {before} to {to} began"
        case "success":
            rest = f"{environment} serves {to} on {count} host{'s' * (count != 1)} after {values['seconds']} s"
        case "going back":
            rest = f"hosts of {environment} go back from {to} to {before}"
        case "watch":
            return f"{app}: {values['watch']['message']}"
        case _:
            rest = f"the {verb} of {environment} to {to} failed; {outcomes[values['result']]}"
    return f"{app}: {rest} ({values['by']})"


def links(options: dict[str, Any], release: str, environment: Any) -> dict[str, str]:
    """Return the addresses of the app, of the release in Sentry and of the CI's run, as far as they are known."""
    found = {}
    if options["app_domains"]:
        found["app"] = f"https://{options['app_domains'][0]}/"
    if organization := environment.get("SENTRY_ORG"):
        server = environment.get("SENTRY_URL", "https://sentry.io").rstrip("/")
        found["release"] = f"{server}/organizations/{organization}/releases/{release}/"
    if run := environment.get("GITHUB_RUN_ID"):
        found["run"] = f"{environment['GITHUB_SERVER_URL']}/{environment['GITHUB_REPOSITORY']}/actions/runs/{run}"
    elif address := environment.get("CI_JOB_URL"):
        found["run"] = address
    return found


def commits_between(repository: str, before: str, after: str) -> dict[str, list[dict[str, str]]]:
    """Return the newest `commits` that `after` has and `before` lacks, and as `removed` those that only `before` has.

    Both are empty if nothing served before, or if the repository lacks one of the two.
    """
    return {"commits": log(repository, before, after), "removed": log(repository, after, before)}


def log(repository: str, older: str, newer: str) -> list[dict[str, str]]:
    """Return the newest commits that `newer` has and `older` lacks, the newest first."""
    if not older or not newer:
        return []
    options = ("-z", "--encoding=UTF-8", f"--max-count={COMMITS}", "--format=%H%x00%an%x00%ae%x00%aI%x00%s")
    try:
        output = git(repository, "-c", "log.showSignature=false", "log", *options, f"{older}..{newer}")
    except BuildError:
        return []
    names = ("sha", "author", "email", "at", "subject")
    # git allows every character except NUL in these texts.
    fields = output.decode(errors="replace").split("\0")
    return [dict(zip(names, entry, strict=True)) for entry in zip(*[iter(fields)] * len(names), strict=False)]


def options_of(values: dict[str, Any], host: str) -> dict[str, Any]:
    """Return the values of OPTIONS.

    Args:
        values: all variables of a host, which the run check found to be right.
        host: the name of the host.
    """
    problems = variables.Problems([host])
    evaluated = variables.evaluate(OPTIONS, values, variables.specs("app"), host, problems)
    return variables.typed(evaluated, host, problems)


@dataclass
class Call:
    """A running command, which got the document of an event."""

    event: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    deadline: float


class Sender:
    """Start the command for each event, and wait for it only at the end of the run."""

    def __init__(self, command: str, seconds: int) -> None:
        self._command, self._seconds = command, seconds
        self._calls: list[Call] = []
        # A line for each command that failed.
        self.problems: list[str] = []

    def send(self, event: str, values: dict[str, Any]) -> None:
        """Start the command with the document of an event on its standard input."""
        try:
            # Its input and output are files and not pipes, so a command that does not read can't block the run.
            output = tempfile.TemporaryFile()  # noqa: SIM115
            with tempfile.TemporaryFile() as input:
                input.write(json.dumps(values, ensure_ascii=False).encode())
                input.seek(0)
                process = subprocess.Popen(
                    ["sh", "-c", self._command],
                    stdin=input,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self.problems.append(f"app_notify_command could not be started at {event}: {error}")
        else:
            self._calls.append(Call(event, process, output, time.monotonic() + self._seconds))

    def look(self, wait: bool = False) -> None:
        """Kill the commands that are over time; with `wait`, return once all have ended."""
        for call in [*self._calls]:
            try:
                call.process.wait(max(call.deadline - time.monotonic(), 0) if wait else 0)
            except subprocess.TimeoutExpired:
                if time.monotonic() < call.deadline:
                    continue
                with suppress(ProcessLookupError):
                    os.killpg(call.process.pid, signal.SIGKILL)
                call.process.wait()
                self.problems.append(f"app_notify_command was ended at {call.event}: it took {self._seconds} s")
            else:
                if status := call.process.returncode:
                    self.problems.append(
                        f"app_notify_command failed at {call.event} with status {status}{last_line(call.output)}"
                    )
            call.output.close()
            self._calls.remove(call)


def last_line(output: IO[bytes]) -> str:
    """Return the last line that a command wrote, without the paths of addresses, which may be secret."""
    output.seek(0)
    lines = output.read()[-1000:].decode(errors="replace").strip().splitlines()
    return ": " + ADDRESS.sub(r"\1/…", lines[-1]) if lines else ""
