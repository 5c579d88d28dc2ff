"""One call: the verb that is asked for, and its answer as a line of JSON."""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

from booty_host.host import HostError

# Which module has a verb that is not a module's only one.
MODULES = {"record": "host", "take_back": "cutover"}


def call(told: dict[str, Any]) -> None:
    """Answer a call: the `verb` with its `arguments`; a `check` changes nothing.

    A file that came with the call is what is left on standard input.
    """
    os.umask(0o022)
    name = told["verb"]
    verb = getattr(importlib.import_module(f"booty_host.{MODULES.get(name, name)}"), name)
    try:
        answer = verb(**told["arguments"], check=told["check"])
    except HostError as error:
        answer = {"failed": True, "msg": str(error)}
    except OSError as error:
        # A file of the host's that is not what it should be, or a disk that fails: the error names it.
        answer = {"failed": True, "msg": f"The host program can't go on ({name}): {error}"}
    print(json.dumps(answer))
