"""Call the host program: a Python on the host reads the program and the call from its standard input.

A module of Ansible would take three times as long for each call, because it unpacks and imports Ansible's library
first. This module reads the program and compiles the templates at its import, before Ansible forks for each task.
"""

from __future__ import annotations

import io
import json
import os
import pwd
import shlex
import time
import uuid
import zipfile
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.plugins.filter.core import FilterModule
from ansible.plugins.test.core import TestModule
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import programs, variables
from .domains import normal
from .git import descends
from .playbook import completed, playbook
from .screen import plain
from .settings import config_files, config_place

ROLE = Path(__file__).parents[3] / "roles" / "app"
# The Python of the releases, with UTF-8 in any locale.
PYTHON = "/usr/bin/python3 -I -X utf8"
# Standard input has the call as a line of JSON, then the program as a zip archive, then the attached file. The program
# is imported from memory.
START = """
import json, os, sys
if os.geteuid():
    sys.exit(
        f"Booty needs root on a host, and became the user with the ID {os.geteuid()}. Remove ansible_become and"
        " ansible_become_user from the inventory, --become-user, and become_user from ansible.cfg."
    )
request = json.loads(sys.stdin.buffer.readline())
program = os.memfd_create("booty_host")
with open(program, "wb", closefd=False) as file:
    file.write(sys.stdin.buffer.read(request["size"]))
sys.path.insert(0, f"/proc/self/fd/{program}")
request["program"] = program
__import__(request["package"] + ".__main__", fromlist=["call"]).call(request)
"""
# The arguments of each verb and their types: a value from the command line is a string.
VERBS: dict[str, dict[str, Any]] = {
    "info": {"user": {"type": "str", "required": True}},
    "cutover": {
        "release": {"type": "str", "required": True},
        "keep": {"type": "int", "required": True},
        "keep_assets": {"type": "int", "required": True},
        "by": {"type": "str", "required": True},
        "wait": {"type": "int", "default": 0},
        "brought": {"type": "dict", "default": {}},
        "seen": {"type": "dict", "required": True},
        "goes_back": {"type": "bool", "default": False},
        "commands": {"type": "list", "elements": "dict", "default": []},
        "description": {"type": "dict", "required": True},
        "places": {"type": "dict", "default": {}},
    },
    "history": {
        "lines": {"type": "int", "required": True},
        "since": {"type": "str", "default": ""},
        "every": {"type": "bool", "default": False},
    },
    "shell": {},
    "give_up": {
        "by": {"type": "str", "required": True},
        "places": {"type": "dict", "required": True},
        "wait": {"type": "int", "default": 0},
    },
    "status": {
        "release": {"type": "str"},
        "description": {"type": "dict", "default": {}},
        "every": {"type": "bool", "default": False},
    },
    "logs": {
        "lines": {"type": "int", "required": True},
        "since": {"type": "str", "default": ""},
        "process": {"type": "str", "default": ""},
    },
    "remove": {
        "by": {"type": "str", "required": True},
        "wait": {"type": "int", "default": 0},
        "confirmed": {"type": "bool", "required": True},
    },
    "take_back": {
        "release": {"type": "str", "required": True},
        "by": {"type": "str", "required": True},
        "wait": {"type": "int", "default": 0},
        "refuse": {"type": "str", "default": ""},
        "step": {"type": "str", "choices": ["begin", "end"]},
    },
    "observe": {
        "prove": {"type": "bool", "default": False},
        "seconds": {"type": "int", "default": 0},
        "by": {"type": "str", "default": "watches"},
    },
    "record": {
        "message": {"type": "str", "required": True},
        "fields": {"type": "dict", "required": True},
    },
}
# These verbs continue when the connection ends, so each runs in a systemd scope of its own. In the scope of the login,
# logind would kill the process at the end of the login (`KillUserProcesses=yes`). `systemd-run --scope` executes the
# command in its own process, so standard input, standard output and parent process stay the same.
DETACHED = ("cutover", "give_up", "remove", "take_back", "run_command", "release_command")
ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"


