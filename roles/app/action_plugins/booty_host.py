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
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.plugins.filter.core import FilterModule
from ansible.plugins.test.core import TestModule
from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROLE = Path(__file__).parent.parent
# The Python that releases run with.
PYTHON = "/usr/bin/python3"
# Reads the call, then the program, which it imports from memory; what follows is the file that came along.
START = """
import json, os, sys
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
    },
    "status": {"release": {"type": "str"}},
    "take_back": {
        "release": {"type": "str", "required": True},
        "by": {"type": "str", "required": True},
        "wait": {"type": "int", "default": 0},
    },
}
UNITS = ("system-booty.slice", "booty.socket", "booty.service", "booty-candidate.service")


def program() -> bytes:
    """Return the program as a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((ROLE / "files" / "booty_host").glob("*.py")):
            archive.write(path, f"booty_host/{path.name}")
    return buffer.getvalue()


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
    for name in ("release.env", *UNITS):
        environment.get_template(f"{name}.j2")
    return environment


CODE = program()
# Which run of a playbook this is: a host goes back only from what the same run did there.
RUN = uuid.uuid4().hex
TEMPLATES = templates()
SPEC = yaml.load((ROLE / "meta/argument_specs.yml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
OPTIONS: dict[str, Any] = SPEC["argument_specs"]["main"]["options"]


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
        return TEMPLATES.get_template(f"{name}.j2").render(options, release=release, ansible_managed="Ansible managed")

    return {"pointer": render("release.env") if release else "", "units": {name: render(name) for name in UNITS}}


def who() -> str:
    """Return who runs this, and where: for those who meet the host's deploy lock, and for its journal."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # as in a container, with a user that has no name
        user = str(os.geteuid())
    return f"{user}@{os.uname().nodename}"


class ActionModule(ActionBase):
    """Call a verb with its arguments.

    A `cutover`, and a `status` with a `release`, tell the host what that is to look like. A cutover takes along what
    was `brought` for it: an archive's `file`, its `sha256` and where it belongs (`dest`). `success_msg` is what there
    is to say when all went well.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the host's answer, or `rc` and what was said when there is none."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        verb = self._task.args.get("verb")
        if verb not in VERBS:
            raise AnsibleActionFail(f"booty_host knows no verb '{verb}', but {', '.join(VERBS)}.")
        common = {"verb": {"type": "str"}, "success_msg": {"type": "str"}}
        _, arguments = self.validate_argument_spec({**common, **VERBS[verb]})
        message, attached = arguments.pop("success_msg"), b""
        del arguments["verb"]
        if verb == "info":
            arguments |= NOTHING
        elif verb == "status":
            release = arguments.pop("release")
            arguments |= NOTHING if release is None else wanted(self.options(task_vars), release)
        else:
            arguments |= {"by": f"{who()} {arguments['by']}", "run": RUN}
        if verb == "cutover":
            brought = arguments.pop("brought")
            attached = Path(brought["file"]).read_bytes() if brought else b""
            arguments |= {name: brought.get(name, "") for name in ("dest", "sha256")}
            arguments |= wanted(self.options(task_vars), arguments.pop("release"))
            arguments["over_ssh"] = self._connection.transport == "ssh"
        try:
            result |= self.call(verb, arguments, attached)
        except AnsibleConnectionFailure as error:
            if verb not in {"cutover", "take_back"}:
                raise
            # A host that is lost stays in the run, to be taken back should it be there again.
            result |= {"failed": True, "state": "unreachable", "msg": f"It can't be reached any more: {error}"}
        if message and not result.get("failed") and not self._task.check_mode:
            result["msg"] = "\n".join([*result.get("notices", []), message])
            result["_ansible_verbose_always"] = True
        return result

    def call(self, verb: str, arguments: dict[str, Any], attached: bytes = b"") -> dict[str, Any]:
        """Return a host's answer to a call, or `rc` and what was said when there is none."""
        call = {
            "verb": verb,
            "arguments": arguments,
            "check": self._task.check_mode,
            "size": len(CODE),
        }
        done = self._low_level_execute_command(
            f"{PYTHON} -I -c {shlex.quote(START)}", in_data=json.dumps(call).encode() + b"\n" + CODE + attached
        )
        try:
            answer: dict[str, Any] = json.loads(done["stdout"].splitlines()[-1])
        except (IndexError, ValueError):
            said = (done["stderr"] or done["stdout"]).strip() or "no reason given"
            return {"failed": True, "rc": done["rc"], "msg": f"The host's Python said: {said}"}
        return answer

    def options(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Return the role's options for this host, each of its type.

        Raises:
            AnsibleActionFail: one is missing or not of its type.
        """
        given = self._templar.template({name: value for name, value in (task_vars or {}).items() if name in OPTIONS})
        found = ArgumentSpecValidator(OPTIONS).validate(given, validate_role_argument_spec=True)
        if found.error_messages:
            raise AnsibleActionFail("\n".join(["Validation of arguments failed:", *found.error_messages]))
        options: dict[str, Any] = found.validated_parameters
        return options
