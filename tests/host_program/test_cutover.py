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
from pathlib import Path
from typing import Any

import pytest
from booty_host import HostError, cutover, handover, lease
from booty_host.app import App
from booty_host.controller import Controller
from booty_host.cutover import Cutover
from booty_host.files import parse_assignments, parse_pointer, read
from booty_host.processes import labels
from booty_host.release import Release, unsettled
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
                "ActiveState": self.active[name],
                "MainPID": str(self.main.get(name, 0)),
                "StatusText": "paused"
                if (self.app.root / f"proc/{self.main.get(name, 0)}/paused").exists()
                else "serving",
                "ControlGroup": f"/{name}",
                "NeedDaemonReload": "no",
                "UnitFileState": "enabled" if name in self.enabled else "disabled",
                "NRestarts": "1" if name == self.app.service and self.release(name) in self.ill else "0",
                "InvocationID": "1",
            }
            for name in names
        ]

    def systemctl(self, verb: str, *names: str, check: bool = True) -> None:
        self.observe().append(" ".join((verb, *names)))
        for name in names:
            if name == self.app.candidate and verb == "stop" and self.app.handover.exists():
                self.settle()
            if verb in {"stop", "restart"}:
                self.active[name] = "inactive"
                self.end(self.main.pop(name, 0))
            if verb in {"start", "restart"}:
                self.start(name)
            if verb == "reset-failed" and self.active[name] == "failed":
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
        if name != self.app.socket:
            self.pid += 1
            self.main[name] = self.pid
            process = self.app.root / f"proc/{self.pid}"
            process.mkdir(parents=True)
            pairs = (f"{name}={value}" for name, value in parse_pointer(env).items())
            environ = [*pairs, read(self.app.unit_files / name).strip(), f"INVOCATION_ID=start {self.pid}"]
            (process / "environ").write_text("\0".join(environ))
            (process / "stat").write_text(f"{self.pid} (python) S 1")

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

    def drop_ins(self, name: str) -> list[str]:
        return [read(path) for path in (self.app.unit_files / f"{name}.d").glob("*")]

    def notify(self, pid: int, *lines: str) -> None:
        (name,) = (name for name, main in self.main.items() if main == pid)
        self.observe().append(f"{name}: {' '.join(lines)}".replace(str(self.main.get(self.app.candidate)), "C"))
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


def release(systemd: MemorySystemd, sha: str, more: str = "BOOTY_CONFIG_DIR=\nBOOTY_SETTINGS=\n") -> Release:
    app = systemd.app
    env = f"SENTRY_RELEASE={sha}\nSENTRY_ENVIRONMENT=test\nBOOTY_RELEASE_DIR={app.releases / sha}\n{more}"
    unit = f"BOOTY_UNIT={sha}{sha}\n"
    sockets = f"[Socket]\nListenStream=127.0.0.1:{systemd.port}\n"
    return Release(app, env, {app.slice: "", app.socket: sockets, app.service: unit, app.candidate: unit})


def cut_over(
    systemd: MemorySystemd, sha: str, controller: Controller | None = None, contract: int = 1
) -> dict[str, Any]:
    (systemd.app.releases / sha).mkdir()
    fields = {"layer": "", "python": "", "contract": contract, "health": {"path": "/ready", "host": ""}}
    (systemd.app.releases / sha / "release.json").write_text(json.dumps(fields))
    steps = Cutover(systemd.app, systemd)
    return steps.cut_over(
        release(systemd, sha), 5, 3, "anna deploys", f"run {sha}", controller or Controller(False), False
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
    assert serving.observe() == (BACK + after).splitlines()
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
    return [re.sub(r"MAINPID=(?!13)\d+", "MAINPID=LEASE", step) for step in systemd.observe()]


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
        return steps.cut_over(wanted, 5, 3, "anna deploys", "run", Controller(False), False)

    assert switch(first)["state"] == "switched"
    assert labels(app, serving.main[app.service])["GREETING"] == "it's  5"
    assert unsettled(app, serving, release(serving, "a", first)) == ""
    # The file was changed by hand, so it is not what the process was started with.
    app.release_env.write_text(release(serving, "a").env)
    before = steps.serving(release(serving, "a"), labels(app, serving.main[app.service]))
    assert parse_pointer(before.env) == parse_pointer(release(serving, "a", first).env)
    assert "BOOTY_SETTINGS is GREETING, not " in unsettled(app, serving, release(serving, "a"))


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
    answer = cutover.changed_since(app, seen, "c", "anna deploys c")
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
