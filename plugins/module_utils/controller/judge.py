"""Ask a host for everything that can stop a release, and find the problems in its answer before the host is changed.

All checks are one task, because each task costs time on every host, even if it is skipped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

from . import host_program, programs, trackers, variables, watch
from .build import MACHINES
from .fleet import serving
from .git import descends
from .host_program import NOTHING, PID, HostProgramAction
from .playbook import completed
from .settings import suspects

# The disk space that a release may need, and the difference between two clocks at which preflight fails.
ROOM_MEGABYTES = 200
CLOCK_SECONDS = 600
NO_TOKEN = (
    "app_registration_required: the environment of ansible-playbook has no SENTRY_AUTH_TOKEN. Without registration: -e"
    " app_registration_required=false"
)

SUSPECT = (
    "app_settings: {} looks like a secret, and settings are shown: in the inventory, by --diff and by status. A secret"
    " belongs in secrets.env. If it is none, add its name to the setting BOOTY_NOT_SECRET."
)
OLDER = (
    "{release} is older than {now}, which serves: this deploy takes back the commits between them. To refuse that: -e"
    " app_require_ancestor=true"
)
NO_PROXY = (
    "app_static needs the proxy, which is there with app_domains alone: the app gets the requests for {} and has to"
    " serve these files itself."
)


def problems_of(
    host: dict[str, Any],
    options: dict[str, Any],
    release: str,
    description: dict[str, Any],
    name: str,
    check: bool,
    secrets_step: Callable[[str], str],
) -> Iterator[str]:
    """Yield each problem that keeps a host from taking a release.

    Args:
        host: the answer of the host.
        options: the options of the role app.
        release: the commit; empty for a rollback, whose release is on the host.
        description: the description of the app in the commit; empty for a rollback.
        name: the name of the host in the inventory.
        check: whether to accept a host that was never bootstrapped, as check mode does.
        secrets_step: returns the next step for a `remedy` of secrets.env.
    """
    app, user, port = options["app_name"], options["app_user"], options["app_port"]
    production = options["app_environment"].lower() in {"production", "prod"}
    if host["machine"] not in MACHINES:
        machines = " and ".join(MACHINES)
        yield f"{name} is {host['machine']}; releases are built for {machines}, 64 bit. Take such a machine."
    if tuple(map(int, host["python"].split("."))) < (3, 11):
        yield f"{name} has Python {host['python']}; Booty needs 3.11 or newer (Debian 12 or newer)."
    if host["user_id"] == 0:
        yield (
            f"app_user is {user}, which is root on {name}: the service would have root's rights. Name another user,"
            f" which bootstrap.yml makes: app_user: {app}"
        )
    elif not host["ready"] and not check:
        needed = ", and the secrets that production needs, for which bootstrap.yml prints a command"
        needed = needed if production and host["secrets"]["usable"] else ""
        yield (
            f"{name} lacks the user {user} or Booty's directories{needed}. Make it ready first: ansible-playbook"
            " bootstrap.yml"
        )
    seconds = int(abs(host["clock"] - time.time()))
    if seconds >= CLOCK_SECONDS:
        yield (
            f"The clocks of {name} and of this machine differ by {seconds} seconds: errors would show at wrong times,"
            " and TLS may fail. See which is wrong, and set it: timedatectl"
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
    yield from not_installed(host, options, description, name, check)
    yield from (f"On {name}, {problem}" for problem in host["problems"])
    # At the start of the candidate, systemd would give StateDirectory= to the new user while the old service needs it.
    if host["running"] and host["state_owner"] not in {"", user}:
        yield (
            f"{name} serves as the user {host['state_owner']}, and a deploy would give /var/lib/{app} to {user} while"
            " that service runs. Stop it first; requests are refused until the deploy ends: systemctl stop"
            f" {app}.socket {app}.service"
        )
    yield from unusable_copy(host, options["app_name"], release, description, name)
    secrets = host["secrets"]
    if twice := sorted({*options["app_settings"]} & {*secrets["names"]}):
        yield (
            f"{', '.join(twice)} is in app_settings and in /etc/{app}/secrets.env of {name}. A secret stays in"
            " secrets.env: remove it from app_settings. If it is none, remove its line there."
        )
    if secrets["closed"]:
        yield (
            f"{secrets['closed']}. On {name}, as root: chown root:root /etc/{app}/secrets.env; chmod 0600"
            f" /etc/{app}/secrets.env"
        )
    elif secrets["readable"] or (production and secrets["usable"] and host["ready"]):
        problem = (
            secrets["readable"] or f"Production does not start without a usable SENTRY_DSN, and {secrets['usable']}"
        )
        yield f"{problem}.\n{secrets_step(secrets['remedy'])}"


def not_installed(
    host: dict[str, Any], options: dict[str, Any], description: dict[str, Any], name: str, check: bool
) -> Iterator[str]:
    """Yield a problem for the Debian packages, and for the proxy, that a bootstrap of the host would install."""
    if host["lacks"] and (host["ready"] or not check):
        yield (
            f"{name} lacks {', '.join(host['lacks'])}, which the app needs (app_packages). Install it: ansible-playbook"
            f" bootstrap.yml -e app_packages={','.join(packages(options, description))}"
        )
    if options["app_domains"] and not host["proxy"] and not check:
        yield f"{name} has no proxy yet for app_domains. Install it: ansible-playbook bootstrap.yml"


def packages(options: dict[str, Any], description: dict[str, Any]) -> list[str]:
    """Return the Debian packages that a release needs: those of the inventory, or else those of the commit."""
    named: list[str] = options["app_packages"] or description.get("packages", [])
    return named


def unusable_copy(
    host: dict[str, Any], app_name: str, release: str, description: dict[str, Any], name: str
) -> Iterator[str]:
    """Yield a problem if the host's copy of a release is damaged, or was built for another Python or description."""
    manifest = host["manifests"].get(release)
    if manifest == {}:
        folder = f"/opt/{app_name}/releases/{release}"
        if serving(host) == release:
            step = "It serves, so deploy another commit: git commit --allow-empty -m 'Build anew'"
        else:
            step = f"Remove it there, and deploy again: rm -r {folder}"
        yield f"{folder} on {name} is damaged: it has no release.json that can be read. {step}"
    if manifest:
        wanted = {"python": host["python"], **description}
        # The manifest of an older Booty has only some of these keys; it ran no build, and so had no files of one.
        manifest = {"build": [], "static": {}, **manifest}
        # Another Booty may word `found` in another way.
        differing = [key for key in wanted if key != "found" and manifest.get(key, wanted[key]) != wanted[key]]
        if differing:
            actual, needed = (", ".join(f"{key} {each[key]}" for key in differing) for each in (manifest, wanted))
            yield (
                f"{name} has {release} already, built from {actual} and not from {needed}. Two builds of one commit"
                " can't differ, so deploy another commit: git commit --allow-empty -m 'Build anew'"
            )


