"""Attempts of an attacker who runs code in the service; docs/security.md has a table of them.

A release of the test makes each attempt from within the service's own unit.
"""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, ROUTES, Site

# Each probe makes one attempt and returns its outcome, or the name of the errno of an OSError.
PROBES = """
import ctypes, errno, mmap, os, pathlib, resource, signal, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
    return "done"

def write(path):
    pathlib.Path(path).write_text("x")
    return "done"

def read(path):
    pathlib.Path(path).read_bytes()
    return "done"

def connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    return "done"

def open_socket(family, kind, address=None, protocol=0):
    with socket.socket(family, kind, protocol) as opened:
        if address:
            opened.bind(address)
    return "done"

def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return f"status {done.returncode}: {(done.stdout + done.stderr).strip()}"

def set_user_id_bit():
    path = pathlib.Path("/var/lib/booty/probe")
    path.write_text("x")
    path.chmod(0o4755)
    return "done"

def make_executable():
    mapped = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    return call("mprotect", ctypes.c_void_p(address), 4096, mmap.PROT_READ | mmap.PROT_EXEC)

def fill(path, megabytes=64):
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(megabytes):
                file.write(bytes(1 << 20))
    finally:
        os.unlink(path)
    return "done"

def fork(count):
    children = []
    try:
        for _ in range(count):
            children.append(subprocess.Popen(["sleep", "60"]))
    finally:
        for child in children:
            child.kill()
    return "done"

def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(line.split(None, 1)[1] for line in lines if line.startswith(field + ":"))

PROBES = {
    "control": lambda _: write("/var/lib/booty/probe"),
    "write": lambda path: write(path),
    "read": lambda path: read(path),
    "connect": lambda path: connect(path),
    "processes": lambda _: sorted({os.stat(f"/proc/{pid}").st_uid for pid in os.listdir("/proc") if pid.isdigit()}
        ^ {os.getuid()}),
    "signal": lambda pid: os.kill(int(pid), 0) or "done",
    "module": lambda _: call("syscall", {"x86_64": 175, "aarch64": 105}[os.uname().machine], 0, 0, 0),
    "trace": lambda pid: call("ptrace", 16, int(pid), 0, 0),
    "namespace": lambda flag: call("unshare", int(flag, 16)),
    "mount": lambda _: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "low port": lambda _: open_socket(socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 81)),
    "raw socket": lambda _: open_socket(socket.AF_INET, socket.SOCK_RAW, protocol=1),
    "packets": lambda _: open_socket(socket.AF_PACKET, socket.SOCK_RAW),
    "netlink": lambda _: open_socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "setuid": lambda _: os.setuid(0) or "done",
    "set-user-ID bit": lambda _: set_user_id_bit(),
    "write and execute": lambda _: mmap.mmap(-1, 4096, prot=7) and "done",
    "make executable": lambda _: make_executable(),
    "clock": lambda _: call("settimeofday", (ctypes.c_long * 2)(0, 0), None),
    "host name": lambda _: call("sethostname", b"x", 1),
    "reboot": lambda _: call("reboot", 0),
    "limits": lambda _: resource.setrlimit(resource.RLIMIT_NOFILE, (99999, 99999)) or "done",
    "status": lambda field: status(field),
    "cores": lambda _: resource.getrlimit(resource.RLIMIT_CORE),
    "devices": lambda _: sorted(os.listdir("/dev")),
    "fill": lambda path: fill(path),
    "memory": lambda megabytes: len(bytearray(int(megabytes) << 20)) and "done",
    "fork": lambda count: fork(int(count)),
    "run": lambda command: run(*command.split()),
}

@router.get("/probe")
def probe(name: str, argument: str = "") -> dict[str, object]:
    try:
        return {"outcome": str(PROBES[name](argument))}
    except OSError as error:
        return {"outcome": errno.errorcode[error.errno or 0]}
    except (ValueError, subprocess.SubprocessError) as error:
        return {"outcome": repr(error)}
"""


@pytest.fixture(scope="module")
def probe(site: Site) -> Iterator[Callable[..., str]]:
    """Deploy a release with the probes, and yield a function that calls one of them."""
    site.release(text=ROUTES + PROBES)
    site.deploy()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(name: str, argument: str = "") -> str:
        query = urllib.parse.urlencode({"name": name, "argument": argument})
        with opener.open(f"http://{site.host.address}:8000/probe?{query}", timeout=30) as response:
            return str(json.load(response)["outcome"])

    yield ask
    site.run("rm -f /var/lib/booty/probe")
    site.release()
    site.deploy()


