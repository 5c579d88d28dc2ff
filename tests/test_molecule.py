"""`molecule test`, as a user's CI runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sandbox.base import SUITE, SUITES
from tests.conftest import ROOT

SCENARIOS = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))


# All scenarios run on one suite; bootstrap and proxy run on every suite, because they depend on the suite most.
OTHERS = [(name, suite) for name in ("bootstrap", "proxy") for suite in SUITES if suite != SUITE]
RUNS = [*((name, SUITE) for name in SCENARIOS), *OTHERS]


@pytest.mark.parametrize(
    ("scenario", "suite"),
    [pytest.param(*run, marks=[] if run[0] == "default" else pytest.mark.long, id="-".join(run)) for run in RUNS],
)
def test_scenario(scenario: str, suite: str) -> None:
    molecule = Path(sys.executable).parent / "molecule"
    environment = {**os.environ, "NO_COLOR": "1", "SUITE": suite}
    done = subprocess.run(
        [molecule, "test", "--scenario-name", scenario],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_changed_from_its_default() -> None:
    values = yaml.safe_load((ROOT / "molecule/everything/inventory/group_vars/booty.yml").read_text())
    for role in ("app", "host"):
        defaults = yaml.safe_load((ROOT / "roles" / role / "defaults/main.yml").read_text())
        # app_restart is no state. app_name and app_artifact_url are changed in test_apps.py and test_artifact_url.py. A
        # requirements.txt has no extras and no groups; test_locks.py changes them.
        for name in ("app_restart", "app_name", "app_artifact_url", "app_lock_extras", "app_lock_groups"):
            defaults.pop(name, None)
        # test_proxy_host.py changes what the proxy takes, test_release_command.py the commands of a release,
        # test_build_steps.py those of the build, test_notify.py the notifications, test_processes_host.py the host of a
        # process.
        elsewhere = (
            "app_build",
            "app_release_command",
            "app_post_deploy_command",
            "app_rollback_over_commands",
            "app_notify_",
            "app_one_host",
            "app_domain",
            "app_acme_",
            "app_certificate",
            "app_static",
            "app_keep_assets",
            "app_hsts_",
            "app_body_",
            "app_client_",
            "app_maintenance_",
        )
        defaults = {name: default for name, default in defaults.items() if not name.startswith(elsewhere)}
        assert [name for name, default in defaults.items() if values.get(name, default) == default] == []
