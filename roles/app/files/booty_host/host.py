"""What is asked of a host: its release pointer, its units, its secrets file, its service's answer."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ETC = Path("/etc/booty")
OPT = Path("/opt/booty")
RELEASES = OPT / "releases"
LAYERS = OPT / "layers"
# Where archives of layers arrive.
INCOMING = OPT / "incoming"
POINTER = ETC / "release.env"
SECRETS = ETC / "secrets.env"
STATE = OPT / "state.json"
UNITS = Path("/etc/systemd/system")
SERVICE = "booty.service"
SOCKET = "booty.socket"
CANDIDATE = "booty-candidate.service"
SLICE = "system-booty.slice"
ALL_UNITS = (SLICE, SOCKET, SERVICE, CANDIDATE)
ENABLED = (SOCKET, SERVICE)
# Gone at a reboot, as the candidate is: release.env stays the only pointer.
CANDIDATE_POINTER = Path("/run/booty/candidate.env")
# The socket unit that was replaced while its sockets stay open: the InvocationID of its start, a line end, its text.
OPENED = Path("/run/booty/opened")
LOCK = Path("/run/booty-deploy.lock")
# Which run last changed the host or found it in order, and when.
LAST = Path("/run/booty-deploy.last")

# The only variables that are ever read out of a service or a file; the rest may be a secret.
LABELS = ("SENTRY_RELEASE", "SENTRY_ENVIRONMENT", "BOOTY_RELEASE_DIR", "BOOTY_UNIT")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its status, output and errors as text."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)


def parse_assignments(text: str) -> dict[str, str]:
    """Read `NAME=value` lines, of `release.env` or `systemctl show`; comments and other lines are passed over."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith(("#", ";")))
    return {name.strip(): value.strip() for name, _, value in pairs}


def parse_environ(environ: bytes) -> dict[str, str]:
    """Return the labels, and nothing else, of a process's `/proc/<pid>/environ`."""
    pairs = (entry.partition("=") for entry in environ.decode(errors="replace").split("\0"))
    return {name: value for name, _, value in pairs if name in LABELS}


def units(*names: str) -> list[dict[str, str]]:
    """Return what systemd says of units' states, by systemd's own property names, in the order asked for."""
    properties = "ActiveState,SubState,Result,MainPID,NeedDaemonReload,UnitFileState,NRestarts,InvocationID"
    return [parse_assignments(block) for block in shown(*names, f"--property={properties}").split("\n\n")]


def shown(*arguments: str) -> str:
    """Return what `systemctl show` prints; raise HostError on a host that systemd does not run."""
    # sd_booted(3), in Python.
    if not Path("/run/systemd/system").is_dir():
        first = read(Path("/proc/1/comm")).strip() or "another program"
        raise HostError(
            f"systemd does not run this host (its first process is {first}). Booty needs a host that systemd started."
        )
    done = run("systemctl", "show", *arguments)
    if done.returncode or not done.stdout:
        raise HostError(f"systemd does not answer: {done.stderr.strip()}. See what it says: systemctl status")
    return done.stdout


def unit(name: str) -> dict[str, str]:
    """Return what systemd says of one unit's state."""
    return units(name)[0]


def labels(pid: int) -> dict[str, str]:
    """Return the labels that a running process was started with; none when it is gone."""
    try:
        return parse_environ(Path(f"/proc/{pid}/environ").read_bytes())
    except OSError:
        return {}


def pointer() -> dict[str, str]:
    """Return what `/etc/booty/release.env` says; nothing when it is not there."""
    return parse_assignments(read(POINTER))


def manifest(directory: Path) -> dict[str, str]:
    """Return what a staged release says of itself in `release.json`; nothing when that is missing or damaged."""
    try:
        fields = json.loads(read(directory / "release.json"))
    except (OSError, ValueError):
        return {}
    match fields:
        case {"layer": str(), "python": str()}:
            return dict(fields)
    return {}


def layers_of(manifest: dict[str, str]) -> set[str]:
    """Return the layers that a release needs; one that was built before the runner had a layer needs its own alone."""
    return {manifest[layer] for layer in ("layer", "runner") if layer in manifest}