def not_an_ancestor(host: dict[str, Any], options: dict[str, Any], release: str, name: str) -> Iterator[str]:
    """Yield a problem if app_require_ancestor is set and the release does not descend from the one that serves."""
    before, repository = serving(host), options["app_repository"]
    if options["app_require_ancestor"] and before and not descends(repository, before, release):
        yield (
            f"{name} serves {before}, which is no ancestor of {release} in {repository}, so its changes would be lost."
            " Fetch and merge it first, or deploy without them: -e app_require_ancestor=false"
        )


def is_older(host: dict[str, Any], options: dict[str, Any], release: str) -> bool:
    """Return whether a release is an ancestor of the one that a host serves."""
    now = serving(host)
    return bool(now) and now != release and descends(options["app_repository"], release, now)


def taken_back(host: dict[str, Any], options: dict[str, Any], release: str, name: str) -> Iterator[str]:
    """Yield a problem if a watch took the release back from this host, unless the deploy is forced."""
    if release in host["refused"] and not options["app_watch_force"]:
        yield (
            f"{release} was taken back from {name}: {host['refused'][release]}. Deploy a commit that mends it. Or"
            " deploy it anyway, and keep it whatever a watch finds: -e app_watch_force=true"
        )


def unwatchable(options: dict[str, Any]) -> Iterator[str]:
    """Yield a problem if a watch should act, and the tracker can't be asked."""
    if options["app_watch"] in {"hold", "back"} and (reason := trackers.why_not(os.environ)):
        yield f"app_watch is {options['app_watch']}, and the tracker can't be asked: {reason}"


