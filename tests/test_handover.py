"""The candidate takes the service's place on a real host, and a process is killed at each step of that."""

from __future__ import annotations

import base64
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import host_program

from tests.conftest import ROUTES, Site, words
from tests.load import Load
from tests.test_cutover import ASKED_TWICE, pair
from tests.test_your_app import WebSocket

# Runs on the host: a cutover to the release in the first argument. After the step in the second one, once, it kills a
# process, fails, or runs a command.
PROGRAM = """
import os, signal, subprocess, sys, time
sys.path.insert(0, "/root/booty_host.zip")
from booty_host.app import App
from booty_host.controller import Controller
from booty_host.cutover import Cutover
from booty_host.files import read
from booty_host.handover import Handover
from booty_host.release import Release, labels_on_disk
from booty_host.systemd import Systemd
sha, chosen, action = sys.argv[1:]
app = App()

def after(owner, name, step, is_step=lambda *arguments: True):
    method = getattr(owner, name)

    def wrapped(self, *arguments, **options):
        answer = method(self, *arguments, **options)
        if isinstance(self, Handover):
            handovers.append(self)
        if step == chosen and handovers and not acts and is_step(self, *arguments):
            acts.append(step)
            act(handovers[-1])
        return answer

    setattr(owner, name, wrapped)

def act(handover):
    print("acts", flush=True)
    victims = {"host program": os.getpid(), "old": handover.old, "new": handover.new, "lease": handover.lease}
    if action == "error":
        raise OSError("the host program fails here")
    if action in victims:
        os.kill(victims[action], signal.SIGKILL)
    else:
        subprocess.run(action, shell=True, check=True)

handovers, acts = [], []
after(Handover, "begin", "begun")
after(Handover, "pause", "paused")
after(Handover, "confirm", "confirmed")
after(Cutover, "point", "pointed")
after(Handover, "move", "parted", lambda handover, pids, unit: pids != [handover.lease])
after(Handover, "complete", "complete")
after(Cutover, "retire", "retired")
text = read(app.release_env).replace(labels_on_disk(app)["SENTRY_RELEASE"], sha)
release = Release(app, text, {name: read(app.unit_files / name) for name in app.units})
print(Cutover(app, Systemd(app)).cut_over(release, 5, "a test", "a run", Controller(False), False)["state"])
"""
# What the host says of itself, as JSON.
STATE = r"""
main=$(systemctl show --property=MainPID --value booty.service)
label=$(tr '\0' '\n' </proc/$main/environ | sed -n s/^SENTRY_RELEASE=//p)
group=/sys/fs/cgroup/system.slice/system-booty.slice
others=$(pgrep --full --uid booty 'm booty_runner' | wc -l)
printf '{"pointer": "%s", "label": "%s", "candidate": "%s", "handover": "%s", "members": %d, "processes": %d}' \
    "$(sed -n s/^SENTRY_RELEASE=//p /etc/booty/release.env)" "$label" \
    "$(systemctl show --property=ActiveState --value booty-candidate.service)" \
    "$(cat /run/booty/handover 2>/dev/null)" "$(wc -l <$group/booty.service/cgroup.procs)" $others
"""
STEPS = ("begun", "paused", "confirmed", "pointed", "parted", "complete")
# Where the pointer names the new release, the settled service does as well.
CASES = [(step, "host program", "old" if number < 3 else "new") for number, step in enumerate(STEPS)]
CASES += [(step, victim, "either") for step in STEPS for victim in ("lease", "new", "old")]
CASES += [
    (step, command, "either")
    for step in ("paused", "pointed", "complete")
    for command in ("systemctl restart booty.service", "systemctl stop booty.service", "systemctl daemon-reexec")
]
# An error of the host program, also right after systemd took the new main process and after the old one ended.
CASES += [(step, "error", "old") for step in (*STEPS, "retired")]
SHORT = {("paused", "host program"), ("parted", "host program"), ("parted", "lease")}


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("step", "action", "outcome"),
    [pytest.param(*case, marks=[] if case[:2] in SHORT else pytest.mark.long) for case in CASES],
)
def test_a_handover_is_settled_whatever_is_killed(
    site: Site, workers: int, step: str, action: str, outcome: str
) -> None:
    """No next run is needed, and no request is lost but those of a killed process."""
    newer, older = pair(site)
    site.deploy(app_release=older, app_workers=str(workers), app_settings='{"GREETING": "it\'s  $5"}')
    archive = base64.b64encode(host_program.program()).decode()
    site.run("base64 --decode > /root/booty_host.zip", input=archive)
    site.run("cat > /root/hand_over.py", input=PROGRAM)
    with Load(site.host.address) as load:
        done = site.host.ssh(f"python3 /root/hand_over.py {newer} {step} '{action}'")
        assert "acts" in done.stdout, done.stdout + done.stderr + site.run("journalctl -t booty-deploy -n 20")
        site.wait_for(
            "test ! -e /run/booty/handover && systemctl is-active --quiet booty.service &&"
            " test $(systemctl show --property=ActiveState --value booty-candidate.service) = inactive"
        )
    state = json.loads(site.run(STATE))
    count = workers + 1 if workers > 1 else 1
    assert state == {
        "pointer": state["label"],
        "label": {"old": older, "new": newer}.get(outcome, state["label"]),
        "candidate": "inactive",
        "handover": "",
        "members": count,
        "processes": count,
    }
    if action not in {"new", "old"}:
        assert load.report["failures"] == []
    site.run("rm /root/hand_over.py /root/booty_host.zip")


ECHO = """
from fastapi import WebSocket
@router.websocket("/ws/")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())
"""


@pytest.mark.long
def test_a_websocket_is_closed_once_and_only_when_the_new_release_is_confirmed(site: Site) -> None:
    """A handover that fails closes none; one that succeeds closes it with 1012 after release.env names the release."""
    address: Any = SimpleNamespace(site=site, settings={"app_port": 8000})
    site.release(text=ROUTES + ECHO)
    site.deploy()
    with WebSocket(address) as old:
        site.release(text=ROUTES + ECHO + "from booty import health\n" + ASKED_TWICE)
        failed = site.play("deploy.yml")
        assert "GET /health answers 503: no disk any more" in words(failed), failed.output
        old.send(b"still")
        assert old.receive() == (1, b"still")
        closed: list[float] = []

        def wait() -> None:
            kind, data = old.receive()
            assert (kind, int.from_bytes(data[:2], "big")) == (8, 1012)
            closed.append(time.time())

        waiter = threading.Thread(target=wait)
        waiter.start()
        newer = site.release(text=ROUTES + ECHO)
        site.deploy()
        waiter.join(40)
    entries = site.run("journalctl -t booty-deploy --output=short-unix --no-pager --lines=30").splitlines()
    pointed = [float(line.split()[0]) for line in entries if f"pointing to {newer}" in line]
    assert closed[0] > pointed[-1]
    with WebSocket(address) as new:
        time.sleep(3)
        new.send(b"again")
        assert new.receive() == (1, b"again")
    site.release()
    site.deploy()
