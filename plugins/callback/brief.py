"""What a person wants to know while a playbook runs: the wave, the step, its hosts, its seconds; and why one failed.

Only what changed something, says something or failed gets a line. With -v or more, Ansible's own output comes back, and
ANSIBLE_STDOUT_CALLBACK=default brings it back altogether.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from ansible import constants as C
from ansible.executor.stats import AggregateStats
from ansible.executor.task_result import CallbackTaskResult
from ansible.playbook.play import Play
from ansible.playbook.task import Task
from ansible.plugins.callback import default
from ansible.plugins.loader import test_loader

DOCUMENTATION = """
name: brief
type: stdout
short_description: the wave, the step, its hosts and its seconds; errors with their cause
description:
  - One line for each step that changed something, with its hosts; messages and errors in full; a word for each host.
  - A result that has a C(screen) is shown as it is, and nothing else goes to standard output. With
    C(-e status_format=json) all other lines go to standard error, and a run that fails before there is a screen ends
    with a JSON document of the same form.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

# What became of a host, the good first. Those that the host itself does not say are Ansible's own.
STATES = {
    "switched": C.COLOR_CHANGED,
    "changed": C.COLOR_CHANGED,
    "unchanged": C.COLOR_OK,
    "untouched": C.COLOR_OK,
    "taken back": C.COLOR_ERROR,
    "went back": C.COLOR_ERROR,
    "not switched": C.COLOR_ERROR,
    "failed": C.COLOR_ERROR,
    "unreachable": C.COLOR_UNREACHABLE,
}
INDENT = " " * 11


def names(hosts: list[str]) -> str:
    """Return hosts as a line has room for them."""
    return ", ".join(hosts) if len(hosts) <= 4 else f"{len(hosts)} hosts"


def cause(result: Mapping[str, Any]) -> str:
    """Return all that a failed result says of why, the message first."""
    said = [str(result.get("msg") or result.get("censored") or result.get("reason") or "No reason given.").strip()]
    if said[0] == "Assertion failed" and "assertion" in result:
        said.append(str(result["assertion"]))
    for name in ("stderr", "module_stderr", "stdout", "module_stdout"):
        text = str(result.get(name) or "").strip()
        if text and text not in "\n".join(said):
            said.append(text)
    return "\n".join(said)


def states(
    hosts: set[str], told: Mapping[str, str], away: set[str], summaries: Mapping[str, Mapping[str, int]]
) -> dict[str, list[str]]:
    """Sort hosts by what became of them.

    Args:
        hosts: all that the run was about.
        told: what hosts themselves said became of them, in one of the words of STATES.
        away: those that could not be reached, be that the run's end or not.
        summaries: Ansible's counts of those that it got to.
    """
    found: dict[str, list[str]] = {}
    for host in sorted(hosts):
        counts = summaries.get(host, {})
        if host in told:
            state = told[host]
        elif host in away:
            state = "unreachable"
        elif counts.get("failures"):
            state = "failed"
        elif told or not counts:  # it was about switching, and this one was not
            state = "untouched"
        else:
            state = "changed" if counts["changed"] else "unchanged"
        found.setdefault(state, []).append(host)
    return dict(sorted(found.items(), key=lambda item: list(STATES).index(item[0])))


def brief(method: Callable[..., None]) -> Callable[..., None]:
    """Leave the event to Ansible's own output when that is asked for."""

    @wraps(method)
    def chosen(self: CallbackModule, *arguments: Any, **named: Any) -> None:
        if self._display.verbosity:
            getattr(default.CallbackModule, method.__name__)(self, *arguments, **named)
        else:
            method(self, *arguments, **named)

    return chosen


