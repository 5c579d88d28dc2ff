"""The state of a run: the results that tasks registered for each host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

from jinja2 import pass_context
from jinja2.runtime import Context

from .playbook import NO_HOST, playbook
from .variables import hosts_of


class Fleet(TypedDict):
    """The results of all hosts; lists of hosts and environments are sorted.

    Attributes:
        answers: the results of booty.deploy.preflight, by host.
        cutovers: the results of the verb cutover, by host.
        statuses: the results of the verb status, by host; or that of booty.deploy.resolve, which failed.
        logs: the results of the verb logs, by host.
        histories: the results of the verb history, by host.
        watched: the answers of the hosts when the last watch of each began, by host.
        counted: their answers when it ended.
        before: the releases that the hosts with a cutover served before it.
        share: the share of the group's hosts that serve the release of this run, as far as this run knows; above 0.
        commands: the records of the commands that ran, as hosts know them and as this run made them, the newest last.
        first: the host that runs the commands of the release: the first one that answered; "" without one.
        due: whether a host has a cutover to do.
        unreachable: the hosts that preflight could not reach.
        switched_before: the hosts that this run switched and has not taken back.
        failed: the hosts whose cutover failed.
        releases: the releases that hosts serve after this run.
        environments: the environments of the hosts.
        changed_environments: the environments in which this run changed a host.
    """

    answers: dict[str, dict[str, Any]]
    cutovers: dict[str, dict[str, Any]]
    statuses: dict[str, dict[str, Any]]
    logs: dict[str, dict[str, Any]]
    histories: dict[str, dict[str, Any]]
    watched: dict[str, dict[str, Any]]
    counted: dict[str, dict[str, Any]]
    before: list[str]
    share: float
    commands: list[dict[str, Any]]
    first: str
    due: bool
    unreachable: list[str]
    switched_before: list[str]
    failed: list[str]
    releases: list[str]
    environments: list[str]
    changed_environments: list[str]


@pass_context
def fleet(context: Context, hosts: Iterable[str]) -> Fleet:
    """Return the state of a run for these hosts, from the variables that tasks of the role app registered."""
    everything = context["hostvars"]
    variables = {host: everything.raw_get(host) for host in hosts}

    def results(name: str) -> dict[str, dict[str, Any]]:
        return {host: values[name] for host, values in variables.items() if name in values}

    answers, cutovers, backs = results("__app_info"), results("__app_cutover"), results("__app_back")
    commands = [result["commands"] for result in results("__app_command").values() if "commands" in result]
    resolved = context.get("__app_resolved")
    before = {serving(answers[host]["host"]) for host in cutovers if "host" in answers.get(host, {})}
    on_it = [
        host
        for host, answer in answers.items()
        if cutovers.get(host, {}).get("state") == "switched"
        or ("host" in answer and serving(answer["host"]) == answer.get("release"))
    ]
    changed = [host for host, result in cutovers.items() if result.get("changed")]
    return {
        "answers": answers,
        "cutovers": cutovers,
        "statuses": {host: values.get("__app_status", resolved) for host, values in variables.items()},
        "logs": {host: values.get("__app_logs", {}) for host, values in variables.items()},
        "histories": {host: values.get("__app_history", {}) for host, values in variables.items()},
        "watched": results("__app_watched"),
        "counted": results("__app_counted"),
        "before": sorted(before - {""} - {str(answer.get("release")) for answer in answers.values()}),
        "share": len(on_it) / max(len(context.get("groups", {}).get("booty", [])), len(on_it), 1),
        "commands": records([answer.get("host", {}).get("commands", []) for answer in answers.values()], commands),
        "first": next((host for host, answer in answers.items() if "host" in answer), ""),
        "due": any(answer.get("due") for answer in answers.values()),
        "unreachable": sorted(host for host, answer in answers.items() if "unreachable" in answer),
        "switched_before": sorted(host for host, result in cutovers.items() if "state" in result and host not in backs),
        "failed": sorted(host for host, result in cutovers.items() if result.get("failed")),
        "releases": sorted({answer["release"] for answer in answers.values() if answer.get("release")}),
        "environments": sorted({everything[host]["app_environment"] for host in answers}),
        "changed_environments": sorted({everything[host]["app_environment"] for host in changed}),
    }


@pass_context
def hosts_with(context: Context, step: str) -> str:
    """Return a pattern for `hosts:` of those whose answer to preflight has a step; Ansible skips a play without hosts.

    A skipped play costs less than a task that each host skips, and a host that was left behind is in no such play.
    """
    answers = {host: context["hostvars"].raw_get(host).get("__app_info", {}) for host in hosts_of(context)}
    # A comma, because the name of a host may be an IPv6 address.
    return ",".join(host for host, answer in answers.items() if step in answer.get("steps", [])) or NO_HOST


@pass_context
def way_back(context: Context, hosts: Iterable[str]) -> str:
    """Return the command that takes hosts back from the release of this run, or why there is none."""
    going = able_to_go_back(fleet(context, hosts)["answers"])
    if not going:
        return "No release served before, so there is none to go back to. Mend that, and deploy again."
    return f"To take them back: {playbook(context.get_all(), 'rollback')} --limit {','.join(going)}"


def able_to_go_back(answers: dict[str, dict[str, Any]]) -> list[str]:
    """Return the hosts that have another release that served before the one of this run."""
    return [
        host
        for host, answer in answers.items()
        if "host" in answer and {*answer["host"]["served"]} & {*answer["host"]["releases"]} - {answer["release"]}
    ]


def records(known: list[list[dict[str, Any]]], made: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the records of commands of several hosts, the newest last.

    Args:
        known: the records of each host before this run.
        made: the records of the hosts where this run ran a command.
    """
    # Of two records of one run, that of its end counts.
    entries = sorted((entry for of_host in [*known, *made] for entry in of_host), key=lambda e: e["result"] != "began")
    by_id = {entry["id"]: entry for entry in entries}
    return sorted(by_id.values(), key=lambda entry: float(entry["at"]))


def serving(host: dict[str, Any]) -> str:
    """Return the release of the running service; without one, that of release.env, or "" if there is none."""
    return host["running"].get("SENTRY_RELEASE") or host["pointer"].get("SENTRY_RELEASE") or ""
