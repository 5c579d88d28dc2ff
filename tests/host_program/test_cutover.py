"""The order of a cutover's steps, with an in-memory systemd; the real hosts' tests kill a cutover between its steps."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from booty_host import HostError, cutover, handover, lease, programs
from booty_host.app import App
from booty_host.controller import Controller
from booty_host.cutover import Cutover
from booty_host.files import parse_assignments, parse_pointer, read
from booty_host.processes import labels
from booty_host.programs import Programs
from booty_host.prune import prune
from booty_host.release import Release, ask, ask_itself, directory_of, unsettled
from booty_host.state import State
from booty_host.systemd import Systemd


class MemorySystemd(Systemd):
    """Unit states in memory, and the labels of a process in a file below the app's root.

    Attributes:
        steps: the calls of systemctl, the requests of /health, the records in the journal, and the changes of
            release.env and state.json that each of these finds; in their order.
        broken: the units that fail to start, each with the release that it fails with.
        ill: the releases whose /health answers 503, and whose service systemd had to start again.
        accepts: whether systemd accepts another main process.
        happens: what happens after a step, by a word of that step.
        unsteady: the releases whose processes end at once.
        busy: the instances that take time to end.
        strange: whether another program answers the first question after the candidate's unit has stopped.
    """

    def __init__(self, app: App, journald: socket.socket) -> None:
        super().__init__(app)
        self.journald, self.port = journald, 0
        self.steps: list[str] = []
        self.named, self.served, self.undoable = "", "", ""
        self.active = dict.fromkeys((app.socket, app.service, app.candidate), "inactive")
        self.enabled: set[str] = set()
        self.broken: set[tuple[str, str]] = set()
        self.ill: set[str] = set()
        self.unsteady: set[str] = set()
        self.busy: set[str] = set()
        self.happens: dict[str, Callable[[], object]] = {}
        self.main: dict[str, int] = {}
        self.pid, self.accepts, self.strange = 10, True, False

    def observe(self) -> list[str]:
        """Append what changed since the last call, and return all steps."""
        with suppress(BlockingIOError):
            while record := self.journald.recv(1 << 16):
                message = record.partition(b"\nMESSAGE\n")[2]
                text = message[8 : 8 + int.from_bytes(message[:8], "little")].decode()
                self.steps.append(f"journal: {text.splitlines()[0]}")
        named = parse_assignments(read(self.app.release_env)).get("SENTRY_RELEASE", "")
        state = State.load(self.app)
        served, undoable = " ".join(state.served), state.previous.get("run", "")
        if named != self.named:
            self.steps.append(f"release.env names {named}")
        if served != self.served:
            self.steps.append(f"state.json: {served} served")
        if undoable != self.undoable:
            self.steps.append(f"state.json: {undoable} can be taken back")
        self.named, self.served, self.undoable = named, served, undoable
        return self.steps

    def units(self, *names: str) -> list[dict[str, str]]:
        return [
            {
                "ActiveState": self.active.get(name, "inactive"),
                "MainPID": str(self.main.get(name, 0)),
                "StatusText": "paused"
                if (self.app.root / f"proc/{self.main.get(name, 0)}/paused").exists()
                else "serving",
                "ControlGroup": f"/{name}",
                "DropInPaths": " ".join(map(str, (self.app.unit_files / f"{name}.d").glob("*"))),
                "NeedDaemonReload": "no",
                "UnitFileState": "enabled" if name in self.enabled else "disabled",
                "NRestarts": "1" if self.release(name) in (self.unsteady if "@" in name else self.ill) else "0",
                "InvocationID": f"start {self.main.get(name)}" if "@" in name else "1",
                "Result": "exit-code" if self.release(name) in self.unsteady else "success",
            }
            for name in names
        ]

    def systemctl(self, verb: str, *names: str, check: bool = True) -> None:
        self.observe().append(" ".join((verb, *names)))
        for name in (name for name in names if name != "--no-block"):
            if name in self.busy and verb == "stop" and "--no-block" in names:
                self.active[name] = "deactivating"
                continue
            if name == self.app.candidate and verb == "stop" and self.app.handover.exists():
                self.settle()
            if verb in {"stop", "restart"}:
                self.active[name] = "inactive"
                self.end(self.main.pop(name, 0))
            if verb in {"start", "restart"}:
                self.start(name)
            if verb == "reset-failed" and self.active.get(name) == "failed":
                self.active[name] = "inactive"
        if verb == "enable":
            self.enabled.update(names)
        if verb == "disable":
            self.enabled.difference_update(names)

    def start(self, name: str) -> None:
        env = read(self.app.candidate_env if name == self.app.candidate else self.app.release_env)
        if (name, parse_assignments(env).get("SENTRY_RELEASE")) in self.broken:
            self.active[name] = "failed"
            raise HostError(f"systemctl start {name}: it failed")
        self.active[name] = "active"
        if "@" in name:
            unit = re.search(r"BOOTY_UNIT=(\w+)", read(self.app.unit_files / re.sub(r"@\d+", "@", name)))
            self.app.started.mkdir(exist_ok=True)
            record = f"{env}BOOTY_UNIT={unit and unit[1]}\nINVOCATION_ID=start {self.pid + 1}\n"
            (self.app.started / name).write_text(record)
        if name != self.app.socket and not name.endswith(".timer"):
            self.pid += 1
            self.main[name] = self.pid
            process = self.app.root / f"proc/{self.pid}"
            process.mkdir(parents=True)
            pairs = (f"{name}={value}" for name, value in parse_pointer(env).items())
            environ = [*pairs, read(self.app.unit_files / name).strip(), f"INVOCATION_ID=start {self.pid}"]
            (process / "environ").write_text("\0".join(environ))
            (process / "stat").write_text(f"{self.pid} (python) S 1")

    def loaded(self, *patterns: str) -> list[str]:
        return [name for name in self.active if any(fnmatch(name, pattern) for pattern in patterns)]

    def release(self, name: str) -> str:
        return labels(self.app, self.main.get(name, 0)).get("SENTRY_RELEASE", "")

    def answering(self) -> int:
        """Return the service's process, or the candidate's while the service does not run or has paused."""
        pid = self.main.get(self.app.service, 0)
        if (self.app.root / f"proc/{pid}").is_dir() and not (self.app.root / f"proc/{pid}/paused").exists():
            return pid
        candidates = read(self.app.handover).split()[1:] or [str(self.main.get(self.app.candidate, 0))]
        return int(candidates[0])

    def end(self, pid: int) -> None:
        shutil.rmtree(self.app.root / f"proc/{pid}", ignore_errors=True)

    def settle(self) -> None:
        """Do what settle.sh does: the main process stays if it is the pointer's, and the other one ends."""
        pids = [int(pid) for pid in read(self.app.handover).split()]
        service = self.app.service
        os.kill(self.main[self.app.candidate], signal.SIGKILL)  # a real `cat`
        if labels(self.app, self.main.get(service, 0)).get("SENTRY_RELEASE") != self.named:
            self.systemctl("restart", service)
        for pid in pids:
            if pid != self.main[service]:
                self.end(pid)
        (self.app.root / f"proc/{self.main[service]}/paused").unlink(missing_ok=True)
        self.app.handover.unlink()

    def notify(self, pid: int, *lines: str) -> None:
        (name,) = (name for name, main in self.main.items() if main == pid)
        step = f"{name}: {' '.join(lines)}"
        self.observe().append(re.sub(rf"\b{self.main.get(self.app.candidate)}\b", "C", step))
        if self.accepts:
            self.main[name] = int(parse_assignments("\n".join(lines))["MAINPID"])

    def kill(self, pid: int, number: int) -> None:
        self.observe().append(f"{signal.Signals(number).name} to {labels(self.app, pid)['SENTRY_RELEASE']}")
        (self.app.root / f"proc/{pid}/paused").touch()

    def move(self, pids: list[int], group: str) -> None:
        releases = [labels(self.app, pid).get("SENTRY_RELEASE", "the lease") for pid in pids]
        self.observe().append(f"{' '.join(releases)} moves to {group}")
        for happening in [what for word, what in self.happens.items() if word in self.steps[-1]]:
            happening()

    def journal(self, name: str) -> str:
        return f"The journal of {name}"

    def verify(self, units: dict[str, str]) -> str:
        return ""


