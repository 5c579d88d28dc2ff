"""The commands that messages name have the inventory and the app of the run that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible import constants as C
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible_collections.booty.deploy.plugins.module_utils.controller.playbook import completed, playbook

HERE = Path.cwd()
ROLLBACK = "ansible-playbook rollback.yml"


@pytest.mark.parametrize(
    ("playbook_of_run", "inventory", "variables", "command"),
    [
        ("deploy.yml", C.DEFAULT_HOST_LIST, {}, ROLLBACK),
        ("deploy.yml", [str(HERE / "inventory/production")], {}, f"{ROLLBACK} -i inventory/production"),
        ("deploy.yml", ["/etc/my hosts"], {}, f"{ROLLBACK} -i '/etc/my hosts'"),
        ("deploy.yml", ["web1,", "/srv/b"], {"app": "shop"}, f"{ROLLBACK} -i web1, -i /srv/b -e app=shop"),
        ("/opt/booty/deploy.yml", C.DEFAULT_HOST_LIST, {}, "ansible-playbook /opt/booty/rollback.yml"),
        ("booty.deploy.deploy", ["/srv/b"], {}, "ansible-playbook booty.deploy.rollback -i /srv/b"),
    ],
)  # fmt: skip
def test_a_command_repeats_the_options_of_the_run(
    monkeypatch: pytest.MonkeyPatch, playbook_of_run: str, inventory: list[str], variables: dict[str, Any], command: str
) -> None:
    monkeypatch.setattr(context, "CLIARGS", ImmutableDict(args=(playbook_of_run,), inventory=inventory))
    assert playbook(variables, "rollback") == command
    text = f"Fix that, then: {ROLLBACK} --limit web1 -e app_release=<sha>"
    wanted = f"Fix that, then: {command} --limit web1 -e app_release=<sha>"
    assert completed(text, variables) == wanted
    assert completed(wanted, variables) == wanted  # a text may pass two places that complete it
