"""Run commands of a release in the service's sandbox, with its files, its secrets and its settings.

Each command is a transient unit of systemd with the lines of the service's unit. A process of its own, which does not
depend on the connection, copies the command's output to the journal and to a file in /run. The verb `output` reads the
file while the command runs.
"""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import re
import select
import selectors
import shlex
import subprocess
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from booty_host import HostError, config, failures, journal, lease, secrets
from booty_host.app import App
from booty_host.files import read, write_atomically
from booty_host.processes import alive
from booty_host.release import Release, labels_on_disk, manifest
from booty_host.state import State
from booty_host.systemd import Systemd

# Lines of the service's unit about its start, its end and its environment, which a command has of its own.
START_AND_END = re.compile(
    r"(Type|Sockets|Environment|Syslog|Exec|Timeout|Watchdog|Kill|Restart|RemoveIPC|RuntimeMax|SuccessExit|OOMScore)\w*="
)
# The end of the service's start command.
SERVE = "${BOOTY_RELEASE_DIR}/bin/serve"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# After so many bytes, output goes to the journal alone: /run is memory.
LIMIT = 16_000_000
# A longer line is shown in pieces, in characters. journald's own limit is 48 KB (LineMax= in journald.conf(5)).
LINE = 48_000
# For how long what is left of a command's output is read after its end, in seconds.
LAST = 2
# Seconds without a reader after which a command of run.yml is ended: its controller is gone.
PATIENCE = 5


class Sandbox:
    """The options of systemd-run with which a command of a release starts."""

    def __init__(self, app: App, release: Release, env: Path) -> None:
        """Take the service's sandbox from a release's unit.

        Args:
            app: the app.
            release: the one whose command it is.
            env: a file with the text of its release.env.

        Raises:
            HostError: there is no such unit.
        """
        section = release.units.get(app.service, "").partition("[Service]\n")[2].partition("\n[")[0]
        lines = re.sub(r"\\\n\s*", "", section).splitlines()
        starts = [line for line in lines if line.startswith("ExecStart=/usr/bin/env ") and line.endswith(SERVE)]
        if not starts:
            raise HostError(f"{app.unit_files / app.service} is missing or changed. Deploy first, so that it is there.")
        # systemd-run expands ${NAME} as a unit does, but no %.
        assignments = shlex.split(starts[0].removeprefix("ExecStart=/usr/bin/env ").removesuffix(SERVE))
        path = app.releases / release.sha
        tree = path / "tree" / str(manifest(path).get("path", ""))
        self.options = [
            *(line for line in lines if "=" in line and not line.startswith("#") and not START_AND_END.match(line)),
            f"EnvironmentFile=-{app.secrets_env}",
            f"EnvironmentFile={env}",
            f"WorkingDirectory={tree if (path / 'tree').is_dir() else path}",
            "TimeoutStopSec=10",
            # When the app has used up its memory, the kernel ends the command and not the service.
            "OOMScoreAdjust=500",
        ]
        self.joins = app.service
        # The unit's own assignments come later, so they win.
        self.env = [
            "/usr/bin/env",
            f"HOME={app.var}",
            f"PATH={path}/bin:{SYSTEM_PATH}",
            "PYTHONUNBUFFERED=1",
            "BOOTY_PROCESS=command",
            *(word.replace("%%", "%") for word in assignments),
        ]

    def command(self, unit: str, how: str, argv: list[str], *properties: str) -> list[str]:
        """Return the command that runs a program in the sandbox.

        Args:
            unit: the name of the transient unit.
            how: `--pipe` or `--pty`.
            argv: the program and its arguments.
            properties: more properties of the unit.
        """
        # Both have one /tmp.
        options = [f"--property={each}" for each in (f"JoinsNamespaceOf={self.joins}", *self.options, *properties)]
        words = [word.replace("$", "$$") for word in argv]
        return ["systemd-run", "--quiet", how, "--wait", "--collect", f"--unit={unit}", *options, *self.env, *words]