def login_home() -> Path:
    """Return the home of the user that Ansible logged in as: root's, if it did not come by sudo."""
    return Path(os.path.expanduser(f"~{os.environ.get('SUDO_USER') or 'root'}"))


def directories(parent: Path) -> list[Path]:
    """Return the directories of releases or layers that are whole; those half-made or half-removed begin with a dot."""
    return sorted(path for path in parent.glob("[!.]*") if path.is_dir() and not path.is_symlink())


def reachable(address: str) -> str:
    """Return an address that a socket listening on `address` answers on from the host itself."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def parse_listeners(table: str) -> dict[tuple[str, int], str]:
    """Return the inode of each address and port that listens, from the text of `/proc/net/tcp` or `tcp6`."""
    listening = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h
    found = {}
    for fields in (line.split() for line in table.splitlines()[1:]):
        if fields[3] == listening:
            raw, port = fields[1].split(":")
            # Each 32-bit word is in the machine's own order: little-endian on what Booty supports.
            packed = b"".join(bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, len(raw), 8))
            found[str(ipaddress.ip_address(packed)), int(port, 16)] = fields[9]
    return found


def parse_stream(unit_text: str) -> tuple[str, int]:
    """Return the address and port of the first `ListenStream=` in a socket unit's text.

    Raises:
        ValueError: there is none.
    """
    found = re.search(r"^ListenStream=(.+):(\d+)$", unit_text, re.MULTILINE)
    if not found:
        raise ValueError(f"{UNITS / SOCKET} names no address and port")
    return found[1].strip("[]"), int(found[2])


def overlaps(address: str, other: str, takes_both: bool) -> bool:
    """Tell whether the kernel refuses to listen on one address because of a listener on another, on the same port.

    Args:
        address: the one that is wanted.
        other: the listener's.
        takes_both: whether a socket on `::` takes IPv4 as well, as it does without IPV6_V6ONLY.
    """
    one, two = (getattr(ip, "ipv4_mapped", None) or ip for ip in map(ipaddress.ip_address, (address, other)))
    if one.version == two.version:
        return one == two or one.is_unspecified or two.is_unspecified
    return takes_both and (one if one.version == 6 else two).is_unspecified


def takes_both(address: str, port: int, listeners: dict[tuple[str, int], str]) -> bool:
    """Tell whether a socket on `::` takes IPv4 as well: the service's, if `address` is IPv6, else one that listens."""
    if ":" in address:
        return read(Path("/proc/sys/net/ipv6/bindv6only")).strip() != "1"
    # /proc/net/tcp6 does not show IPV6_V6ONLY. A listener on 0.0.0.0 beside it proves that it is set. Else a bind
    # tells, to an address of the loopback on which no program listens.
    if ("0.0.0.0", port) in listeners:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.77.77.77", port))
        except OSError:
            return True
    return False


def holder(inode: str) -> int:
    """Return the PID of a process that has a socket open, systemd's 1 before all others; 0 if there is none."""
    for pid in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        with suppress(OSError):  # ended, or closed in this instant
            if any(os.readlink(path) == f"socket:[{inode}]" for path in Path(f"/proc/{pid}/fd").iterdir()):
                return pid
    return 0


def takers(address: str, port: int) -> str:
    """Name what listens where the service's socket could not, but for booty.socket; nothing when nobody does.

    Programs are named with their PID, and systemd's own sockets with their unit.
    """
    listeners = {**parse_listeners(read(Path("/proc/net/tcp"))), **parse_listeners(read(Path("/proc/net/tcp6")))}
    found = []
    for (other, at), inode in listeners.items():
        if at != port or not overlaps(address, other, takes_both(address, port, listeners)):
            continue
        name = f"[{other}]:{port}" if ":" in other else f"{other}:{port}"
        pid = holder(inode)
        if pid == 1:
            table = run("systemctl", "list-sockets", "--full", "--plain", "--no-legend").stdout
            unit_of = {fields[0]: fields[1] for fields in map(str.split, table.splitlines()) if len(fields) > 1}
            if unit_of.get(name, SOCKET) != SOCKET:
                found.append(f"{unit_of[name]} on {name}")
        else:
            program = f"{read(Path(f'/proc/{pid}/comm')).strip()} (PID {pid})" if pid else "another program"
            found.append(f"{program} on {name}")
    return ", ".join(found)


