"""Watch a release after its switch: does the tracker show errors that this release brought?

The watch looks for issues that were first seen in this release and environment, and not at an error rate. So it also
works with little traffic. docs/watch.md describes the rules.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from . import trackers
from .git import git
from .host_program import BEGAN
from .process import BuildError
from .screen import one_line
from .trackers import Event, Frame, Issue, Tracker, TrackerError

# The seconds between two looks at the tracker.
EVERY = 10
# How often a tracker is asked for its kind.
TRIES = 3
# One event of an error may be chance, so the watch then goes on, up to so many times its length.
LONGEST = 2
# The number of requests, or jobs, with new errors that makes a release bad.
ENOUGH = 2
# An error that comes from outside also occurs on hosts of the old release. The release is bad at once only if the
# probability that all events of such an error came from hosts of the new release is smaller than this.
CHANCE = 0.01
# With fewer requests, one in ten could meet a new error that is not seen (95 % sure): 1 - 0.05 ** (1 / 29) is just
# below.
FEW = 29
DOUBT = 0.05
# Code of these transactions runs once at each start.
STARTS = ("startup", "import")
# How many issues, frames and commits a message names.
ISSUES, FRAMES, COMMITS = 3, 3, 5
# The exit statuses of watch.yml, by result.
STATUSES = {"clean": 0, "bad": 10, "quiet": 11, "blind": 12}


@dataclass
class Found:
    """The tracker's answer about a release.

    Attributes:
        new: the issues that the release brought.
        reported: other issues that are new in the tracker, each with the reason why it does not make the release bad.
        older: issues of older releases that events of this release are in, with these events.
        state: `bad`, `suspect` after one event, or `none`.
        blind: why the tracker can't be asked, or "".
        unseen: the proofs of the release that the tracker does not show, by host.
        seconds: how long the tracker was watched.
        asked: the number of requests to the tracker.
    """

    new: list[Issue] = field(default_factory=list)
    reported: list[tuple[Issue, str]] = field(default_factory=list)
    older: list[Issue] = field(default_factory=list)
    state: str = "none"
    blind: str = ""
    unseen: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    asked: int = 0


def upper_bound(requests: int, failures: int = 0) -> float:
    """Return the share of requests of which, 95 % sure, fewer meet a new error, after so many that did.

    Without one it is 1 - 0.05 ** (1 / requests).
    """
    if failures >= requests:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        # The probability of so few failures, if this share of all requests fails.
        term = (1 - share) ** requests
        likely = term
        for count in range(1, failures + 1):
            term *= (requests - count + 1) / count * share / (1 - share)
            likely += term
        low, high = (share, high) if likely > DOUBT else (low, share)
    return high


def occurrences(issues: Iterable[Issue], release: str) -> set[tuple[str, str]]:
    """Return the requests of a release that met one of the issues; an event without a request counts as one."""
    events = (event for issue in issues for event in issue.events if event.release == release)
    return {(event.host, event.request or event.id) for event in events}


def decide(new: list[Issue], release: str, share: float, over: bool) -> str:
    """Return `bad`, `suspect` or `none`.

    Args:
        new: the issues that the release brought.
        release: the commit.
        share: the share of the hosts that serve the release; 1 if no host serves another one.
        over: whether the time of the watch is over.
    """
    met = occurrences(new, release)
    if any(event.transaction in STARTS for issue in new for event in issue.events if event.release == release):
        return "bad"
    if len(met) >= ENOUGH and (over or share >= 1 or share ** len(met) < CHANCE):
        return "bad"
    return "suspect" if met else "none"


def sort_out(
    tracker: Tracker, issues: list[Issue], release: str, environment: str
) -> tuple[list[Issue], list[tuple[Issue, str]]]:
    """Return the issues that a release brought; and the others, each with the reason why it did not bring them."""
    new, reported = [], []
    for issue in issues:
        if any(event.release != release for event in issue.events):
            reported.append((issue, "hosts of another release show it too"))
        elif issue.kind and (url := tracker.elsewhere(issue, release, environment)):
            reported.append((issue, f"it only moved: {url}"))
        else:
            new.append(issue)
    return new, reported


def watch(
    tracker: Tracker,
    release: str,
    environments: list[str],
    since: float,
    proofs: Mapping[str, str],
    share: float,
    seconds: float,
    every: float = EVERY,
    at_once: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Found:
    """Look at a tracker until the release is bad, or the time is over.

    Args:
        tracker: where the errors are.
        release: the commit.
        environments: those of its hosts.
        since: the time before which events do not count, in seconds since 1970.
        proofs: the event that each host had its tracker accept, by host.
        share: as for `decide`.
        seconds: how long to watch.
        every: the seconds between two looks.
        at_once: whether the time is over as soon as the tracker shows all proofs.
        clock: returns the time in seconds.
        sleep: waits.
    """
    found = Found(unseen={**proofs})
    began, late = clock(), 0.0
    # All events of each issue, collected over all looks: a look shows the newest events only, and one request may fill
    # them.
    events: dict[str, dict[str, Event]] = {}
    while True:
        try:
            issues = []
            for name in environments:
                for each in tracker.issues(release, name, since):
                    newest = {event.id: event for event in each.events}
                    events[each.id] = newest | events.get(each.id, {})
                    issues.append((replace(each, events=(*events[each.id].values(),)), name))
            sorted_out = [sort_out(tracker, [each], release, name) for each, name in issues]
            found.new = [issue for new, _ in sorted_out for issue in new]
            found.reported = [pair for _, reported in sorted_out for pair in reported]
            if found.unseen:
                shown = tracker.shown({*found.unseen.values()}, since)
                found.unseen = {host: proof for host, proof in found.unseen.items() if proof not in shown}
                # The tracker shows an error as late as a proof, so the watch lasts longer by the delay of the proofs.
                late = clock() - began
            found.blind, final = "", False
        except TrackerError as error:
            found.blind, final = str(error), error.final
        except trackers.ODD as error:
            found.blind = f"the tracker's answer has an unknown form: {type(error).__name__}: {error}"
            final = False
        found.seconds, found.asked = clock() - began, tracker.asked
        suspect = decide(found.new, release, share, over=False) == "suspect"
        length = seconds * LONGEST if suspect and not at_once else min(seconds + late, seconds * LONGEST)
        over = final or found.seconds >= length or (at_once and not found.unseen and not found.blind)
        found.state = decide(found.new, release, share, over)
        if over or found.state == "bad":
            if not found.blind and found.state != "bad":
                # Without this answer, the result speaks of new errors alone.
                with suppress(TrackerError, *trackers.ODD):
                    found.older = [issue for name in environments for issue in tracker.older(release, name, since)]
                found.asked = tracker.asked
            return found
        sleep(min(every, length - found.seconds))


def blindness(found: Found, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return why errors may have stayed unseen, a sentence each.

    Args:
        found: what the tracker shows.
        before: the answers of the hosts when the watch began, by host.
        after: their answers when it ended.
    """
    reasons = [found.blind] if found.blind else []
    for host, answer in before.items():
        if "observed" not in answer:
            reasons.append(f"{host} gave no answer: {answer.get('msg', 'no reason given')}")
            continue
        own = answer["observed"]
        if not own["proof"] and not own["faults"]:
            reasons.append(f"{host} sent no event as a proof")
        faults = own["faults"]
        if own["proof"] and not found.blind and host not in found.unseen:
            # The tracker shows the proof, although it did not answer the runner in time: no fault.
            faults = [fault for fault in faults if not fault.startswith("tracker: ")]
        late = len(own["faults"]) - len(faults)
        reasons += [f"{host}: {fault}" for fault in faults]
        if own["sampled"] is not None and own["sampled"] < 1:
            reasons.append(f"{host} reports only {own['sampled']:.0%} of its errors (sample rate)")
        end = after.get(host, {}).get("observed")
        if end is None:
            reasons.append(f"{host} gave no answer at the end of the watch")
            continue
        # The answer at the end has no proof, so only new faults are added.
        reasons += [f"{host}: {fault}" for fault in end["faults"] if fault not in own["faults"]]
        # The client has counted such a late proof as lost.
        lost = end["lost"] - (own["lost"] if end["pid"] == own["pid"] else 0) - late
        if lost > 0:
            reasons.append(f"{host} lost {lost} event{'s' * (lost > 1)} on the way to the tracker")
    if not found.blind:
        reasons += [
            f"the tracker accepted the event {proof} of {host} and does not show it: does its DSN lead to another"
            " project than SENTRY_PROJECT?"
            for host, proof in found.unseen.items()
        ]
    return reasons