class Health(http.server.BaseHTTPRequestHandler):
    """Answers /health as the service would, or as the candidate would while the service does not run."""

    def do_GET(self) -> None:
        systemd: MemorySystemd = self.server.systemd  # type: ignore[attr-defined]
        pid = systemd.answering()
        release = labels(systemd.app, pid).get("SENTRY_RELEASE", "")
        systemd.observe().append(f"health: {release} answers{self.path.replace('/health', '')}")
        self.send_response(503 if release in systemd.ill else 200)
        stranger = systemd.strange and not systemd.steps.count("health: a stranger answers")
        if stranger and systemd.steps[-2].startswith("reset-failed"):
            systemd.steps[-1] = "health: a stranger answers"
        elif self.headers["X-Booty-Ask"] == f"start {pid}":
            self.send_header("X-Booty-Release", release)
            self.send_header("X-Booty-Pid", str(pid))
        self.end_headers()
        self.wfile.write(json.dumps({"release": release, "environment": "test", "reason": "no disk"}).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def app(tmp_path: Path) -> App:
    """Return an app whose paths start at a temporary directory."""
    app = App("shop", tmp_path)
    groups = tmp_path / "sys/fs/cgroup"
    for directory in (app.etc, app.releases, app.layers, app.unit_files, app.candidate_env.parent, groups):
        directory.mkdir(parents=True)
    (groups / "cgroup.controllers").touch()
    return app


@pytest.fixture
def systemd(app: App) -> Iterator[MemorySystemd]:
    """Return a systemd whose service, once it runs, answers on a real socket."""
    journald = app.root / "run/systemd/journal"
    journald.mkdir(parents=True)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as records,
        http.server.HTTPServer(("127.0.0.1", 0), Health) as server,
    ):
        records.bind(str(journald / "socket"))
        records.setblocking(False)
        server.systemd = systemd = MemorySystemd(app, records)  # type: ignore[attr-defined]
        systemd.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield systemd
        server.shutdown()
        thread.join()


def release(
    systemd: MemorySystemd,
    sha: str,
    more: str = "BOOTY_CONFIG_DIR=\nBOOTY_SETTINGS=\n",
    units: dict[str, str] | None = None,
) -> Release:
    app = systemd.app
    env = f"SENTRY_RELEASE={sha}\nSENTRY_ENVIRONMENT=test\nBOOTY_RELEASE_DIR={app.releases / sha}\n{more}"
    unit = f"BOOTY_UNIT={sha}{sha}\n"
    sockets = f"[Socket]\nListenStream=127.0.0.1:{systemd.port}\n"
    return Release(
        app, env, {app.slice: "", app.socket: sockets, app.service: unit, app.candidate: unit, **(units or {})}
    )


# The arguments of a cutover for an app without processes and timers.
ALONE: dict[str, Any] = {"places": {}, "process_seconds": 0, "restart": False}


def cut_over(
    systemd: MemorySystemd, sha: str, controller: Controller | None = None, contract: int = 1
) -> dict[str, Any]:
    (systemd.app.releases / sha).mkdir()
    fields = {"layer": "", "python": "", "contract": contract, "health": {"path": "/ready", "host": ""}}
    (systemd.app.releases / sha / "release.json").write_text(json.dumps(fields))
    steps = Cutover(systemd.app, systemd)
    return steps.cut_over(
        release(systemd, sha), 5, 3, "anna deploys", f"run {sha}", controller or Controller(False), False, **ALONE
    )


