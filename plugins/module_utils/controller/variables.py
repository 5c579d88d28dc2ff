"""Check and convert the variables of all roles, from the inventory and the command line, before a host is reached.

YAML and JSON have types; `-e name=value` and an inventory in INI format have strings. `convert` gives a string the same
meaning as the typed value. It accepts those strings that Ansible's filters `bool` and `int` convert in the same way.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible.utils.display import Display
from jinja2 import pass_context
from jinja2.runtime import Context

from . import apps, domains, programs, settings, static

ROLES = Path(__file__).parents[3] / "roles"
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Rule:
    """A rule for a value besides its type: `holds` checks the value, `write` completes the sentence "write …"."""

    write: str
    holds: Callable[[Any], object]


def matches(pattern: str) -> Callable[[Any], object]:
    """Return a function that matches a whole text with the pattern."""
    return lambda value: re.fullmatch(pattern, value)


def is_network(value: str) -> bool:
    """Return whether a text is an IP address, or a network such as 10.0.0.0/8."""
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return False
    return True


def least(number: int, unit: str = "") -> Rule:
    """Return the rule for a whole number with a minimum."""
    return Rule(f"a whole number{unit and f' of {unit}'}, {number} or more", lambda value: value >= number)


def is_address(value: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


PORT = Rule("a port, 1 to 65535", lambda value: 0 < value < 65536)
USER = Rule(
    "a user's name (lower-case letters, digits, _ and -, at most 32), not root",
    lambda value: matches("[a-z_][a-z0-9_-]{0,31}")(value) and value != "root",
)
SECONDS = least(0, "seconds")
DOMAINS = Rule(
    "for each name a domain such as shop.example.com, without https://, port, path or wildcard; an IP address gets no"
    " certificate",
    domains.is_domain,
)
TEXT = Rule("a text of one line, in quotes where YAML takes it for something else", lambda _: True)
# The names of other units of Booty.
RESERVED = {*("booty-acme", "booty-deploy", "booty-firewall", "booty-front", "booty-http", "booty-peers", "booty-undo")}
NAMES = Rule("names of letters, digits, dashes, dots and underscores", matches(r"[A-Za-z0-9][\w.-]*"))
# The rule of a list applies to its entries. Numbers without a rule are 0 or more.
RULES = {
    "app_address": Rule(
        "an IP address of the host, such as 127.0.0.1; 0.0.0.0 is all of IPv4, :: all of IPv6", is_address
    ),
    "app_acme_email": Rule(
        "an address such as ops@example.com, or nothing", matches(r"([^\s@\"'$]+@[^\s@\"'$]+\.[^\s@\"'$]+)?")
    ),
    "app_acme_url": Rule(
        "the address of the CA's directory, such as https://acme-v02.api.letsencrypt.org/directory",
        matches(r"https://[^\s/?#@\"'$]+/[^\s?#\"'$]*"),
    ),
    "app_artifact_url": Rule(
        "an address that begins with http:// or https://, without user, password or query: hosts fetch without secrets",
        matches(r"(https?://[^\s/?#@]+(/[^\s?#]*)?)?"),
    ),
    "app_body_max": Rule("a size such as 10m, 512k or 2g, or 0 for no limit", matches("0|[1-9][0-9]*[kmg]")),
    "app_certificate": Rule(
        "the path of a folder on the host, such as /etc/shop-tls, or nothing for ACME", matches(r"(/[\w.@-]+)+|")
    ),
    "app_client_connections": least(0),
    "app_domain_redirects": DOMAINS,
    "app_domains": DOMAINS,
    "app_drain_seconds": SECONDS,
    "app_environment": Rule(
        "1 to 64 characters without blanks or slashes, such as staging",
        lambda value: matches(r"[^\s/]{1,64}")(value) and value != "None",
    ),
    "app_keep_releases": Rule(
        "a whole number, 2 or more: the release that serves, and the one to go back to", lambda value: value >= 2
    ),
    "app_lock_wait": SECONDS,
    "app_hsts_seconds": SECONDS,
    "app_maintenance_allow": Rule("addresses or networks, such as 203.0.113.7 or 10.0.0.0/8", is_network),
    "app_memory_max": Rule(
        "bytes, also with K, M, G or T (512M), a share of the host's memory (75%), or infinity",
        matches("[1-9][0-9]*[KMGT]?|([1-9][0-9]?|100)%|infinity"),
    ),
    "app_lock": Rule("the path of a lock, relative to app_path, such as ../uv.lock", matches(r"[^\s/][^\s]*|")),
    "app_lock_extras": NAMES,
    "app_lock_groups": NAMES,
    "app_serve": Rule(
        "module:attribute or module:factory(), such as shop.web:app",
        matches(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\(\))?)?"),
    ),
    "app_name": Rule(
        "a name of at most 31 lower-case letters, digits and dashes that begins with a letter, such as shop; not one"
        " that ends with -candidate or -http, nor one of " + ", ".join(sorted(RESERVED)),
        lambda value: (
            matches("[a-z][a-z0-9-]{0,30}")(value)
            and not value.endswith(("-candidate", "-http"))
            and value not in RESERVED
        ),
    ),
    "app_packages": Rule(
        "names of Debian packages, such as libpq5, without versions", matches("[a-z0-9][a-z0-9+.-]*[a-z0-9+.]")
    ),
    "app_notify_seconds": least(1, "seconds"),
    "app_port": PORT,
    "app_process_seconds": SECONDS,
    "app_release_command_seconds": least(1, "seconds"),
    "app_registration_seconds": least(1, "seconds"),
    "app_start_seconds": least(1, "seconds"),
    "app_state_paths": Rule("paths below the app's folder, such as media/ or db.sqlite3", matches(r"[^/:][^:]*")),
    "app_stream_seconds": SECONDS,
    "app_watchdog_seconds": SECONDS,
    "app_tasks_max": Rule(
        "a number of processes and threads (512), a share of the host's (10%), or infinity",
        matches("[1-9][0-9]*|([1-9][0-9]?|100)%|infinity"),
    ),
    "app_threads": least(1),
    "app_user": USER,
    "app_wave_pause": SECONDS,
    "app_watch_seconds": least(0),
    "app_waves": Rule(
        "for each wave a number of hosts, 1 or more, or a share of all, 1% to 100%",
        matches("[1-9][0-9]*|[1-9][0-9]?%|100%"),
    ),
    "app_workers": least(1),
    "app_config_dir": Rule("a folder on this machine", lambda value: not value or settings.config_files(value)),
    "app_health_path": Rule(
        "a path that begins with /, such as /healthz, of ASCII characters and without quotes",
        matches(r"(/[A-Za-z0-9._~!&()*+,;=:@/?%-]*)?"),
    ),
    "app_health_host": Rule("a host's name, such as shop.example.com", matches(r"([A-Za-z0-9._-]+(:[0-9]{1,5})?)?")),
    "app_sandbox_allow": Rule("a list of these: jit", lambda value: value in {"jit"}),
    "app_trusted_proxies": Rule(
        "for each proxy an address such as 10.0.0.5, or a network such as 10.0.0.0/8", is_network
    ),
    "host_deploy_keys": Rule(
        "for each key one line of an authorized_keys file, such as ssh-ed25519 AAAA… you@laptop",
        matches(r"[^\n]*(ssh|ecdsa|sk-)[^\n]* AAAA[^\n]*"),
    ),
    "host_deploy_user": USER,
    "host_firewall_ports": Rule("ports, 1 to 65535", PORT.holds),
    "host_firewall_udp_ports": Rule("ports, 1 to 65535", PORT.holds),
    "host_first_user": Rule("a user's name", matches(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")),
    "host_journal_size": Rule("bytes, also with K, M, G or T, such as 500M", matches("[1-9][0-9]*[KMGT]?")),
    "host_service_user": USER,
    "lines": Rule("a whole number, 1 to 50000", lambda value: 1 <= value <= 50000),
    "process": Rule("the name of a process, such as web or deploy", matches("[a-z0-9-]*")),
}
# The callback that calls app_notify_command.
NOTIFIER = "booty.deploy.notify"
NOT_SET = "is not set: write it in the inventory, in group_vars/booty.yml."
# Variables of earlier versions.
REPLACED = {"app_module": "is no variable any more: write what the runner serves, such as app_serve: shop.web:app"}
# Messages do not show these values, because users put secrets into them by mistake.
HIDDEN = {"app_artifact_url", "app_build_settings", "app_notify_command", "app_settings", "app_wave_check"}
# A shell command may have several lines.
MULTILINE = {"app_notify_command", "app_wave_check", "command"}
# A string for these lists is split at its line ends, because an entry may have commas. Other lists are split at commas.
BY_LINES = {"host_deploy_keys", "app_build", "app_release_command", "app_post_deploy_command"}
# Each table with the function that returns its value in its type; the function raises ValueError as `convert` does.
TABLES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "app_settings": settings.typed_settings,
    "app_build_settings": settings.typed_settings,
    "app_processes": programs.processes,
    "app_timers": programs.timers,
    "app_static": static.typed_static,
}
# Lists that can't be empty, each with an example.
NOT_EMPTY = {"app_waves": '["25%", "100%"]'}
# `run_once` tasks and `serial:` read these variables from one host only, so they must be equal on all hosts of a run.
RUN_WIDE = (
    "app_name",
    "app_release",
    "app_repository",
    "app_path",
    "app_serve",
    "app_lock",
    "app_lock_extras",
    "app_lock_groups",
    "app_state_paths",
    "app_dotenv",
    "app_build",
    "app_build_settings",
    "app_static",
    "app_canary",
    "app_waves",
    "app_wave_pause",
    "app_wave_check",
    "app_failed_run",
    "app_unreachable",
    "app_unreachable_max",
    "app_notify_command",
    "app_notify_seconds",
    "app_watch",
    "app_watch_seconds",
    "app_watch_force",
    "app_release_command",
    "app_release_command_seconds",
    "app_post_deploy_command",
    "app_processes",
    "app_timers",
    "app_one_host",
    "app_registration",
    "app_registration_required",
    "app_registration_seconds",
    "app_drift",
    "status_format",
    "status_file",
)


@cache
def specs(role: str) -> dict[str, Any]:
    """Return the options in a role's argument specs, of all its entry points, by variable."""
    text = (ROLES / role / "meta/argument_specs.yml").read_text()
    entries = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["argument_specs"].values()
    return {name: spec for entry in entries for name, spec in entry["options"].items()}