def socket_options(unit_text: str) -> set[str]:
    """Return the lines of a socket unit that only newly opened sockets take on.

    The kernel needs FreeBind= at the bind alone, and systemd reads TriggerLimit… when it counts.
    """
    section = unit_text.partition("[Socket]")[2].partition("\n[")[0].splitlines()
    return {line for line in section if line.strip() and not line.startswith(("#", "FreeBind=", "TriggerLimit"))}


def opened(socket_unit: dict[str, str]) -> str:
    """Return the text of the socket unit that systemd opened its sockets with: a reload changes nothing of them.

    Args:
        socket_unit: what systemd says of its state.
    """
    invocation, _, text = read(OPENED).partition("\n")
    return text if invocation == socket_unit["InvocationID"] else read(UNITS / SOCKET)


def keep_opened() -> None:
    """Keep the text of the socket unit before it is replaced, if its sockets are open."""
    told = unit(SOCKET)
    if told["ActiveState"] == "active":
        write_atomically(OPENED, f"{told['InvocationID']}\n{opened(told)}")


def health(address: str, port: int, timeout: float = 5.0) -> dict[str, Any]:
    """Ask `GET /health` on the real socket.

    Args:
        address: what `booty.socket` listens on.
        port: likewise.
        timeout: seconds.

    Returns:
        the HTTP `status` (0 when there was no answer) and the answer's own fields; `reason` says what went wrong.
    """
    # A third of the time that this program takes to load, and often nobody asks for it.
    import http.client  # noqa: PLC0415

    connection = http.client.HTTPConnection(reachable(address), port, timeout=timeout)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        return {"status": 0, "reason": f"no answer on {address}:{port}: {error or type(error).__name__}"}
    finally:
        connection.close()
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        fields = {"reason": f"status {response.status}, but the answer is not a JSON object"}
    return {**fields, "status": response.status}


def installed_health() -> dict[str, Any]:
    """Ask `GET /health` where the installed `booty.socket` listens; the answer is that of `health`."""
    try:
        address = parse_stream(read(UNITS / SOCKET))
    except ValueError as error:
        return {"status": 0, "reason": str(error)}
    return health(*address)


def journal(name: str, invocation: str = "", lines: int = 20) -> list[str]:
    """Return the last lines that a unit, or one start of it, left in the journal."""
    match = [f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}"] if invocation else ["-u", name]
    output = run("journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={lines}", *match).stdout
    return output.splitlines()


