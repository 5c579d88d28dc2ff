"""Deploy on push: the hook of docs/push.md, in a bare repository, as git calls it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.conftest import ROOT, Repository, Site


def hook(site: Site, directory: Path) -> str:
    """Return the hook of docs/push.md, changed to this checkout and the sandbox host."""
    block = re.search(r"```sh\n(.*?)```", (ROOT / "docs/push.md").read_text(), re.DOTALL)
    assert block
    (directory / "variables.json").write_text(json.dumps(site.variables))
    inventory = f"-i {site.inventory} --limit {site.host.name} -e @{directory}/variables.json"
    text = block[1]
    for written, here in {"/srv/booty": str(ROOT), "-i inventory/production": inventory}.items():
        assert written in text
        text = text.replace(written, here)
    return text


def push(repository: Repository, bare: Path, *refspecs: str) -> str:
    """Push, and return git's output."""
    done = subprocess.run(
        ["git", "-C", repository.path, "push", bare, *refspecs], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stderr


def test_a_push_is_a_deploy(site: Site, tmp_path: Path) -> None:
    bare = tmp_path / "shop.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", bare], check=True)
    script = bare / "hooks/post-receive"
    script.write_text(hook(site, tmp_path))
    script.chmod(0o755)
    sha = site.release()
    assert "serves" not in push(site.repository, bare, "main:refs/heads/other")
    output = push(site.repository, bare, "main")
    assert f"{site.host.name} serves {sha} as staging" in output, output
    assert re.search(r"^remote: .*switched", output, re.MULTILINE)
    assert site.health()["release"] == sha
    # Without app_release Booty deploys the HEAD of the bare repository.
    played = site.deploy(app_repository=str(bare), app_path="./app/")
    assert played.recap(site.host.name)["changed"] == 0
    assert "changes that are not committed" not in played.output
    assert "serves" not in push(site.repository, bare, "--delete", "other")
