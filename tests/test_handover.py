"""A handover on a real host: the candidate becomes the service, and a process is killed at each step."""

from __future__ import annotations

import base64
import json

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import host_program

from tests.conftest import Site
from tests.load import Load
from tests.test_cutover import pair

# Runs on the host: a cutover to the release in the first argument. After the step in the second argument, it once kills
# a process, fails, or runs a command.
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
after(Handover, "move", "parted", lambda handover, pids: pids != [handover.lease])
after(Handover, "complete", "complete")
after(Cutover, "retire", "retired")
text = read(app.release_env).replace(labels_on_disk(app)["SENTRY_RELEASE"], sha)
release = Release(app, text, {name: read(app.unit_files / name) for name in app.units})
steps = Cutover(app, Systemd(app))
print(steps.cut_over(release, 5, 3, "a test", "a run", Controller(False), False, {}, 0, restart=False)["state"])
"""
# Prints the state of the host as JSON.
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
# Once release.env names the new release, the service runs it after the handover is settled.
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
    """No further run is needed, and only requests to a killed process are lost."""
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