# What only documentation and templates use as a key or a host: RFC 2606's names, and those of Sentry's own examples.
PLACEHOLDER = re.compile(
    r"[<>{}]|change.?me|replace.?me|placeholder|\byour[-_.]|xxxx|\btodo\b|//(public|key|(example)?public_?key)[:@]"
    r"|[@.]example\.(com|org|net)[:/]|\.(example|invalid)[:/]|@o0\.ingest\.",
    re.IGNORECASE,
)
# What makes a whole file unusable, and then a line of it. Systemd reads it (`parse_env_file_internal` in its
# src/basic/env-file.c): what it would misread, or pass over in silence, is a fault here, and so is what other readers
# of such files would take for something else.
FLAWS_OF_TEXT = (
    (r"\ufeff", "it begins with a byte order mark (BOM): save it as UTF-8 without one"),
    (r"[^\r]*\r", "it has Windows line ends (CRLF): remove them with sed -i 's/\\r$//'"),
    (r"[^\0]*\0", "it holds a NUL byte: it is no text"),
)
FLAWS_OF_COMMENT = ((r".*\\\Z", "is a comment that ends with a backslash, for which systemd may skip the next line"),)
FLAWS_OF_LINE = (
    (r"export ", "begins with export, which systemd does not know: remove the word"),
    (r"[^=]*(\s=|=\s)", "has blanks around its =: remove them"),
    (r"(?![A-Za-z_][A-Za-z0-9_]*=)", "is not NAME=value, so systemd would pass over it"),
    (r"\w+=(?!['\"]).*['\"]\Z", "has an unbalanced quote"),
    (r"\w+=(?!['\"]).*\\", "has a backslash, which systemd would take away: put the value in single quotes"),
    (
        r"\w+=(?!['\"]).*\s[#;]",
        "has a comment after its value, which systemd would make part of the value: move it to a line of its own; if it"
        " is part of the value, put the value in single quotes",
    ),
)
# Variables that secrets.env can't set, and who else does. An EnvironmentFile= overrides Environment= and what systemd
# itself sets.
RESERVED = (
    (
        r"BOOTY_(LOG_FORMAT|(DRAIN|STREAM|WATCHDOG)_SECONDS|WORKERS|TELEMETRY_GATE)",
        "the unit sets: remove it, and set {} in the inventory",
    ),
    (r"BOOTY_(UNIT|CANDIDATE)", "the unit sets: remove it"),
    (
        # systemd.exec(5), "Environment variables in spawned processes"; sd_notify(3), sd_listen_fds(3).
        r"NOTIFY_SOCKET|LISTEN_(PID|FDS|FDNAMES|PIDFDID)|WATCHDOG_(PID|USEC)|MAINPID|INVOCATION_ID|JOURNAL_STREAM"
        r"|SYSTEMD_EXEC_PID|MEMORY_PRESSURE_(WATCH|WRITE)"
        r"|(RUNTIME|STATE|CACHE|LOGS|CONFIGURATION|CREDENTIALS)_DIRECTORY",
        "systemd sets: remove it",
    ),
    # ld.so(8) and python(1): code from elsewhere would run under the release's label.
    (
        r"PYTHON(PATH|HOME|USERBASE)|LD_(PRELOAD|LIBRARY_PATH|AUDIT)",
        "makes the process load code from outside of the release: remove it",
    ),
)
# Control characters come with what is pasted into a terminal, and systemd keeps them.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Linux's limits in bytes (execve(2)): of one NAME=value, MAX_ARG_STRLEN without the zero byte at its end; and of all
# with their pointers, a quarter of the stack's 8 MB, less what systemd's own variables and the command take.
MAX_VARIABLE, MAX_VARIABLES = 131_071, 2 * 2**20 - 2**15
TO_FILE = "keep it in a file of its own, readable for the service, and set the path here"
# A quoted value may go on over several lines, as a private key does; in double quotes a backslash hides the next sign.
QUOTED = {"'": re.compile(r"'([^']*)'"), '"': re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)}
# Another assignment in a quoted value: the quote was forgotten.
SWALLOWED = re.compile(r"\n[A-Z][A-Z0-9]*_[A-Z0-9_]*=")


def judge_dsn(dsn: str) -> str | None:
    """Say what is wrong with a Sentry DSN, without showing it; None when it can be used.

    The form is Sentry's own: `{scheme}://{public key}@{host}{path}/{project id}`.
    """
    try:
        parts = urllib.parse.urlsplit(dsn)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "SENTRY_DSN is not a URL"
    project = parts.path.rpartition("/")[2]
    flaws = (
        (PLACEHOLDER.search(dsn), "is a placeholder; the tracker shows the real one, among the project's client keys"),
        (parts.scheme not in {"http", "https"}, "does not begin with http:// or https://"),
        (not parts.username, "has no public key"),
        (not host or any(character.isspace() for character in dsn), "has no usable host"),
        (":" in host, "has an IPv6 address for a host, which Sentry's SDK does not support"),
        (not project, "has no project id"),
        (not (project.isascii() and project.isdecimal()), "has a project id that is not a number"),
    )
    return next((f"SENTRY_DSN {flaw}" for found, flaw in flaws if found), None)