def spec_of(name: str) -> dict[str, Any]:
    """Return the specification of a variable. Variables without the prefix `host_` belong to the role app."""
    role = name.partition("_")[0]
    spec: dict[str, Any] = specs(role if role == "host" else "app")[name]
    return spec


def convert(name: str, value: Any) -> Any:
    """Return a variable's value in its type.

    Args:
        name: the variable.
        value: its value, with templates evaluated.

    Raises:
        ValueError: the value is wrong; the message completes the sentence "write …".
    """
    spec = spec_of(name)
    if spec["type"] == "dict":
        return TABLES[name](_json(value) if isinstance(value, str) else value)
    if spec["type"] != "list":
        return _scalar(name, spec, spec["type"], value)
    if isinstance(value, str):
        value = _entries(value, "\n" if name in BY_LINES else ",")
    elif isinstance(value, (int, float)):
        value = [value]
    if not isinstance(value, (list, tuple)) or (name in NOT_EMPTY and not value):
        raise ValueError(f"a list such as {NOT_EMPTY.get(name, '[]')}")
    return [_scalar(name, spec, spec["elements"], entry) for entry in value]


def _entries(text: str, separator: str) -> Any:
    """Return the entries of a list in a string, which is JSON or has a separator."""
    if text.lstrip().startswith("["):
        return _json(text)
    return [part.strip() for part in text.strip().split(separator)] if text.strip() else []


