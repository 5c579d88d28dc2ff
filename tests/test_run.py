"""Options, settings and folders of a user who runs ansible-playbook: none makes a playbook skip or change a step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader
from ansible_collections.booty.deploy.plugins.module_utils.controller import host_program
from ansible_collections.booty.deploy.plugins.module_utils.controller import run_check as run

from tests.conftest import ROOT, Repository

VERBS = sorted(path.name for path in (ROOT / "playbooks").glob("*.yml") if path.name != "hosts.yml")
SANDBOX = ROOT / "inventory/sandbox"


def playbook(
    verb: str, *arguments: str | Path, folder: str | Path = ROOT, root: str | Path = ROOT, **environment: str
) -> tuple[int, str]:
    """Run a playbook of a checkout from a folder; return its exit status, and its output with single blanks."""
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", Path(root, verb), *arguments],
        cwd=folder,
        env={**cleared, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "200", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, " ".join(done.stdout.split())


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Return an inventory with a host name that ssh can't resolve, so that ssh prints an error at the first task."""
    (tmp_path / "hosts").write_text("[booty]\nnowhere.invalid app_environment=staging app_registration=false\n")
    return tmp_path / "hosts"


ASKED = "Could not resolve hostname nowhere.invalid"


@pytest.mark.parametrize("verb", VERBS)
def test_the_host_is_asked(inventory: Path, verb: str) -> None:
    """The other tests check whether this error of ssh is in the output."""
    # maintenance.yml is for apps with domains.
    domains = ["-e", '{"app_domains": ["shop.test"], "maintenance": "on"}'] if verb == "maintenance.yml" else []
    status, output = playbook(verb, "-i", inventory, *domains)
    assert ASKED in output
    assert status != 0


@pytest.mark.parametrize(
    ("option", "environment", "verbs"),
    [
        ("--tags deploy", {}, VERBS),
        ("--start-at-task nothing", {"ANSIBLE_STDOUT_CALLBACK": "default"}, VERBS),
        ("--start-at-task *", {}, ["deploy.yml"]),
        ("--tags all,never", {}, ["deploy.yml"]),
        ("--skip-tags always", {}, ["deploy.yml"]),
        ("--skip-tags all", {}, ["deploy.yml"]),
        ("--step", {}, ["deploy.yml"]),
        ("--tags", {"ANSIBLE_RUN_TAGS": "x"}, ["deploy.yml"]),
        ("--skip-tags", {"ANSIBLE_SKIP_TAGS": "x", "ANSIBLE_STDOUT_CALLBACK": "default"}, ["deploy.yml"]),
    ],
)
def test_a_part_of_a_playbook_is_refused(
    inventory: Path, option: str, environment: dict[str, str], verbs: list[str]
) -> None:
    name, *values = option.split()
    arguments = [name, *values] if values or name == "--step" else []
    for verb in verbs:
        status, output = playbook(verb, "-i", inventory, *arguments, **environment)
        assert status == 4, output
        assert f"{name} would run some steps of the playbook, and each needs those before it. Leave it out" in output
        assert output.endswith("Nothing was changed.")
        assert ASKED not in output


def test_tags_that_leave_no_step_out_are_allowed(inventory: Path) -> None:
    _, output = playbook(
        "deploy.yml",
        "-i",
        inventory,
        "--tags",
        "all",
        "--skip-tags",
        "molecule-notest,notest,molecule-idempotence-notest",
    )
    assert ASKED in output


@pytest.mark.parametrize("listing", ["--syntax-check", "--list-tasks", "--list-tags", "--list-hosts"])
def test_a_listing_is_allowed(inventory: Path, listing: str) -> None:
    status, output = playbook("deploy.yml", "-i", inventory, listing, "-e", "app_port=http")
    assert status == 0, output


@pytest.mark.parametrize("arguments", [("-c", "local"), ("-c", "ansible.builtin.local")])
def test_another_connection_for_all_is_refused(inventory: Path, arguments: tuple[str, ...]) -> None:
    status, output = playbook("bootstrap.yml", "-i", inventory, *arguments)
    assert status == 4
    assert f"The connection of the run is {arguments[1]} (-c, ANSIBLE_TRANSPORT, or transport in ansible.cfg)" in output


def test_another_connection_from_the_shell_is_refused(inventory: Path) -> None:
    assert "The connection of the run is local" in playbook("deploy.yml", "-i", inventory, ANSIBLE_TRANSPORT="local")[1]