def program() -> bytes:
    """Return the host program as a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((ROLE / "files" / "booty_host").glob("*.*")):
            archive.write(path, f"booty_host/{path.name}")
    return buffer.getvalue()


def templates_of_units(app: str) -> dict[str, str]:
    """Return the template of each unit of an app, by the unit's name; `App` of the host program has the same names."""
    return {
        "system-{}.slice".format(app.replace("-", r"\x2d")): "app.slice.j2",
        f"{app}.socket": "app.socket.j2",
        f"{app}.service": "app.service.j2",
        f"{app}-candidate.service": "app-candidate.service.j2",
    }


def templates() -> Environment:
    """Return a Jinja environment with the role's templates, compiled, and with Ansible's filters and tests."""
    environment = Environment(
        loader=FileSystemLoader(ROLE / "templates"),
        trim_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
        undefined=StrictUndefined,
    )
    # Jinja's filters and tests override Ansible's, which expect Ansible's own class of undefined values.
    environment.filters = FilterModule().filters() | environment.filters
    environment.tests = TestModule().tests() | environment.tests
    environment.filters["escaped"] = programs.escaped
    for name in environment.list_templates(filter_func=lambda name: not name.endswith(".html.j2")):
        environment.get_template(name)
    return environment


CODE = program()
# The ID of this run of a playbook. The verb take_back undoes only a cutover with the same ID.
RUN = uuid.uuid4().hex
# When this run began, in seconds since 1970. Errors from before are not those of its release.
BEGAN = time.time()
# Stands in `success_msg` for the process that serves.
PID = "<PID>"
TEMPLATES = templates()

# The result of `rendered` for a question that is about no release.
NOTHING: dict[str, Any] = {"pointer": "", "units": {}}


