"""The output of plays in a terminal: real plays, run on this machine."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.booty.deploy.plugins.callback import brief as callback

from tests.conftest import ROOT, Play

# A module that warns, an action that returns a screen, and a host that does not answer.
MODULE = """
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({})
module.warn("mind the gap")
module.exit_json(changed=True, state="switched")
"""
ACTION = """
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return {"screen": '{"a": 1}', "failed": True, "msg": "A is 1."}
"""
HOSTS = """
[all]
web1 ansible_connection=local
web2 ansible_connection=local
web3 ansible_connection=local
away ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1
[all:vars]
ansible_python_interpreter={{ ansible_playbook_python }}
"""


@dataclass
class Shown(Play):
    """Exit status and output of a playbook; `stdout` is its standard output alone."""

    stdout: str


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Shown]:
    """Return a function that runs the text of a playbook."""
    for name, text in {"library/warns.py": MODULE, "action_plugins/screen.py": ACTION, "hosts": HOSTS}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(text: str, *arguments: str, **environment: str) -> Shown:
        (tmp_path / "play.yml").write_text(text)
        command = [str(Path(sys.executable).parent / "ansible-playbook"), str(tmp_path / "play.yml")]
        done = subprocess.run(
            [*command, "-i", str(tmp_path / "hosts"), *arguments],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "120", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return Shown(done.returncode, done.stdout + done.stderr, done.stdout)

    return run


STEPS = """
- name: Deploy
  hosts: web*
  gather_facts: false
  tasks:
    - name: Look
      ansible.builtin.command: "true"
      changed_when: false
    - name: Skip this
      ansible.builtin.command: "false"
      when: false
    - name: Build
      ansible.builtin.command: "true"
      changed_when: inventory_hostname != 'web3'
    - name: Tell
      ansible.builtin.debug:
        msg: [a line, 'another: "line"']
      when: inventory_hostname == 'web1'
    - name: Tell each
      ansible.builtin.debug:
        msg: "{{ item }}"
      loop: [one, two]
      when: inventory_hostname == 'web1'
"""


def test_only_steps_that_change_or_print_get_a_line(play: Callable[..., Shown]) -> None:
    shown = play(STEPS)
    assert shown.status == 0, shown.output
    head, _, end = shown.output.partition("\nPLAY RECAP")
    lines = head.strip().splitlines()
    assert lines[0] == "Deploy · web1, web2, web3"
    assert lines[1].endswith(" s  Build · web1, web2")
    assert [line.strip() for line in lines[2:]] == ["a line", 'another: "line"', "one", "two"]
    assert "changed      web1, web2\nunchanged    web3\n" in end
    assert shown.recap("web1") == {
        "ok": 4, "changed": 1, "unreachable": 0, "failed": 0, "skipped": 1, "rescued": 0, "ignored": 0,
    }  # fmt: skip
    assert "\033" not in shown.output


def test_ansibles_own_output_can_be_chosen(play: Callable[..., Shown]) -> None:
    verbose, usual = play(STEPS, "-v"), play(STEPS, ANSIBLE_STDOUT_CALLBACK="default")
    for shown in (verbose, usual):
        assert "TASK [Look]" in shown.output
        assert "ok: [web3]" in shown.output
        assert shown.recap("web2")["changed"] == 1
    assert "cmd:" in verbose.output
    assert "changed      web1, web2\n" in verbose.output
    assert "changed      web1" not in usual.output


FAILS = """
- name: Deploy
  hosts: web1
  gather_facts: false
  tasks:
    - block:
        - name: Switch
          ansible.builtin.fail:
            msg: "It does not serve:\\n  first line of the journal\\n  second line"
      rescue:
        - name: Give up
          ansible.builtin.fail:
            msg: "It does not serve:\\n  first line of the journal\\n  second line\\nWent back."
