"""Show for each step of a playbook its wave, its hosts and its seconds, and for a failure its reason.

A step gets a line if it changed a host, has a message or failed. -v adds Ansible's own output, and
ANSIBLE_STDOUT_CALLBACK=default shows nothing but that.
"""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from ansible_collections.booty.deploy.plugins.module_utils.controller.screen import harmless

DOCUMENTATION = """
name: brief
type: stdout
short_description: the wave, the step, its hosts and its seconds; errors with their cause
description:
  - One line for each step that changed something, with its hosts; messages and errors in full; a word for each host.
  - In GitHub Actions and GitLab CI, the lines of a play or a wave are a part that the log's viewer can fold, up to a
    failure.
  - A result that has a C(screen) is shown as it is, and nothing else goes to standard output. With
    C(-e status_format=json) all other lines go to standard error, and a run that fails before there is a screen ends
    with a JSON document of the same form.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

# The states of a host at the end of a run, the good ones first. The host program reports some of them as `state`; the
# others come from Ansible's counts.
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
# The verbs whose failures a screen of all hosts shows.
SHOWN_LATER = {"status", "logs", "history"}
# The actions that write their own lines.
LIVE = {"booty.deploy.follow", "booty.deploy.command"}


# The lines that begin and end a part of a log, which the log's viewer can fold. TIME is in seconds since 1970.
FOLDS = {
    "GITHUB_ACTIONS": ("::group::HEADING", "::endgroup::"),
    "GITLAB_CI": (
        "\033[0Ksection_start:TIME:NAME\r\033[0KHEADING",
        "\033[0Ksection_end:TIME:NAME\r\033[0K",
    ),
}


def names(hosts: list[str]) -> str:
    """Return the names of at most four hosts, or the number of hosts."""
    return ", ".join(hosts) if len(hosts) <= 4 else f"{len(hosts)} hosts"


def problem(result: Mapping[str, Any]) -> str:
    """Return the message and the output of a failed result."""
    texts = [str(result.get("msg") or result.get("censored") or result.get("reason") or "No reason given.").strip()]
    if texts[0] == "Assertion failed" and "assertion" in result:
        texts.append(str(result["assertion"]))
    for name in ("stderr", "module_stderr", "stdout", "module_stdout"):
        text = str(result.get(name) or "").strip()
        if text and text not in "\n".join(texts):
            texts.append(text)
    return "\n".join(texts)


def states(
    hosts: set[str], reported: Mapping[str, str], unreachable: set[str], summaries: Mapping[str, Mapping[str, int]]
) -> dict[str, list[str]]:
    """Return the hosts by their states at the end of a run.

    Args:
        hosts: all hosts of the run.
        reported: the `state` that the host program reported, by host.
        unreachable: the hosts that Ansible could not reach, even if it ignored that.
        summaries: Ansible's counts, by host.
    """
    by_state: dict[str, list[str]] = {}
    for host in sorted(hosts):
        counts = summaries.get(host, {})
        if host in reported:
            state = reported[host]
        elif host in unreachable:
            state = "unreachable"
        elif counts.get("failures"):
            state = "failed"
        elif reported or not counts:  # the run switches hosts, and did not switch this one
            state = "untouched"
        else:
            state = "changed" if counts["changed"] else "unchanged"
        by_state.setdefault(state, []).append(host)
    return dict(sorted(by_state.items(), key=lambda item: list(STATES).index(item[0])))


def brief(method: Callable[..., None]) -> Callable[..., None]:
    """Decorate a handler of an event: with -v, Ansible's own handler runs instead."""

    @wraps(method)
    def chosen(self: CallbackModule, *arguments: Any, **named: Any) -> None:
        if self._display.verbosity:
            getattr(default.CallbackModule, method.__name__)(self, *arguments, **named)
        else:
            method(self, *arguments, **named)

    return chosen


