"""`serve verify` and the app's own commands: ask the running service over its internal socket, as root on its host."""

import argparse
import http.client
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

# The release lies in /opt/NAME/releases.
SOCKET = Path("/run", Path(sys.prefix).parents[1].name, "internal.sock")
TIMEOUT_SECONDS = 30


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def main(argv: Sequence[str]) -> int:
    """Run one of the commands.

    Returns:
        The exit status: 0 when all is well; 1 when a check failed or the command refuses; 2 when nobody answers.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    names, values = rest[::2], rest[1::2]
    if len(rest) % 2 or not all(name.startswith("--") for name in names):
        parser.error(f"an option is --NAME VALUE: {' '.join(rest)}")
    options = {name[2:]: value for name, value in zip(names, values, strict=True)}
    try:
        status, answer = _ask(args.socket, f"/{quote(args.command)}?{urlencode(options)}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"booty: no answer on {args.socket}: {error or type(error).__name__}", file=sys.stderr)
        return 2
    if status >= 400:
        print(f"booty: {answer.get('detail', answer)}", file=sys.stderr)
        return 1
    text = answer.pop("text", "done")
    print(json.dumps(answer, indent=1) if args.json else text)
    sys.stdout.flush()  # the process ends without
    return 0 if answer.get("ok", True) else 1


def _ask(path: Path, target: str) -> tuple[int, dict[str, Any]]:
    connection = _Connection(path)
    try:
        connection.request("POST", target)
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ValueError("not an answer of Booty's")
    return response.status, answer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="booty_runner APP",
        description="Ask the running service on this host, as root.",
        epilog="An unknown command is answered with the list of those that there are.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "command", help="verify (checks the service and its host; the tracker with an event), or one of the app's"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--socket", type=Path, default=SOCKET, metavar="PATH", help="the internal socket (%(default)s)")
    return parser
