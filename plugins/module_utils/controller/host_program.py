"""Call Booty's program on a host: one Python, that reads the program and the call from its standard input.

An ordinary module would take three times as long for each call: it brings Ansible's own library along, and unpacks and
imports that first. What is read and compiled here, is so once, before Ansible forks for each task of each host.
"""

from __future__ import annotations

import io
import json
import os
import pwd
import shlex
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.plugins.filter.core import FilterModule
from ansible.plugins.test.core import TestModule
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import variables
from .git import descends

ROLE = Path(__file__).parents[3] / "roles" / "app"
# The Python that releases run with. It reads and writes UTF-8 whatever the host's locale is.
PYTHON = "/usr/bin/python3 -I -X utf8"
# Reads the call, then the program, which it imports from memory; what follows is the file that came along.
START = """
import json, os, sys
if os.geteuid():
    sys.exit(
        f"Booty needs root on a host, and became the user with the ID {os.geteuid()}. Remove ansible_become and"
        " ansible_become_user from the inventory, --become-user, and become_user from ansible.cfg."
    )
told = json.loads(sys.stdin.buffer.readline())
program = os.memfd_create("booty_host")
with open(program, "wb", closefd=False) as file:
    file.write(sys.stdin.buffer.read(told["size"]))
sys.path.insert(0, f"/proc/self/fd/{program}")
from booty_host.__main__ import call
call(told)
"""
# What a value from a command line is turned into, by verb.
VERBS: dict[str, dict[str, Any]] = {
    "info": {"user": {"type": "str", "required": True}},
    "cutover": {
        "release": {"type": "str", "required": True},
        "keep": {"type": "int", "required": True},
        "by": {"type": "str", "required": True},
        "wait": {"type": "int", "default": 0},
        "brought": {"type": "dict", "default": {}},
        "seen": {"type": "dict", "required": True},
        "goes_back": {"type": "bool", "default": False},
    },
    "status": {"release": {"type": "str"}, "every": {"type": "bool", "default": False}},
    "remove": {
        "by": {"type": "str", "required": True},
        "wait": {"type": "int", "default": 0},
        "confirmed": {"type": "bool", "required": True},
    },
    "take_back": {
        "release": {"type": "str", "required": True},
        "by": {"type": "str", "required": True},
        "wait": {"type": "int", "default": 0},
        "step": {"type": "str", "choices": ["begin", "end"]},
    },
}
# These verbs go on when the connection ends, so they run in a systemd scope of their own. In the login's scope, logind
# would kill them with the login (`KillUserProcesses=yes`). --scope replaces systemd-run by the command, so the process
# keeps its input, its output and its parents.
DETACHED = ("cutover", "remove", "take_back")
ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"


def program() -> bytes:
    """Return the program as a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((ROLE / "files" / "booty_host").glob("*.*")):
            archive.write(path, f"booty_host/{path.name}")
    return buffer.getvalue()


def templates_of_units(app: str) -> dict[str, str]:
    """Return the template of each unit of an app, by the unit's name; the host program's `App` has the same names."""
    return {
        "system-{}.slice".format(app.replace("-", r"\x2d")): "app.slice.j2",
        f"{app}.socket": "app.socket.j2",
        f"{app}.service": "app.service.j2",
        f"{app}-candidate.service": "app-candidate.service.j2",
    }


def templates() -> Environment:
    """Return the role's templates, compiled, with Ansible's own filters and tests."""
    environment = Environment(
        loader=FileSystemLoader(ROLE / "templates"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    # Jinja's own win, since Ansible's know Ansible's kind of what is undefined.
    environment.filters = FilterModule().filters() | environment.filters
    environment.tests = TestModule().tests() | environment.tests
    for name in ("release.env.j2", *templates_of_units("booty").values()):
        environment.get_template(name)
    return environment


CODE = program()
# Which run of a playbook this is: a host goes back only from what the same run did there.
RUN = uuid.uuid4().hex
TEMPLATES = templates()

# What a host is told that is asked without a release in mind.
NOTHING: dict[str, Any] = {"pointer": "", "units": {}}


def wanted(options: dict[str, Any], release: str) -> dict[str, Any]:
    """Return what a host is to be told of a release.

    Args:
        options: the role's.
        release: the commit; empty when only the host knows which one it will be.

    Returns:
        the text of release.env as `pointer`, empty without a release, and of each unit by its name as `units`.
    """

    def render(name: str) -> str:
        return TEMPLATES.get_template(name).render(options, release=release, ansible_managed="Ansible managed")

    units = {name: render(template) for name, template in templates_of_units(options["app_name"]).items()}
    return {"pointer": render("release.env.j2") if release else "", "units": units}


def who() -> str:
    """Return who runs this, and where: for those who meet the host's deploy lock, and for its journal."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # as in a container, with a user that has no name
        user = str(os.geteuid())
    return f"{user}@{os.uname().nodename}"


# What an item of a loop began, for a later item of it: the process that asks a host, its answer's pipe; or the answer.
BEGUN: dict[str, tuple[int, int]] = {}
ENDED: dict[str, dict[str, Any]] = {}


def begin(host: str, work: Callable[[], dict[str, Any]]) -> None:
    """Ask a host in a process of its own; at most as many run as Ansible has forks."""
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
    """Wait for the answer of a host that was asked, and return it."""
    if host in ENDED:
        return ENDED.pop(host)
    pid, reader = BEGUN.pop(host)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    told: dict[str, Any] = json.loads(answer or '{"failed": true, "msg": "The process that asked it was killed."}')
    return told


