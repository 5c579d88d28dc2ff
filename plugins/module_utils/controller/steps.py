"""Run the commands of a build on the controller, and choose which of the resulting files the release gets."""

from __future__ import annotations

import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from packaging.specifiers import SpecifierSet

from .archive import Link, write
from .git import is_dotenv
from .lock import Host
from .locks import Work
from .process import BuildError, run
from .settings import config_files, config_place, suspects
from .uv import package_environment, uv

# Folders in which tools keep caches and packages: a release gets their files only if the commit has them.
LEFT_OUT = {"__pycache__", "node_modules", ".cache", ".git", ".venv"}
# The number of last lines in the message of a failed build.
LAST = 20
# Shorter values are not hidden, since that would also hide ordinary words of the output.
SECRET_LENGTH = 8
# The user's folders, in which tools such as npm have their caches, settings and passwords.
HOMES = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
# The messages of libraries about a missing environment variable: os.environ, django-environ, environs, python-decouple,
# Starlette's Config, and Django itself. booty_host/failures.py has these too, and neither program imports the other.
MISSING = re.compile(
    r"""<frozen\ os>.*\n(?:.*\n)?KeyError:\ '(\w+)'
    | ImproperlyConfigured:\ (?:Set\ the\ (\w+)\ environment\ variable|The\ (SECRET_KEY)\ setting\ must\ not\ be\ empty)
    | Error:\ Environment\ variable\ "(\w+)"\ not\ set
    | UndefinedValueError:\ (\w+)\ not\ found\.
    | KeyError:\ "Config\ '(\w+)'\ is\ missing""",
    re.VERBOSE,
)
QUESTION = "import platform, sys; print(sys._base_executable, platform.python_version(), sep='\\n')"


