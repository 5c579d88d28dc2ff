"""Reports the errors of the other Python programs of a release: processes, timers and commands.

Importing this module activates it. `booty_runner.pth` does so at the start of each Python of the release that has the
variable BOOTY_PROCESS. Sentry is started as late as possible, since that takes a tenth of a second and imports modules
that gevent has to patch first: before the first error, or when a program imports a library that runs jobs.
"""

import atexit
import logging
import os
import sys
import threading
from types import ModuleType, TracebackType

from booty_runner import hook
from booty_runner.settings import Refusal, Settings, current, labels

# The value of BOOTY_PROCESS in commands: release commands, and those of run.yml. They also run without a usable DSN.
COMMAND = "command"
# Modules of libraries that run jobs and handle the errors of jobs by themselves. Celery imports its module after it has
# patched the standard library for gevent.
_JOBS = ("arq.worker", "celery.app.trace", "huey.api", "rq.worker")


class _Sentry:
    """Sentry in this program, which starts once."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name
        self._is_started = False

    def start(self, library: ModuleType | None = None) -> bool:
        """Start Sentry, with the integration of a library, unless the program has started it.

        Returns:
            Whether this call started it.
        """
        if self._is_started:
            return False
        self._is_started = True
        try:
            from booty_runner import telemetry  # noqa: PLC0415 - slow

            is_ours = telemetry.in_force() is None
            if is_ours:
                telemetry.start(self._settings)
                if library:
                    telemetry.enable(library.__name__.partition(".")[0])
            # Registered last, it runs before the SDK's own function, which would write to stderr.
            atexit.register(telemetry.stop)
        except (Exception, SystemExit) as error:  # the program itself must go on
            print(f"booty: errors of {self._name} are not reported: {error!r}", file=sys.stderr)
            return False
        return is_ours

    def report(self, error: BaseException | None) -> None:
        """Report an error that nothing handles."""
        # A person at a prompt sees the error.
        if isinstance(error, Exception) and not hasattr(sys, "ps1"):
            self.start()
            from booty_runner import telemetry  # noqa: PLC0415 - slow

            telemetry.report(error, self._name)


def _activate() -> None:
    name = os.environ["BOOTY_PROCESS"]
    try:
        # Read now, since the program may change its environment.
        settings = current()
        labels()
        if settings.sentry_dsn is None and settings.is_production:
            raise Refusal(
                f"SENTRY_DSN is not set, and {settings.sentry_environment} does not run without it: write it into"
                " secrets.env"
            )
    except Refusal as error:
        if name != COMMAND:
            print(f"booty: {name} refuses to start: {error}", file=sys.stderr, flush=True)
            os._exit(os.EX_CONFIG)  # Python only prints an exception that is raised in a .pth file
        print(f"booty: errors of this command are not reported: {error}", file=sys.stderr)
        return
    if settings.sentry_dsn is None:
        return
    sentry = _Sentry(settings, name)
    hook.after.update(dict.fromkeys(_JOBS, sentry.start))
    of_program, of_thread, of_logger = sys.excepthook, threading.excepthook, logging.Logger.callHandlers

    def report_of_program(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sentry.report(error)
        of_program(kind, error, trace)

    def report_of_thread(args: threading.ExceptHookArgs) -> None:
        sentry.report(args.exc_value)
        of_thread(args)

    def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR and sentry.start():
            logger.callHandlers(record)  # Sentry's own, which calls this function again
        else:
            of_logger(logger, record)

    sys.excepthook, threading.excepthook = report_of_program, report_of_thread
    logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign, assignment]


_activate()