def requests(before: Mapping[str, Any], after: Mapping[str, Any]) -> int | None:
    """Return how many requests the hosts have served since the release started there; None if no host knows."""
    counts = [
        count for host in before if (count := (after.get(host, {}).get("observed") or {}).get("requests")) is not None
    ]
    return sum(counts) if counts else None


def share_text(share: float) -> str:
    """Return a share in percent, with as many digits as it needs."""
    percent = share * 100
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %" if percent >= 0.1 else f"{percent:.2g} %"


def verdict(found: Found, release: str, count: int | None, blind: list[str]) -> tuple[str, str]:
    """Return the result, one of the keys of `STATUSES`, and the sentence after it."""
    met = occurrences(found.new, release)
    if found.state == "bad":
        hosts = sorted({host for host, _ in met if host})
        where = f" on {', '.join(hosts[:5])}" if hosts else ""
        errors = f"{len(found.new)} new errors" if len(found.new) > 1 else "a new error"
        times = f"{len(met)} times" if len(met) > 1 else "once"
        least = "at least " if any(issue.count > len(issue.events) for issue in found.new) else ""
        return "bad", f"{release} brought {errors}, seen {least}{times}{where}"
    if blind:
        more = f" (and {len(blind) - 3} more)" if len(blind) > 3 else ""
        return "blind", f"errors of {release} may not be seen: {'; '.join(blind[:3])}{more}"
    seen = "one new error, not repeated," if met else "no new errors"
    if found.older:
        seen = f"{seen.rstrip(',')}, but {in_older(found.older)}"
    plural = "" if count == 1 else "s"
    if count is None or upper_bound(count, len(met)) > upper_bound(FEW):
        return "quiet", f"{seen} in {count or 0} request{plural}, which is too little traffic to say more"
    if found.older:
        return "clean", f"{seen} in {count} request{plural}"
    share = share_text(upper_bound(count, len(met)))
    return "clean", f"{seen} in {count} request{plural}: fewer than {share} meet a new error, 95 % sure"


