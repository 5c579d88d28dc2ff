"""Answer one call of the controller, or do what a unit of the host asks for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from booty_host import HostError

from booty_proxy import apply, certificates, host, instances, peers, status
from booty_proxy.paths import Paths

VERBS: dict[str, Callable[..., dict[str, Any]]] = {"apply": apply.apply, "maintenance": status.maintenance}


def call(request: dict[str, Any]) -> None:
    """Run the `verb` of a request with its `arguments`, and print the answer as a line of JSON.

    The program itself, which came with the call, becomes the one that the host's timers run.
    """
    try:
        if request["verb"] == "apply" and not request["check"]:
            keep(request["program"])
        answer = VERBS[request["verb"]](**request["arguments"], check=request["check"])
    except HostError as error:
        answer = {"failed": True, "msg": str(error)}
    except OSError as error:
        answer = {"failed": True, "msg": f"The host program can't go on ({request['verb']}): {error}"}
    print(json.dumps(answer))


def keep(descriptor: int) -> None:
    """Write the program to where the units find it, if it differs."""
    code, path = Path(f"/proc/self/fd/{descriptor}").read_bytes(), Paths().program
    if not path.exists() or path.read_bytes() != code:
        temporary = path.with_suffix(".new")
        temporary.write_bytes(code)
        temporary.replace(path)


def main() -> int:
    """Do what a unit asks for, by the words of its command line; return the exit status."""
    paths, (verb, *rest) = Paths(), sys.argv[1:]
    if verb == "drain":
        instances.drain(paths, rest[0])
    elif verb == "check":
        apply.check(paths)
    elif verb == "renew":
        with host.locked(paths):
            problems = certificates.renew(paths, [*apply.sites(paths).values()])
        print("\n".join(problems or ["every certificate is in order"]))
        return bool(problems)
    elif verb == "renewal-info":
        return not certificates.begun(*rest)
    elif verb == "ask-peers":
        peers.answer(apply.sites(paths))
    elif verb == "status":
        print(json.dumps(status.status(paths)))
    elif verb == "remove":
        apply.apply(None, rest[0], check=False)
    return 0
