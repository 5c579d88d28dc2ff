"""Follow a deploy or a rollback, and call app_notify_command for its events."""

from __future__ import annotations

import atexit
import signal
from typing import Any

from ansible import constants as C
from ansible.executor.stats import AggregateStats
from ansible.executor.task_result import CallbackTaskResult
from ansible.playbook.play import Play
from ansible.playbook.task import Task
from ansible.plugins.callback import CallbackBase
from ansible_collections.booty.deploy.plugins.callback.brief import problem
from ansible_collections.booty.deploy.plugins.module_utils.controller import notify

DOCUMENTATION = """
name: notify
type: notification
short_description: calls app_notify_command for the events of a deploy or a rollback
description:
  - Calls the command in the variable C(app_notify_command) with a JSON document on its standard input, when a deploy or
    a rollback begins to change hosts, goes back, was watched, and ends.
  - A command that fails or takes too long is named at the end of the run, and changes nothing of the run.
requirements:
  - enabled in the configuration by C(callbacks_enabled = booty.deploy.notify)
"""

CUT_OFF = "The run was cut off on the controller. Each host ends the step that it had begun."


class CallbackModule(CallbackBase):
    """Turn the results of tasks into events."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "booty.deploy.notify"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._run = notify.Run()
        self._play: Play | None = None
        # Any host of the run: the options are equal on all.
        self._host: Any = None
        self._sender: notify.Sender | None = None
        self._begun = self._went_back = self._ended = False

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Keep the play, which knows the hosts of the wave and their variables."""
        self._play = play

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        """Begin with the first step that changes a host, and tell that hosts are taken back."""
        if self._sender:
            self._sender.look()
        verb = task.args.get("verb")
        if task.action == "booty.deploy.stage" or verb in {"cutover", "give_up"}:
            self._begin()
        if verb == "cutover":
            for host in self._wave() & {*self._run.due()}:
                self._run.states[host] = "under way"
        elif verb == "take_back" and not self._went_back:
            states = self._run.states
            wave = states if self._run.options.get("app_failed_run") == "all" else self._wave()
            self._went_back = bool({states.get(host) for host in wave} & {"switched", "went back", "unreachable"})
            if self._went_back:
                self._send("going back")

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Keep what a host answered."""
        self._keep(result)

    v2_runner_item_on_ok = v2_runner_on_ok

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """Keep what a host answered, and the first reason of a failure."""
        self._keep(result)
        if not ignore_errors:
            self._run.reason = self._run.reason or problem(result.result)

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """Keep that a host gave no answer."""
        host = result.host.get_name()
        self._run.unreachable.add(host)
        if self._begun and not result.task.ignore_unreachable:
            self._run.reason = self._run.reason or f"{host} can't be reached: {problem(result.result)}"

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        """Tell how the run ended."""
        self._end("failure" if stats.failures or stats.dark else "success")

    def _keep(self, result: CallbackTaskResult) -> None:
        task, values = result.task, result.result
        host, verb = str(task.delegate_to or result.host.get_name()), task.args.get("verb")
        if task.action == "booty.deploy.preflight" and "release" in values:
            self._host = result.host
            self._run.verb = "rollback" if task.args.get("goes_back") else "deploy"
            self._run.answered(host, values)
        elif task.action == "booty.deploy.place":
            for other in {*values.get("due", [])} & {*self._run.answers}:
                self._run.answers[other]["due"] = True
        elif verb == "cutover":
            self._run.states[host] = values.get("state", "not switched")
        elif verb == "take_back" and "state" in values:
            self._run.states[host] = values["state"]
        elif task.action == "booty.deploy.command" and values.get("changed"):
            # The post-deploy command also runs if an earlier deploy switched the hosts and the command failed.
            for other in [] if self._begun else self._run.answers:
                self._run.answers[other]["due"], self._run.states[other] = True, "switched"
            self._begin()
        elif task.register == "__app_watch" and values.get("result", "off") != "off":
            self._run.watch = {name: values.get(name) for name in ("result", "message", "issues")}
            self._send("watch")

    def _wave(self) -> set[str]:
        """Return the hosts of the wave that is under way."""
        assert self._play
        return {*self._play.get_variable_manager().get_vars(play=self._play)["ansible_play_batch"]}

    def _begin(self) -> None:
        """Tell that the run begins to change hosts, once, unless there is nothing to do or this is a check."""
        run = self._run
        if self._begun or not run.due() or not self._play or self._play.check_mode:
            return
        self._begun = True
        variables = self._play.get_variable_manager().get_vars(play=self._play, host=self._host)
        run.options = notify.options_of(variables, self._host.get_name())
        if not (command := run.options["app_notify_command"]):
            return
        run.commits = notify.commits_between(run.options["app_repository"], *run.releases())
        self._sender = notify.Sender(command, run.options["app_notify_seconds"])
        self._send("begin")
        # Ctrl-C ends ansible-playbook by an exception. SIGTERM would end it at once, so it does as Ctrl-C does.
        interrupt = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGTERM, lambda _, frame: interrupt(signal.SIGINT, frame))  # type: ignore[operator, misc]
        atexit.register(self._cut_off)

    def _send(self, event: str) -> None:
        if self._sender:
            self._sender.send(event, notify.document(self._run, event))

    def _cut_off(self) -> None:
        self._run.reason = self._run.reason or CUT_OFF
        self._end("failure")

    def _end(self, event: str) -> None:
        """Tell how the run ended, once, after all other events, and name the commands that failed."""
        if not self._sender or self._ended:
            return
        self._ended = True
        self._sender.look(wait=True)
        self._send(event)
        self._sender.look(wait=True)
        for line in self._sender.problems:
            self._display.display(line, color=C.COLOR_WARN, stderr=True)