def _json(text: str) -> Any:
    """Return the value of a JSON text, or of YAML on one line; None if it is neither."""
    try:
        return json.loads(text)  # YAML takes the two halves of JSON's \ud83c\udf89 for two characters
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _scalar(name: str, spec: dict[str, Any], kind: str, value: Any) -> Any:
    rule = RULES.get(name, least(0) if kind == "int" else TEXT)
    if kind == "bool":
        if not isinstance(value, (bool, int, str)) or str(value).lower() not in BOOLEANS:
            raise ValueError("true or false")
        return BOOLEANS[str(value).lower()]
    if kind == "int":
        if not isinstance(value, (int, str)) or not re.fullmatch(r"\s*-?[0-9]+\s*", str(value)):
            raise ValueError(rule.write)
        value = int(value)
    elif choices := spec.get("choices"):
        if value is False and "off" in choices:
            value = "off"  # YAML's word for false
        rule = Rule(f"{', '.join(choices[:-1])} or {choices[-1]}", lambda value: value in choices)
    else:
        # YAML reads `yes` as true and 1.10 as 1.1, so the original text is lost.
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise ValueError(rule.write)
        value = str(value)
        line = value.replace("\n", " ") if name in MULTILINE else value
        if not line.isprintable() or (not line.strip() and spec.get("default") != ""):
            raise ValueError(rule.write)
        if kind == "path":
            value = os.path.expanduser(os.path.expandvars(value))
    if not rule.holds(value):
        raise ValueError(rule.write)
    return value


def shown(name: str, value: Any) -> str:
    """Return a value for a message: as JSON, which is YAML too, and cut after 99 characters."""
    if name in HIDDEN:
        return "a value that is not shown here"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else f"{text[:99]}…"