class CallbackModule(default.CallbackModule):
    """Ansible's own callback, with shorter output without -v."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "booty.deploy.brief"

    def __init__(self) -> None:
        super().__init__()
        # Load the test plugins before Ansible forks: the process of nearly each task would load them again.
        list(test_loader.all())
        # Exclude the loaded objects from garbage collection. Each collection would examine them, which takes a tenth of
        # a run, and would copy their memory pages into the process of each task.
        gc.freeze()
        self._began = time.monotonic()
        self._starts: dict[str, float] = {}
        self._heading = ""
        self._play_name, self._waves = "", 0
        self._step: tuple[Task, list[str], list[str], float] | None = None
        self._hosts: set[str] = set()
        self._failures: dict[str, str] = {}
        self._last_failure = ("", "")
        self._states: dict[str, str] = {}
        self._unreachable: set[str] = set()
        self._unpruned: list[str] = []
        self._screen = self._json = False
        self._folds = next((lines for name, lines in FOLDS.items() if os.environ.get(name) == "true"), None)
        self._fold = ""
        # Whether a line shows the step that is under way: only a terminal can replace it.
        self._live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        # A pipe or a file gets each line at once too: some actions show the output of a host while it comes.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)

    # Plays and tasks

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Prepare the heading of a play or a wave; it is shown above the first line that follows."""
        self._flush()
        name = play.get_name().strip()
        variables = play.get_variable_manager().get_vars(play=play)
        hosts, batch = variables.get("ansible_play_hosts_all", []), variables.get("ansible_play_batch", [])
        self._json = variables.get("status_format") == "json" and not self._display.verbosity
        self._hosts.update(set(hosts) - {"localhost"})
        self._waves = self._waves + 1 if name == self._play_name else 1
        self._play_name = name
        wave = f"wave {self._waves}: " if play.serial and len(hosts) > 1 else ""
        parts = [name, f"{wave}{names(batch)}", "check: nothing is changed" if play.check_mode else ""]
        self._heading = " · ".join(part for part in parts if part)
        if self._display.verbosity:
            super().v2_playbook_on_play_start(play)

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        """Record the start of a step, and show the step on a terminal until the next line."""
        self._flush()
        self._starts[task._uuid] = time.monotonic()
        if self._display.verbosity:
            super().v2_playbook_on_task_start(task, is_conditional)
        elif task.action in LIVE:
            if self._live:
                sys.stdout.write("\033[K")
            if task.action == "booty.deploy.follow":
                self._end_cleanly()
            elif task.args.get("kind") != "run":
                self._head()
        elif self._live:
            text = f"{INDENT}… {task.name or task.get_name()}"[: self._display.columns]
            # \r moves the cursor to the start of the line, so the next line overwrites this one.
            sys.stdout.write(f"\033[K{text}\r")
            sys.stdout.flush()

    def _end_cleanly(self) -> None:
        """Make Ctrl-C the ordinary end of a run: exit status 0, or 2 if a host could not be reached.

        Ansible's own handler still ends the processes of the tasks.
        """
        end_tasks = signal.getsignal(signal.SIGINT)

        def end(number: int, frame: Any) -> None:
            with suppress(KeyboardInterrupt):
                end_tasks(number, frame)  # type: ignore[operator, misc]
            raise SystemExit(2 if self._unreachable else 0)

        signal.signal(signal.SIGINT, end)

    @brief
    def v2_playbook_on_handler_task_start(self, task: Task) -> None:
        """Show a handler like any other step."""
        self.v2_playbook_on_task_start(task, False)

    @brief
    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Show nothing: the steps of the included file follow."""

    @brief
    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Show nothing: the filter `refuse` ends a run without a host."""

    @brief
    def v2_playbook_on_no_hosts_remaining(self) -> None:
        """Show nothing: the failures of the hosts were shown."""

    # Results of tasks

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Show a result that changed its host or has a message."""
        self._record(result)
        if self._show_screen(result):
            return
        if self._display.verbosity:
            super().v2_runner_on_ok(result)
            return
        self._handle_warnings(result.result)
        texts = [] if "results" in result.result else self._message(result)
        if result.result.get("changed"):
            if not self._step or self._step[0]._uuid != result.task._uuid:
                self._flush()
                self._step = (result.task, [], [], 0.0)
            _, hosts, messages, _ = self._step
            hosts.append(result.host.get_name())
            messages += texts
            self._step = (result.task, hosts, messages, self._seconds(result.task))
        else:
            self._show_messages(texts)

    @brief
    def v2_runner_item_on_ok(self, result: CallbackTaskResult) -> None:
        """Show the message of an item; the result of the loop shows whether items changed their hosts."""
        self._record(result)
        self._handle_warnings(result.result)
        self._show_messages(self._message(result))

    @brief
    def v2_runner_on_skipped(self, result: CallbackTaskResult) -> None:
        """Show only the warnings."""
        self._handle_warnings(result.result)

    @brief
    def v2_runner_item_on_skipped(self, result: CallbackTaskResult) -> None:
        """Show nothing."""

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """Show the whole problem once."""
        self._record(result)
        if self._show_screen(result):
            return
        if self._display.verbosity:
            super().v2_runner_on_failed(result, ignore_errors)
        elif result.task.args.get("verb") in SHOWN_LATER:
            pass  # the screen of all hosts shows the problem
        elif not (result.task.loop and "results" in result.result):  # the items of a loop were shown
            self._failure("FAILED (ignored)" if ignore_errors else "FAILED", result, problem(result.result))

    @brief
    def v2_runner_item_on_failed(self, result: CallbackTaskResult) -> None:
        """Show the problem of an item."""
        item = self._get_item_label(result.result)
        self._failure("FAILED", result, f"{item}: {problem(result.result)}")

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """Show the problem, unless the screen of all hosts shows it."""
        self._unreachable.add(result.host.get_name())
        if self._display.verbosity:
            super().v2_runner_on_unreachable(result)
        elif result.task.args.get("verb") not in SHOWN_LATER:
            self._failure("UNREACHABLE", result, problem(result.result))

    @brief
    def v2_on_file_diff(self, result: CallbackTaskResult) -> None:
        """Show the changes of files with their host."""
        results = result.result.get("results", [result.result])
        for diff in (each["diff"] for each in results if each.get("diff") and each.get("changed")):
            if text := self._get_diff(diff):
                self._head()
                self._line(f"{INDENT}{self.host_label(result)}: {result.task.name}", C.COLOR_DIFF_LINES)
                self._display.display(text)

    # The end of a run

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        """Show Ansible's counts, and the state of each host."""
        self._flush()
        self._unfold()
        if self._screen:
            return
        if self._json:
            rows = [{"host": host, "level": "broken", "notes": [text]} for host, text in self._failures.items()]
            counts = {"hosts": len(rows), "levels": {"ok": 0, "look": 0, "broken": len(rows)}}
            document = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "summary": {**counts, "releases": {}, "drifting": []},
                "hosts": rows,
                "runs": [],
                "remarks": [],
                "message": "No host was asked.",
            }
            self._display.display(json.dumps(document, indent=2))
            return
        super().v2_playbook_on_stats(stats)
        summaries = {host: stats.summarize(host) for host in stats.processed}
        failed = {host for host, counts in summaries.items() if counts["failures"]}
        for state, hosts in states(self._hosts | failed, self._states, self._unreachable, summaries).items():
            self._line(f"{state:<13}{', '.join(hosts)}", STATES[state])
        for line in self._unpruned:
            self._line(line, C.COLOR_WARN)
        self._line(f"{time.monotonic() - self._began:.1f} s")

    # Output

    def _line(self, text: str, color: str | None = None) -> None:
        """Write lines over the line of the step that is under way."""
        if self._live:
            sys.stdout.write("\033[K")
        self._display.display(text, color=color, stderr=self._json)

    def _head(self) -> None:
        """Write the heading of the play or wave, once."""
        self._flush()
        if self._heading:
            self._unfold()
            if self._folds and not self._json:
                self._fold = f"booty_{self._waves}_{time.monotonic_ns()}"
                self._line(self._marker(self._folds[0]).replace("HEADING", self._heading))
            else:
                self._line(f"\n{self._heading}", C.COLOR_HIGHLIGHT)
            self._heading = ""

    def _marker(self, line: str) -> str:
        """Return a line of FOLDS for the part that is under way."""
        return line.replace("TIME", str(int(time.time()))).replace("NAME", self._fold)

    def _unfold(self) -> None:
        """End the part of the log that is under way, so that what follows is not folded."""
        if self._folds and self._fold:
            self._line(self._marker(self._folds[1]))
            self._fold = ""

    def _seconds(self, task: Task) -> float:
        now = time.monotonic()
        return now - self._starts.get(task._uuid, now)

    def _flush(self) -> None:
        """Write the line of the last step that changed hosts, and its messages."""
        if self._step:
            (task, hosts, messages, seconds), self._step = self._step, None
            self._head()
            self._line(f"{seconds:7.1f} s  {task.name or task.get_name()} · {names(sorted(hosts))}", C.COLOR_CHANGED)
            self._show_messages(messages)

    def _message(self, result: CallbackTaskResult) -> list[str]:
        """Return the message of a result, as a list of one or none."""
        values = result.result
        if not values.get("_ansible_verbose_always") or values.get("msg") == "All assertions passed":
            return []
        self._clean_results(values, result.task.action)
        return [self._plain(values.get("msg", values))]

    def _show_messages(self, messages: list[str]) -> None:
        if messages:
            self._head()
        for message in messages:
            self._line(textwrap.indent(harmless(message), INDENT), C.COLOR_OK)

    def _plain(self, message: Any) -> str:
        """Return a message as text: strings and lists of strings unchanged, other values as YAML."""
        if isinstance(message, str):
            return message
        if isinstance(message, list) and all(isinstance(line, str) for line in message):
            return "\n".join(message)
        values = message if isinstance(message, Mapping) else {"msg": message}
        return textwrap.dedent(self._dump_results(values)).strip()

    def _failure(self, word: str, result: CallbackTaskResult, text: str) -> None:
        """Write a failure, without the text that was already written about this host or about this step."""
        self._handle_warnings(result.result)
        self._head()
        self._unfold()
        host, color = self.host_label(result), C.COLOR_UNREACHABLE if word == "UNREACHABLE" else C.COLOR_ERROR
        self._line(f"{self._seconds(result.task):7.1f} s  {word} · {result.task.name} · {host}", color)
        before, self._failures[host] = self._failures.get(host, ""), text
        if (result.task._uuid, text) != self._last_failure:
            new = harmless(text.removeprefix(before).strip()) or "as above"
            self._line(textwrap.indent(new, INDENT), color)
        self._last_failure = (result.task._uuid, text)

    def _record(self, result: CallbackTaskResult) -> None:
        """Record the `state` and the `unpruned` releases of a host; for a delegated task, those of the other host."""
        state = result.result.get("state")
        host = str(result.task.delegate_to or result.host.get_name())
        if isinstance(state, str) and state in STATES:
            self._states[host] = state
        if unpruned := result.result.get("unpruned"):
            self._unpruned.append(f"{host}: {unpruned}")

    def _show_screen(self, result: CallbackTaskResult) -> bool:
        """Show a result with a `screen`, the only text on standard output; return whether there is one."""
        if "screen" not in result.result:
            return False
        self._handle_warnings(result.result)
        self._screen = True
        if result.result["screen"]:
            self._display.display(result.result["screen"])
        if message := result.result.get("msg"):
            self._display.display(harmless(message), color=C.COLOR_ERROR, stderr=True)
        return True