def parse_secrets(text: str) -> dict[str, tuple[int, str]]:
    """Read the text of `secrets.env` as systemd does.

    Returns:
        the number of its line and its value for each variable; of a quoted value as it is between the quotes.

    Raises:
        ValueError: a line would not reach the service as it is written; says which and why, and shows no value.
    """
    if flaw := next((flaw for pattern, flaw in FLAWS_OF_TEXT if re.match(pattern, text)), None):
        raise ValueError(flaw)
    values: dict[str, tuple[int, str]] = {}
    lines = text.split("\n")
    number = size = 0
    while number < len(lines):
        line, rest, number = lines[number].strip(" \t"), "\n".join(lines[number:]), number + 1
        comment = not line or line.startswith(("#", ";"))
        if flaw := next(
            (flaw for pattern, flaw in (FLAWS_OF_COMMENT if comment else FLAWS_OF_LINE) if re.match(pattern, line)),
            None,
        ):
            raise ValueError(f"line {number} {flaw}")
        if comment:
            continue
        name, _, value = line.partition("=")
        after = number
        if value[:1] in QUOTED:
            quoted = QUOTED[value[0]].match(rest, rest.index("=") + 1)
            if not quoted or SWALLOWED.search(quoted[1]):
                raise ValueError(f"line {number} has an unbalanced quote")
            if rest[quoted.end() :].partition("\n")[0].strip():
                raise ValueError(f"line {number} goes on after its closing quote: systemd knows no comments there")
            value, after = quoted[1].strip(), number + quoted[1].count("\n")
        if why := next((why for names, why in RESERVED if re.fullmatch(names, name)), None):
            raise ValueError(f"line {number} sets {name}, which {why.format(name.lower().replace('booty_', 'app_'))}")
        if CONTROL.search(value):
            raise ValueError(f"line {number} holds a control character, as pasting may leave it: type the line anew")
        if name in values:
            raise ValueError(f"lines {values[name][0]} and {number} set the same name: remove one")
        if (length := len(f"{name}={value}".encode())) > MAX_VARIABLE:
            raise ValueError(f"line {number} has {length:,} bytes, and Linux takes {MAX_VARIABLE:,} at most: {TO_FILE}")
        values[name] = (number, value)
        number, size = after, size + length + 9
    if size > MAX_VARIABLES:
        raise ValueError(f"its values have {size:,} bytes, and Linux takes {MAX_VARIABLES:,} at most: {TO_FILE}")
    return values


def judge_secrets(data: bytes) -> tuple[str | None, str | None]:
    """Say what is wrong with the content of `secrets.env`, without showing any of it.

    Returns:
        what would not reach the service as it is written, and that or else why production can't use it; None for what
        is well.
    """
    try:
        values = parse_secrets(data.decode())
    except UnicodeDecodeError:
        return ("it is not UTF-8 text",) * 2
    except ValueError as error:
        return (str(error),) * 2
    # release.env sets these, and it is read after the secrets: here they would only look as if they had an effect.
    if labels := [(number, name) for name, (number, _) in values.items() if name in LABELS]:
        return None, "line {} sets {}, which is release.env's to say: remove it".format(*labels[0])
    dsn = values.get("SENTRY_DSN", (0, ""))[1]
    return None, judge_dsn(dsn) if dsn else "SENTRY_DSN is not set" if data.strip() else "it is empty"


def secrets() -> dict[str, Any]:
    """Judge `/etc/booty/secrets.env` on the host; no value of it leaves this function.

    Returns:
        `present`; `closed`, which says what is wrong with its owner or mode (None when nothing is); `readable`, which
        says what systemd would not read as it is written; and `usable`, which says why production can't use it.
    """
    try:
        status = SECRETS.lstat()
    except FileNotFoundError:
        return {"present": False, "closed": None, "readable": None, "usable": f"{SECRETS} is missing"}
    closed = None
    if stat.S_ISLNK(status.st_mode):
        closed = f"{SECRETS} is a symbolic link, which is not a regular file: put the file itself there"
    elif not stat.S_ISREG(status.st_mode):
        closed = f"{SECRETS} is not a regular file"
    elif status.st_uid != 0:
        closed = f"{SECRETS} is not owned by root"
    elif status.st_mode & 0o077:
        closed = f"{SECRETS} is open to others (mode {stat.S_IMODE(status.st_mode):04o}; make it 0600)"
    if closed:
        return {"present": True, "closed": closed, "readable": None, "usable": closed}
    # Bytes, since reading text would hide its line ends.
    readable, usable = (flaw and f"{SECRETS}: {flaw}" for flaw in judge_secrets(SECRETS.read_bytes()))
    return {"present": True, "closed": None, "readable": readable, "usable": usable}


