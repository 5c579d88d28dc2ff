"""Call Booty's program on a host: one Python, that reads the program and the call from its standard input.

An ordinary module would take three times as long for each call: it brings Ansible's own library along, and unpacks and
imports that first.
"""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

PROGRAM = Path(__file__).parent.parent / "files" / "booty_host"
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
    "info": {
        "user": {"type": "str", "required": True},
        "pointer": {"type": "str", "default": ""},
        "units": {"type": "dict", "default": {}},
    },
    "stage": {
        "dest": {"type": "str", "required": True},
        "sha256": {"type": "str", "required": True},
        "archive": {"type": "str", "default": ""},
        "url": {"type": "str", "default": ""},
    },
    "cutover": {
        "pointer": {"type": "str", "required": True},
        "units": {"type": "dict", "required": True},
        "keep": {"type": "int", "required": True},
        "by": {"type": "str", "required": True},
        "wait": {"type": "int", "default": 0},
        "dest": {"type": "str", "default": ""},
        "sha256": {"type": "str", "default": ""},
    },
    "record": {"message": {"type": "str", "required": True}, "fields": {"type": "dict", "required": True}},
    "status": {"pointer": {"type": "str", "default": ""}, "units": {"type": "dict", "default": {}}},
    "take_back": {
        "release": {"type": "str", "required": True},
        "by": {"type": "str", "required": True},
        "wait": {"type": "int", "default": 0},
    },
}


def program() -> bytes:
    """Return the program as a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(PROGRAM.glob("*.py")):
            archive.write(path, f"booty_host/{path.name}")
    return buffer.getvalue()


# Ansible loads this file once, before it forks for each task of each host.
CODE = program()


class ActionModule(ActionBase):
    """Call a verb with its arguments; `attach` names a file of the controller that goes along."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what was `asked` and the host's answer, or `rc` and what was said when there is none."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        verb = self._task.args.get("verb")
        if verb not in VERBS:
            raise AnsibleActionFail(f"booty_host knows no verb '{verb}', but {', '.join(VERBS)}.")
        common = {"verb": {"type": "str"}, "attach": {"type": "path"}}
        _, arguments = self.validate_argument_spec({**common, **VERBS[verb]})
        attach = arguments.pop("attach")
        del arguments["verb"]
        attached = Path(attach).read_bytes() if attach else b""
        # What was rendered for a question need not be rendered again for what follows from the answer.
        result["asked"] = arguments
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
            return {**result, **json.loads(done["stdout"].splitlines()[-1])}
        except (IndexError, ValueError):
            said = (done["stderr"] or done["stdout"]).strip() or "no reason given"
            return {**result, "failed": True, "rc": done["rc"], "msg": f"The host's Python said: {said}"}
