"""The examples for GitHub Actions and GitLab CI: their form, and their steps, run as a shell of the CI runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import demo
from sandbox import hosts as sandbox
from sandbox.hosts import Host
from tests.conftest import CONNECTIONS, INSTANCE, ROOT, Repository

EXAMPLES = ROOT / "docs/examples/ci"
PAGE = (ROOT / "docs/ci.md").read_text()
GITHUB = yaml.safe_load((EXAMPLES / "github/deploy.yml").read_text())
GITLAB = yaml.safe_load((EXAMPLES / "gitlab/.gitlab-ci.yml").read_text())
JOB = GITHUB["jobs"]["deploy"]


def test_the_workflow_for_github() -> None:
    assert GITHUB["permissions"] == {"contents": "read"}
    # The two environments follow each other, and a deploy is never cut off by the next one.
    assert JOB["strategy"]["matrix"] == {"environment": ["staging", "production"]}
    assert JOB["strategy"]["max-parallel"] == 1
    assert JOB["environment"] == "${{ matrix.environment }}"
    assert JOB["concurrency"] == {"group": "deploy-${{ matrix.environment }}", "cancel-in-progress": False}
    checkout = JOB["steps"][0]
    assert checkout["uses"].startswith("actions/checkout@")
    assert checkout["with"] == {"fetch-depth": 0, "persist-credentials": False}
    for step in JOB["steps"]:
        # GitHub replaces an expression before the shell sees it: a value could be a command.
        assert "${{" not in step.get("run", "")
        assert {*step} <= {"name", "if", "env", "run", "uses", "with"}
    named = {*re.findall(r"\$\{\{ (?:secrets|vars)\.(\w+)", (EXAMPLES / "github/deploy.yml").read_text())}
    assert named == {"DEPLOY_KEY", "SENTRY_AUTH_TOKEN", "SENTRY_ORG", "SENTRY_PROJECT", "SLACK_WEBHOOK"}
    assert all(f"`{name}`" in PAGE for name in named)


def test_the_pipeline_for_gitlab() -> None:
    assert [*GITLAB] == ["stages", ".deploy", "staging", "production"]
    shared = GITLAB[".deploy"]
    assert shared["interruptible"] is False
    assert shared["variables"]["GIT_DEPTH"] == "0"
    for environment in ("staging", "production"):
        job = GITLAB[environment]
        assert (job["extends"], job["stage"], job["environment"], job["resource_group"]) == (
            ".deploy", environment, environment, environment,
        )  # fmt: skip
    assert GITLAB["production"]["rules"][0]["when"] == "manual"


def test_the_page_names_every_file() -> None:
    for name in ("setup.sh", "ansible.cfg", "hosts.yml", "known_hosts", "group_vars/booty.yml"):
        assert f"/{name}" in PAGE
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    assert f"deploy/booty-deploy-{version}.tar.gz" in PAGE


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    name, inventory = f"{INSTANCE}-ci", tmp_path_factory.mktemp("inventory") / "hosts.yml"
    try:
        (host,) = sandbox.up(name, 1, with_tracker=False, inventory=inventory)
        yield host
    finally:
        sandbox.down(name)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the collection, built from a copy of the checkout."""
    checkout = Repository(tmp_path_factory.mktemp("checkout") / "booty", ".").path
    command = [str(Path(sys.executable).parent / "ansible-galaxy"), "collection", "build"]
    subprocess.run([*command, f"--output-path={checkout.parent}"], cwd=checkout, check=True, capture_output=True)
    (built,) = checkout.parent.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the shell's home, for the documents of notifications, and for the workspace of all jobs."""
    folder = tmp_path_factory.mktemp("ci")
    for name in ("home", "temp"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def shop(place: Path, host: Host, archive: Path) -> Repository:
    """Return the repository of an app with the files that the page names; its host is bootstrapped."""
    repository = Repository(place / "shop")
    shutil.copytree(EXAMPLES / "deploy", repository.path / "deploy")
    shutil.copy(archive, repository.path / "deploy")
    group = yaml.safe_load(re.findall("```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    key = (sandbox.INSTANCES / host.instance / "id_ed25519.pub").read_text().strip()
    told = {"app_notify_command": f"cat >> {place}/told && echo >> {place}/told"}
    ours = {"app_path": "app", "app_registration": False, "host_deploy_keys": [key], **told}
    known = (sandbox.INSTANCES / host.instance / "known_hosts").read_text()
    repository.write("deploy/inventory/known_hosts", known)
    for environment in ("staging", "production"):
        hosts = yaml.safe_dump({"booty": {"hosts": {host.name: {"ansible_host": host.address}}}})
        repository.write(f"deploy/inventory/{environment}/hosts.yml", hosts)
        # Production needs a tracker, which this host has not.
        values = {**group, **ours, "app_environment": environment.replace("production", "preview")}
        repository.write(f"deploy/inventory/{environment}/group_vars/booty.yml", yaml.safe_dump(values))
    repository.commit("Deploy from CI")
    check_out(repository, place)
    (place / "key").write_text(private_key(host))
    (place / "key").chmod(0o600)
    variables = shell(place, ANSIBLE_CONFIG="ansible.cfg", ANSIBLE_PRIVATE_KEY_FILE=str(place / "key"))
    bootstrap = "./setup.sh && venv/bin/ansible-playbook -i inventory/staging booty.deploy.bootstrap"
    ready = bash(bootstrap, place / "workspace/deploy", variables)
    assert ready.returncode == 0, ready.stdout + ready.stderr
    return repository


def private_key(host: Host) -> str:
    """Return the private key that the host accepts."""
    return (sandbox.INSTANCES / host.instance / "id_ed25519").read_text()


def check_out(shop: Repository, place: Path) -> Path:
    """Bring the workspace to the newest commit, as a runner that keeps the other files does, and return it."""
    workspace = place / "workspace"
    if not workspace.exists():
        shop.git("clone", "--quiet", str(shop.path), str(workspace))
    shop.git("-C", str(workspace), "fetch", "--quiet", "origin", "HEAD")
    shop.git("-C", str(workspace), "reset", "--quiet", "--hard", "FETCH_HEAD")
    return workspace


def shell(place: Path, **values: str) -> dict[str, str]:
    """Return the environment of a CI's shell, with a home of its own and none of the developer's settings."""
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if ".venv" not in part)
    caches = Path.home() / ".cache"
    return {
        **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))},
        "PATH": path,
        "HOME": str(place / "home"),
        "LANG": "C.UTF-8",
        "CI": "true",
        "PIP_CACHE_DIR": str(caches / "pip"),
        "UV_CACHE_DIR": str(caches / "uv"),
        # Each job makes its own connections, and the path of a socket may have 100 characters.
        "ANSIBLE_SSH_CONTROL_PATH_DIR": tempfile.mkdtemp(dir=CONNECTIONS),
        **values,
    }


