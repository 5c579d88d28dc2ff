"""Ask a host all that matters to a release, and judge its answer before anything is touched.

One step of one process, since a fleet pays for each of them with every host, even for those that are skipped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

from . import host_program
from .build import MACHINES
from .git import descends, normal
from .host_program import HostProgramAction

# How much room one may need, and how far a host's clock may be off.
ROOM_MEGABYTES = 200
CLOCK_SECONDS = 600
NO_TOKEN = (
    "app_registration_required: the environment of ansible-playbook has no SENTRY_AUTH_TOKEN. Without registration: -e"
    " app_registration_required=false"
)


def obstacles(
    host: dict[str, Any],
    options: dict[str, Any],
    release: str,
    name: str,
    check: bool,
    secrets_command: Callable[[], str],
) -> Iterator[str]:
    """Say what of a host stands against a release.

    Args:
        host: what it answered.
        options: the role's.
        release: the commit; empty when that does not matter.
        name: the host's, in the inventory.
        check: whether nothing is to be changed, be the host ready or not.
        secrets_command: returns the command that puts the secrets there.
    """
    app, user, port = options["app_name"], options["app_user"], options["app_port"]
    production = options["app_environment"].lower() in {"production", "prod"}
    if host["machine"] not in MACHINES:
        fit = " and ".join(MACHINES)
        yield f"{name} is {host['machine']}; releases are built for {fit}, 64 bit. Take such a machine."
    if tuple(map(int, host["python"].split("."))) < (3, 11):
        yield f"{name} has Python {host['python']}; Booty needs 3.11 or newer (Debian 12 or newer)."
    if host["user_id"] == 0:
        yield (
            f"app_user is {user}, which is root on {name}: the service would have root's rights. Name another user,"
            f" which bootstrap.yml makes: app_user: {app}"
        )
    elif not host["ready"] and not check:
        yield (
            f"{name} lacks the user {user} or Booty's directories. Make it ready first: ansible-playbook bootstrap.yml"
        )
    off = int(abs(host["clock"] - time.time()))
    if off >= CLOCK_SECONDS:
        yield (
            f"The clocks of {name} and of this machine differ by {off} seconds: errors would show at wrong times, and"
            " TLS may fail. See which is wrong, and set it: timedatectl"
        )
    staged = host["manifests"].get(release)
    room = host["free"] // 1_000_000
    if release and not staged and room < ROOM_MEGABYTES:
        yield (
            f"{name} has {room} MB left for /opt/{app}; a release may need {ROOM_MEGABYTES}. Make room there:"
            " apt-get clean; journalctl --vacuum-size=100M. Or keep fewer releases: app_keep_releases"
        )
    if host["port_taken"]:
        yield (
            f"{options['app_address']}:{port} is taken on {name}: {host['port_taken']}. Stop that, or choose another"
            " app_port."
        )
    # systemd gives the directory to whom a unit names, at its start: the candidate's would take it from the service.
    if host["running"] and host["state_owner"] not in {"", user}:
        yield (
            f"{name} serves as the user {host['state_owner']}, from whom /var/lib/{app} would be taken for {user} while"
            f" it runs. Stop it first; requests are refused until the deploy is through: systemctl stop {app}.socket"
            f" {app}.service"
        )
    yield from made_otherwise(host, options, release, name)
    secrets = host["secrets"]
    if secrets["closed"]:
        yield (
            f"{secrets['closed']}. On {name}, as root: chown root:root /etc/{app}/secrets.env; chmod 0600"
            f" /etc/{app}/secrets.env"
        )
    elif secrets["readable"] or (production and secrets["usable"] and (host["ready"] or not check)):
        why = secrets["readable"] or f"Production does not start without a usable SENTRY_DSN, and {secrets['usable']}"
        yield f"{why}.\nType the file's lines (SENTRY_DSN=…), then Ctrl-D:\n  {secrets_command()}"


def made_otherwise(host: dict[str, Any], options: dict[str, Any], release: str, name: str) -> Iterator[str]:
    """Say that a host has a release which is damaged, or was made from something else than what is asked for."""
    staged = host["manifests"].get(release)
    if staged == {}:
        there = f"/opt/{options['app_name']}/releases/{release}"
        if serving(host) == release:
            step = "It serves, so deploy another commit: git commit --allow-empty -m 'Build anew'"
        else:
            step = f"Remove it there, and deploy again: rm -r {there}"
        yield f"{there} on {name} is damaged: it has no release.json that can be read. {step}"
    if staged:
        path, serve = normal(options["app_path"]), options["app_serve"]
        asked = f"Python {host['python']}, {path}, {serve}"
        # Older ones don't say all.
        there = f"Python {staged['python']}, {staged.get('path', path)}, {staged.get('serve', serve)}"
        if there != asked:
            yield (
                f"{name} has {release} already, made from {there} and not from {asked}. A release is known by its SHA,"
                " so deploy another commit: git commit --allow-empty -m 'Build anew'"
            )


def serving(host: dict[str, Any]) -> str:
    """Return the release that serves, as far as the host knows."""
    return host["running"].get("SENTRY_RELEASE") or host["pointer"].get("SENTRY_RELEASE") or ""


def lost(host: dict[str, Any], options: dict[str, Any], release: str, name: str) -> Iterator[str]:
    """Say that a release would lose what the one that serves brought, where that is asked for."""
    before, repository = serving(host), options["app_repository"]
    if not options["app_require_ancestor"] or not before:
        return
    if not descends(repository, before, release):
        yield (
            f"{name} serves {before}, which is no ancestor of {release} as far as {repository} knows: what it brought"
            " would be lost. Fetch and merge it first, or mean it: -e app_require_ancestor=false"
        )


def no_way_back(host: dict[str, Any], options: dict[str, Any], release: str, name: str) -> Iterator[str]:
    """Say that a host does not have the release that it is to go back to."""
    if release not in host["releases"]:
        named, has = options["app_release"], ", ".join(host["releases"]) or "none"
        yield (
            f"{name} has no {'other release that served' if named == 'HEAD' else f'release {named}'} to go back to."
            f" It has {has}. Deploy one: ansible-playbook deploy.yml -e app_release=<sha>"
        )


def notices(host: dict[str, Any], options: dict[str, Any], name: str) -> Iterator[str]:
    """Say what a person should know although the release will serve."""
    if host["lets_in"] and options["app_port"] not in host["lets_in"]:
        yield (
            f"But the firewall of {name} lets in TCP {', '.join(map(str, host['lets_in']))} and not app_port"
            f" {options['app_port']}. Open it: ansible-playbook bootstrap.yml"
        )


class PreflightAction(HostProgramAction):
    """Ask about a `release`; with `goes_back` about the one to go back to, the one before unless it is named."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what stands against the release, as `obstacles`; and if the host answered, its answer as `host`.

        With it come the `release`; whether it is `due`, so that there is anything to do; what is done, as `by`; what
        there is to say when that is done, as `success_msg`; and without it what the host would be told, as `wanted`.
        """
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        _, given = self.validate_argument_spec(
            {"release": {"type": "str", "default": ""}, "goes_back": {"type": "bool", "default": False}}
        )
        release, goes_back, check = given["release"], given["goes_back"], self._task.check_mode
        options = self.options(task_vars)
        registers = options["app_registration"] and options["app_registration_required"]
        if registers and not os.environ.get("SENTRY_AUTH_TOKEN"):
            return {**result, "obstacles": [NO_TOKEN]}
        told = host_program.wanted(options, release)
        by = f"{'goes back to' if goes_back else 'deploys'} {release}"
        waits = {"by": f"{host_program.who()} {by}", "wait": options["app_lock_wait"]}
        answer = self.call("info", {"user": options["app_user"], **waits, **told})
        if "host" not in answer:
            return {**result, **answer, "failed": False, "obstacles": [answer["msg"]], "wanted": told}
        host, name = answer["host"], (task_vars or {})["inventory_hostname"]
        if goes_back:
            others = (each for each in host["served"] if each in host["releases"] and each != serving(host))
            release = release or next(others, "")
            by = f"goes back to {release}"
            found = [*no_way_back(host, options, release, name)]
        else:
            found = [*lost(host, options, release, name)]
        # What is gone back to served once: what it is made from, and for what, is no matter.
        found += obstacles(host, options, "" if goes_back else release, name, check, self._secrets_command)
        if found:
            fields = {"result": "refused", "release": release, "from": host["pointer"].get("SENTRY_RELEASE", "")}
            self.call("record", {"message": " ".join(found), "fields": {**fields, "by": host_program.who()}})
        return {
            **result,
            "host": host,
            "release": release,
            "obstacles": found,
            "due": options["app_restart"] or bool(host["unsettled"]),
            "by": by,
            "success_msg": "\n".join(
                [f"{name} serves {release} as {options['app_environment']}", *notices(host, options, name)]
            ),
        }

    def _secrets_command(self) -> str:
        command: str = self._templar.template(trust_as_template("{{ __app_secrets_command }}"))
        return command