class Problems:
    """The problems with variables, each with the hosts that have it."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._all = [*hosts]
        self._hosts: dict[tuple[str, str], list[str]] = {}

    def add(self, name: str, rest: str, host: str) -> None:
        """Add a problem of a host: a sentence that begins with the name of the variable."""
        self._hosts.setdefault((name, rest), []).append(host)

    def __iter__(self) -> Iterator[str]:
        """Yield the sentences; a sentence names its hosts unless all hosts have the problem."""
        for (name, rest), hosts in self._hosts.items():
            yield f"{name} {rest}" if len(hosts) == len(self._all) else f"{name} of {some(hosts)} {rest}"


def some(hosts: list[str]) -> str:
    """Return the names of hosts for a sentence: at most five."""
    return ", ".join(hosts) if len(hosts) <= 5 else f"{', '.join(hosts[:4])} and {len(hosts) - 4} others"


def typed(values: dict[str, Any], host: str, problems: Problems) -> dict[str, Any]:
    """Return the variables of a host in their types, and add a problem for each wrong value."""
    good = {}
    for name, value in values.items():
        try:
            good[name] = convert(name, value)
        except ValueError as error:
            problems.add(name, f"is {shown(name, value)}: write {error}.", host)
    return good


def differing(values: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield a problem for each variable of RUN_WIDE with several values.

    Args:
        values: the variables that the inventory and the command line set, in their types, by host.
    """
    for name in RUN_WIDE:
        hosts_by_value: dict[str, tuple[str, list[str]]] = {}
        for host, variables in values.items():
            value = variables.get(name, spec_of(name).get("default"))
            hosts_by_value.setdefault(json.dumps(value), (shown(name, value), []))[1].append(host)
        if len(hosts_by_value) > 1:
            each = "; ".join(f"{value} on {some(hosts)}" for value, hosts in hosts_by_value.values())
            yield f"{name} must be equal on all hosts of a run and is {each}. Write one value, in group_vars/booty.yml."


def access(host: str, options: dict[str, Any], problems: Problems) -> None:
    """Add a problem if the service's user could log in, or if nobody could.

    Args:
        host: the name of the host.
        options: the typed values of `ACCESS`; a wrong value is missing.
        problems: gets the problems.
    """
    user = options.get("host_deploy_user")
    if user and user == options.get("host_service_user"):
        rest = f"is {user}, which is the service's user: write another, such as deploy."
        problems.add("host_deploy_user", rest, host)
    if options.get("host_ssh_root") is False and options.get("host_deploy_keys") == []:
        problems.add("host_ssh_root", "is false: write host_deploy_keys as well, which let somebody else in.", host)


# The variables of the command line that playbooks read by a name without a prefix.
OPTIONS = (
    *("app", "command", "follow", "lines", "maintenance", "process", "remove", "shell", "since", "status_file"),
    "status_format",
)
ACCESS = ("host_deploy_user", "host_service_user", "host_ssh_root", "host_deploy_keys")


def evaluate(
    names: Iterable[str], variables: dict[str, Any], known: dict[str, Any], host: str, problems: Problems
) -> dict[str, Any]:
    """Return variables of a host with their templates evaluated; the roles' defaults apply.

    Args:
        names: the variables to evaluate.
        variables: all variables of the host, with their templates.
        known: the specifications of the roles' variables.
        host: the name of the host.
        problems: gets a problem for each template that fails.
    """
    defaults = {name: _trusted(spec["default"]) for name, spec in known.items() if "default" in spec}
    unevaluated = {name: variables.get(name, defaults.get(name)) for name in names}
    loader = DataLoader()
    loader.set_basedir(variables.get("playbook_dir", "."))
    templar = Templar(loader, {"role_path": str(ROLES / "app"), **defaults, **variables})
    evaluated: dict[str, Any] = {}
    for name, value in unevaluated.items():
        try:
            # Templating a dict drops an entry whose value is `omit`.
            entry = templar.template({name: value})
        except AnsibleError as error:
            rest = f"can't be evaluated: {error.message.rstrip('. ')}. Define that, or write a value."
            problems.add(name, rest, host)
            continue
        if not entry:
            problems.add(name, "is omit, which is no value: remove the line, and the default counts.", host)
        evaluated |= entry
    return evaluated


def _trusted(value: Any) -> Any:
    """Return a default of a specification with the mark that lets Ansible evaluate its templates."""
    if isinstance(value, list):
        return [*map(_trusted, value)]
    return trust_as_template(value) if isinstance(value, str) else value