@pytest.fixture
def serving(systemd: MemorySystemd) -> MemorySystemd:
    """Return a systemd whose service runs the release `a`, with no steps yet."""
    assert cut_over(systemd, "a")["state"] == "switched"
    systemd.observe().clear()
    systemd.app.last.unlink()
    return systemd


def installed(app: App) -> str:
    """Return the hash in the service's installed unit."""
    return read(app.unit_files / app.service).strip()


ANSWERS = "health: a answers\n" * cutover.ANSWERS
FIRST = f"""\
state.json: run a can be taken back
daemon-reload
reset-failed shop.service shop.socket
start shop.socket
journal: proving a
start shop-candidate.service
journal: restarting: shop.service is inactive
journal: pointing to a
release.env names a
reset-failed shop.socket shop.service
enable shop.socket shop.service
restart shop.service
health: a answers
stop shop-candidate.service
reset-failed shop-candidate.service
{ANSWERS}\
journal: serving a
state.json: a served
"""
PROVE = """\
health: a answers
state.json: run b can be taken back
daemon-reload
journal: proving b
start shop-candidate.service
"""
SWITCH = f"""\
{PROVE}\
journal: restarting: the runner of a can't hand over
daemon-reload
journal: pointing to b
release.env names b
reset-failed shop.socket shop.service
restart shop.service
health: b answers
"""
RETIRE = """\
stop shop-candidate.service
reset-failed shop-candidate.service
"""


def test_the_first_release_opens_the_sockets(systemd: MemorySystemd) -> None:
    cut_over(systemd, "a")
    assert systemd.observe() == FIRST.splitlines()


def test_a_proven_release_switches_while_the_candidate_answers(serving: MemorySystemd) -> None:
    answer = cut_over(serving, "b")
    after = f"{RETIRE}{ANSWERS.replace('a ', 'b ')}journal: serving b\nstate.json: b a served\n"
    assert serving.observe() == (SWITCH + after).splitlines()
    assert answer == {
        "state": "switched",
        "pid": serving.main["shop.service"],
        "notices": [],
        "warnings": [],
        "pruned": [],
    }
    assert serving.app.last.read_text().startswith("anna deploys, at ")
    assert not serving.app.candidate_env.exists()


def test_a_candidate_that_fails_switches_nothing(serving: MemorySystemd) -> None:
    app = serving.app
    serving.broken = {(app.candidate, "b")}
    answer = cut_over(serving, "b")
    failed = "journal: failed: systemctl start shop-candidate.service: it failed\n"
    after = f"{RETIRE}{failed}{RETIRE}journal: b does not serve. a was not touched.\n"
    assert serving.observe() == (PROVE + after).splitlines()
    assert (answer["failed"], answer["state"], installed(app)) == (True, "not switched", "BOOTY_UNIT=aa")
    assert not app.last.exists()
    assert State.load(app).abandoned == {"b": "systemctl start shop-candidate.service: it failed"}


def test_a_controller_that_is_gone_stops_the_cutover_before_the_switch(serving: MemorySystemd) -> None:
    class Gone(Controller):
        def gone(self, patience: float = 10) -> bool:
            serving.observe().append("controller asked")
            return True

    answer = cut_over(serving, "b", Gone(False))
    reason = "it is proven, but the controller is gone: nobody could take it back with its wave"
    after = f"controller asked\njournal: failed: {reason}\n{RETIRE}journal: b does not serve. a was not touched.\n"
    assert serving.observe() == (PROVE + after).splitlines()
    assert (answer["state"], installed(serving.app)) == ("not switched", "BOOTY_UNIT=aa")


BACK = """\
journal: going back to a
daemon-reload
journal: pointing to a
release.env names a
reset-failed shop.service shop.socket
"""
RESTART = f"""\
journal: restarting: it goes back
journal: pointing to a
reset-failed shop.socket shop.service
restart shop.service
health: a answers
{RETIRE}\
{ANSWERS}"""


def test_a_release_that_is_not_confirmed_goes_back(serving: MemorySystemd) -> None:
    """The candidate, which is proven, answers until the old release does."""
    app = serving.app
    serving.ill = {"b"}
    answer = cut_over(serving, "b")
    after = "journal: failed: /health says 503: no disk\n" + BACK + RESTART
    after += "journal: b does not serve. Went back to a, which serves.\n"
    assert serving.observe() == (SWITCH + after).splitlines()
    assert (answer["failed"], answer["state"], installed(app)) == (True, "went back", "BOOTY_UNIT=aa")
    assert serving.release(app.service) == "a"
    assert (State.load(app).served, [*State.load(app).abandoned]) == (["a"], ["b"])


def test_a_service_that_does_not_restart_goes_back(serving: MemorySystemd) -> None:
    serving.broken = {(serving.app.service, "b")}
    answer = cut_over(serving, "b")
    after = "journal: failed: systemctl start shop.service: it failed\n" + BACK + RESTART
    after += "journal: b does not serve. Went back to a, which serves.\n"
    assert serving.observe() == (SWITCH.replace("health: b answers\n", "") + after).splitlines()
    assert (answer["state"], serving.release(serving.app.service)) == ("went back", "a")


def test_a_cutover_is_taken_back_by_its_own_run(serving: MemorySystemd) -> None:
    cut_over(serving, "b")
    serving.observe().clear()
    steps = Cutover(serving.app, serving)
    assert steps.undo("b", "bob takes back", run="run a") == {"notices": ["b serves, and not by this run: it stays."]}
    assert serving.observe() == []
    assert steps.undo("b", "bob takes back", run="run b")["state"] == "taken back"
    after = "journal: proving a\nstart shop-candidate.service\n" + RESTART
    after += "journal: Went back to a, which serves.\nstate.json: a served\n"
    back = BACK.replace("reset-failed", "health: b answers\nreset-failed")
    assert serving.observe() == (back + after).splitlines()
    assert (serving.release(serving.app.service), installed(serving.app)) == ("a", "BOOTY_UNIT=aa")