def bash(script: str, folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script as both CIs do: by bash, which ends at the first command that fails."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def expanded(text: str, context: dict[str, str]) -> str:
    """Return a text of a workflow with its expressions replaced by their values; an unknown one is empty."""
    return re.sub(r"\$\{\{ (.*?) \}\}", lambda match: context.get(match[1], ""), text)


def github(shop: Repository, place: Path, key: str, name: str) -> tuple[int, str]:
    """Run the steps of the workflow for an environment, and return the status of the job and its log."""
    workspace, sha = check_out(shop, place), shop.git("rev-parse", "HEAD")
    context = {"matrix.environment": name, "secrets.DEPLOY_KEY": key, "github.sha": sha}
    variables = shell(
        place, GITHUB_ACTIONS="true", GITHUB_SHA=sha, GITHUB_WORKSPACE=str(workspace), GITHUB_RUN_ID="7",
        GITHUB_SERVER_URL="https://github.com", GITHUB_REPOSITORY="me/shop", GITHUB_ENV=str(place / "env"),
        RUNNER_TEMP=str(place / "temp"),
        **{variable: expanded(value, context) for variable, value in JOB["env"].items()},
    )  # fmt: skip
    failed, log = False, ""
    for step in JOB["steps"]:
        if failed and "if" not in step:
            continue
        if step.get("uses", "").startswith("actions/upload-artifact@"):
            assert all((workspace / path).exists() for path in step["with"]["path"].split()), log
        if "run" in step:
            (place / "env").write_text("")
            own = {variable: expanded(value, context) for variable, value in step.get("env", {}).items()}
            done = bash(step["run"], workspace / JOB["defaults"]["run"]["working-directory"], {**variables, **own})
            failed, log = failed or done.returncode != 0, log + done.stdout + done.stderr
            variables |= dict(line.split("=", 1) for line in (place / "env").read_text().splitlines())
    assert not [*(place / "temp").iterdir()]
    return int(failed), log


def gitlab(shop: Repository, place: Path, key: str, name: str) -> tuple[int, str]:
    """Run the scripts of a job, and return the status of the job and its log."""
    project, job = check_out(shop, place), {**GITLAB[".deploy"], **GITLAB[name]}
    # GitLab's runners make such folders.
    for folder in (project, project / "deploy"):
        folder.chmod(0o777)
    (place / "DEPLOY_KEY").write_text(key)
    variables = shell(
        place, GITLAB_CI="true", CI_COMMIT_SHA=shop.git("rev-parse", "HEAD"), CI_PROJECT_DIR=str(project),
        CI_JOB_URL="https://gitlab.com/me/shop/-/jobs/7", CI_ENVIRONMENT_NAME=name,
        DEPLOY_KEY=str(place / "DEPLOY_KEY"),
    )  # fmt: skip
    for variable, value in job["variables"].items():
        variables[variable] = re.sub(r"\$(\w+)", lambda match: variables[match[1]], value)
    done = bash("\n".join([*job["before_script"], *job["script"]]), project, variables)
    after = bash("\n".join(job["after_script"]), project, variables)
    log = done.stdout + done.stderr + after.stdout + after.stderr
    assert all((project / path).exists() for path in job["artifacts"]["paths"]), log
    assert (project / job["cache"]["paths"][0] / "artifacts").is_dir()
    return done.returncode, log


@pytest.mark.long
@pytest.mark.parametrize("ci", [github, gitlab], ids=["github", "gitlab"])
def test_the_steps_deploy_the_commit(ci: Any, shop: Repository, host: Host, place: Path) -> None:
    shop.write("app/NEWS", ci.__name__)
    sha = shop.commit("A change")
    for name, reported in (("staging", "staging"), ("production", "preview")):
        status, log = ci(shop, place, private_key(host), name)
        assert status == 0, log
        # Both environments are the same host.
        assert demo.health(host)["release"] == sha
        assert demo.health(host)["environment"] == reported
        assert f"serves {sha} as {reported}" in log
        assert {"github": "::group::", "gitlab": "section_start:"}[ci.__name__] in log
        assert "PRIVATE KEY" not in log
    assert {"github": "/me/shop/actions/runs/7", "gitlab": "/me/shop/-/jobs/7"}[ci.__name__] in (
        place / "told"
    ).read_text()


@pytest.mark.long
@pytest.mark.parametrize("ci", [github, gitlab], ids=["github", "gitlab"])
def test_a_deploy_that_fails_fails_the_job(ci: Any, shop: Repository, host: Host, place: Path) -> None:
    """A commit that takes others back is refused; and a host whose key is unknown is not trusted."""
    serving = demo.health(host)["release"]
    newest = shop.git("rev-parse", "HEAD")
    shop.git("reset", "--hard", "--quiet", "HEAD~1")
    shop.write("app/NEWS", f"another line of {ci.__name__}")
    shop.commit("Another line of commits")
    status, log = ci(shop, place, private_key(host), "production")
    assert status != 0, log
    assert f"serves {serving}, which is no ancestor" in log
    shop.git("reset", "--hard", "--quiet", newest)
    shop.write("deploy/inventory/known_hosts", "")
    shop.commit("Know no host")
    status, log = ci(shop, place, private_key(host), "production")
    assert status != 0, log
    assert "Host key verification failed" in log
    shop.git("reset", "--hard", "--quiet", newest)
    assert demo.health(host)["release"] == serving