class Release:
    """What a host is told to serve: the text of release.env, and of the units that belong to it."""

    def __init__(self, pointer: str, units: dict[str, str]) -> None:
        self.pointer, self.units = pointer, units
        self.labels = parse_assignments(pointer)
        self.sha = self.labels.get("SENTRY_RELEASE", "")

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that it is served on."""
        return parse_stream(self.units[SOCKET])

    @property
    def expected(self) -> dict[str, str]:
        """The labels of a main process that serves it: those of release.env, and under which unit it was started."""
        found = re.search(r"BOOTY_UNIT=(\w+)", self.units[SERVICE])
        return {**self.labels, **({"BOOTY_UNIT": found[1]} if found else {})}


def unsettled(wanted: Release) -> str:
    """Say what is left to do until a release serves as it is wanted; nothing when it does.

    Decided by what runs and not by what some run changed: an interrupted deploy leaves no handler behind.
    """
    socket, service, candidate = units(SOCKET, SERVICE, CANDIDATE)
    for name, text in wanted.units.items():
        # The candidate's own is installed whenever there is one.
        if name != CANDIDATE and read(UNITS / name) != text:
            return f"{UNITS / name} differs"
    if pointer() != wanted.labels:
        return f"{POINTER} does not name {wanted.sha}"
    if {socket["UnitFileState"], service["UnitFileState"]} != {"enabled"}:
        return f"{SOCKET} and {SERVICE} are not enabled"
    changed = ", ".join(sorted(socket_options(opened(socket)) ^ socket_options(wanted.units[SOCKET])))
    if changed or "yes" in {socket["NeedDaemonReload"], service["NeedDaemonReload"]}:
        return (
            f"{SOCKET} was opened before {changed} changed" if changed else "systemd has not read the units as they are"
        )
    if candidate["ActiveState"] not in {"inactive", "failed"}:
        return f"{CANDIDATE} is {candidate['ActiveState']}"
    # Asking a stopped service would start it: the socket is systemd's.
    found = labels(int(service["MainPID"]))
    return (fault(wanted, found, health(*wanted.address)) if found else f"{SERVICE} does not run") or ""


def fault(wanted: Release, found: dict[str, str], health: dict[str, Any]) -> str | None:
    """Say how what serves differs from what was asked for; None when it does not.

    Args:
        wanted: the release.
        found: the labels that the main process was started with.
        health: what the real socket answered.
    """
    if difference := differs(wanted.expected, found):
        return f"the running process's {difference}"
    if health["status"] != 200:
        return f"/health says {health['status']}: {health.get('reason', 'no reason given')}"
    answers = {"SENTRY_RELEASE": health.get("release"), "SENTRY_ENVIRONMENT": health.get("environment")}
    for name, answer in answers.items():
        if answer != wanted.labels[name]:
            return f"/health answers {answer} for {name}, not {wanted.labels[name]}"
    return None


def differs(wanted: dict[str, str], found: dict[str, str]) -> str | None:
    """Name the first label that differs; None when none does."""
    for name, value in wanted.items():
        if found.get(name) != value:
            return f"{name} is {found.get(name)}, not {value}"
    return None


def read(path: Path) -> str:
    """Return a file's text, with a mark in place of each byte that is not UTF-8; nothing when it is not there."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def verify_units(units: dict[str, str]) -> str:
    """Return what systemd finds wrong with a set of units; nothing when all is right."""
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, name) for name in units]
        for path in paths:
            path.write_text(units[path.name])
        # It exits 0 on an unknown key, so what it says counts; but it verifies what these need as well, and another
        # package's fault is not ours to report.
        said = run("systemd-analyze", "verify", "--man=no", *map(str, paths)).stderr.splitlines()
    return "\n".join(line.replace(f"{directory}/", "") for line in said if "booty" in line)


