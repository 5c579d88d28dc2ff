"""The way in: `python -m booty`."""

import argparse
import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from booty import __version__, ask, logs
from booty.config import Settings, explain

log = logging.getLogger("booty")

_STATUSES = "exit status: 0 after a stop, 1 when it refuses to start and says why, 3 when it failed"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service with these command-line arguments, by default the process's.

    Returns:
        The exit status: 0 after a stop; 1 when the service refuses to start, which stays so until somebody
        changes something; 3, as uvicorn's, when it failed, which may pass: systemd starts it again.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ask.COMMANDS:
        return ask.main(argv)
    args = _parser().parse_args(argv)
    logs.configure()
    try:
        settings = Settings()
    except ValidationError as error:
        log.error(explain(error))
        return 1
    logs.configure(settings.booty_log_format, settings.booty_log_level)

    try:
        # Imports make much that stays and nothing to collect: a twentieth of the start, and pages that workers share.
        gc.disable()
        # FastAPI's models of OpenAPI are a sixth of the start: built when the docs are asked for. Not so the app's own.
        BaseModel.model_config["defer_build"] = True
        import fastapi  # noqa: F401, PLC0415

        del BaseModel.model_config["defer_build"]
        from booty import server  # noqa: PLC0415 - half a second that --help and a bad setting need not wait for

        gc.freeze()
        gc.enable()
        try:
            sockets = server.systemd_sockets() or server.open_sockets(args.host, args.port, args.internal_socket)
        except OSError as error:
            log.error(error)
            return 1
        ready = server.ready
        if settings.booty_workers > 1:
            from booty.workers import Supervisor  # noqa: PLC0415 - not needed by one process

            worker = Supervisor(settings.booty_workers, settings.booty_watchdog_seconds).run()
            if isinstance(worker, int):
                return worker
            ready = worker.ready
            if not worker.first:  # the tracker is asked once a start
                settings = settings.model_copy(update={"booty_telemetry_gate": False})
        server.run(settings, sockets, ready)
    except Exception:
        log.exception("the service failed")
        return 3
    return 0


def _parser() -> argparse.ArgumentParser:
    settings = "\n".join(f"  {name.upper():<20} {field.description}" for name, field in Settings.model_fields.items())
    parser = argparse.ArgumentParser(
        prog="booty",
        description="Serve the app, on the sockets that systemd passes or else on these. See also: booty verify --help,"
        " booty jobs --help.",
        epilog=f"settings, taken from the environment:\n{settings}\n\n{_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", default=8000, type=_port, help="TCP port to listen on (%(default)s)")
    parser.add_argument("--internal-socket", type=Path, metavar="PATH", help="Unix socket of the internal app")
    parser.add_argument("--version", action="version", version=f"booty {__version__}")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # What must end has ended in the lifespan. Taking the interpreter down object by object would cost each stop 0.1 s.
    os._exit(status)