@pytest.fixture
def proven(systemd: MemorySystemd) -> MemorySystemd:
    """Return a systemd whose service runs the release `a`, which can hand over, with no steps yet."""
    assert cut_over(systemd, "a", contract=2)["state"] == "switched"
    systemd.observe().clear()
    return systemd


TRY = f"""\
{PROVE}\
the lease moves to /shop-candidate.service
shop-candidate.service: MAINPID=LEASE WATCHDOG_USEC=0 STATUS=handing over
journal: handing over to b, process 13
SIGUSR1 to a
health: b answers
"""
HAND_OVER = f"""\
{TRY}\
daemon-reload
reset-failed shop.socket shop.service
journal: pointing to b
release.env names b
a moves to /shop-candidate.service
shop.service: MAINPID=13 STATUS=serving
{RETIRE}\
{ANSWERS.replace("a ", "b ")}\
journal: serving b
state.json: b a served
"""


def handed_over(systemd: MemorySystemd) -> list[str]:
    return [re.sub(r"MAINPID=(?!13\b)\d+", "MAINPID=LEASE", step) for step in systemd.observe()]


def test_the_process_that_was_proven_is_the_one_that_serves(proven: MemorySystemd) -> None:
    assert cut_over(proven, "b", contract=2)["state"] == "switched"
    assert handed_over(proven) == HAND_OVER.splitlines()
    assert (proven.main[proven.app.service], proven.release(proven.app.service)) == (13, "b")
    assert not proven.app.handover.exists()


def test_a_release_that_names_itself_is_asked_as_its_commit_says(systemd: MemorySystemd) -> None:
    """Of all answers after the candidate's unit has stopped, none may be another process's."""
    assert cut_over(systemd, "a", contract=3)["state"] == "switched"
    systemd.observe().clear()
    systemd.strange = True
    assert cut_over(systemd, "b", contract=3)["state"] == "switched"
    steps = handed_over(systemd)
    again = ["health: a stranger answers", *["health: b answers/ready"] * cutover.ANSWERS]
    assert [step for step in steps if step.startswith("health: ")] == [
        "health: a answers/ready",
        "health: b answers/ready",
        *again,
    ]
    assert steps[-len(again) - 2 : -2] == again


def test_a_process_beside_the_service_does_not_hide_its_answer(systemd: MemorySystemd) -> None:
    """While a service restarts, the candidate still accepts on the same socket, and would be blamed for its fault."""
    cut_over(systemd, "a", contract=3)
    pid, address = systemd.main[systemd.app.service], release(systemd, "a").address
    systemd.strange = True
    for how, answers in ((ask, None), (ask_itself, "a")):
        systemd.observe()[:] = ["reset-failed shop.service"]
        assert how(systemd.app, address, pid)["release"] == answers


def test_another_process_that_goes_on_answering_is_found(systemd: MemorySystemd) -> None:
    cut_over(systemd, "a", contract=3)
    pid = systemd.main[systemd.app.service]
    environ = systemd.app.root / f"proc/{pid}/environ"
    environ.write_text(environ.read_text().replace("INVOCATION_ID=start", "INVOCATION_ID=another"))
    problem = unsettled(systemd.app, systemd, release(systemd, "a"))
    assert problem == f"GET /ready is answered by another process than the service's (PID {pid})"


def test_a_setting_alone_is_a_cutover_and_comes_back(serving: MemorySystemd) -> None:
    app = serving.app
    first = "BOOTY_CONFIG_DIR=\nBOOTY_SETTINGS=GREETING\nGREETING='it'\"'\"'s  5'\n"
    steps = Cutover(app, serving)

    def switch(env: str) -> dict[str, Any]:
        wanted = release(serving, "a", env)
        assert "has other settings" in unsettled(app, serving, wanted)
        return steps.cut_over(wanted, 5, 3, "anna deploys", "run", Controller(False), False, **ALONE)

    assert switch(first)["state"] == "switched"
    assert labels(app, serving.main[app.service])["GREETING"] == "it's  5"
    assert unsettled(app, serving, release(serving, "a", first)) == ""
    # The file was changed by hand, so it is not what the process was started with.
    app.release_env.write_text(release(serving, "a").env)
    before = steps.serving(State.load(app), labels(app, serving.main[app.service]))
    assert before.env == release(serving, "a", first).env
    assert "BOOTY_SETTINGS is GREETING, not " in unsettled(app, serving, release(serving, "a"))


def test_what_a_process_says_of_itself_never_gets_into_the_pointer(serving: MemorySystemd) -> None:
    """An app can change its own environment. The root's commands in its unit have the variables of release.env."""
    app = serving.app
    served = read(app.release_env)
    environ = app.root / f"proc/{serving.main[app.service]}/environ"
    more = "\0BOOTY_SETTINGS=LD_PRELOAD\0LD_PRELOAD=/var/lib/shop/own.so\0SENTRY_ENVIRONMENT=its own"
    environ.write_text(f"{environ.read_text()}{more}")
    assert labels(app, serving.main[app.service])["LD_PRELOAD"] == "/var/lib/shop/own.so"
    serving.ill = {"b"}
    assert cut_over(serving, "b")["state"] == "went back"
    assert read(app.release_env) == served
    assert State.load(app).previous["pointer"] == served