class CallbackModule(default.CallbackModule):
    """Ansible's own output, but for what is brief."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "booty.deploy.brief"

    def __init__(self) -> None:
        super().__init__()
        # What nearly each task's process would load for itself.
        list(test_loader.all())
        # What is loaded by now stays. Looking through it again and again for what may go costs a tenth of a run, and
        # copies its pages into each task's process.
        gc.freeze()
        self._began = time.monotonic()
        self._starts: dict[str, float] = {}
        self._heading = ""
        self._play_name, self._waves = "", 0
        self._step: tuple[Task, list[str], list[str], float] | None = None
        self._hosts: set[str] = set()
        self._said: dict[str, str] = {}
        self._last = ("", "")
        self._told: dict[str, str] = {}
        self._away: set[str] = set()
        self._unpruned: list[str] = []
        self._screen = self._json = False
        # One line that comes and goes: what is under way. Only where it can be taken back.
        self._live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    # What is going on

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Note the play, or the wave of it; a line says so once there is something to say below it."""
        self._flush()
        name = play.get_name().strip()
        told = play.get_variable_manager().get_vars(play=play)
        everyone, batch = told.get("ansible_play_hosts_all", []), told.get("ansible_play_batch", [])
        # Only an extra variable beats the play's own default.
        self._json = told.get("status_format") == "json" and not self._display.verbosity
        self._hosts.update(set(everyone) - {"localhost"})
        self._waves = self._waves + 1 if name == self._play_name else 1
        self._play_name = name
        wave = f"wave {self._waves}: " if play.serial and len(everyone) > 1 else ""
        parts = [name, f"{wave}{names(batch)}", "check: nothing is changed" if play.check_mode else ""]
        self._heading = " · ".join(part for part in parts if part)
        if self._display.verbosity:
            super().v2_playbook_on_play_start(play)

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        """Note when a step begins, and show it while it is under way."""
        self._flush()
        self._starts[task._uuid] = time.monotonic()
        if self._display.verbosity:
            super().v2_playbook_on_task_start(task, is_conditional)
        elif self._live:
            text = f"{INDENT}… {task.name or task.get_name()}"[: self._display.columns]
            # The cursor stays at the line's beginning, so that whatever comes next is written over it.
            sys.stdout.write(f"\033[K{text}\r")
            sys.stdout.flush()

    @brief
    def v2_playbook_on_handler_task_start(self, task: Task) -> None:
        """A handler is a step like others."""
        self.v2_playbook_on_task_start(task, False)

    @brief
    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Of a file that is included, its steps are what counts."""

    @brief
    def v2_playbook_on_no_hosts_matched(self) -> None:
        """That there is a host is what the first play sees to."""

    @brief
    def v2_playbook_on_no_hosts_remaining(self) -> None:
        """The hosts' own lines have said why."""

    # What became of a step

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Show what changed, and what has a message."""
        self._note(result)
        if self._show_screen(result):
            return
        if self._display.verbosity:
            super().v2_runner_on_ok(result)
            return
        self._handle_warnings(result.result)
        said = [] if "results" in result.result else self._message(result)
        if result.result.get("changed"):
            if not self._step or self._step[0]._uuid != result.task._uuid:
                self._flush()
                self._step = (result.task, [], [], 0.0)
            _, hosts, messages, _ = self._step
            hosts.append(result.host.get_name())
            messages += said
            self._step = (result.task, hosts, messages, self._seconds(result.task))
        else:
            self._tell(said)

    @brief
    def v2_runner_item_on_ok(self, result: CallbackTaskResult) -> None:
        """Show an item's message; that it changed something is said once for all of them."""
        self._note(result)
        self._handle_warnings(result.result)
        self._tell(self._message(result))

    @brief
    def v2_runner_on_skipped(self, result: CallbackTaskResult) -> None:
        """Nothing happened."""
        self._handle_warnings(result.result)

    @brief
    def v2_runner_item_on_skipped(self, result: CallbackTaskResult) -> None:
        """Nothing happened."""

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """Show why, all of it, once."""
        self._note(result)
        if self._show_screen(result):
            return
        if self._display.verbosity:
            super().v2_runner_on_failed(result, ignore_errors)
        elif result.task.args.get("verb") == "status":
            pass  # the host's row says it
        elif not (result.task.loop and "results" in result.result):  # else its items have said it
            self._failure("FAILED (ignored)" if ignore_errors else "FAILED", result, cause(result.result))

    @brief
    def v2_runner_item_on_failed(self, result: CallbackTaskResult) -> None:
        """Show why."""
        item = self._get_item_label(result.result)
        self._failure("FAILED", result, f"{item}: {cause(result.result)}")

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """Show why, unless the host's row of the status screen will."""
        self._away.add(result.host.get_name())
        if self._display.verbosity:
            super().v2_runner_on_unreachable(result)
        elif result.task.args.get("verb") != "status":
            self._failure("UNREACHABLE", result, cause(result.result))

    @brief
    def v2_on_file_diff(self, result: CallbackTaskResult) -> None:
        """Show what changes in files, and on which host."""
        results = result.result.get("results", [result.result])
        for diff in (each["diff"] for each in results if each.get("diff") and each.get("changed")):
            if text := self._get_diff(diff):
                self._head()
                self._line(f"{INDENT}{self.host_label(result)}: {result.task.name}", C.COLOR_DIFF_LINES)
                self._display.display(text)

    # What became of the hosts

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        """Show Ansible's counts, and what became of each host in a word."""
        self._flush()
        if self._screen:
            return
        if self._json:
            rows = [{"host": host, "level": "broken", "notes": [said]} for host, said in self._said.items()]
            counts = {"hosts": len(rows), "levels": {"ok": 0, "look": 0, "broken": len(rows)}}
            document = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "summary": {**counts, "releases": {}, "drifting": []},
                "hosts": rows,
                "message": "No host was asked.",
            }
            self._display.display(json.dumps(document, indent=2))
            return
        super().v2_playbook_on_stats(stats)
        summaries = {host: stats.summarize(host) for host in stats.processed}
        failed = {host for host, counts in summaries.items() if counts["failures"]}
        for state, hosts in states(self._hosts | failed, self._told, self._away, summaries).items():
            self._line(f"{state:<13}{', '.join(hosts)}", STATES[state])
        for line in self._unpruned:
            self._line(line, C.COLOR_WARN)
        self._line(f"{time.monotonic() - self._began:.1f} s")

    # How it is shown

    def _line(self, text: str, color: str | None = None) -> None:
        """Write lines, over the one that shows what is under way."""
        if self._live:
            sys.stdout.write("\033[K")
        self._display.display(text, color=color, stderr=self._json)

    def _head(self) -> None:
        """Say which play, or wave, the next lines are about, unless that was said."""
        self._flush()
        if self._heading:
            self._line(f"\n{self._heading}", C.COLOR_HIGHLIGHT)
            self._heading = ""

    def _seconds(self, task: Task) -> float:
        now = time.monotonic()
        return now - self._starts.get(task._uuid, now)

    def _flush(self) -> None:
        """Write the line of the step that changed something, and what it has to say."""
        if self._step:
            (task, hosts, messages, seconds), self._step = self._step, None
            self._head()
            self._line(f"{seconds:7.1f} s  {task.name or task.get_name()} · {names(sorted(hosts))}", C.COLOR_CHANGED)
            self._tell(messages)

    def _message(self, result: CallbackTaskResult) -> list[str]:
        """Return what a result has to say to a person, if anything."""
        told = result.result
        if not told.get("_ansible_verbose_always") or told.get("msg") == "All assertions passed":
            return []
        self._clean_results(told, result.task.action)
        return [self._plain(told.get("msg", told))]

    def _tell(self, messages: list[str]) -> None:
        """Write what there is to say to a person."""
        if messages:
            self._head()
        for message in messages:
            self._line(textwrap.indent(message, INDENT), C.COLOR_OK)

    def _plain(self, said: Any) -> str:
        """Return a message as text, its lines as they are."""
        if isinstance(said, str):
            return said
        if isinstance(said, list) and all(isinstance(line, str) for line in said):
            return "\n".join(said)
        return textwrap.dedent(self._dump_results(said if isinstance(said, Mapping) else {"msg": said})).strip()

    def _failure(self, word: str, result: CallbackTaskResult, said: str) -> None:
        """Write that and why a step failed; what was just written of this host, or of another one, is not repeated."""
        self._handle_warnings(result.result)
        self._head()
        host, color = self.host_label(result), C.COLOR_UNREACHABLE if word == "UNREACHABLE" else C.COLOR_ERROR
        self._line(f"{self._seconds(result.task):7.1f} s  {word} · {result.task.name} · {host}", color)
        before, self._said[host] = self._said.get(host, ""), said
        if (result.task._uuid, said) != self._last:
            self._line(textwrap.indent(said.removeprefix(before).strip() or "as above", INDENT), color)
        self._last = (result.task._uuid, said)

    def _note(self, result: CallbackTaskResult) -> None:
        """Note what a host says became of it, and what it could not remove; of a delegated task, the other host's."""
        told, state = result.result, result.result.get("state")
        host = str(result.task.delegate_to or result.host.get_name())
        if isinstance(state, str) and state in STATES:
            self._told[host] = state
        if unpruned := told.get("unpruned"):
            self._unpruned.append(f"{host}: {unpruned}")

    def _show_screen(self, result: CallbackTaskResult) -> bool:
        """Show a result that is a screen of its own; standard output is then a file or a pipe like any other."""
        if "screen" not in result.result:
            return False
        self._handle_warnings(result.result)
        self._screen = True
        if result.result["screen"]:
            self._display.display(result.result["screen"])
        if message := result.result.get("msg"):
            self._display.display(message, color=C.COLOR_ERROR, stderr=True)
        return True