# Attempt, probe, argument and expected outcome. The attempts are the first column of the table in docs/security.md.
TRIED = [
    ("write outside its state", "write", "/etc/probe", "EROFS"),
    ("write outside its state", "write", "/usr/bin/probe", "EROFS"),
    ("write outside its state", "write", "/var/spool/probe", "EROFS"),
    ("write outside its state", "write", "/run/booty/probe", "EACCES|EROFS"),
    ("change its own code or label", "write", "/opt/booty/releases/probe", "EROFS"),
    ("change its own code or label", "write", "/etc/booty/release.env", "EROFS|EACCES"),
    ("read secrets.env", "read", "/etc/booty/secrets.env", "EACCES"),
    ("read files of others", "read", "/etc/shadow", "EACCES"),
    ("read files of others", "read", str(Path("/root", ".ssh/authorized_keys")), "EACCES|ENOENT"),
    ("read files of others", "read", "/home/somebody/file", "EACCES|ENOENT"),
    ("read files of others", "read", "/tmp/of-somebody", "ENOENT"),
    ("see other processes", "read", "/proc/1/environ", "ENOENT|EACCES"),
    ("see other processes", "processes", "", r"\[\]"),
    ("signal other processes", "signal", "1", "EPERM|ESRCH"),
    ("trace other processes", "trace", "1", "EPERM"),
    ("load a kernel module", "module", "", "EPERM"),
    ("change the kernel's settings", "write", "/proc/sys/kernel/core_pattern", "ENOENT|EROFS|EACCES"),
    ("change the kernel's settings", "write", "/sys/fs/cgroup/cgroup.procs", "EROFS|EACCES"),
    ("make a namespace", "namespace", "10000000", "EPERM"),  # CLONE_NEWUSER
    ("make a namespace", "namespace", "00020000", "EPERM"),  # CLONE_NEWNS
    ("make a namespace", "mount", "", "EPERM"),
    ("bind a low port", "low port", "", "EACCES"),
    ("open raw sockets", "raw socket", "", "EPERM"),
    ("open raw sockets", "packets", "", "EAFNOSUPPORT"),
    ("open raw sockets", "netlink", "", "EAFNOSUPPORT"),
    ("become somebody else", "setuid", "", "EPERM|EINVAL"),
    ("become somebody else", "set-user-ID bit", "", "EPERM"),
    ("become somebody else", "run", "su -c id", "(?s)status [^0].*"),
    ("become somebody else", "status", "NoNewPrivs", "1"),
    ("become somebody else", "status", "CapBnd", "0+"),
    ("run code from writable memory", "write and execute", "", "EPERM|EACCES"),
    ("run code from writable memory", "make executable", "", "EPERM|EACCES"),
    ("change clock, name or power", "clock", "", "EPERM"),
    ("change clock, name or power", "host name", "", "EPERM"),
    ("change clock, name or power", "reboot", "", "EPERM"),
    ("command systemd", "run", "systemctl stop ssh.service", "(?s)status [^0].*"),
    ("command systemd", "connect", "/run/booty/internal.sock", "EACCES|ENOENT"),
    ("read the journal", "run", "journalctl --no-pager --lines=1 --unit=ssh.service", "(?s)status (1|0: (?!.*sshd)).*"),
    ("raise its limits", "limits", "", "ValueError.*not allowed.*|EPERM"),
    ("leave a core dump", "cores", "", r"\(0, 0\)"),
]


def test_the_service_can_write_its_state(probe: Callable[..., str]) -> None:
    assert probe("control") == "done"


@pytest.mark.parametrize(
    ("attempt", "name", "argument", "outcome"),
    TRIED,
    ids=[f"{row[0]}: {row[1]} {row[2]}" for row in TRIED],
)
def test_an_attempt_fails(
    site: Site, probe: Callable[..., str], attempt: str, name: str, argument: str, outcome: str
) -> None:
    if argument == "/tmp/of-somebody":
        site.run(f"touch {argument}")
    if argument.startswith("/home"):
        site.run(f"install -D -m 0644 /dev/null {argument}; chmod 0755 /home/somebody")
    assert re.fullmatch(outcome, probe(name, argument)), probe(name, argument)


def test_only_harmless_devices_exist(probe: Callable[..., str]) -> None:
    devices = set(re.findall(r"'(\S+)'", probe("devices")))
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "core", "log"}
    assert devices - harmless - {"stdin", "stdout", "stderr", "mqueue", "hugepages", "char"} == set()


# The lines with which docs/security.md limits the files that a release may write.
BOUND = "PrivateTmp=false\nTemporaryFileSystem=/tmp:size=16M,mode=1777 /var/tmp:size=16M,mode=1777"


def test_a_release_can_fill_only_its_own_disk(site: Site, probe: Callable[..., str]) -> None:
    """The state is on a file system of its own; temporary files are on limited ones in memory."""
    drop_in = "/run/systemd/system/booty.service.d"
    assert all(line.replace("16M", "64M") in (ROOT / "docs/security.md").read_text() for line in BOUND.splitlines())
    restart = "systemctl daemon-reload && systemctl start booty.service"
    site.run(f"systemctl stop booty.service && mount -t tmpfs -o size=16M tmpfs /var/lib/booty && mkdir -p {drop_in}")
    try:
        site.run(f"printf '[Service]\\n{BOUND}\\n' > {drop_in}/bound.conf && {restart}")
        room = site.run("df --output=avail / | tail -1")
        for path in ("/var/lib/booty/fill", "/tmp/fill", "/var/tmp/fill"):
            assert probe("fill", path) == "ENOSPC"
        assert abs(int(room) - int(site.run("df --output=avail / | tail -1"))) < 16 << 10
        assert site.health()["status"] == "ok"
    finally:
        site.run(f"rm -r {drop_in}; systemctl stop booty.service; umount /var/lib/booty; {restart}")


@pytest.mark.parametrize(("controller", "name", "argument"), [("memory", "memory", "900"), ("pids", "fork", "200")])
def test_memory_and_processes_are_bounded(
    site: Site, probe: Callable[..., str], controller: str, name: str, argument: str
) -> None:
    """Too much memory or too many processes fail or end the service, which then starts again."""
    if controller not in site.run("cat /sys/fs/cgroup/cgroup.controllers").split():
        pytest.skip(f"this machine's kernel gives sandbox hosts no {controller} controller: it has them as cgroups v1")
    site.deploy(app_memory_max="300M", app_tasks_max="100")
    try:
        try:
            outcome = probe(name, argument)
        except OSError:  # the kernel killed the process during the request
            outcome = "killed"
        assert outcome in {"EAGAIN", "killed"}
        site.wait_for("systemctl is-active --quiet booty.service")
        assert site.health()["status"] == "ok"
    finally:
        site.deploy()


def test_the_document_lists_every_attempt() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE)
    assert {attempt for attempt, *_ in TRIED} <= set(rows)