def test_a_manifest_is_read_among_the_app_s_releases_alone(serving: MemorySystemd) -> None:
    app = serving.app
    pid = serving.main[app.service]
    environ = app.root / f"proc/{pid}/environ"
    place = app.root / "var/lib/shop/a"
    place.mkdir(parents=True)
    os.mkfifo(place / "release.json")  # opening it would wait for ever
    environ.write_text(re.sub("BOOTY_RELEASE_DIR=[^\0]*/a", f"BOOTY_RELEASE_DIR={place}", environ.read_text()))
    assert labels(app, pid)["BOOTY_RELEASE_DIR"] == str(place)
    assert directory_of(app, pid) == app.releases / "a"
    assert cut_over(serving, "b")["state"] == "switched"


def test_a_candidate_that_is_not_confirmed_leaves_the_old_process_serving(proven: MemorySystemd) -> None:
    """It goes back without a start, before release.env or a unit has changed."""
    proven.ill = {"b"}
    old = proven.main[proven.app.service]
    answer = cut_over(proven, "b", contract=2)
    assert (answer["state"], proven.main[proven.app.service]) == ("went back", old)
    assert "Went back to a, which serves." in answer["msg"]
    assert "/health says 503: no disk" in answer["msg"]
    assert "release.env names b" not in proven.steps
    assert not [step for step in proven.steps if "start" in step and "candidate" not in step]
    assert proven.observe()[-1] == "journal: b does not serve. Went back to a, which serves."
    assert installed(proven.app) == "BOOTY_UNIT=aa"


def test_a_candidate_that_dies_after_the_pointer_leaves_the_old_process_serving(proven: MemorySystemd) -> None:
    old = proven.main[proven.app.service]
    proven.happens["a moves"] = lambda: proven.end(13)
    answer = cut_over(proven, "b", contract=2)
    assert (answer["state"], proven.main[proven.app.service]) == ("went back", old)
    assert proven.steps.index("release.env names b") < proven.steps.index("release.env names a")
    assert proven.steps.index("release.env names a") < proven.steps.index("stop shop-candidate.service")
    assert "restart shop.service" not in proven.steps
    assert installed(proven.app) == "BOOTY_UNIT=aa"


def test_a_handover_that_is_settled_by_somebody_else_goes_back_with_a_start(proven: MemorySystemd) -> None:
    """The lease was killed, and systemd has restarted the service on the new release."""

    def settle() -> None:
        proven.happens.clear()
        proven.systemctl("stop", proven.app.candidate)

    proven.happens["a moves"] = settle
    answer = cut_over(proven, "b", contract=2)
    assert (answer["state"], proven.release(proven.app.service)) == ("went back", "a")
    assert parse_assignments(read(proven.app.release_env))["SENTRY_RELEASE"] == "a"
    assert proven.active[proven.app.candidate] == "inactive"


@pytest.mark.parametrize("moment", ["the lease moves", "a moves"])
def test_an_app_that_names_another_main_process_is_replaced_all_the_same(proven: MemorySystemd, moment: str) -> None:
    """An app's main process can name another one of its processes, as often as it likes."""

    def name_another() -> None:
        proven.happens.clear()
        proven.main[proven.app.service] = 99

    proven.happens[moment] = name_another
    answer = cut_over(proven, "b", contract=2)
    assert (answer["state"], proven.release(proven.app.service)) == ("switched", "b")
    assert "restart shop.service" in proven.steps
    assert not proven.app.handover.exists()


@pytest.mark.parametrize(("moment", "state"), [("the lease moves", "switched"), ("a moves", "went back")])
def test_a_candidate_whose_control_group_is_gone_does_not_hand_over(
    proven: MemorySystemd, moment: str, state: str
) -> None:
    def vanish() -> None:
        proven.happens.clear()
        raise FileNotFoundError("cgroup.procs")

    proven.happens[moment] = vanish
    assert cut_over(proven, "b", contract=2)["state"] == state
    assert any("shop-candidate.service was stopped" in step for step in proven.steps)
    assert not proven.app.handover.exists()


def test_a_systemd_that_refuses_another_main_process_restarts_the_service(
    proven: MemorySystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "PATIENCE", 0.1)
    proven.accepts = False
    assert cut_over(proven, "b", contract=2)["state"] == "switched"
    steps = handed_over(proven)
    assert "journal: restarting: it can't be handed over: systemd does not take the lease" in steps
    after = (SWITCH + RETIRE + ANSWERS.replace("a ", "b ")).splitlines()[6:]
    assert steps[-len(after) - 2 : -2] == after
    assert not proven.app.handover.exists()


def change(name: str, text: str) -> Callable[[App], object]:
    def write(app: App) -> None:
        path = app.unit_files / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda app: (app.releases / "a/release.json").unlink(), "the runner of a can't hand over"),
        (change("shop.service", "MemoryMax=1G\n"), "shop.service changes in MemoryMax=1G"),
        (change("system-shop.slice", "MemoryMax=1G\n"), "system-shop.slice changes in MemoryMax=1G"),
        (change("shop.service.d/own.conf", "PrivateNetwork=true\n"), "shop.service has a drop-in"),
        (lambda app: (app.root / "sys/fs/cgroup/cgroup.controllers").unlink(), "no unified control groups"),
    ],
)
def test_what_a_handover_can_t_carry_restarts_the_service(
    proven: MemorySystemd, prepare: Callable[[App], object], why: str
) -> None:
    prepare(proven.app)
    assert cut_over(proven, "b", contract=2)["state"] == "switched"
    (line,) = (step for step in proven.steps if step.startswith("journal: restarting: "))
    assert why in line
    assert "SIGUSR1 to a" not in proven.steps