def no_rollback_target(host: dict[str, Any], options: dict[str, Any], release: str, name: str) -> Iterator[str]:
    """Yield a problem if a host does not have the release that it should go back to."""
    if release not in host["releases"]:
        target, releases = options["app_release"], ", ".join(host["releases"]) or "none"
        yield (
            f"{name} has no {'other release that served' if target == 'HEAD' else f'release {target}'} to go back to."
            f" It has {releases}. Deploy one: ansible-playbook deploy.yml -e app_release=<sha>"
        )


def commands_between(host: dict[str, Any], options: dict[str, Any], release: str, name: str) -> str:
    """Return the reason to refuse to go back to a release, if a release command ran since that served; else ""."""
    entries = [entry for entry in host["commands"] if release in entry["before"]]
    if options["app_rollback_over_commands"] or not entries:
        return ""
    target = release[:9]
    ran = [f"  {command} (of {entry['release'][:9]})" for entry in entries for command in entry["command"]]
    return "\n".join(
        [
            f"{name} would go from {serving(host)[:9]} back to {target}. Since {target} served, release commands ran:",
            *ran,
            f"Their changes would stay, and {target} may not fit them. If it does: -e app_rollback_over_commands=true",
        ]
    )


def notices(host: dict[str, Any], options: dict[str, Any], named: list[int], name: str) -> Iterator[str]:
    """Yield a warning if the firewall of a host closes app_port: the release serves, but no client reaches it.

    Args:
        host: its answer.
        options: its variables of the role app.
        named: host_firewall_ports.
        name: its name in the inventory.
    """
    if options["app_domains"]:
        if options["app_port"] in host["lets_in"] and options["app_port"] not in named:
            yield (
                f"The firewall of {name} also lets in app_port {options['app_port']}, past the proxy. This run, or"
                " the next bootstrap.yml, closes it, unless host_firewall_ports names it."
            )
    elif host["lets_in"] and options["app_port"] not in host["lets_in"]:
        yield (
            f"But the firewall of {name} lets in TCP {', '.join(map(str, host['lets_in']))} and not app_port"
            f" {options['app_port']}. Open it: ansible-playbook bootstrap.yml"
        )


def warnings(host: dict[str, Any], options: dict[str, Any], description: dict[str, Any], name: str) -> Iterator[str]:
    """Yield the warnings about a host, its options and what a commit wants; a rollback has no description."""
    if host["new_secrets"] and not host["unsettled"] and not options["app_restart"]:
        yield (
            f"/etc/{options['app_name']}/secrets.env of {name} is newer than the running process, and this run starts"
            " no other one. To use the new values: ansible-playbook deploy.yml -e app_restart=true"
        )
    if suspicious := [*suspects(options["app_settings"])]:
        yield SUSPECT.format(", ".join(suspicious))
    if (static := description.get("static")) and not options["app_domains"]:
        yield NO_PROXY.format(", ".join(static))


def beside_cutover(options: dict[str, Any], description: dict[str, Any]) -> dict[str, list[str]]:
    """Return what a deploy does beside the cutover.

    Args:
        options: the options of the role app.
        description: the description of the app in the commit, or the release's manifest.

    Returns:
        `release_command` and `post_deploy_command`, the commands of the inventory, or else those of the commit; and
        `steps`, which of the steps place, proxy and post_deploy there are.
    """
    commands = {
        name: list(options[f"app_{name}"] or description.get(name, []))
        for name in ("release_command", "post_deploy_command")
    }
    # `true` is the way to run none although the commit has some.
    commands["release_command"] = [each for each in commands["release_command"] if each != "true"]
    alone = any(program["one_host"] for each in programs.chosen(options, description) for program in each.values())
    steps = {
        "place": alone or options["app_one_host"] or commands["release_command"],
        "proxy": options["app_domains"],
        "post_deploy": commands["post_deploy_command"],
    }
    return {**commands, "steps": [name for name, wanted in steps.items() if wanted]}