class Output:
    """The file that `output` reads: a JSON object a line. `pid` comes first, `end` last, and text between them."""

    def __init__(self, app: App) -> None:
        """Make the file, and remove the files that no controller has read to the end."""
        app.commands.mkdir(mode=0o700, parents=True, exist_ok=True)
        app.commands.parent.chmod(0o700)
        for path in app.commands.iterdir():
            if path.stat().st_mtime < time.time() - 86400:
                path.unlink()
        self.name = uuid.uuid4().hex
        # A reader of the file holds its flock.
        self.file = (app.commands / self.name).open("a+")
        self.read_at = time.monotonic()
        self.size = 0
        self.tail = ""
        self.hidden = secrets.hidden(app)

    def write(self, **fields: Any) -> None:
        """Append an object."""
        self.file.write(json.dumps(fields) + "\n")
        self.file.flush()

    def text(self, stream: str, text: str) -> str:
        """Append text of `out` or `err`, without secrets, and return it; past the limit, only return it."""
        text = secrets.filtered(text, self.hidden)
        self.tail = (self.tail + text)[-LINE:]
        before, self.size = self.size, self.size + len(text)
        if self.size <= LIMIT:
            self.write(**{stream: text})
        elif before <= LIMIT:
            self.write(err="\n[The rest of the output is in the journal alone.]\n")
        return text

    def is_read(self) -> bool:
        """Return whether a controller has read the file within the last seconds."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.read_at = time.monotonic()
        else:
            fcntl.flock(self.file, fcntl.LOCK_UN)
        return time.monotonic() < self.read_at + PATIENCE


def divide(text: str, hidden: list[str], *, whole: bool, ended: bool = False) -> tuple[str, str]:
    """Return what of a command's output can be shown, and what waits for more: the end of a line, or of a secret.

    Args:
        text: the output that is not shown yet.
        hidden: the secrets.
        whole: whether a line need not be complete.
        ended: whether nothing more comes.
    """
    end = text.rfind("\n") + 1
    if whole or len(text) > LINE:
        end = len(text) - (0 if ended else begun(text, hidden))
    return text[:end], text[end:]


def begun(text: str, hidden: list[str]) -> int:
    """Return the length of the first part of a secret at the end of a text; 0 if there is none, or a short one."""
    lengths = (n for value in hidden for n in range(min(len(value), 4096), 3, -1) if text.endswith(value[:n]))
    return max(lengths, default=0)


def execute(app: App, sandbox: Sandbox, kind: str, command: str, seconds: float, output: Output) -> int:
    """Run a shell command in the sandbox to its end, and return its exit status; 255 after a signal.

    Args:
        app: the app.
        sandbox: the one of its release.
        kind: `run`, `release` or `post-deploy`: the journal has its output under NAME-kind.
        command: for /bin/sh.
        seconds: how long it may take; 0 means as long as a run reads its output.
        output: where its output goes.
    """
    # A second release command of an app does not start, since systemd has a unit with its name.
    unit = f"{app.name}-{kind}-{output.name[:8]}.service" if kind == "run" else f"{app.name}-release.service"
    bound = [f"RuntimeMaxSec={seconds:.0f}"] if seconds else []
    argv = sandbox.command(unit, "--pipe", ["/bin/sh", "-c", command], *bound)
    stop = ["systemctl", "--no-block", "stop", unit]
    cat = subprocess.Popen(["systemd-cat", f"--identifier={app.name}-{kind}"], stdin=subprocess.PIPE)
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert cat.stdin
    assert process.stdout
    assert process.stderr
    with cat, process, selectors.DefaultSelector() as selector:
        decoder = codecs.getincrementaldecoder("utf-8")
        for stream, file in (("out", process.stdout), ("err", process.stderr)):
            selector.register(file, selectors.EVENT_READ, (stream, decoder(errors="replace"), [""]))
        stopped, deadline = False, 0.0
        while selector.get_map():
            # A command can pass its output to the service (SCM_RIGHTS, unix(7)), which then keeps the pipe open.
            if gone := process.poll() is not None:
                deadline = deadline or time.monotonic() + LAST
            ready = {key.fd for key, _ in selector.select(0.2)}
            over = gone and (not ready or time.monotonic() > deadline)
            for key in [*selector.get_map().values()]:
                stream, decode, waiting = key.data
                piece = os.read(key.fd, 65536) if key.fd in ready else b""
                ended = over or (key.fd in ready and not piece)
                text = waiting[0] + decode.decode(piece, ended)
                # Without more output, a prompt is shown after a moment.
                moment = ended or key.fd not in ready
                shown, waiting[0] = divide(text, output.hidden, whole=moment, ended=ended)
                if shown:
                    with suppress(BrokenPipeError):  # journald restarts
                        cat.stdin.write(output.text(stream, shown).encode())
                        cat.stdin.flush()
                if ended:
                    selector.unregister(key.fileobj)
            if not seconds and not stopped and not output.is_read():
                stopped = subprocess.run(stop, check=False).returncode == 0
    return process.returncode


def run_command(app: App, command: str, by: str, check: bool) -> dict[str, Any]:
    """Start a shell command in the environment and the sandbox of the running release.

    It is stopped when no run reads its output any more.

    Args:
        app: the app.
        command: for /bin/sh.
        by: who asks and for what, for the journal.
        check: only say whether a release is there.

    Returns:
        `name`, for the verb `output`.

    Raises:
        HostError: the host has no release.
    """
    sandbox = of_running(app)
    if check:
        return {"changed": True}
    output = Output(app)

    def work() -> dict[str, Any]:
        output.write(pid=os.getpid())
        output.write(end={"status": execute(app, sandbox, "run", command, 0, output)})
        if not output.is_read():
            (app.commands / output.name).unlink(missing_ok=True)
        return {}

    journal.log(app, f"{by}, in {lease.cgroup()}")
    os.close(lease.apart(work))
    return {"changed": True, "name": output.name}


def of_running(app: App) -> Sandbox:
    """Return the sandbox of the running release; raise HostError if there is none."""
    env = read(app.release_env)
    release = Release(app, env, {app.service: read(app.unit_files / app.service)})
    if not release.sha or not (app.releases / release.sha).is_dir():
        raise HostError(f"{app.name} has no release on this host. Deploy one: ansible-playbook deploy.yml")
    return Sandbox(app, release, app.release_env)


def shell(app: App, again: str, check: bool) -> dict[str, Any]:
    """Write a script that starts a shell in the environment and the sandbox of the running release.

    Args:
        app: the app.
        again: the command that makes a new script, which the script names when another release serves.
        check: write nothing.

    Returns:
        `script`, its path; root may run it.

    Raises:
        HostError: the host has no release.
    """
    argv = of_running(app).command("UNIT", "--pty", ["/bin/bash"])
    if not check:
        app.commands.mkdir(mode=0o700, parents=True, exist_ok=True)
        release = labels_on_disk(app)["SENTRY_RELEASE"]
        moved = shlex.quote(f"Another release serves by now. Get a new command: {again}")
        start = shlex.join(argv).replace("--unit=UNIT", f'--unit="{app.name}-shell-$$.service"')
        script = f"#!/bin/sh\ngrep -qx SENTRY_RELEASE={release} {app.release_env} || {{ echo {moved} >&2; exit 1; }}\n"
        write_atomically(app.shell, f"{script}exec {start}\n", 0o700)
    return {"changed": False, "script": str(app.shell)}


def release_command(
    app: App,
    kind: str,
    commands: list[str],
    seconds: int,
    known: list[dict[str, Any]],
    pointer: str,
    units: dict[str, str],
    files: dict[str, str],
    user: str,
    seen: dict[str, str],
    by: str,
    wait: int,
    check: bool,
) -> dict[str, Any]:
    """Start the commands that a release needs once; not if they were the last ones that ran.

    They run one after the other until one fails, in a process that holds the app's deploy lock and that goes on without
    a controller.

    Args:
        app: the app.
        kind: `release`, before any host switches; or `post-deploy`, when all have.
        commands: for /bin/sh.
        seconds: how long they may take together.
        known: the records of all hosts of the run, as in `State.commands`.
        pointer: the text of the release's release.env.
        units: the texts of its units.
        files: the files of app_config_dir, as for `config.stage`.
        user: the service's user.
        seen: `seen` in the answer of `info`; the commands are refused if another run was here since.
        by: who asks and for what; a run that meets the lock shows it.
        wait: how long to wait for another run's lock, in seconds.
        check: start nothing.

    Returns:
        `name`, for the verb `output`; its `end` has `status`, `commands` as in `State.commands`, and a `reason` if
        nothing ran or something failed.
    """
    if check:
        return {"changed": True}
    release = Release(app, pointer, units)
    output = Output(app)

    def under_lock() -> dict[str, Any]:
        config.stage(app, release.labels, files, user)
        return carry_out(app, kind, commands, seconds, known, release, seen, output)

    def work() -> dict[str, Any]:
        output.write(pid=os.getpid())
        try:
            # /proc/locks, where other runs look, leaves out a lock whose first process has ended. So the process that
            # takes it is one that waits for the end.
            end = lease.detached(app, under_lock, by, wait)
        except HostError as error:
            end = {"failed": True, "msg": str(error)}
        if "msg" in end:
            end = {"status": 1, "commands": known, "reason": end["msg"]}
        output.write(end=end)
        return {}

    os.close(lease.apart(work))
    return {"changed": True, "name": output.name}


def carry_out(
    app: App,
    kind: str,
    commands: list[str],
    seconds: int,
    known: list[dict[str, Any]],
    release: Release,
    seen: dict[str, str],
    output: Output,
) -> dict[str, Any]:
    """Run the commands under the lock, and return `end` of `release_command`; the arguments are the same."""
    state = State.load(app)
    state.note(known)
    if state.ran(kind, release.sha, commands):
        return {
            "status": 0,
            "commands": state.commands,
            "reason": f"{release.sha} ran it last, so it does not run again.",
        }
    now = lease.seen(app)
    if kind == "release" and (now["pointer"], now["last"]) != (seen["pointer"], seen["last"]):
        raise HostError(
            f"Another run was here since this one asked: {now['last'] or 'release.env changed'}. Deploy again."
        )
    if kind == "post-deploy" and now["release"] != release.sha:
        raise HostError(f"{now['release']} serves by now, and not {release.sha}.")
    if Systemd(app).unit(f"{app.name}-release.service")["ActiveState"] not in {"inactive", "failed"}:
        raise HostError(
            f"{app.name}-release.service still runs, although its run was killed on this host. Wait for its end, or:"
            f" systemctl stop {app.name}-release.service"
        )
    env = app.commands / "release.env"
    write_atomically(env, release.env)
    sandbox, entry = Sandbox(app, release, env), state.begin(kind, release.sha, commands)
    deadline, status, reason = time.monotonic() + seconds, 0, ""
    state_paths = manifest(app.releases / release.sha).get("state_paths")
    for command in ["python -P -m booty_runner.place", *commands] if state_paths else commands:
        left = deadline - time.monotonic()
        status = execute(app, sandbox, kind, command, max(left, 1), output)
        if status:
            late = time.monotonic() >= deadline
            reason = f"it took longer than {seconds} s: {command}" if late else f"exit status {status}: {command}"
            if step := failures.next_step(failures.excerpt(output.tail)):
                reason += f"\n{step.replace('NAME', app.name)}"
            break
    # Another process may have changed the file meanwhile: a deploy of another version of Booty knows other locks.
    state = State.load(app)
    state.finish(entry, "failed" if status else "done")
    return {"status": status, "commands": state.commands, "reason": reason}


def output(app: App, name: str, offset: int, wait: float, check: bool) -> dict[str, Any]:
    """Return new output of a command. The last answer, with `end`, removes the file.

    Args:
        app: the app.
        name: `name` in the answer of the verb that started the command.
        offset: `offset` of the answer before; 0 at first.
        wait: how long to wait for new output, in seconds. The end of the connection ends the wait too.
        check: makes no difference.

    Returns:
        `records`, each with a text as `out` or `err`, or with `end`; and the next `offset`.

    Raises:
        HostError: the process that ran the command was killed.
    """
    path = app.commands / name
    deadline, poll = time.monotonic() + wait, select.poll()
    poll.register(1, 0)  # POLLHUP and POLLERR are reported always
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise HostError("The host was restarted, and with it the command ended.") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)  # tells the command that it has a reader
        pid = int(json.loads(file.readline() or '{"pid": 0}')["pid"])

        def unread() -> bytes:
            file.seek(offset)
            data = file.read(1_000_000)
            return data[: data.rfind(b"\n") + 1]

        while not (data := unread()) and time.monotonic() < deadline:
            if pid and not alive(app, pid) and not unread():
                raise HostError("The process that ran the command was killed on the host.")
            if poll.poll(50):
                break
    records = [json.loads(line) for line in data.splitlines()]
    if records and "end" in records[-1]:
        path.unlink()
    return {"records": records, "offset": offset + len(data)}