@pytest.mark.parametrize(
    ("text", "last", "why"),
    [
        ("SENTRY_RELEASE=a\n", "anna deploys a, at 12:00", None),
        ("SENTRY_RELEASE=a\n", "", None),
        ("SENTRY_RELEASE=b\n", "bob deploys b, at 12:01", "(the last one: bob deploys b, at 12:01). b serves"),
        # Another run went away and back, or found it in order.
        ("SENTRY_RELEASE=a\n", "bob takes back b, at 12:02", "bob takes back b"),
        ("SENTRY_RELEASE=b\n", "", "bob"),
        ("SENTRY_RELEASE=b\n", "anna deploys a, at 12:00", "release.env was changed by hand"),
    ],
)
def test_a_host_that_changed_since_it_was_asked_is_left_alone(app: App, text: str, last: str, why: str | None) -> None:
    app.release_env.write_text(text)
    app.last.write_text(last)
    seen = {"pointer": "SENTRY_RELEASE=a\n", "release": "a", "last": "anna deploys a, at 12:00"}
    answer = cutover.changed_since(app, seen, "c", "anna deploys c", "run")
    if why is None:
        assert answer == {}
    else:
        assert answer["state"] == "not switched"
        assert answer["seen"] == lease.seen(app)
        assert why in answer["msg"] or not last


def test_a_record_that_cannot_be_written_is_a_notice(app: App) -> None:
    notices: list[str] = []
    with cutover.unsaved(app, notices):
        raise OSError(28, "No space left on device")
    (notice,) = notices
    assert notice.startswith(f"But {app.state} can't be written: [Errno 28] No space left on device.")


def process(name: str, count: int = 1, one_host: str = "no", command: str = "1") -> dict[str, str]:
    text = f"BOOTY_UNIT={command}\n[X-Booty]\nApp=shop\nCount={count}\nOneHost={one_host}\n"
    return {f"shop-{name}@.service": text}


def timer(name: str, schedule: str = "03:00", one_host: str = "yes") -> dict[str, str]:
    section = f"[X-Booty]\nApp=shop\nOneHost={one_host}\n"
    text = f"[Timer]\nOnCalendar={schedule}\n{section}"
    return {f"shop-{name}.timer": text, f"shop-{name}.service": f"BOOTY_UNIT=1\n{section}"}


HERE = {"host": "web1", "here": True}
ELSEWHERE = {"host": "web2", "here": False}


def bring(
    systemd: MemorySystemd,
    sha: str,
    units: dict[str, str],
    places: dict[str, Any] | None = None,
    restart: bool = False,
    seconds: float = 0,
) -> dict[str, Any]:
    """Cut over to a release with processes and timers, and return the answer; `steps` are those since."""
    app = systemd.app
    (app.releases / sha).mkdir(exist_ok=True)
    (app.releases / sha / "release.json").write_text(json.dumps({"layer": "", "python": "", "contract": 1}))
    systemd.observe().clear()
    return Cutover(app, systemd).cut_over(
        release(systemd, sha, units=units),
        5,
        3,
        "anna deploys",
        f"run {sha}",
        Controller(False),
        False,
        places or {},
        seconds,
        restart=restart,
    )


def of_programs(systemd: MemorySystemd) -> list[str]:
    """Return the steps about processes and timers, and those of the service that come between."""
    words = (" shop-worker", " shop-beat", " shop-nightly", "restart shop.service", "state.json: ")
    steps = [step for step in systemd.observe() if any(word in f" {step}" for word in words)]
    return [step for step in steps if not step.startswith("journal: ") and "taken back" not in step]


def up(systemd: MemorySystemd) -> dict[str, str]:
    """Return the release of each process that is up, by its instance."""
    return {
        name.removeprefix("shop-").removesuffix(".service"): systemd.release(name)
        for name, state in sorted(systemd.active.items())
        if "@" in name and state == "active"
    }


def at_boot(app: App) -> list[str]:
    return sorted(path.name for path in app.unit_files.glob("*.wants/*"))


WORKERS = process("worker", 2)
BOTH = {**WORKERS, **process("beat", one_host="yes")}


def settled(systemd: MemorySystemd, sha: str, units: dict[str, str], here: set[str]) -> str:
    return Programs(systemd.app, systemd).unsettled(release(systemd, sha, units=units), here)


def test_new_processes_start_beside_the_old_ones_after_the_service(systemd: MemorySystemd) -> None:
    """Those with one_host end first, so that no two of them ever run."""
    assert bring(systemd, "a", BOTH, {"beat": HERE})["state"] == "switched"
    first = ["shop-beat@1.service", "shop-worker@1.service", "shop-worker@2.service"]
    assert of_programs(systemd) == [
        "restart shop.service",
        f"reset-failed {' '.join(sorted(first, reverse=False))}",
        f"start {' '.join(first)}",
        "state.json: a served",
    ]
    assert at_boot(systemd.app) == first
    assert settled(systemd, "a", BOTH, {"beat"}) == ""
    assert bring(systemd, "b", BOTH, {"beat": HERE})["state"] == "switched"
    second = "shop-beat@1.service shop-worker@3.service shop-worker@4.service"
    assert of_programs(systemd) == [
        "restart shop.service",
        "stop shop-beat@1.service",
        f"reset-failed {second}",
        f"start {second}",
        "stop --no-block shop-worker@1.service shop-worker@2.service",
        "state.json: b a served",
    ]
    assert up(systemd) == {"beat@1": "b", "worker@3": "b", "worker@4": "b"}
    assert at_boot(systemd.app) == second.split()
    # The next ones get the lowest free numbers.
    systemd.busy = {"shop-worker@3.service", "shop-worker@4.service"}
    bring(systemd, "c", BOTH, {"beat": HERE})
    assert up(systemd) == {"beat@1": "c", "worker@1": "c", "worker@2": "c"}
    assert settled(systemd, "c", BOTH, {"beat"}) == ""
    bring(systemd, "d", BOTH, {"beat": HERE})
    assert up(systemd) == {"beat@1": "d", "worker@5": "d", "worker@6": "d"}


