"""The command line: `python -m booty_runner APP`."""

import argparse
import gc
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from booty_runner import __version__, ask, logs
from booty_runner.settings import ACCEPTED, Refusal, Settings, current

log = logging.getLogger("booty")

# The packages whose frames lead to those of the app, in the traceback of an error of its import or its startup.
_CALLERS = {"__main__", "booty_runner", "importlib", "asyncio"}
_STATUSES = "exit status: 0 after a stop, 1 when it refuses to start and logs the reason, 3 when it failed"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve an app with these command-line arguments, by default those of this process.

    Returns:
        The exit status. 0 after a stop. 1 when the service refuses to start: a restart would not help, so systemd does
        not try one. 3 (as uvicorn's) when the service failed: the cause may pass, so systemd starts it again.
    """
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) > 1 and not argv[1].startswith("-"):
        return ask.main(argv[1:])
    args = _parser().parse_args(argv)
    logs.configure()
    try:
        settings = current()
        logs.configure(settings.booty_log_format, settings.booty_log_level)
        # Imports create no garbage, so the collector only costs time here (5 % of the start). freeze() keeps it from
        # writing to these objects later: forked workers go on sharing their memory pages.
        gc.disable()
        # Slow; --help and a refused setting don't need them.
        from booty_runner import server, telemetry  # noqa: PLC0415
        from booty_runner.health import Question  # noqa: PLC0415
        from booty_runner.identity import Identity  # noqa: PLC0415
        from booty_runner.place import Place  # noqa: PLC0415

        place = Place.read()
        place.enter(settings)
        question, identity = Question.of(settings, place), Identity.of_this_process(settings)

        # The app has no part in the trial. A candidate that has taken the service's place keeps its environment.
        os.environ.pop("BOOTY_CANDIDATE", None)
        listeners = server.systemd_sockets()  # no process that the app starts at its import takes them for its own
        telemetry.start(settings)
        app = _load(args.app, settings)
        gc.freeze()
        gc.enable()
        if any(listener.lost for listener in listeners):
            raise Refusal(
                f"{args.app} closed the sockets that systemd passed to this process when it was imported: it must not"
                " close descriptors that it has not opened, or turn itself into a daemon"
            )
        listeners = listeners or server.open_sockets(args.host, args.port, args.internal_socket)
        report = server.report
        if settings.booty_workers > 1:
            from booty_runner.workers import Supervisor  # noqa: PLC0415 - a single process doesn't need it

            worker = Supervisor(settings.booty_workers, settings.booty_watchdog_seconds).run()
            if isinstance(worker, int):
                return worker
            report = worker.report
            if not worker.first:  # the first worker sends the gate's event for all of them
                settings = replace(settings, booty_telemetry_gate=False)
            if worker.live:
                settings = replace(settings, booty_candidate=False)
        server.run(settings, app, listeners, identity, question, report)
    except BaseException as error:
        return _failed(error)
    return 0


def _failed(error: BaseException) -> int:
    """Log why the process ends, and return its exit status.

    Raises:
        SystemExit: with status 1; the app refuses to start, and has logged why.
        KeyboardInterrupt: somebody stopped a start in a terminal.
    """
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == 1):
        raise error
    logs.keep()
    if isinstance(error, Refusal):
        log.error(error)
        return 1
    if isinstance(error, SystemExit):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        log.error("the app called sys.exit(%r) in %s, line %s", error.code, frame.filename, frame.lineno)
        return 1
    log.error("the service failed", exc_info=error.with_traceback(_of_the_app(error.__traceback__)))
    return 3


def _of_the_app(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without its first frames, in which the runner imports or calls the app."""
    rest = trace
    while rest and rest.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _CALLERS:
        rest = rest.tb_next
    return rest or trace


def _load(name: str, settings: Settings) -> Any:
    """Import the app with Sentry's integrations that fit it, and report an error of the import."""
    from booty_runner import target, telemetry  # noqa: PLC0415 - slow

    try:
        loaded = target.load(name)
        app = target.adapt(loaded, name, settings)
        telemetry.fit(loaded)
    except BaseException as error:
        if not isinstance(error, (Refusal, SystemExit)):
            telemetry.report(error, "import")
        telemetry.stop()
        raise
    finally:
        logs.keep()
    return app


def _parser() -> argparse.ArgumentParser:
    settings = "\n".join(f"  {name:<23} {accepted}" for name, accepted in ACCEPTED.items())
    parser = argparse.ArgumentParser(
        prog="booty_runner",
        description="Serve an app on the sockets that systemd passes, or else on the address given here. With a command"
        " after APP, send that command to the running service: booty_runner APP verify --help.",
        epilog=f"settings, read from the environment:\n{settings}\n\n{_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("app", metavar="APP", help="module:attribute, or module:factory() to call a function for it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", default=8000, type=_port, help="TCP port to listen on (%(default)s)")
    parser.add_argument("--internal-socket", type=Path, metavar="PATH", help="Unix socket of the internal app")
    parser.add_argument("--version", action="version", version=f"booty_runner {__version__}")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # _exit() skips the interpreter's own teardown, which takes 0.1 s. The lifespan has closed what needs closing.
    os._exit(status)