def in_older(issues: list[Issue]) -> str:
    """Return how many events of a release are in older issues, in words."""
    count = sum(len(issue.events) for issue in issues)
    least = "at least " if any(each.count > len(each.events) for each in issues) else ""
    where = "an older issue" if len(issues) == 1 else f"{len(issues)} older issues"
    return f"{least}{count} event{'s' * (count > 1)} in {where}"


def suspects(repository: str, before: Iterable[str], release: str, frames: list[Frame]) -> list[str]:
    """Return the commits since an older release that touch the files of these frames, each as a line."""
    lines: dict[str, None] = {}
    for old in before:
        span = f"{old}..{release}"
        try:
            changed = (
                git(Path(repository), "diff", "--name-only", "-z", old, release).decode(errors="replace").split("\0")
            )
            # A frame names its file relative to a folder of the import path.
            touched = [name for name in changed if any(f"/{name}".endswith(f"/{frame.file}") for frame in frames)]
            if name_list := [f":(top,literal){name}" for name in touched]:
                log = git(
                    Path(repository),
                    "-c",
                    "log.showSignature=false",
                    "log",
                    f"-{COMMITS}",
                    "--encoding=UTF-8",
                    "--format=%h %an: %s",
                    span,
                    "--",
                    *name_list,
                )
                lines |= dict.fromkeys(filter(None, map(one_line, log.decode(errors="replace").split("\n"))))
        except BuildError:  # the repository lacks the older commit, as a shallow clone does
            continue
    return [*lines]