def test_a_process_that_does_not_stay_up_brings_service_and_processes_back(systemd: MemorySystemd) -> None:
    """A worker of the old release was never stopped; a scheduler is started again."""
    bring(systemd, "a", BOTH, {"beat": HERE})
    old = {name: systemd.main[name] for name in ("shop-worker@1.service", "shop-worker@2.service")}
    systemd.unsteady = {"b"}
    answer = bring(systemd, "b", {**BOTH, **process("other")}, {"beat": HERE})
    assert (answer["state"], answer["failed"]) == ("went back", True)
    message = "b does not serve: shop-beat@1.service does not stay up for 0 s (exit-code)\nThe journal of shop-beat@1"
    assert answer["msg"].startswith(message)
    assert answer["msg"].endswith("Went back to a, which serves.")
    assert up(systemd) == {"beat@1": "a", "worker@1": "a", "worker@2": "a"}
    assert {name: systemd.main[name] for name in old} == old
    assert systemd.release(systemd.app.service) == "a"
    assert not (systemd.app.unit_files / "shop-other@.service").exists()
    assert settled(systemd, "a", BOTH, {"beat"}) == ""


def test_a_way_back_does_not_start_a_process_that_its_commit_has_removed(systemd: MemorySystemd) -> None:
    bring(systemd, "a", BOTH, {"beat": HERE})
    systemd.busy = {"shop-worker@1.service", "shop-worker@2.service"}
    bring(systemd, "b", process("beat", one_host="yes"), {"beat": HERE})
    systemd.unsteady = {"c"}
    assert bring(systemd, "c", BOTH, {"beat": HERE})["state"] == "went back"
    assert up(systemd) == {"beat@1": "b"}
    del systemd.active["shop-worker@1.service"], systemd.active["shop-worker@2.service"]
    units = process("beat", one_host="yes")
    assert settled(systemd, "b", units, {"beat"}) == "shop-worker@.service is left over"
    bring(systemd, "b", units, {"beat": HERE})
    assert settled(systemd, "b", units, {"beat"}) == ""


def test_a_first_release_whose_process_fails_leaves_nothing(systemd: MemorySystemd) -> None:
    systemd.unsteady = {"a"}
    assert "so nothing does now" in bring(systemd, "a", {**WORKERS, **timer("nightly")}, {"nightly": HERE})["msg"]
    assert up(systemd) == {}
    assert at_boot(systemd.app) == []
    assert not [*systemd.app.unit_files.glob("shop-worker*"), *systemd.app.unit_files.glob("shop-nightly*")]


@pytest.mark.parametrize(
    ("units", "steps", "after"),
    [
        (WORKERS, [], {"worker@1": "a", "worker@2": "a"}),
        (
            process("worker", 3),
            ["reset-failed shop-worker@3.service", "start shop-worker@3.service"],
            {"worker@1": "a", "worker@2": "a", "worker@3": "a"},
        ),
        (process("worker", 1), ["stop --no-block shop-worker@2.service"], {"worker@1": "a"}),
        (process("worker", 0), ["stop --no-block shop-worker@1.service shop-worker@2.service"], {}),
        (
            {},
            [
                "stop --no-block shop-worker@1.service shop-worker@2.service",
                "reset-failed shop-worker@*.service",
            ],
            {},
        ),
        (
            process("beat"),
            [
                "reset-failed shop-beat@1.service",
                "start shop-beat@1.service",
                "stop --no-block shop-worker@1.service shop-worker@2.service",
                "reset-failed shop-worker@*.service",
            ],
            {"beat@1": "a"},
        ),
        (
            process("worker", 2, command="2"),
            [
                "reset-failed shop-worker@3.service shop-worker@4.service",
                "start shop-worker@3.service shop-worker@4.service",
                "stop --no-block shop-worker@1.service shop-worker@2.service",
            ],
            {"worker@3": "a", "worker@4": "a"},
        ),
    ],
    ids=["the same", "more", "fewer", "none of it", "no process", "another name", "another command"],
)
def test_processes_that_change_leave_the_service_alone(
    systemd: MemorySystemd, units: dict[str, str], steps: list[str], after: dict[str, str]
) -> None:
    bring(systemd, "a", WORKERS)
    main = systemd.main[systemd.app.service]
    assert bool(settled(systemd, "a", units, set())) == bool(steps)
    assert bring(systemd, "a", units)["state"] == "switched"
    assert of_programs(systemd) == steps
    assert (up(systemd), systemd.main[systemd.app.service]) == (after, main)
    assert settled(systemd, "a", units, set()) == ""
    assert sorted(path.name for path in systemd.app.unit_files.glob("shop-*@.service")) == sorted(units)


def test_processes_that_fail_alone_leave_the_service_and_the_old_ones(systemd: MemorySystemd) -> None:
    bring(systemd, "a", WORKERS)
    before, main = up(systemd), systemd.main[systemd.app.service]
    systemd.unsteady = {"a"}
    answer = bring(systemd, "a", process("other"))
    assert answer["msg"].startswith("a serves, but its processes do not follow: shop-other@1.service does not stay up")
    assert answer["msg"].endswith("Went back to a, which serves.")
    assert (up(systemd), systemd.main[systemd.app.service]) == (before, main)


def test_a_restart_takes_the_processes_along(systemd: MemorySystemd) -> None:
    bring(systemd, "a", WORKERS)
    bring(systemd, "a", WORKERS, restart=True)
    assert "restart shop.service" in systemd.observe()
    assert up(systemd) == {"worker@3": "a", "worker@4": "a"}