class PreflightAction(HostProgramAction):
    """Check a host for a `release`; with `goes_back`, for a rollback, by default to the release that served before."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the `problems`, and the host's answer as `host`.

        With `host` come the `release`; the host's `environment`, and the release that it `serves`; `due`, whether the
        cutover has anything to do; the keys of `beside_cutover`; `by`, the words for the journal; `crosses`, why a
        rollback is refused for all hosts; `watch`, app_watch as it is in force; and `success_msg`, the message after a
        cutover. Without `host` comes `rendered`, the text of the units.
        """
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "release": {"type": "str", "default": ""},
                "description": {"type": "dict", "default": {}},
                "goes_back": {"type": "bool", "default": False},
            }
        )
        release, goes_back, check = arguments["release"], arguments["goes_back"], self._task.check_mode
        options = self.options(task_vars)
        registers = options["app_registration"] and options["app_registration_required"]
        if registers and not os.environ.get("SENTRY_AUTH_TOKEN"):
            return {**result, "problems": [NO_TOKEN]}
        description, answer = arguments["description"], NOTHING
        if goes_back:
            # The host knows the release before, and the processes of each release that it has.
            answer = self.call("info", {"user": options["app_user"], **NOTHING})
            if host := answer.get("host"):
                others = (each for each in host["served"] if each in host["releases"] and each != serving(host))
                release = release or next(others, "")
                description = host["manifests"].get(release, {})
        rendered = host_program.rendered(options, release, description)
        by = f"{'goes back to' if goes_back else 'deploys'} {release}"
        if "host" in answer or not goes_back:
            lock = {"by": f"{host_program.who()} {by}", "wait": options["app_lock_wait"]}
            # A release that has served is not kept back by a package.
            needs = [] if goes_back else packages(options, description)
            answer = self.call("info", {"user": options["app_user"], "packages": needs, **lock, **rendered})
        if "host" not in answer:
            return {**result, **answer, "failed": False, "problems": [answer["msg"]], "rendered": rendered}
        host, name = answer["host"], (task_vars or {})["inventory_hostname"]
        is_back, crosses = goes_back or is_older(host, options, release), ""
        if is_back:
            crosses = commands_between(host, options, release, name)
        if goes_back:
            problems = [*no_rollback_target(host, options, release, name)]
        else:
            problems = [
                *not_an_ancestor(host, options, release, name),
                *taken_back(host, options, release, name),
                *unwatchable(options),
                *filter(None, [crosses]),
            ]
        # A rollback target has served before, so its manifest is not compared with a description and with Python.
        copy = "" if goes_back else release
        problems += programs.clashes(options, description)
        of_deploy, of_check = (
            [*problems_of(host, options, copy, arguments["description"], name, each, self._secrets_step)]
            for each in (False, check)
        )
        problems += of_check
        if problems:
            fields = {"result": "refused", "release": release, "from": host["pointer"].get("SENTRY_RELEASE", "")}
            fields |= {"by": f"{host_program.who()} {by}", "run": host_program.RUN}
            self.call("record", {"message": " ".join(problems), "fields": fields})
        sentences = [*warnings(host, options, arguments["description"], name)]
        if is_back and not goes_back and not options["app_require_ancestor"]:
            sentences.append(OLDER.format(release=release, now=serving(host)))
        if sentences:
            result["warnings"] = sentences
        if later := [problem for problem in of_deploy if problem not in of_check]:
            text = completed("\n".join(later), task_vars or {})
            result["warnings"] = [*result.get("warnings", []), f"A deploy would be refused as things are: {text}"]
        serves = f"{name} serves {release} as {options['app_environment']}, process {PID}"
        ports = self._templar.template(trust_as_template("{{ host_firewall_ports | default([]) }}"))
        message = [serves, *notices(host, options, variables.convert("host_firewall_ports", ports), name)]
        return {
            **result,
            "host": host,
            "release": release,
            "environment": options["app_environment"],
            "serves": serving(host),
            "problems": [completed(problem, task_vars or {}) for problem in problems],
            "crosses": crosses if goes_back else "",
            "watch": watch.mode_of(options["app_watch"]),
            "due": options["app_restart"] or bool(host["unsettled"]),
            **beside_cutover(options, description),
            "by": by,
            "success_msg": completed("\n".join(message), task_vars or {}),
        }

    def _secrets_step(self, remedy: str) -> str:
        lines: list[str] = self._templar.template(trust_as_template(f"{{{{ __app_secrets_steps.{remedy} }}}}"))
        return "\n".join(lines)