def rendered(options: dict[str, Any], release: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts of release.env and of the units.

    Args:
        options: the options of the role app.
        release: the commit; empty for a question that is about no release.
        description: the description of the app in the commit, or the release's manifest.

    Returns:
        `pointer`, the text of release.env, empty without a release; `units`, the text of each unit by its name.
    """
    if options["app_domains"] and not options["app_health_host"] and not description.get("health", {}).get("host"):
        # The app accepts its own domain, and may refuse localhost.
        options = {**options, "app_health_host": normal(options["app_domains"][0])}
    config_dir = config_place(options["app_name"], config_files(options["app_config_dir"]))

    def render(name: str, **more: Any) -> str:
        return TEMPLATES.get_template(name).render(
            options, release=release, config_dir=config_dir, ansible_managed="Ansible managed", **more
        )

    units = {name: render(template) for name, template in templates_of_units(options["app_name"]).items()}
    if options["app_domains"]:
        units[f"{options['app_name']}-http.socket"] = render("app-http.socket.j2")
    processes, timers = programs.chosen(options, description)
    folder = description.get("path", ".")
    for name, process in processes.items():
        units[f"{options['app_name']}-{name}@.service"] = render(
            "app-process.service.j2", program=name, folder=folder, **process
        )
    for name, timer in timers.items():
        unit = f"{options['app_name']}-{name}"
        units[f"{unit}.service"] = render("app-process.service.j2", program=name, folder=folder, **timer)
        units[f"{unit}.timer"] = render("app.timer.j2", program=name, **timer)
    return {"pointer": render("release.env.j2") if release else "", "units": units}


def config_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return the `files` of app_config_dir in base64, and the `user` who may read them."""
    files = config_files(options["app_config_dir"])
    return {
        "files": {name: b64encode(content).decode() for name, content in files.items()},
        "user": options["app_user"],
    }


def who() -> str:
    """Return the user and the name of the controller, for the host's deploy lock and its journal."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user without a name, as in a container
        user = str(os.geteuid())
    return f"{user}@{os.uname().nodename}"


# The items of a loop share these, by host: the process that calls a host with the pipe of its answer, and the answers.
BEGUN: dict[str, tuple[int, int]] = {}
ENDED: dict[str, dict[str, Any]] = {}


def plain_values(value: Any) -> Any:
    """Return a host's answer without the characters that control a terminal; `seen` stays, as the host compares it."""
    match value:
        case str():
            return plain(value)
        case list():
            return [plain_values(each) for each in value]
        case dict():
            return {name: each if name == "seen" else plain_values(each) for name, each in value.items()}
    return value


def begin(host: str, work: Callable[[], dict[str, Any]]) -> None:
    """Start a process that calls a host; no more processes run at a time than Ansible has forks."""
    if len(BEGUN) >= context.CLIARGS["forks"]:
        oldest = next(iter(BEGUN))
        ENDED[oldest] = end(oldest)
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        BEGUN[host] = pid, reader
        return
    try:
        answer = work()
    except BaseException as error:
        answer = {"failed": True, "msg": f"{type(error).__name__}: {error}"}
    with os.fdopen(writer, "w") as pipe:
        json.dump(answer, pipe)
    os._exit(0)


def end(host: str) -> dict[str, Any]:
    """Wait for the answer of the process that `begin` started for a host, and return it."""
    if host in ENDED:
        return ENDED.pop(host)
    pid, reader = BEGUN.pop(host)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    answer: dict[str, Any] = json.loads(text or '{"failed": true, "msg": "The process that asked it was killed."}')
    return answer


class HostProgramAction(ActionBase):
    """Call a verb of the host program with its arguments.

    A `cutover`, and a `status` with a `release`, send the texts that `rendered` returns. A cutover attaches the archive
    in `brought`: its `file`, its `sha256` and its place (`dest`). `success_msg` is the message after a success, with
    `PID` in the place of the process that serves. A loop over hosts with the step `begin` of `take_back`, and then with
    the step `end`, calls all hosts at the same time.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the host's answer; without one, `rc` and the output of the host's shell in `msg`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        verb = self._task.args.get("verb")
        if verb not in VERBS:
            raise AnsibleActionFail(f"booty.deploy.host_program knows no verb '{verb}', but {', '.join(VERBS)}.")
        common = {"verb": {"type": "str"}, "success_msg": {"type": "str"}}
        _, arguments = self.validate_argument_spec({**common, **VERBS[verb]})
        message = arguments.pop("success_msg")
        del arguments["verb"]
        step, release = arguments.pop("step", None), arguments.get("release")
        attached = self.complete(verb, arguments, task_vars or {})
        if step == "begin":
            begin(self._task.delegate_to, lambda: self.ask(verb, arguments))
            return result
        answer = end(self._task.delegate_to) if step == "end" else self.ask(verb, arguments, attached)
        while "seen" in answer and (notice := self.moved_on(arguments["seen"], answer["seen"], release, task_vars)):
            arguments["seen"] = answer["seen"]
            answer = self.ask(verb, arguments, attached)
            answer["notices"] = [notice, *answer.get("notices", [])]
        result |= answer
        if message and not result.get("failed") and not self._task.check_mode:
            message = message.replace(PID, str(result.get("pid")))
            result["msg"] = "\n".join([*result.get("notices", []), message])
            result["_ansible_verbose_always"] = True
        return result

    def complete(self, verb: str, arguments: dict[str, Any], task_vars: dict[str, Any]) -> bytes:
        """Add what the host program needs beside a task's arguments; return what is attached to the call."""
        if verb == "info":
            arguments |= NOTHING
        elif verb == "status":
            release, description = arguments.pop("release"), arguments.pop("description")
            arguments |= NOTHING if release is None else rendered(self.options(task_vars), release, description)
        elif verb == "logs":
            arguments |= {"after": "", "wait": 0}
        elif verb == "record":
            arguments["fields"] |= {"run": RUN}
        elif verb == "shell":
            arguments["again"] = f"{playbook(task_vars, 'run')} -e shell=true"
        elif "by" in arguments:
            arguments["by"] = f"{who()} {arguments['by']}"
        if verb in {"cutover", "take_back"}:
            arguments["run"] = RUN
        if verb in {"cutover", "give_up"}:
            arguments["host"] = task_vars["inventory_hostname"]
        if verb == "cutover":
            brought = arguments.pop("brought")
            arguments |= {name: brought.get(name, "") for name in ("dest", "sha256")}
            options = self.options(task_vars)
            arguments |= rendered(options, arguments.pop("release"), arguments.pop("description"))
            arguments |= config_of(options)
            arguments |= {"process_seconds": options["app_process_seconds"], "restart": options["app_restart"]}
            arguments["over_ssh"] = self._connection.transport == "ssh"
            if brought:
                return Path(brought["file"]).read_bytes()
        return b""

    def ask(self, verb: str, arguments: dict[str, Any], attached: bytes = b"") -> dict[str, Any]:
        """Return a host's answer to a call.

        A host that is lost during a cutover stays in the run, so that `take_back` reaches it if it returns.
        """
        try:
            return self.call(verb, arguments, attached)
        except AnsibleConnectionFailure as error:
            if verb not in {"cutover", "take_back"}:
                raise
            return {"failed": True, "state": "unreachable", "msg": f"It can't be reached any more: {error}"}

    def moved_on(
        self, before: dict[str, str], now: dict[str, str], release: str, task_vars: dict[str, Any] | None
    ) -> str:
        """Return a notice if another run deployed an ancestor of the release since preflight; "" otherwise.

        Args:
            before: the `seen` in the host's answer to preflight.
            now: the `seen` in its answer to the cutover.
            release: the commit of this cutover.
            task_vars: Ansible's variables of the host.
        """
        commits = before["release"], now["release"], release
        if commits[0] == commits[1] or not descends(self.options(task_vars)["app_repository"], *commits):
            return ""
        return f"Another run deployed {commits[1]} here meanwhile. {release} descends from it, so this run continued."

    # The package whose verbs `call` knows, and the program that holds it.
    package = "booty_host"
    code = CODE

    def call(self, verb: str, arguments: dict[str, Any], attached: bytes = b"") -> dict[str, Any]:
        """Return a host's answer to a call; without one, `rc` and the output of the host's shell in `msg`."""
        call = {
            "app": self._templar.template(self._templar.available_variables["app_name"]),
            "verb": verb,
            "arguments": arguments,
            "check": self._task.check_mode,
            "package": self.package,
            "size": len(self.code),
        }
        if self._connection.transport == "ssh":
            self._pin(verb)
        command = f"{PYTHON} -c {shlex.quote(START)}"
        if verb in DETACHED and not self._task.check_mode:
            scope = f"{call['app']}-{verb.replace('_', '-')}-{uuid.uuid4().hex[:8]}.scope"
            command = f"systemd-run --scope --quiet --collect --unit={scope} {command}"
        done = self._low_level_execute_command(
            command, in_data=json.dumps(call).encode() + b"\n" + self.code + attached
        )
        try:
            answer: dict[str, Any] = json.loads(done["stdout"].splitlines()[-1])
        except (IndexError, ValueError):
            output = (done["stderr"] or done["stdout"]).strip() or "no reason given"
            return {"failed": True, "rc": done["rc"], "msg": f"The host's Python said: {plain(output)}"}
        if verb != "output":  # of a command that a person runs
            answer = plain_values(answer)
        variables = self._templar.available_variables
        if "msg" in answer:
            answer["msg"] = completed(answer["msg"], variables)
        for name in {"notices", "warnings"} & answer.keys():
            answer[name] = [completed(text, variables) for text in answer[name]]
        return answer

    def _pin(self, verb: str) -> None:
        """Set the options of ssh that a call needs, over those of ansible.cfg, the shell and the inventory.

        ServerAliveInterval ends the wait for a host that is gone. ssh takes the first value of an option, so the user's
        own value wins. `reconnection_retries` is 0, because Ansible would send the call again after a lost connection,
        while the host still works on the first call.
        """
        extra = self._connection.get_option("ssh_extra_args") or ""
        self._connection.set_option("ssh_extra_args", f"{extra} {ALIVE}".strip())
        if verb in DETACHED:
            self._connection.set_option("reconnection_retries", 0)

    def options(self, task_vars: dict[str, Any] | None, complete: bool = True) -> dict[str, Any]:
        """Return the options of the role app for this host, in their types; `complete` demands those without a default.

        Raises:
            AnsibleActionFail: an option is missing or has a wrong type.
        """
        known = variables.specs("app")
        values = self._templar.template({name: value for name, value in (task_vars or {}).items() if name in known})
        problems = variables.Problems([""])
        options: dict[str, Any] = variables.typed(values, "", problems)
        for name in (name for name, spec in known.items() if complete and spec.get("required") and name not in values):
            problems.add(name, variables.NOT_SET, "")
        if sentences := [*problems]:
            raise AnsibleActionFail("\n".join(sentences))
        return options