class HostProgramAction(ActionBase):
    """Call a verb with its arguments.

    A `cutover`, and a `status` with a `release`, tell the host what that is to look like. A cutover takes along what
    was `brought` for it: an archive's `file`, its `sha256` and where it belongs (`dest`). `success_msg` is what there
    is to say when all went well. A `take_back` in two steps, each in a loop over hosts, asks all of them at once.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the host's answer, or `rc` and what was said when there is none."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        verb = self._task.args.get("verb")
        if verb not in VERBS:
            raise AnsibleActionFail(f"booty.deploy.host_program knows no verb '{verb}', but {', '.join(VERBS)}.")
        common = {"verb": {"type": "str"}, "success_msg": {"type": "str"}}
        _, arguments = self.validate_argument_spec({**common, **VERBS[verb]})
        message, attached = arguments.pop("success_msg"), b""
        del arguments["verb"]
        step, release = arguments.pop("step", None), arguments.get("release")
        if verb == "info":
            arguments |= NOTHING
        elif verb == "status":
            release = arguments.pop("release")
            arguments |= NOTHING if release is None else wanted(self.options(task_vars), release)
        else:
            arguments["by"] = f"{who()} {arguments['by']}"
        if verb in {"cutover", "take_back"}:
            arguments["run"] = RUN
        if verb == "cutover":
            brought = arguments.pop("brought")
            attached = Path(brought["file"]).read_bytes() if brought else b""
            arguments |= {name: brought.get(name, "") for name in ("dest", "sha256")}
            arguments |= wanted(self.options(task_vars), arguments.pop("release"))
            arguments["over_ssh"] = self._connection.transport == "ssh"
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
            result["msg"] = "\n".join([*result.get("notices", []), message])
            result["_ansible_verbose_always"] = True
        return result

    def ask(self, verb: str, arguments: dict[str, Any], attached: bytes = b"") -> dict[str, Any]:
        """Return a host's answer to a call. A host that is lost stays in the run, to be taken back if it returns."""
        try:
            return self.call(verb, arguments, attached)
        except AnsibleConnectionFailure as error:
            if verb not in {"cutover", "take_back"}:
                raise
            return {"failed": True, "state": "unreachable", "msg": f"It can't be reached any more: {error}"}

    def moved_on(
        self, before: dict[str, str], now: dict[str, str], release: str, task_vars: dict[str, Any] | None
    ) -> str:
        """Say that another run's release came between, and that a release descends from it; else nothing.

        Args:
            before: what the host answered as `seen` when the release was judged.
            now: what the cutover found there.
            release: the commit that is to serve.
            task_vars: Ansible's.
        """
        commits = before["release"], now["release"], release
        if commits[0] == commits[1] or not descends(self.options(task_vars)["app_repository"], *commits):
            return ""
        return f"Another run had it serve {commits[1]} meanwhile, from which {release} descends; so this one went on."

    def call(self, verb: str, arguments: dict[str, Any], attached: bytes = b"") -> dict[str, Any]:
        """Return a host's answer to a call, or `rc` and what was said when there is none."""
        call = {
            "app": self._templar.template(self._templar.available_variables["app_name"]),
            "verb": verb,
            "arguments": arguments,
            "check": self._task.check_mode,
            "size": len(CODE),
        }
        if self._connection.transport == "ssh":
            self._pin(verb)
        command = f"{PYTHON} -c {shlex.quote(START)}"
        if verb in DETACHED and not self._task.check_mode:
            scope = f"{call['app']}-{verb.replace('_', '-')}-{uuid.uuid4().hex[:8]}.scope"
            command = f"systemd-run --scope --quiet --collect --unit={scope} {command}"
        done = self._low_level_execute_command(command, in_data=json.dumps(call).encode() + b"\n" + CODE + attached)
        try:
            answer: dict[str, Any] = json.loads(done["stdout"].splitlines()[-1])
        except (IndexError, ValueError):
            said = (done["stderr"] or done["stdout"]).strip() or "no reason given"
            return {"failed": True, "rc": done["rc"], "msg": f"The host's Python said: {said}"}
        return answer

    def _pin(self, verb: str) -> None:
        """Set what this call needs of ssh, whatever a user's own ansible.cfg, shell or inventory sets.

        Without ServerAlive a controller would wait for ever for a host that is gone; an option of the user's own comes
        first and wins. With `retries` Ansible would send the call again when the connection is lost, while the host
        still works on the first one.
        """
        extra = self._connection.get_option("ssh_extra_args") or ""
        self._connection.set_option("ssh_extra_args", f"{extra} {ALIVE}".strip())
        if verb in DETACHED:
            self._connection.set_option("reconnection_retries", 0)

    def options(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Return the role's options for this host, each of its type.

        Raises:
            AnsibleActionFail: one is missing or not of its type.
        """
        known = variables.specs("app")
        given = self._templar.template({name: value for name, value in (task_vars or {}).items() if name in known})
        faults = variables.Faults([""])
        options: dict[str, Any] = variables.typed(given, "", faults)
        for name in (name for name, spec in known.items() if spec.get("required") and name not in given):
            faults.add(name, variables.NOT_SET, "")
        if found := [*faults]:
            raise AnsibleActionFail("\n".join(found))
        return options
