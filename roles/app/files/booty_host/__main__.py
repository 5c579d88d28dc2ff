"""Answer one call: run its verb for its app, and print the answer as a line of JSON."""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

from booty_host import HostError
from booty_host.app import App

# The module of each verb that is not named like its module.
MODULES = {
    "record": "journal",
    "give_up": "programs",
    "take_back": "cutover",
    **dict.fromkeys(("run_command", "release_command", "output", "shell"), "command"),
}


def call(request: dict[str, Any]) -> None:
    """Run the `verb` of a request for its `app` with its `arguments`; a `check` changes nothing.

    A file that came with the request follows on standard input.
    """
    os.umask(0o022)
    name = request["verb"]
    verb = getattr(importlib.import_module(f"booty_host.{MODULES.get(name, name)}"), name)
    try:
        answer = verb(App(request["app"]), **request["arguments"], check=request["check"])
    except HostError as error:
        answer = {"failed": True, "msg": str(error)}
    except OSError as error:
        # A file of the host is not what it should be, or a disk fails: the error names it.
        answer = {"failed": True, "msg": f"The host program can't go on ({name}): {error}"}
    print(json.dumps(answer))
