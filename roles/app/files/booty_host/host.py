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
    told = run("systemctl", "show", *names, f"--property={properties}").stdout
    return [parse_assignments(block) for block in told.split("\n\n")]


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
    try:
        return parse_assignments(POINTER.read_text())
    except FileNotFoundError:
        return {}


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
    """Return the address and port of the first `ListenStream=` in a socket unit's text."""
    address, _, port = re.findall(r"^ListenStream=(.*)$", unit_text, re.MULTILINE)[0].rpartition(":")
    return address.strip("[]"), int(port)


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
    (r"\s*\Z", "it is empty"),
)
FLAWS_OF_LINE = (
    (r"export ", "begins with export, which systemd does not know: remove the word"),
    (r"[^=]*(\s=|=\s)", "has blanks around its =: remove them"),
    (r"(?![A-Za-z_][A-Za-z0-9_]*=)", "is not NAME=value, so systemd would pass over it"),
    # release.env says these, and it is read after the secrets: here they would look as if they had a say.
    (r"SENTRY_RELEASE=", "sets SENTRY_RELEASE, which is release.env's to say: remove it"),
    (r"SENTRY_ENVIRONMENT=", "sets SENTRY_ENVIRONMENT, which is release.env's to say: remove it"),
    (r"BOOTY_RELEASE_DIR=", "sets BOOTY_RELEASE_DIR, which is release.env's to say: remove it"),
    (r"\w+=(?!['\"]).*['\"]\Z", "has an unbalanced quote"),
    (r"\w+=(?!['\"]).*\\", "has a backslash, which systemd would take away: put the value in single quotes"),
)
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


def judge_secrets(text: str) -> str | None:
    """Say what is wrong with the text of `secrets.env`, without showing any of it; None when it can be used."""
    if flaw := next((flaw for pattern, flaw in FLAWS_OF_TEXT if re.match(pattern, text)), None):
        return flaw
    values: dict[str, tuple[int, str]] = {}
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        line, rest, number = lines[number].strip(), "\n".join(lines[number:]), number + 1
        if not line or line.startswith(("#", ";")):
            continue
        if flaw := next((flaw for pattern, flaw in FLAWS_OF_LINE if re.match(pattern, line)), None):
            return f"line {number} {flaw}"
        name, _, value = line.partition("=")
        if value[:1] in QUOTED:
            quoted = QUOTED[value[0]].match(rest, rest.index("=") + 1)
            if not quoted or SWALLOWED.search(quoted[1]):
                return f"line {number} has an unbalanced quote"
            if rest[quoted.end() :].partition("\n")[0].strip():
                return f"line {number} goes on after its closing quote: systemd knows no comments there"
            value, after = quoted[1].strip(), number + quoted[1].count("\n")
        else:
            after = number
        if name in values:
            return f"lines {values[name][0]} and {number} set the same name: remove one"
        values[name] = (number, value)
        number = after
    dsn = values.get("SENTRY_DSN", (0, ""))[1]
    return judge_dsn(dsn) if dsn else "SENTRY_DSN is not set"


def secrets() -> dict[str, Any]:
    """Judge `/etc/booty/secrets.env` on the host; no value of it leaves this function.

    Returns:
        `present`; `closed`, which says what is wrong with its owner or mode (None when nothing is); and `usable`, which
        says what is wrong with what it holds.
    """
    try:
        status = SECRETS.lstat()
    except FileNotFoundError:
        return {"present": False, "closed": None, "usable": f"{SECRETS} is missing"}
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
        return {"present": True, "closed": closed, "usable": closed}
    try:
        # Bytes, since reading text would hide its line ends.
        fault = judge_secrets(SECRETS.read_bytes().decode())
    except UnicodeDecodeError:
        fault = "it is not UTF-8 text"
    return {"present": True, "closed": None, "usable": fault and f"{SECRETS}: {fault}"}


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
    """Return a file's text; nothing when it is not there."""
    try:
        return path.read_text()
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
        """Read it; a host that has none remembers nothing."""
        told = json.loads(read(STATE) or "{}")
        return cls(told.get("served", []), told.get("abandoned", {}), told.get("previous", {}))

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


class HostError(Exception):
    """What was asked for can't be done; the message says why, and what to do."""


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
                    raise HostError(
                        f"Another deploy is under way on this host: {lock.read().strip()}. Nothing was changed. Deploy"
                        " again when it is through, or have the next one wait for it: -e app_lock_wait=300 (seconds)."
                    ) from None
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
            try:
                result = work()
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
