"""Send `serve verify` and the app's own commands to the running service, over its internal socket, as root."""

import argparse
import http.client
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

# sys.prefix is the folder venv/ of a release in /opt/NAME/releases; NAME is also the folder of the app's sockets.
SOCKET = Path("/run", Path(sys.prefix).parents[2].name, "internal.sock")
TIMEOUT_SECONDS = 30


def main(argv: Sequence[str]) -> int:
    """Run one of the commands.

    Returns:
        The exit status: 0 after success; 1 when a check failed or the command refuses; 2 without an answer.
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
    sys.stdout.flush()  # os._exit() in __main__ does not flush
    return 0 if answer.get("ok", True) else 1


def _ask(path: Path, target: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("localhost")
    # With a socket set, http.client does not connect by itself; it has no support for Unix sockets.
    with socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.settimeout(TIMEOUT_SECONDS)
        connection.sock.connect(str(path))
        connection.request("POST", target)
        response = connection.getresponse()
        answer = json.loads(response.read())
    if not isinstance(answer, dict):
        raise ValueError("the answer is not a JSON object")
    return response.status, answer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="booty_runner APP",
        description="Send a command to the service that runs on this host, as root.",
        epilog="The answer to an unknown command lists the commands that exist.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "command",
        help="verify (checks the service, its host and, with an event, the tracker), or a command of the app",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--socket", type=Path, default=SOCKET, metavar="PATH", help="the internal socket (%(default)s)")
    return parser