@dataclass(frozen=True)
class Steps:
    """The values of the inventory for the commands of a build.

    Attributes:
        settings: app_settings.
        build_settings: app_build_settings; if empty, the commit's are used.
        config_dir: app_config_dir.
        run: the ID of this run of a playbook. A build that failed in it is not tried again for another host.
        show: writes a line to the screen.
        check: whether the commands only count as changes, and do not run.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    build_settings: Mapping[str, str] = field(default_factory=dict)
    config_dir: str = ""
    run: str = ""
    show: Callable[[str], None] = print
    check: bool = False

    def inputs(self) -> list[str]:
        """Return what the files of a build depend on besides its description."""
        settings = (f"{name}={value}" for name, value in sorted(self.settings.items()))
        return [*settings, config_place("app", config_files(self.config_dir))]


def python_for(work: Work, wanted: SpecifierSet, host: Host) -> tuple[str, Host]:
    """Return the Python of this machine that runs the commands, with its version and machine.

    That is a Python of the host's series, or else the one that runs Ansible.

    Raises:
        BuildError: there is none that the app allows.
    """

    def python_at(executable: str) -> tuple[str, Host]:
        base, version = run(executable, "-I", "-c", QUESTION).decode().splitlines()
        return base, Host(version, platform.machine())

    python, builder = python_at(sys.executable)
    if builder.python != host.python:
        with suppress(BuildError):
            found = uv(work.directory, "python", "find", "--system", "--no-project", host.python)
            python, builder = python_at(found.decode().strip())
    if not wanted.contains(builder.python_full, prereleases=True):
        raise BuildError(
            f'The build {work.of} needs a Python that meets requires-python = "{wanted}", and this controller'
            f" has Python {builder.python_full}. Install the host's series here: uv python install"
            f" {host.python}. Or build without commands: app_build: []"
        )
    return python, builder


def note_misfit(work: Work, entries: Mapping[str, Path | Link], builder: Host, host: Host) -> None:
    """Add a notice if the commands made compiled code, with another Python or on another machine than the host's.

    Args:
        work: the build.
        entries: as `products` returns them.
        builder: the Python and the machine that ran the commands.
        host: those of the host.
    """
    if (builder.python, builder.machine) == (host.python, host.machine):
        return
    made = (name for name, file in entries.items() if not os.path.lexists(work.top() / name) and is_compiled(file))
    if name := next(made, ""):
        step = f"uv python install {host.python}" if builder.machine == host.machine else f"build on {host.machine}"
        work.notices.append(
            f"The commands of the build {work.of} made {name}, compiled code, with Python {builder.python_full} on"
            f" {builder.machine}, and the host has Python {host.python_full} on {host.machine}: it may not fit the"
            f" host. Have the host's Python run the commands: {step}"
        )


def is_compiled(file: Path | Link) -> bool:
    """Return whether a file is bytecode of Python, or a program or a library of the machine."""
    if isinstance(file, Link):
        return False
    with file.open("rb") as opened:
        return file.suffix == ".pyc" or opened.read(4) == b"\x7fELF"


def run_commands(
    work: Work, commands: list[str], release: Path, state_paths: list[str], settings: Mapping[str, str], steps: Steps
) -> None:
    """Run the commands of a build one after the other, in the app's folder.

    Args:
        work: the build.
        commands: the commands for /bin/sh.
        release: the folder that is laid out as a release on a host.
        state_paths: the state paths of the app; a command may need their folders.
        settings: the variables that only the build has.
        steps: what the inventory gives to the commands.

    Raises:
        BuildError: a command failed.
    """
    folder = release / "tree" / work.path
    for path in state_paths:
        (folder / path if path.endswith("/") else (folder / path).parent).mkdir(parents=True, exist_ok=True)
    given = {**steps.settings, **settings}
    environment = {
        **package_environment(work.directory, work.time),
        "HOME": str(Path.home()),
        **{name: os.environ[name] for name in HOMES if name in os.environ},
        "PATH": f"{release}/bin:{os.environ.get('PATH', os.defpath)}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        # Without this, git would find a repository in a parent folder of the workplace.
        "GIT_CEILING_DIRECTORIES": str(work.directory),
        # Bundlers put the release into the code that reports errors from a browser.
        "SENTRY_RELEASE": work.tree.sha,
        **({"BOOTY_CONFIG_DIR": str(Path(steps.config_dir).resolve())} if steps.config_dir else {}),
        **given,
    }
    secrets = sorted((given[name] for name in suspects(given) if len(given[name]) >= SECRET_LENGTH), key=len)
    lines: deque[str] = deque(maxlen=LAST)

    def show(line: str) -> None:
        for secret in reversed(secrets):
            line = line.replace(secret, "***")
        lines.append(line)
        steps.show(line)

    for command in commands:
        steps.show(f"The build on this machine: {command}")
        lines.clear()
        if status := run_command(command, folder, environment, show):
            end = f"ended with the status {status}" if status > 0 else f"was killed by {signal.Signals(-status).name}"
            step = next_step(command, "\n".join(lines), environment["PATH"])
            message = f"The build {work.of} failed: `{command}` {end}. {step}No host was changed."
            raise BuildError("\n".join([message, *lines]))
        if not folder.is_dir():
            raise BuildError(f"The build {work.of} failed: `{command}` removed the app's folder. No host was changed.")


def run_command(command: str, folder: Path, environment: Mapping[str, str], show: Callable[[str], None]) -> int:
    """Run a command, show each line of its output while it runs, and return its exit status.

    The command stays in the process group of Ansible's worker, which ends the group at Ctrl-C. A process that the
    command leaves in the background may keep the pipe open, so the end of the command counts.
    """
    pending = b""
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        umask=0o022,
    ) as process:
        assert process.stdout
        pipe = process.stdout.fileno()
        while True:
            ended = process.poll() is not None
            ready = select.select([pipe], [], [], 0 if ended else 0.1)[0]
            chunk = os.read(pipe, 1 << 16) if ready else b""
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                show(line.decode(errors="replace"))
            if not chunk and (ready or ended):
                break
    if pending:
        show(pending.decode(errors="replace"))
    return process.returncode


def next_step(command: str, text: str, path: str) -> str:
    """Return the sentence on a common cause of a failure, with a blank at its end; "" if the output has none."""
    for program in re.findall(r"([\w.+-]+): (?:command )?not found", text):
        if re.search(rf"(?<![\w./-]){re.escape(program)}(?![\w.-])", command) and not shutil.which(program, path=path):
            return (
                f"This machine has no {program}: install it, lock the package that has it, or commit what the command"
                " makes and leave it out of app_build. "
            )
    if missing := MISSING.search(text):
        name = next(filter(None, missing.groups()))
        return (
            f"The build has no secrets.env, and needs {name}: give it a value for the build, which is no secret:"
            f" app_build_settings: {{{name}: build}}. "
        )
    return ""


def products(work: Work, tree: Path) -> dict[str, Path | Link]:
    """Return the files of a tree after the commands of a build, by their names, without files that are not shipped.

    Raises:
        BuildError: a link leads to a file that hosts do not have.
    """
    entries: dict[str, Path | Link] = {}
    for name, file in walk(tree):
        source = work.top() / name
        is_new = not os.path.lexists(source)
        if is_new and not is_shipped(work, name):
            continue
        if file.is_symlink():
            target, written = Path(os.path.realpath(file)), file.readlink()
            changed = is_new or not source.is_symlink() or source.readlink() != written
            if changed and not target.is_relative_to(tree):
                raise BuildError(
                    f"The build {work.of} made {name} a link to {written}, which is not in the tree, so hosts do not"
                    " have it. Let the command copy the file."
                )
            entries[name] = Link(os.path.relpath(target, file.parent)) if written.is_absolute() and changed else file
        elif file.is_file():
            entries[name] = file
    return entries


def is_shipped(work: Work, name: str) -> bool:
    """Return whether a release gets a file that a command made; the commit's .gitattributes override the defaults."""
    if is_dotenv(name) and not work.dotenv:
        return False
    return work.tree.ships(name, not LEFT_OUT & {*name.split("/")})


def walk(top: Path) -> Iterator[tuple[str, Path]]:
    """Yield each file and link below a folder, with its name relative to the folder."""
    for folder, folders, names in os.walk(top):
        for name in (*names, *(each for each in folders if Path(folder, each).is_symlink())):
            file = Path(folder, name)
            yield str(file.relative_to(top)), file


def failed_before(archive: Path, run: str) -> str:
    """Return the message of a build of an archive that failed in this run; "" if there is none."""
    try:
        before, _, message = failure_file(archive).read_text().partition("\n")
    except FileNotFoundError:
        return ""
    return message if run and before == run else ""


def note_failure(archive: Path, run: str, message: str) -> None:
    """Keep the message of a failed build for the other hosts of the run."""
    write(failure_file(archive), f"{run}\n{message}".encode())


def failure_file(archive: Path) -> Path:
    """Return the file beside an archive that says why its build failed."""
    return archive.with_name(f"{archive.name}.failed")