@pytest.fixture
def booty_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove the ANSIBLE_ variables of the shell that runs the tests, so that no setting is wrong."""
    for name in [name for name in os.environ if name.startswith("ANSIBLE_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "ANSIBLE_NO_LOG",
            "true",
            "DEFAULT_NO_LOG is True (env: ANSIBLE_NO_LOG) and must be False: a failure would be",
        ),
        ("ANSIBLE_ENABLE_TASK_DEBUGGER", "1", "a failed step would wait for a person instead of going back."),
        ("ANSIBLE_TASK_TIMEOUT", "5", "Ansible would end a step that continues on the host."),
    ],
)
def test_settings_of_the_shell(booty_settings: pytest.MonkeyPatch, name: str, value: str, reason: str) -> None:
    assert [*run.settings()] == []
    booty_settings.setenv(name, value)
    (sentence,) = run.settings()
    assert reason in sentence
    assert sentence.endswith(f"Unset {name}.")


def test_each_setting_has_a_row() -> None:
    rows = test_settings_of_the_shell.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert len(rows) == len(run.SETTINGS)


def test_settings_that_a_user_may_change(inventory: Path) -> None:
    """A user may set each of these: with all of them a deploy still asks the host."""
    _, output = playbook(
        "deploy.yml", "-i", inventory, "-vvv", "--forks", "1", "--force-handlers",
        ANSIBLE_STRATEGY="free", ANSIBLE_GATHERING="implicit", ANSIBLE_HASH_BEHAVIOUR="merge",
        ANSIBLE_PIPELINING="false", ANSIBLE_PRIVATE_ROLE_VARS="true", ANSIBLE_ANY_ERRORS_FATAL="false",
        ANSIBLE_JINJA2_NATIVE="false",
        ANSIBLE_ERROR_ON_UNDEFINED_VARS="false", ANSIBLE_INJECT_FACT_VARS="false", ANSIBLE_STDOUT_CALLBACK="default",
        ANSIBLE_SSH_ARGS="-C", ANSIBLE_SSH_RETRIES="1", ANSIBLE_KEEP_REMOTE_FILES="true",
        ANSIBLE_DUPLICATE_YAML_DICT_KEY="error", ANSIBLE_ERROR_ON_MISSING_HANDLER="false",
    )  # fmt: skip
    assert ASKED in output
    # The user's ssh options come first: ssh uses the first value of an option.
    assert "SSH: EXEC ssh -C " in output
    assert "-o ServerAliveInterval=5 -o ServerAliveCountMax=3" in output


def test_a_cutover_is_sent_once() -> None:
    """With `retries` Ansible repeats a call after a lost connection, while the host still works on the first call."""
    connection = connection_loader.get("ssh", PlayContext())
    connection.set_options(direct={"reconnection_retries": 3, "ssh_extra_args": "-C"})
    action = host_program.HostProgramAction.__new__(host_program.HostProgramAction)
    action._connection = connection
    action._pin("info")
    assert connection.get_option("reconnection_retries") == 3
    assert connection.get_option("ssh_extra_args") == "-C -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
    for verb in ("cutover", "take_back"):
        connection.set_options(direct={"reconnection_retries": 3})
        action._pin(verb)
        assert connection.get_option("reconnection_retries") == 0


# The ansible.cfg that Ansible reads


def test_from_another_folder(inventory: Path, tmp_path: Path) -> None:
    """Ansible reads no ansible.cfg there, so Booty itself checks for inventory files that Ansible left out."""
    arguments = ("deploy.yml", "-i", str(inventory))
    assert ASKED in playbook(*arguments, folder=tmp_path, HOME=str(tmp_path))[1]
    typo = tmp_path / "typo.yml"
    typo.write_text("booty: [\n")
    status, output = playbook(*arguments, "-i", str(typo), folder=tmp_path, HOME=str(tmp_path))
    assert status == 4
    assert "An inventory file can't be read, so the run would leave its hosts out." in output
    assert f"failed to parse inventory source {typo}" in output
    assert ASKED not in output


def test_an_ansible_cfg_in_the_users_home(inventory: Path, tmp_path: Path) -> None:
    own = tmp_path / ".ansible.cfg"
    own.write_text("[defaults]\ntask_timeout = 5\n")
    status, output = playbook("deploy.yml", "-i", inventory, folder=tmp_path, HOME=str(tmp_path))
    assert status == 4
    assert (
        f"Ansible's setting TASK_TIMEOUT is 5 ({own}) and must be 0: Ansible would end a step that continues on"
        f" the host. Remove it from {own}."
    ) in output
    own.write_text("[defaults]\nforks = 3\n")
    assert ASKED in playbook("bootstrap.yml", "-i", inventory, folder=tmp_path, HOME=str(tmp_path))[1]


def test_a_checkout_that_everybody_can_write_to(inventory: Path, tmp_path: Path) -> None:
    """Ansible ignores the ansible.cfg of such a folder."""
    root = Repository(tmp_path / "checkout", ".").path
    root.chmod(0o777)
    assert ASKED in playbook("deploy.yml", "-i", inventory, folder=root, root=root, HOME=str(tmp_path))[1]


@pytest.mark.parametrize("verb", VERBS)
def test_another_default_inventory_is_refused(inventory: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / ".ansible.cfg").write_text(f"[defaults]\ninventory = {inventory}\n")
    shell = {"ANSIBLE_INVENTORY": str(inventory)}
    for environment in [{"HOME": str(tmp_path)}, *([shell] if verb == "deploy.yml" else [])]:
        folder = tmp_path if "HOME" in environment else ROOT
        status, output = playbook(verb, folder=folder, **environment)
        assert status == 4
        assert f"No inventory was named, and Ansible's default is {inventory} (" in output
        assert f"Name the inventory that you mean: -i {inventory}, or -i {SANDBOX} for the sandbox." in output
        assert ASKED not in output


def test_a_default_inventory_that_is_also_named_is_allowed(inventory: Path) -> None:
    for option in (["-i", inventory], [f"-i{inventory}"], [f"--inventory={inventory}"]):
        assert ASKED in playbook("deploy.yml", *option, ANSIBLE_INVENTORY=str(inventory))[1]
