"""`booty verify` and `booty jobs`: ask the running service over its internal socket, as root on its host."""

import argparse
import http.client
import json
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOCKET = Path("/run/booty/internal.sock")
COMMANDS = ("verify", "jobs")
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
        The exit status: 0 when all is well; 1 when a check failed or there is no such job; 2 when nobody answers.
    """
    args = _parser().parse_args(argv)
    method, path = "GET", "/jobs"
    if args.command == "verify":
        method, path = "POST", "/verify"
    elif args.retry:
        method, path = "POST", f"/jobs/{args.retry}/retry"
    elif args.drop:
        method, path = "DELETE", f"/jobs/{args.drop}"
    try:
        status, answer = _ask(args.socket, method, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"booty: no answer on {args.socket}: {error or type(error).__name__}", file=sys.stderr)
        return 2
    if status >= 400:
        print(f"booty: {answer.get('detail', answer)}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(answer, indent=1))
    elif args.command == "verify":
        rows = [(check["name"], "ok" if check["ok"] else "FAILED", check["detail"]) for check in answer["checks"]]
        print(_table([*rows, ("process", "", str(answer["pid"]))]))
    else:
        print(_table(_rows(answer["jobs"])) if "jobs" in answer else "done")
    sys.stdout.flush()  # the process ends without
    return 0 if answer.get("ok", True) else 1


def _ask(path: Path, method: str, target: str) -> tuple[int, dict[str, Any]]:
    connection = _Connection(path)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ValueError("not an answer of Booty's")
    return response.status, answer


def _rows(jobs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("ID", "KIND", "STATE", "FAILURES", "SINCE OR DUE", "ERROR")]
    for job in jobs:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["failed"] or job["due"]))
        rows.append((job["id"], job["kind"], job["state"], str(job["failures"]), at, job["error"] or ""))
    return rows


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--socket", type=Path, default=SOCKET, metavar="PATH", help="the internal socket (%(default)s)")
    parser = argparse.ArgumentParser(prog="booty", description="Ask the running service on this host, as root.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("verify", parents=[common], help="check the service and its host; the tracker with an event")
    jobs = commands.add_parser("jobs", parents=[common], help="show the jobs that wait, run or failed")
    jobs.add_argument("--retry", metavar="ID", help="have a failed job run again")
    jobs.add_argument("--drop", metavar="ID", help="remove a failed job")
    return parser