def details(tracker: Tracker, issue: Issue, repository: str, before: list[str], release: str) -> dict[str, Any]:
    """Return an issue for people: `title`, `url`, `count`, `frames` and `commits`."""
    try:
        frames = tracker.frames(issue)[:FRAMES] if issue.events else []
    except (TrackerError, *trackers.ODD):
        frames = []
    return {
        "title": one_line(f"{issue.title} ({issue.transaction})" if issue.transaction else issue.title),
        "url": one_line(issue.url),
        "count": issue.count,
        "frames": [one_line(f"{frame.file}:{frame.line} in {frame.function}") for frame in frames],
        "commits": suspects(repository, before, release, frames),
    }


def lines_of(issue: Mapping[str, Any]) -> list[str]:
    """Return the lines of a message about an issue."""
    commits = [f"    commit {commit}" for commit in issue["commits"]]
    return [f"  {issue['title']}", f"    {issue['url']}", *(f"    {frame}" for frame in issue["frames"]), *commits]


def acts(mode: str, result: str, forced: bool, ran: bool, arrived: bool = True) -> tuple[str, str]:
    """Return the action for a result, `back`, `hold` or "", and its sentence for the message.

    Args:
        mode: app_watch.
        result: the result of the watch.
        forced: app_watch_force.
        ran: whether the release command of the release has run.
        arrived: whether it replaced another release. A change of settings at the same commit brings no new release, so
            the watch can't distinguish its errors from older ones.
    """
    kept = "its release command has run, and its changes stay" if ran else "app_watch_force is set" if forced else ""
    kept = kept if arrived else "no other release served before"
    if result == "bad":
        if mode == "back":
            if kept:
                return "hold", f"The wave stays on it, since {kept}. No other wave starts."
            return "back", "The wave goes back."
        if mode == "hold":
            return "hold", "The wave stays on it. No other wave starts."
        if mode == "report":
            would = f"kept it, since {kept}" if kept else "taken this wave back"
            return "", f"app_watch is report, so the release stays; back would have {would}."
    if result == "blind" and mode == "hold":
        return "hold", "The wave stays on it. No other wave starts. To go on without a watch: -e app_watch=off"
    return "", ""


