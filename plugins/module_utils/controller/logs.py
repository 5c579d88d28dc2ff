"""Show the lines of all hosts in one stream, ordered by time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.color import stringc
from ansible.utils.display import Display

from . import screen
from .host_program import HostProgramAction
from .view import first_line

# A host keeps its color in a run; the colors of failures are left out.
COLORS = ("cyan", "green", "yellow", "magenta", "bright blue", "bright cyan", "bright green", "bright purple")
# Seconds that a host waits for a new line before it answers.
WAIT = 5
# Seconds before a host that can't be reached any more is asked again.
PAUSE = 5


def shown(host: str, hosts: list[str], records: Iterable[list[Any]]) -> list[tuple[int, str]]:
    """Return the time of each record, and its lines with time, host and process at the start of each.

    Args:
        host: the host of the records.
        hosts: all hosts of the run, which decide the width of the column and the color.
        records: the answer of the verb logs.
    """
    name = stringc(host.ljust(max(map(len, hosts))), COLORS[hosts.index(host) % len(COLORS)])
    result = []
    for microseconds, process, message in records:
        at = datetime.fromtimestamp(microseconds / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        lines = message.splitlines() or [""]
        result.append((microseconds, "\n".join(f"{at} {name} {process:<9} {line}" for line in lines)))
    return result


def problem(answer: dict[str, Any]) -> str:
    """Return the reason why a host gave no lines; "" if it gave them."""
    if "records" in answer:
        return ""
    if answer.get("unreachable"):
        return f"can't be reached: {first_line(answer)}"
    return "has no Python: run bootstrap.yml" if answer.get("rc") == 127 else first_line(answer)


class LogsAction(ActionBase):
    """Show the `answers` of hosts to the verb logs, merged by time."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the lines as `screen`; fail if a host gave none, unless the hosts are followed next."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "answers": {"type": "dict", "required": True},
                "follow": {"type": "bool", "default": False},
            }
        )
        answers = arguments["answers"]
        hosts = [*answers]
        lines = [line for host in hosts for line in shown(host, hosts, answers[host].get("records", []))]
        text = "\n".join(text for _, text in sorted(lines, key=lambda line: line[0]))
        problems = [f"{host} {reason}" for host, answer in answers.items() if (reason := problem(answer))]
        others = [answer["others"] for answer in answers.values() if "others" in answer]
        if others and all(others):
            names = ", ".join(sorted({name for names in others for name in names}))
            problems.append(f"There are no lines of this process. There are: {names}.")
        if cut := [host for host, answer in answers.items() if answer.get("cut")]:
            problems.append(
                f"Older lines of {', '.join(cut)} are left out. To see them: -e lines=5000, or one -e process=NAME"
            )
        failed = len(problems) > bool(cut) and not arguments["follow"]
        if C.DEFAULT_STDOUT_CALLBACK != "booty.deploy.brief" and text:  # another callback does not show a `screen`
            Display().display(text)
        return {**result, "screen": text, "failed": failed, "msg": "\n".join(problems)}


class FollowAction(HostProgramAction):
    """Show the new lines of a host `after` an answer of the verb logs, until a person ends the run."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Never return."""
        ActionBase.run(self, tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {"after": {"type": "str", "required": True}, "process": {"type": "str", "default": ""}}
        )
        host, hosts = (task_vars or {})["inventory_hostname"], (task_vars or {})["ansible_play_hosts_all"]
        call = {"lines": 1, "since": "", "process": arguments["process"], "after": arguments["after"], "wait": WAIT}
        away = ""
        while True:
            try:
                answer = self.call("logs", call)
                reason = problem(answer)
            except AnsibleConnectionFailure as error:
                answer, reason = {}, f"can't be reached any more: {str(error).strip().splitlines()[-1]}"
            if reason:
                if reason != away:
                    screen.write(f"{host} {reason}", color=C.COLOR_ERROR, stderr=True)
                time.sleep(PAUSE)
            elif answer["records"]:
                screen.write("\n".join(text for _, text in shown(host, hosts, answer["records"])))
            away = reason
            call["after"] = answer.get("after", call["after"])
