"""app_packages: bootstrap installs them, and a deploy names those that a host lacks."""

from __future__ import annotations

import pytest

from tests.conftest import Site, words


def test_a_deploy_names_missing_packages_and_bootstrap_installs_them(site: Site) -> None:
    pyproject = site.repository.path / "app/pyproject.toml"
    before = pyproject.read_text()
    site.repository.write(
        "app/pyproject.toml", before.replace("[tool.booty]", '[tool.booty]\npackages = ["acl", "zstd"]')
    )
    sha = site.repository.commit("Need packages")
    site.repository.write("app/pyproject.toml", before)
    site.repository.commit("Need no packages")
    serving = site.run("cat /etc/booty/release.env 2>/dev/null || true")

    refused = site.play("deploy.yml", app_release=sha)
    assert refused.status == 2
    message = f"{site.host.name} lacks acl, zstd, which the app needs (app_packages). Install it: ansible-playbook"
    assert f"{message} bootstrap.yml -i {site.inventory} -e app_packages=acl,zstd" in words(refused)
    assert not site.run(f"ls -d /opt/booty/releases/{sha} 2>/dev/null || true")
    assert site.run("cat /etc/booty/release.env 2>/dev/null || true") == serving

    checked = site.play("bootstrap.yml", "--check", app_packages="acl,zstd")
    assert (checked.status, "Would install acl" in checked.output) == (0, True), checked.output
    assert site.host.ssh("dpkg-query --status acl").returncode
    played = site.play("bootstrap.yml", app_packages="acl,zstd")
    assert played.status == 0, played.output
    assert site.play("deploy.yml", "--check", app_release=sha).status == 0
    # The list of the inventory replaces that of the commit.
    refused = site.play("deploy.yml", "--check", app_release=sha, app_packages="no-such-package")
    assert "lacks no-such-package, which" in words(refused)


@pytest.mark.long
def test_bootstrap_says_that_a_package_does_not_exist(site: Site) -> None:
    played = site.play("bootstrap.yml", app_packages="no-such-package")
    assert played.status == 2
    assert "Unable to locate package no-such-package" in words(played)
    # apt-get would remove such a package.
    refused = site.play("bootstrap.yml", app_packages="ssh-")
    assert (refused.status, "names of Debian packages" in words(refused)) == (4, True), refused.output