def unknown(variables: Iterable[str]) -> list[str]:
    """Return the names among these that begin as Booty's do, and are none."""
    known = {*specs("app"), *specs("host"), *REPLACED}
    return [name for name in variables if name.startswith(("app_", "host_")) and name not in known]


def similar(name: str) -> str:
    """Return a sentence with the variable of Booty that a name resembles; "" if there is none."""
    return apps.similar(name, [*specs("app"), *specs("host")])


def mistyped(extra_variables: Iterable[str]) -> Iterator[str]:
    """Yield a warning for each variable of the command line that lacks its prefix, or resembles an option."""
    known = {*specs("app"), *specs("host")}
    for name in (name for name in extra_variables if name not in OPTIONS):
        prefixed = next((each for each in (f"app_{name}", f"host_{name}") if each in known), "")
        if hint := f" Did you mean {prefixed}?" if prefixed else apps.similar(name, OPTIONS):
            yield f"-e {name}: Booty has no variable {name}.{hint}"


def hosts_of(context: Context) -> list[str]:
    """Return the hosts of the group booty in this run, in the order of the inventory."""
    if "hostvars" not in context:  # --syntax-check starts no play
        return []
    run = {*context.get("ansible_play_hosts_all", [])}
    return [host for host in context.get("groups", {}).get("booty", []) if host in run]


def typed_value(value: Any, name: str) -> Any:
    """Return the value of a variable in its type: `convert` as a filter, whose first argument is the value."""
    return convert(name, value)


@pass_context
def all_problems(context: Context, roles: list[str], complete: bool) -> list[str]:
    """Return the problems with the variables of all hosts of the run, a sentence each.

    Args:
        context: the variables of the play.
        roles: the roles whose variables are checked.
        complete: whether the variables without a default must be set.
    """
    known = {name: spec for role in roles for name, spec in specs(role).items()}
    hosts = hosts_of(context)
    if of_apps := [*apps.load(context, hosts, {*specs("app"), *specs("host")})]:
        return of_apps
    problems, strays, values = Problems(hosts), Problems(hosts), {}
    for host in hosts:
        variables = context["hostvars"].raw_get(host)
        names = [name for name in known if name in variables]
        values[host] = typed(evaluate(names, variables, known, host, problems), host, problems)
        if "host" in roles:
            others = [name for name in ACCESS if name not in variables]
            defaults = typed(evaluate(others, variables, known, host, problems), host, problems)
            access(host, {**defaults, **values[host]}, problems)
        for name, spec in known.items():
            if complete and spec.get("required") and name not in variables:
                problems.add(name, NOT_SET, host)
        if complete and values[host].get("app_notify_command") and NOTIFIER not in C.CALLBACKS_ENABLED:
            rest = f"needs a line in your ansible.cfg, under [defaults]: callbacks_enabled = {NOTIFIER}"
            problems.add("app_notify_command", rest, host)
        if context.get("__app_closes") and not values[host].get("app_domains"):
            problems.add("app_domains", "is empty, so there is no proxy that could close the app.", host)
        for name, rest in domains.flaws(values[host]):
            problems.add(name, rest, host)
        for name in (name for name in REPLACED if name in variables):
            problems.add(name, REPLACED[name], host)
        for name in unknown(variables):
            strays.add(name, f"is no variable of Booty, so it has no effect.{similar(name)}", host)
    extra = context["hostvars"]._variable_manager.extra_vars if hosts else {}
    for sentence in (*strays, *mistyped(extra)):
        Display().warning(sentence)
    ports = {options.get("app_port", spec_of("app_port")["default"]) for options in values.values()}
    clashes = apps.clashing(context, ports) if complete else ()
    return [*problems] or [*differing(values), *domains.crowded(values), *clashes]


@pass_context
def waves(context: Context, group: str) -> list[int | str]:
    """Return the sizes of the waves for `serial:`.

    `serial:` is evaluated before a host is chosen, so this function reads the first host's variables. `all_problems`
    refuses a run whose hosts differ in them.
    """
    hosts = hosts_of(context)
    if not hosts:
        return [1]
    known, variables = specs("app"), context["hostvars"].raw_get(hosts[0])
    problems = Problems(hosts[:1])
    options = typed(evaluate(("app_canary", "app_waves"), variables, known, hosts[0], problems), hosts[0], problems)
    if sentences := [*problems]:
        raise AnsibleError("\n".join(sentences))
    canary: int = options["app_canary"]
    return [canary, *options["app_waves"]] if canary else options["app_waves"]


# Fill the cache of `specs` before Ansible forks for each task of each host.
specs("app")