def journal_of(name: str) -> str:
    """Return the last lines of a unit's last start, as a message shows them."""
    lines = journal(name, unit(name).get("InvocationID", ""))
    return (
        "\n  ".join([f"The journal of {name} ends with:", *lines]) if lines else f"{name} left nothing in the journal."
    )


def releases_in_use() -> set[str]:
    """Return the releases that any process on the host runs."""
    found = (labels(int(path.name)).get("BOOTY_RELEASE_DIR", "") for path in Path("/proc").glob("[0-9]*"))
    return {Path(directory).name for directory in found if directory}


def log(message: str, **fields: str) -> None:
    """Leave a record in the journal, under booty-deploy, with each of these as a field of its own: BOOTY_RESULT=….

    The form is the journal's own, docs of systemd: JOURNAL_NATIVE_PROTOCOL, which keeps a message of many lines whole.
    """
    named = {f"BOOTY_{name.upper()}": value for name, value in fields.items()}
    record = {"SYSLOG_IDENTIFIER": "booty-deploy", "PRIORITY": "6", "MESSAGE": message, **named}
    data = b"".join(
        name.encode() + b"\n" + len(text := value.encode()).to_bytes(8, "little") + text + b"\n"
        for name, value in record.items()
    )
    # A journal that restarts in this instant is no reason to stop half-way.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.sendto(data, "/run/systemd/journal/socket")


def record(message: str, fields: dict[str, str], check: bool) -> dict[str, Any]:
    """Leave a record of what the controller decided, unless this is a check."""
    if not check:
        log(message, **fields)
    return {"changed": False}


class State:
    """What a host remembers of its releases, in `/opt/booty/state.json`.

    Attributes:
        served: the releases that were proven and served, the newest first.
        abandoned: why each of the others was given up.
        previous: what the last cutover replaced, and which run's it was: the text of release.env and of the units.
    """

    def __init__(self, served: list[str], abandoned: dict[str, str], previous: dict[str, Any]) -> None:
        self.served, self.abandoned, self.previous = served, abandoned, previous

    @classmethod
    def load(cls) -> State:
        """Read it; a host that has none remembers nothing.

        Raises:
            HostError: the file is damaged. To guess would be to remove releases that can be gone back to.
        """
        try:
            fields = {"served": [], "abandoned": {}, "previous": {}, **json.loads(read(STATE) or "{}")}
        except (OSError, ValueError, TypeError):
            fields = {}
        match fields:
            case {"served": list(served), "abandoned": dict(abandoned), "previous": dict(previous)}:
                if all(isinstance(release, str) for release in served):
                    return cls(served, abandoned, previous)
        raise HostError(
            f"{STATE} is damaged; it says what this host can go back to. Put a copy of it back. Or remove it: the host"
            " then has nothing to go back to until the next deploy."
        )

    def save(self) -> None:
        """Replace the file in one rename."""
        write_atomically(STATE, json.dumps(vars(self), indent=1) + "\n")

    def serve(self, release: str) -> None:
        """Note that a release serves now."""
        if self.served[:1] != [release] or release in self.abandoned:
            self.served = [release, *(other for other in self.served if other != release)]
            self.abandoned.pop(release, None)
            self.save()

    def abandon(self, release: str, why: str) -> None:
        """Note why a release was given up; one that served before keeps that."""
        if release not in self.served:
            self.abandoned[release] = why
            self.save()

    def forget(self, staged: set[str]) -> None:
        """Drop the releases that are no longer on the host, so that the file does not grow with each deploy."""
        served = [release for release in self.served if release in staged]
        abandoned = {release: why for release, why in self.abandoned.items() if release in staged}
        if (served, abandoned) != (self.served, self.abandoned):
            self.served, self.abandoned = served, abandoned
            self.save()


class HostError(Exception):
    """What was asked for can't be done; the message says why, and what to do."""