class WatchAction(ActionBase):
    """Look at the tracker (`step: look`); or return the result, once the hosts have counted (`step: judge`)."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return for `look` what `Found` holds; for `judge` the `result`, `message`, `issues` and what `follows`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "step": {"type": "str", "choices": ["look", "judge"], "required": True},
                "mode": {"type": "str", "required": True},
                "release": {"type": "str", "required": True},
                "before": {"type": "list", "elements": "str", "default": []},
                "hosts": {"type": "dict", "required": True},
                "share": {"type": "float", "default": 1.0},
                "seconds": {"type": "int", "default": 0},
                "repository": {"type": "str", "required": True},
                "found": {"type": "dict", "default": {}},
                "counted": {"type": "dict", "default": {}},
                "commands": {"type": "list", "elements": "dict", "default": []},
                "forced": {"type": "bool", "default": False},
            }
        )
        step = self.look if arguments["step"] == "look" else self.judge
        return {**result, **step(arguments)}

    def look(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Ask the tracker until the time is over, and return everything that the message needs."""
        answers = {host: answer["observed"] for host, answer in arguments["hosts"].items() if "observed" in answer}
        proofs = {host: own["proof"] for host, own in answers.items() if own["proof"]}
        environments = sorted({own["environment"] for own in answers.values() if own["environment"]})
        release, before, since, at_once = arguments["release"], arguments["before"], BEGAN, False
        blind = trackers.why_not(os.environ)
        if not release:
            release, mixed = release_of(answers)
            blind = blind or mixed
            before = sorted({own["previous"] for own in answers.values()} - {"", release})
            since, at_once = min((own["since"] for own in answers.values()), default=0.0), True
        try:
            if blind:
                raise TrackerError(blind)
            tracker = found_tracker(time.sleep)
        except TrackerError as error:
            return {"found": asdict(Found(blind=str(error))), "issues": [], "reported": []}
        found = watch(
            tracker,
            release,
            environments,
            since,
            proofs,
            arguments["share"],
            arguments["seconds"] if proofs else 0,
            at_once=at_once,
        )

        def told(issue: Issue) -> dict[str, Any]:
            return details(tracker, issue, arguments["repository"], before, release)

        return {
            "found": asdict(found),
            "issues": [told(issue) for issue in found.new[:ISSUES]],
            "reported": [{**told(issue), "reason": reason} for issue, reason in found.reported[:ISSUES]],
        }

    def judge(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Combine the answers of the tracker and of the hosts; show the result, and return the action."""
        looked, mode = arguments["found"], arguments["mode"]
        answers = {host: answer["observed"] for host, answer in arguments["hosts"].items() if "observed" in answer}
        release = arguments["release"] or release_of(answers)[0]
        found, counted = found_of(looked["found"]), arguments["counted"]
        blind = blindness(found, arguments["hosts"], counted)
        result, sentence = verdict(found, release, requests(arguments["hosts"], counted), blind)
        ran = any(entry["kind"] == "release" and entry["release"] == release for entry in arguments["commands"])
        follows, consequence = acts(mode, result, arguments["forced"], ran, bool(arguments["before"]))
        issues = looked["issues"] if result == "bad" or found.new else []
        lines = [f"watch: {result}, {sentence}."]
        lines += [line for issue in issues for line in lines_of(issue)]
        for issue in looked["reported"]:
            lines += ["  Not held against it:", *lines_of(issue), f"    {issue['reason']}"]
        for older in found.older[:ISSUES]:
            lines += ["  In an older issue:", f"  {one_line(older.title)}", f"    {one_line(older.url)}"]
        if result == "bad" and len(blind) > 0:
            lines.append(f"  And other errors may not be seen: {blind[0]}")
        message = "\n".join([*lines, *([consequence] if consequence else [])])
        return {
            "result": result,
            # For the journal: without a token nobody looked, and status.yml shows no problem with the release.
            "record": "off" if trackers.why_not(os.environ) else result,
            "status": STATUSES[result],
            "message": message,
            "issues": issues,
            "follows": follows,
            "line": lines[0],
            "refusal": refusal(issues) if follows == "back" else "",
            "asked": found.asked,
            "seconds": round(found.seconds, 1),
            "msg": message,
            "_ansible_verbose_always": True,
        }


def found_tracker(sleep: Callable[[float], None]) -> Tracker:
    """Return the tracker that the environment names, after a few tries if it does not answer at once."""
    for left in reversed(range(TRIES)):
        try:
            return trackers.of_environment(os.environ)
        except TrackerError as error:
            if error.final or not left:
                raise
            sleep(EVERY)
    raise AssertionError("the last try returns or raises")


def refusal(issues: list[dict[str, Any]]) -> str:
    """Return why hosts refuse a release from now on, for a message."""
    errors = "; ".join(f"{each['title']} {each['url']}" for each in issues)
    return f"a watch on {time.strftime('%Y-%m-%d')} found {errors}"


def found_of(fields: dict[str, Any]) -> Found:
    """Return what `asdict` made of a `Found`."""

    def issue(of: dict[str, Any]) -> Issue:
        return Issue(**{**of, "events": tuple(trackers.Event(**event) for event in of["events"])})

    new, older = ([issue(of) for of in fields[name]] for name in ("new", "older"))
    reported = [(issue(of), reason) for of, reason in fields["reported"]]
    return Found(**{**fields, "new": new, "older": older, "reported": reported})


def release_of(answers: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return the release that the hosts serve; and if they serve several or none, a sentence that says so."""
    serving = {host: own["release"] or "nothing" for host, own in answers.items()}
    releases = sorted({*serving.values()})
    if len(releases) == 1:
        return releases[0], ""
    each = ", ".join(f"{host} serves {release}" for host, release in serving.items())
    return " ".join(releases) or "nothing", f"the hosts do not serve one release; choose some with --limit: {each}"


def mode_of(option: str) -> str:
    """Return app_watch as it is in force: `off` if the tracker can't be asked."""
    return "off" if option != "off" and trackers.why_not(os.environ) else option