def test_a_cutover_that_is_taken_back_takes_the_processes_along(systemd: MemorySystemd) -> None:
    bring(systemd, "a", {**BOTH, **timer("nightly")}, {"beat": HERE, "nightly": HERE})
    bring(systemd, "b", process("worker", 1, command="2"))
    assert up(systemd) == {"worker@3": "b"}
    assert Cutover(systemd.app, systemd).undo("b", "bob takes back", run="run b")["state"] == "taken back"
    assert up(systemd) == {"beat@1": "a", "worker@1": "a", "worker@2": "a"}
    assert systemd.active["shop-nightly.timer"] == "active"
    assert settled(systemd, "a", {**BOTH, **timer("nightly")}, {"beat", "nightly"}) == ""


def test_only_one_host_has_a_process_with_one_host(systemd: MemorySystemd) -> None:
    units = {**process("beat", one_host="yes"), **timer("nightly")}
    bring(systemd, "a", units, {"beat": ELSEWHERE, "nightly": ELSEWHERE})
    assert (up(systemd), at_boot(systemd.app)) == ({}, [])
    assert settled(systemd, "a", units, set()) == ""
    # It moves here: nothing on the disk changes.
    assert settled(systemd, "a", units, {"beat"}) == "shop-beat@1.service does not run the release"
    bring(systemd, "a", units, {"beat": HERE, "nightly": HERE})
    assert up(systemd) == {"beat@1": "a"}
    assert at_boot(systemd.app) == ["shop-beat@1.service", "shop-nightly.timer"]
    assert State.load(systemd.app).here == {"beat", "nightly"}
    # And away again.
    systemd.app.stamps.mkdir(parents=True)
    (systemd.app.stamps / "stamp-shop-nightly.timer").touch()
    bring(systemd, "a", units, {"beat": ELSEWHERE, "nightly": ELSEWHERE})
    assert (up(systemd), at_boot(systemd.app)) == ({}, [])
    assert [*systemd.app.stamps.iterdir()] == []


def test_a_scheduler_with_another_name_starts_after_the_old_one_has_ended(systemd: MemorySystemd) -> None:
    bring(systemd, "a", process("beat", one_host="yes"), {"beat": HERE})
    bring(systemd, "b", process("worker", one_host="yes"), {"worker": HERE})
    stop, _, start = of_programs(systemd)[1:4]
    assert (stop, start) == ("stop shop-beat@1.service", "start shop-worker@1.service")


def test_what_was_killed_between_service_and_processes_is_found_and_brought_to_the_release(
    systemd: MemorySystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(systemd, "a", WORKERS)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Programs, "follow", killed)
        with pytest.raises(KeyboardInterrupt):
            bring(systemd, "b", WORKERS)
    assert (systemd.release(systemd.app.service), up(systemd)) == ("b", {"worker@1": "a", "worker@2": "a"})
    assert unsettled(systemd.app, systemd, release(systemd, "b", units=WORKERS)) == ""
    assert settled(systemd, "b", WORKERS, set()) == "shop-worker@3.service does not run the release"
    bring(systemd, "b", WORKERS)
    assert "restart shop.service" not in systemd.observe()
    assert up(systemd) == {"worker@3": "b", "worker@4": "b"}


def test_a_timer_changes_and_goes_with_the_release(systemd: MemorySystemd) -> None:
    bring(systemd, "a", timer("nightly"), {"nightly": HERE})
    assert of_programs(systemd)[1] == "start shop-nightly.timer"
    # A run is under way, so its unit stays for the time being.
    systemd.active["shop-nightly.service"] = "activating"
    bring(systemd, "b", {})
    assert "stop shop-nightly.timer" in systemd.observe()
    assert [path.name for path in systemd.app.unit_files.glob("shop-nightly*")] == ["shop-nightly.service"]
    assert systemd.active["shop-nightly.service"] == "activating"
    assert settled(systemd, "b", {}, set()) == ""


def test_a_release_that_an_old_process_runs_is_not_pruned(systemd: MemorySystemd) -> None:
    bring(systemd, "a", WORKERS)
    systemd.busy = {"shop-worker@1.service", "shop-worker@2.service"}
    # As a program does that sets its own title.
    for environ in systemd.app.root.glob("proc/*/environ"):
        environ.write_text("")
    for sha in ("b", "c", "d"):
        (systemd.app.root / "proc").mkdir(exist_ok=True)
        bring(systemd, sha, WORKERS)
    state = State.load(systemd.app)
    assert prune(systemd.app, systemd, state, 2, 0)[0] == ["b"]
    del systemd.active["shop-worker@1.service"], systemd.active["shop-worker@2.service"]
    assert prune(systemd.app, systemd, state, 2, 0)[0] == ["a"]


def test_another_app_with_the_same_units_is_found(app: App, systemd: MemorySystemd) -> None:
    def reasons(name: str, units: dict[str, str]) -> list[str]:
        return programs.problems(App(name, app.root), release(systemd, "a", units=units))

    assert reasons("shop", process("worker")) == []
    for part in ("incoming", "releases"):
        (app.root / "opt/shop-api" / part).mkdir(parents=True)
    (clash,) = reasons("shop", process("api"))
    assert clash.startswith("api of shop and the app shop-api of this host would both be shop-api. Give the process")
    (clash,) = reasons("shop", process("api-worker"))
    assert "would both be shop-api-worker" in clash
    assert reasons("shop", process("apis")) == []
    (app.unit_files / "shop-api@.service").write_text(process("api")["shop-api@.service"])
    (clash,) = reasons("shop-api", {})
    assert clash.endswith("shop-api@.service is of a process or timer of the app shop. Give this app another name.")
    (app.unit_files / "shop-own@.service").write_text("[Service]\n")
    (clash,) = reasons("shop", process("own"))
    assert clash.endswith(
        "shop-own@.service is there already, and not of shop. Give the process or timer another name."
    )
    (clash,) = reasons("shop", timer("nightly", "25:00"))
    assert clash.startswith(
        "systemd refuses the schedule of the timer nightly: Failed to parse calendar specification '25:00'"
    )