def lease(locks: str) -> str | None:
    """Say who holds the host's deploy lock, for what and since when; None when nobody does.

    It is read from the kernel's table: to try the lock would be to hold it, and a deploy that comes then is refused.

    Args:
        locks: the text of `/proc/locks`.
    """
    try:
        file = LOCK.stat()
    except FileNotFoundError:
        return None
    key = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    # A waiting one is a line that begins with `->`; to have no holder and a waiting one can't be.
    if any(key in line.split() for line in locks.splitlines()):
        return read(LOCK).strip() or "somebody"
    return None


def wait_for_lease(wait: float) -> None:
    """Return once no run holds the host's deploy lock.

    Args:
        wait: how long it may take, in seconds.

    Raises:
        HostError: another run still holds it.
    """
    deadline = time.monotonic() + wait
    while holder := lease(read(Path("/proc/locks"))):
        if time.monotonic() >= deadline:
            raise HostError(busy(holder))
        time.sleep(0.1)


def busy(holder: str) -> str:
    """Return the message for a run that meets another one on the host."""
    return (
        f"Another deploy is under way on this host: {holder}. Nothing was changed. Deploy again when it is through, or"
        " have the next one wait for it: -e app_lock_wait=300 (seconds)."
    )


def seen() -> dict[str, str]:
    """Return what a cutover must find again: release.env's text and release, and the note of the last run."""
    text = read(POINTER)
    return {"pointer": text, "release": parse_assignments(text).get("SENTRY_RELEASE", ""), "last": read(LAST)}


def note(by: str) -> None:
    """Leave a note that a run changed this host or found it in order.

    Runs that have asked before, and not switched the host yet, see by the note that their answer is out of date.
    """
    with suppress(OSError):  # a full /run: the text of release.env still tells
        LAST.write_text(f"{by}, at {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")


def detached(work: Callable[[], dict[str, Any]], by: str, wait: float = 0) -> dict[str, Any]:
    """Do what must not come apart in a process of its own, which goes on when the connection or the caller dies.

    It holds the host's deploy lock, which ends with the process: there is nothing to unlock by hand.

    Args:
        work: what is done.
        by: who asks and for what, for those who meet the lock.
        wait: how long to wait while another one is at it, in seconds.

    Returns:
        what `work` returns, or `failed` and `msg` when it raised.

    Raises:
        HostError: another one is still at it.
    """
    deadline = time.monotonic() + wait
    with os.fdopen(os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    lock.seek(0)
                    raise HostError(busy(lock.read().strip())) from None
                time.sleep(0.1)
        lock.seek(0)
        lock.truncate()
        lock.write(f"{by}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")
        lock.flush()
        reader, writer = os.pipe()
        if os.fork() == 0:
            # The lock belongs to the open file, which this process now shares.
            os.setsid()
            os.close(reader)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in range(3):
                os.dup2(null, descriptor)
            log(f"{by}, in {cgroup()}")
            try:
                result = work()
            except HostError as error:
                result = {"failed": True, "msg": str(error)}
            except BaseException as error:
                result = {"failed": True, "msg": f"{type(error).__name__}: {error}"}
            with suppress(BrokenPipeError), os.fdopen(writer, "w") as pipe:
                pipe.write(json.dumps(result))
            os._exit(0)
        os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    if not answer:
        return {"failed": True, "msg": "The cutover was killed on the host. Look at: journalctl -t booty-deploy"}
    told: dict[str, Any] = json.loads(answer)
    return told


def cgroup() -> str:
    """Return the systemd unit that this process belongs to, by the name of its control group."""
    return Path(read(Path("/proc/self/cgroup")).strip()).name


def write_atomically(path: Path, content: str, mode: int = 0o644) -> None:
    """Replace a file in one rename, on disk before the call returns, so that a crash leaves the old or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    sync_directory(path.parent)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory against others who ask for it likewise, until the end of the block or of the process."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove(directory: Path) -> None:
    """Remove a directory; should that be interrupted, nobody takes what is left for whole."""
    doomed = directory.with_name(f".{directory.name}.removed")
    directory.rename(doomed)
    shutil.rmtree(doomed)


def sync_directory(path: Path) -> None:
    """Put a directory's own entries on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
