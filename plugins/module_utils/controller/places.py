"""Choose the host of each process and timer that one host of the group alone has, from what the hosts know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail

from . import programs
from .host_program import HostProgramAction


def choose(
    names: set[str], group: list[str], claims: Mapping[str, Mapping[str, dict[str, Any]]], moved_to: str
) -> dict[str, str]:
    """Return the host of each process and timer, by name.

    It stays on the host that has it, also on one that gave no answer, if another host knows of that. A new one goes to
    the first host of the group.

    Args:
        names: the processes and timers with one_host.
        group: the hosts of the group, also those that are not in this run, in the order of the inventory.
        claims: what each host that answered knows, by host: for each name `host`, and `here`, whether it has it itself.
        moved_to: app_one_host.
    """
    places = {}
    for name in sorted(names):
        known = {host: claims[host][name] for host in group if name in claims.get(host, {})}
        own = [host for host, claim in known.items() if claim["here"]]
        others = [claim["host"] for claim in known.values() if claim["host"] in group]
        places[name] = moved_to or (own + others + group)[0]
    return places


def sentences(places: Mapping[str, str], absent: set[str]) -> list[str]:
    """Return a sentence for each host that has processes or timers alone.

    Args:
        places: the host of each, by name.
        absent: the hosts that are not in this run, or that gave no answer.
    """
    lines = []
    for host in dict.fromkeys(places.values()):
        names = ", ".join(name for name, place in places.items() if place == host)
        away = (
            " That host is not in this run, so they stay as they are. To move them to another: -e app_one_host=HOST"
            if host in absent
            else ""
        )
        lines.append(f"on {host} alone: {names}.{away}")
    return lines


def one_sided(state_paths: list[str], commands: list[str], hosts: list[str], first: str) -> list[str]:
    """Return a warning if several hosts have state paths of their own, and the release command reaches those of one.

    Args:
        state_paths: the state paths of the app.
        commands: its release commands.
        hosts: the hosts of the group.
        first: the host that runs the commands.
    """
    if not state_paths or not commands or len(hosts) < 2:
        return []
    return [
        f"The release command runs on {first} alone. What it writes to {', '.join(state_paths)} (app_state_paths) stays"
        " there, since each host has its own. With several hosts, use a database server."
    ]


class PlaceAction(HostProgramAction):
    """Choose the host of each process and timer with one_host, from the `answers` of booty.deploy.preflight.

    The result has a warning if the release command, which one host runs, writes where each host has files of its own.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the `places`, by name; the `due` hosts, whose place changes; and for each host what it `gives_up`."""
        result: dict[str, Any] = super(HostProgramAction, self).run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {"answers": {"type": "dict", "required": True}, "description": {"type": "dict"}}
        )
        options, group = self.options(task_vars), (task_vars or {})["groups"]["booty"]
        hosts = {name: answer["host"] for name, answer in arguments["answers"].items() if "host" in answer}
        names = {
            name
            for host, state in hosts.items()
            for each in programs.chosen(
                options,
                arguments["description"]
                if arguments["description"] is not None
                else state["manifests"].get(arguments["answers"][host]["release"], {}),
            )
            for name, program in each.items()
            if program["one_host"]
        }
        if options["app_one_host"] not in {"", *group}:
            raise AnsibleActionFail(
                f"app_one_host is {options['app_one_host']}, and the group booty has no such host. Write one of"
                f" {', '.join(group)}. Nothing was changed."
            )
        claims = {host: state["places"] for host, state in hosts.items()}
        places = choose(names, group, claims, options["app_one_host"])
        lines = sentences(places, {*group} - {*hosts})
        described = arguments["description"] or {}
        if any(answer.get("due") for answer in arguments["answers"].values()) and described:
            # `true` is the way to run none although the commit has some.
            commands = [
                each for each in options["app_release_command"] or described["release_command"] if each != "true"
            ]
            result["warnings"] = one_sided(described["state_paths"], commands, group, next(iter(hosts)))
        return {
            **result,
            "places": places,
            "due": [
                host
                for host, claim in claims.items()
                if any(claim.get(name, {}).get("host") != place for name, place in places.items())
            ],
            "gives_up": {
                host: up
                for host, claim in claims.items()
                if (up := [name for name, place in places.items() if place != host and claim.get(name, {}).get("here")])
            },
            "msg": "\n".join(lines),
            "_ansible_verbose_always": bool(lines),
        }