"""


def test_a_failure_is_printed_whole_and_once(play: Callable[..., Shown]) -> None:
    shown = play(FAILS)
    assert shown.status == 2
    assert "FAILED · Switch · web1\n" in shown.output
    message = "           It does not serve:\n             first line of the journal\n             second line\n"
    assert shown.output.count(message) == 1
    assert shown.output.count("first line") == 1
    assert "FAILED · Give up · web1\n           Went back.\n" in shown.output
    assert shown.recap("web1")["failed"] == 1
    assert "\nfailed       web1\n" in shown.output


@pytest.mark.parametrize(
    ("variable", "begin", "end"),
    [
        ("GITHUB_ACTIONS", r"::group::Deploy · web1, web2, web3\n", "::endgroup::\n"),
        (
            "GITLAB_CI",
            r"\x1b\[0Ksection_start:\d+:(booty_\w+)[\r\n]\x1b\[0KDeploy · web1, web2, web3\n",
            r"\x1b\[0Ksection_end:\d+:(booty_\w+)[\r\n]\x1b\[0K\n",
        ),
    ],
)
def test_a_log_viewer_can_fold_the_steps_and_no_failure(
    play: Callable[..., Shown], variable: str, begin: str, end: str
) -> None:
    shown = play(STEPS, **{variable: "true"})
    folded = re.search(rf"{begin}.+ s  Build · web1, web2\n.+two\n{end}\nPLAY RECAP", shown.output, re.DOTALL)
    assert folded, shown.output
    assert len({*folded.groups()}) < 2
    shown = play(STEPS + FAILS, **{variable: "true"})
    assert re.search(rf"two\n{end}{begin.replace(', web2, web3', '')}{end}.+ s  FAILED · Switch", shown.output)


OF_OTHERS = r"""
- name: Deploy
  hosts: web1
  gather_facts: false
  tasks:
    - name: Switch
      ansible.builtin.fail:
        msg: "It ends with:\n  ::add-matcher::x\n  ##[error]x\n  \e]0;x\ax \e[31mred"
"""


@pytest.mark.parametrize("runner", ["true", ""])
def test_a_text_of_others_commands_neither_the_terminal_nor_the_runner_of_github(
    play: Callable[..., Shown], runner: str
) -> None:
    """The runner takes a line for a command if it begins with `::` behind blanks, or has `##[` anywhere."""
    shown = play(OF_OTHERS, GITHUB_ACTIONS=runner)
    commands = ("::add-matcher::x", "##[error]x") if not runner else (": :add-matcher::x", "## [error]x")
    for line in (*commands, "\N{REPLACEMENT CHARACTER}]0;x\N{REPLACEMENT CHARACTER}x red"):
        assert f"             {line}\n" in shown.output
    assert "\x1b" not in shown.output
    assert "\a" not in shown.output


CAUSES = """
- name: Deploy
  hosts: web1
  gather_facts: false
  tasks:
    - name: Run
      ansible.builtin.shell: "echo to stdout; echo to stderr >&2; exit 3"
      ignore_errors: true
    - name: Assert
      ansible.builtin.assert:
        that: 1 == 2
      ignore_errors: true
    - name: Each
      ansible.builtin.fail:
        msg: "not {{ item }}"
      loop: [this, that]
      ignore_errors: true
    - name: Hide
      ansible.builtin.fail:
        msg: hunter2
      no_log: true
      ignore_errors: true
    - name: Name nothing
      ansible.builtin.debug:
        msg: "{{ no_such_variable }}"
"""


def test_the_cause_of_a_failure_is_printed_once(play: Callable[..., Shown]) -> None:
    shown = play(CAUSES)
    assert shown.status == 2
    for cause in (
        "to stdout",
        "to stderr",
        "1 == 2",
        "this: not this",
        "that: not that",
        "'no_such_variable' is undefi",
    ):
        assert shown.output.count(cause) == 1, (cause, shown.output)
    assert "FAILED (ignored) · Run · web1" in shown.output
    assert "FAILED (ignored) · Hide · web1" in shown.output
    assert "hunter2" not in shown.output


WAVES = """
- name: Prepare
  hosts: all
  gather_facts: false
  tasks:
    - name: Ask
      ansible.builtin.ping:
      ignore_unreachable: true
