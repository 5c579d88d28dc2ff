"""Run a command of a release on a host, and show its output while it comes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from . import screen
from .host_program import HostProgramAction, config_of, rendered, who
from .playbook import completed

# Seconds that a host waits for new output before it answers.
WAIT = 10
INDENT = " " * 11


def typed(options: Iterable[str], command: str) -> str:
    """Return the command as a person typed it.

    Ansible takes only the first word of `-e command='python manage.py check'`, since the shell has removed the quotes.

    Args:
        options: the values of `-e`.
        command: what Ansible made of them.
    """
    for option in options:
        name, _, value = option.partition("=")
        if name == "command" and value[:1] not in {"'", '"'}:
            command = value
    return command


class CommandAction(HostProgramAction):
    """Run one `command` on the running release, or the `commands` that a release needs once.

    The kind `run` shows the output as it is, and a command that fails is no failed task: the exit status is in the
    result. The kinds `release` and `post-deploy` fail with the command.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `status`, the exit status; for a kind other than `run` also `commands`, the host's records."""
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "kind": {"type": "str", "choices": ["run", "release", "post-deploy"], "required": True},
                "commands": {"type": "list", "elements": "str", "required": True},
                "release": {"type": "str", "default": ""},
                "seconds": {"type": "int", "default": 0},
                "known": {"type": "list", "elements": "dict", "default": []},
                "seen": {"type": "dict", "default": {}},
                "wait": {"type": "int", "default": 0},
            }
        )
        kind, commands, release = arguments["kind"], arguments["commands"], arguments["release"]
        host = (task_vars or {})["inventory_hostname"]
        if kind == "run":
            commands = [typed(context.CLIARGS.get("extra_vars", ()), commands[0])]
            verb, call = "run_command", {"command": commands[0], "by": f"{who()} runs a command"}
        else:
            options = self.options(task_vars)
            texts = {**rendered(options, release, {}), **config_of(options)}
            by = f"{who()} runs the {kind} command of {release}"
            verb, call = "release_command", {**arguments, **texts, "by": by}
            del call["release"]
        if self._task.check_mode:
            result["_ansible_verbose_always"] = True
            return {**result, "changed": True, "msg": f"Would run on {host}: {'; '.join(commands)}"}
        answer = self.call(verb, call)
        if "name" not in answer:
            return {**result, **answer, "failed": True}
        if kind == "run":
            end = self.show(
                answer["name"], lambda stream, text: screen.write(text, stderr=stream == "err", newline=False)
            )
            return {**result, "changed": True, "status": end["status"], "screen": ""}

        last = ""

        def show(_: str, text: str) -> None:
            nonlocal last
            last = next((screen.plain(line) for line in reversed(text.splitlines()) if line.strip()), last)
            screen.write(textwrap.indent(screen.harmless(text.rstrip("\n")), INDENT))

        screen.write(f"{INDENT}The {kind} command on {host}: {'; '.join(commands)}")
        end = self.show(answer["name"], show)
        if end["status"]:
            after = {
                "release": "No host was switched.",
                "post-deploy": "The hosts serve the release, and stay on it. The next deploy runs the command again.",
            }
            # The output was shown; a notification has this message alone, so the last line stands here too.
            message = f"The {kind} command of {release} failed on {host}: {end['reason']}\n{after[kind]}\n{last}"
            message = completed(message.strip(), task_vars or {})
            return {**result, **end, "changed": True, "failed": True, "msg": message}
        if end["reason"]:
            screen.write(f"{INDENT}{screen.harmless(end['reason'])}")
        return {**result, **end, "changed": not end["reason"]}

    def show(self, name: str, write: Callable[[str, str], None]) -> dict[str, Any]:
        """Show the output of a command until it ends, and return the `end` of the host's last answer.

        Raises:
            AnsibleActionFail: the host no longer has the command's output.
        """
        call = {"name": name, "offset": 0, "wait": WAIT}
        while True:
            answer = self.call("output", call)
            if "records" not in answer:
                raise AnsibleActionFail(answer["msg"])
            call["offset"] = answer["offset"]
            texts: list[tuple[str, str]] = []
            for record in answer["records"]:
                if "end" in record:
                    for stream, text in texts:
                        write(stream, text)
                    end: dict[str, Any] = record["end"]
                    return end
                for stream, text in record.items():
                    if stream != "pid" and texts and texts[-1][0] == stream:
                        texts[-1] = stream, texts[-1][1] + text
                    elif stream != "pid":
                        texts.append((stream, text))
            for stream, text in texts:
                write(stream, text)
