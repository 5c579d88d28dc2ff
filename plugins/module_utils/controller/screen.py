"""Write lines to the screen from the process of a task, while the task runs."""

from __future__ import annotations

import os
import re
import signal
import sys

from ansible.utils.display import Display

ENDS = {signal.SIGINT, signal.SIGTERM}
# On a terminal, booty.deploy.brief shows the step in a line that the next one overwrites; this clears the rest of it.
# Ansible imports this module before it forks, and a worker has no terminal.
CLEAR = "\033[K" if sys.stdout.isatty() else ""
# An escape sequence that colors text on a terminal, and other control characters.
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
COMMAND = re.compile(r"^(\s*)::", re.MULTILINE)


def plain(text: str) -> str:
    """Return a text without the sequences and characters that control a terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", SEQUENCE.sub("", text))


def harmless(text: str) -> str:
    """Return a text of strangers without what controls a terminal or the runner of GitHub Actions.

    The runner takes a line for a command if it begins with `::` behind blanks, or has `##[` anywhere.
    """
    text = plain(text)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        text = COMMAND.sub(r"\1: :", text).replace("##[", "## [")
    return text


def one_line(text: str) -> str:
    """Return a text of strangers, such as the message of an error, in one plain line."""
    return plain(" ".join(text.split()))


def write(text: str, color: str | None = None, stderr: bool = False, newline: bool = True) -> None:
    """Write a text; the arguments are those of Ansible's `display`.

    `display` sends the text through a queue whose lock all processes share. A process that Ctrl-C ended in the middle
    would keep the lock, and the run would hang. So the signals wait.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    try:
        Display().display(text, color=color, stderr=stderr, newline=newline)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