- name: Switch
  hosts: web*
  gather_facts: false
  serial: [1, 2]
  any_errors_fatal: true
  tasks:
    - name: Warn
      warns:
    - name: Stop
      ansible.builtin.fail:
        msg: Bad.
      when: inventory_hostname == stop
"""


def test_waves_and_the_result_of_each_host(play: Callable[..., Shown]) -> None:
    shown = play(WAVES, "-e", "stop=none")
    assert "UNREACHABLE · Ask · away\n" in shown.output
    assert "Connection refused" in shown.output
    assert "Switch · wave 1: web1\n" in shown.output
    assert "Switch · wave 2: web2, web3\n" in shown.output
    assert shown.output.count("mind the gap") >= 1
    assert "\nswitched     web1, web2, web3\nunreachable  away\n" in shown.output
    shown = play(WAVES, "-e", "stop=web1")
    assert shown.status == 2
    assert "wave 2" not in shown.output
    assert "\nswitched     web1\nuntouched    web2, web3\nunreachable  away\n" in shown.output


DIFF = """
- name: Write
  hosts: web1
  gather_facts: false
  tasks:
    - name: Write the file
      ansible.builtin.copy:
        content: "new\\n"
        dest: "{{ playbook_dir }}/file"
        mode: "0644"
"""


def test_a_check_shows_what_would_change(play: Callable[..., Shown], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old\n")
    shown = play(DIFF, "--check", "--diff")
    assert "Write · web1 · check: nothing is changed\n           web1: Write the file\n--- before" in shown.output
    assert "\n-old\n+new\n" in shown.output
    assert (tmp_path / "file").read_text() == "old\n"


def test_a_screen_is_all_of_standard_output(play: Callable[..., Shown]) -> None:
    shown = play("- {hosts: web1, gather_facts: false, tasks: [{screen: {}}]}")
    assert shown.status == 2
    assert shown.stdout == '{"a": 1}\n'
    assert "A is 1." in shown.output


def test_a_terminal_shows_the_running_step(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(STEPS.replace("hosts: web*", "hosts: localhost"))
    command = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        "-c",
        "local",
        "-i",
        "localhost,",
        str(tmp_path / "play.yml"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "ANSIBLE_NOCOLOR"} | {"TERM": "xterm"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # Linux raises EIO when the other side is closed
            pass
        os.close(ours)
    assert process.returncode == 0, shown
    assert "… Look\r".encode() in shown
    # Each permanent line overwrites the line of the running step.
    assert b"\033[K\033[0;33m" in shown


COUNTS = {"failures": 0, "unreachable": 0, "changed": 0}


@pytest.mark.parametrize(
    ("results", "away", "counts", "expected"),
    [
        ({}, False, COUNTS, "unchanged"),
        ({}, False, {**COUNTS, "changed": 1}, "changed"),
        ({}, False, {**COUNTS, "failures": 1, "changed": 1}, "failed"),
        ({}, True, {**COUNTS, "unreachable": 1, "changed": 1}, "unreachable"),
        ({"web2": "switched"}, True, COUNTS, "unreachable"),
        ({}, False, {}, "untouched"),
        ({"web1": "went back"}, False, {**COUNTS, "failures": 1}, "went back"),
        ({"web2": "switched"}, False, {**COUNTS, "changed": 1}, "untouched"),
        ({"web2": "switched"}, False, {**COUNTS, "failures": 1}, "failed"),
    ],
)
def test_states(results: dict[str, str], away: bool, counts: dict[str, int], expected: str) -> None:
    states = callback.states({"web1"}, results, {"web1"} if away else set(), {"web1": counts} if counts else {})
    assert states == {expected: ["web1"]}


@pytest.mark.parametrize(("count", "expected"), [(1, "a1"), (4, "a1, a2, a3, a4"), (5, "5 hosts")])
def test_names(count: int, expected: str) -> None:
    assert callback.names([f"a{number + 1}" for number in range(count)]) == expected
