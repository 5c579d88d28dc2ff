"""Deploys to a real systemd host, through the commands that a user types."""

from __future__ import annotations

import re

import pytest

from sandbox import hosts
from sandbox.demo import RAISE
from tests.conftest import Site, words

PLANTED = "hunter2-planted-secret"


def test_an_error_reaches_the_tracker_under_its_release(site: Site) -> None:
    site.deploy()
    sha = site.repository.git("rev-parse", "HEAD")
    assert site.health() == {"status": "ok", "release": sha, "environment": "staging"}
    known = [event["id"] for event in site.tracker.events()]
    assert "500" in site.run(RAISE)
    event = site.tracker.wait_for_event(lambda data: data.get("release") == sha, unless=known)
    assert event.data["environment"] == "staging"
    assert event.data["transaction"] == "/raise"
    assert event.data["exception"]["values"][-1]["type"] == "DeliberateError"


def test_a_second_deploy_changes_nothing(site: Site) -> None:
    site.deploy()
    pid = site.pid()
    again = site.deploy()
    assert again.recap(site.host.name)["changed"] == 0
    assert site.pid() == pid


def test_a_restart_can_be_asked_for(site: Site) -> None:
    site.deploy()
    pid = site.pid()
    site.deploy(app_restart="true")
    assert site.pid() != pid


def test_an_older_release_and_back(site: Site) -> None:
    older = site.repository.git("rev-parse", "HEAD")
    site.repository.write("app/src/booty/newer.py", "")
    newer = site.repository.commit("Newer")
    for name, sha in (("HEAD", newer), (older[:9], older), (newer, newer)):
        site.deploy(app_release=name)
        assert site.health()["release"] == sha
        environ = site.run(f"tr '\\0' '\\n' < /proc/{site.pid()}/environ")
        assert f"SENTRY_RELEASE={sha}\n" in environ
        assert f"BOOTY_RELEASE_DIR=/opt/booty/releases/{sha}" in environ
        assert f"SENTRY_RELEASE={sha}\n" in site.run("cat /etc/booty/release.env")


def test_a_release_with_the_same_lock_ships_kilobytes(site: Site) -> None:
    site.deploy()
    layers = site.run("ls /opt/booty/layers")
    site.repository.write("app/src/booty/small.py", "")
    sha = site.repository.commit("Small")
    site.deploy()
    assert site.run("ls /opt/booty/layers") == layers
    (archive,) = site.inventory.parent.glob(f"artifacts/releases/{sha}*.tar.gz")
    assert archive.stat().st_size < 100_000
    assert site.run("ls -A /opt/booty/incoming") == ""


def test_the_working_tree_does_not_leak_in(site: Site) -> None:
    site.repository.write("app/src/booty/leak.py", "raise RuntimeError")
    try:
        played = site.deploy()
        assert len(re.findall(r"changes that are not committed", " ".join(played.output.split()))) == 1
        assert site.run("find /opt/booty/releases -name 'leak*'") == ""
    finally:
        (site.repository.path / "app/src/booty/leak.py").unlink()


def test_an_unknown_release_never_reaches_a_host(site: Site) -> None:
    before = site.run("ls -lR --time-style=full-iso /etc/booty /opt/booty/releases | sha256sum")
    played = site.play("deploy.yml", app_release="no-such-release")
    assert played.status != 0
    assert "'no-such-release' names no single commit" in played.output
    assert "Look for the host's Python" not in played.output
    assert site.run("ls -lR --time-style=full-iso /etc/booty /opt/booty/releases | sha256sum") == before


def test_check_changes_nothing(site: Site) -> None:
    site.deploy()
    pid = site.pid()
    site.repository.write("app/src/booty/checked.py", "")
    sha = site.repository.commit("Checked")
    played = site.deploy("--check", "--diff", app_drain_seconds="29")
    assert f"+SENTRY_RELEASE={sha}" in played.output
    assert "+    BOOTY_LOG_FORMAT=text BOOTY_DRAIN_SECONDS=29" in played.output
    assert site.pid() == pid
    assert sha not in site.run("ls /opt/booty/releases; cat /etc/booty/release.env")


def test_the_running_process_decides_about_a_restart(site: Site) -> None:
    """If a deploy is interrupted after it wrote a unit and before the restart, the next deploy restarts the service."""
    site.deploy()
    pid = site.pid()
    site.deploy(app_log_format="json")
    assert site.pid() != pid
    unit = site.run("cat /etc/systemd/system/booty.service")
    site.deploy()
    pid = site.pid()
    site.run("cat > /etc/systemd/system/booty.service && systemctl daemon-reload", input=unit + "\n")
    site.deploy(app_log_format="json")
    assert site.pid() != pid
    site.deploy()


def test_another_port(site: Site) -> None:
    site.deploy(app_port="8080")
    assert "0.0.0.0:8080" in site.run("ss -ltnH")
    assert "0.0.0.0:8000" not in site.run("ss -ltnH")
    site.deploy()
    assert "0.0.0.0:8000" in site.run("ss -ltnH")


def test_a_release_that_does_not_start_is_a_failure(site: Site) -> None:
    good = site.repository.git("rev-parse", "HEAD")
    routes = (site.repository.path / "app/src/booty/routes.py").read_text()
    site.repository.write("app/src/booty/routes.py", "import no_such_module\n")
    site.repository.commit("Broken")
    played = site.play("deploy.yml")
    assert played.status != 0
    assert "No module named 'no_such_module'" in played.output
    site.repository.write("app/src/booty/routes.py", routes)
    site.repository.commit("Mended")
    site.deploy(app_release=good)
    assert site.health()["release"] == good


def test_production_without_a_dsn_is_refused_before_anything_is_touched(site: Site) -> None:
    site.deploy()
    pid, pointer = site.pid(), site.run("sha256sum /etc/booty/release.env")
    site.run("mv /etc/booty/secrets.env /root/secrets.env")
    try:
        played = site.play("deploy.yml", app_environment="production", app_restart="true")
        assert played.status != 0
        output = " ".join(played.output.split())
        assert "/etc/booty/secrets.env is missing" in output
        assert "cat > /etc/booty/secrets.new" in output
        assert site.pid() == pid
        assert site.run("sha256sum /etc/booty/release.env") == pointer
    finally:
        site.run("mv /root/secrets.env /etc/booty/secrets.env")


@pytest.mark.parametrize("environment", ["production", "Prod"])
def test_production_without_a_dsn_does_not_start(site: Site, environment: str) -> None:
    site.deploy()
    site.run("mv /etc/booty/secrets.env /root/secrets.env; cp -a /etc/booty/release.env /root/release.env")
    try:
        site.run(f"sed -i 's/^SENTRY_ENVIRONMENT=.*/SENTRY_ENVIRONMENT={environment}/' /etc/booty/release.env")
        assert site.host.ssh("systemctl restart booty.service").returncode != 0
        properties = site.run("systemctl show booty.service --property=ActiveState,Result,ExecMainStatus")
        assert properties.splitlines() == ["Result=exit-code", "ExecMainStatus=1", "ActiveState=failed"]
        invocation = site.run("systemctl show booty.service --property=InvocationID --value")
        lines = site.run(f"journalctl _SYSTEMD_INVOCATION_ID={invocation} --output=cat --no-pager").splitlines()
        assert len(lines) == 1, lines
        assert f"SENTRY_DSN is not set, and {environment} does not run without it" in lines[0]
    finally:
        site.run("mv /root/secrets.env /etc/booty/secrets.env; mv /root/release.env /etc/booty/release.env")
        site.run("systemctl reset-failed booty.service booty.socket; systemctl start booty.socket booty.service")


def test_without_release_env_the_service_does_not_start(site: Site) -> None:
    site.deploy()
    site.run("mv /etc/booty/release.env /root/release.env")
    try:
        assert site.host.ssh("systemctl restart booty.service").returncode != 0
    finally:
        site.run("mv /root/release.env /etc/booty/release.env")
    site.deploy()


def test_a_planted_secret_is_shown_nowhere(site: Site) -> None:
    secrets = site.run("cat /etc/booty/secrets.env")
    site.place_secrets(f"{secrets}\nPLANTED={PLANTED}\n")
    # The brackets keep the pattern from matching the watch's own command line.
    look = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -aoE 'hunter2[-]planted|see[-]me'"
    site.run(
        f'systemd-run --quiet --unit=watch -p StandardOutput=file:/run/seen sh -c "while sleep 0.05; do {look}; done"'
    )
    try:
        played = site.deploy("-vvv", "--diff", app_restart="true")
        sha = site.health()["release"]
        assert PLANTED in site.run(f"tr '\\0' '\\n' < /proc/{site.pid()}/environ")
        known = len(site.tracker.events())
        assert "500" in site.run(RAISE)
        site.tracker.wait_for_event(lambda data: data.get("release") == sha)
        events = [site.tracker.event(event["id"]).data for event in site.tracker.events()[known:]]
        everywhere = {
            "output": played.output,
            "journal": site.run("journalctl --no-pager --all"),
            "releases": site.run("grep -rl planted-secret /opt/booty /etc/booty/release.env || true"),
            "events": str(events),
        }
        assert events
        site.wait_for("echo see-me >/dev/null; sleep 0.2; grep -q see-me /run/seen")
        assert "hunter2" not in site.run("cat /run/seen")
        assert [place for place, text in everywhere.items() if PLANTED in text] == []
    finally:
        site.run("systemctl stop watch.service; rm /run/seen")
        site.place_secrets(f"{secrets}\n")


def test_the_unit_is_sandboxed(site: Site) -> None:
    site.deploy()
    # The threshold is in tenths: 1.1 is the score of a service with a network and without RootDirectory=.
    site.run("systemd-analyze security booty.service --threshold=11")
    limits = site.run("systemctl show booty.service --property=TasksMax,MemoryMax,LimitCORE --value").split()
    assert "512" in limits
    assert "0" in limits
    assert "infinity" not in limits


def test_after_a_reboot_it_serves_the_same_release(site: Site) -> None:
    site.deploy()
    before = site.health()
    hosts.reboot(site.host.instance, site.host.name)
    assert site.health() == before
    assert site.deploy().recap(site.host.name)["changed"] == 0


def test_a_host_without_python_is_made_ready(site: Site) -> None:
    checked = site.play("deploy.yml", "--check", on=site.bare, app_environment="production")
    assert checked.status == 0, checked.output
    assert f"A deploy would be refused as things are: {site.bare.name} lacks the user booty or" in words(checked)
    assert "the secrets that production needs, for which bootstrap.yml prints a command. Make it" in words(checked)
    purged = site.bare.ssh(
        "apt-get -qy purge python3-minimal python3 && apt-get -qy autoremove && ! command -v python3"
    )
    assert purged.returncode == 0, purged.stderr
    checked = site.play("bootstrap.yml", "--check", "--diff", on=site.bare)
    assert checked.status == 0, checked.output
    assert "Would install python3" in checked.output
    checked = site.play("deploy.yml", "--check", "--diff", on=site.bare)
    assert checked.status == 0, checked.output
    assert "This host has no Python yet, so a deploy would be refused." in checked.output
    refused = site.play("deploy.yml", on=site.bare)
    assert refused.status != 0
    assert "ansible-playbook bootstrap.yml" in refused.output

    bootstrapped = site.play("bootstrap.yml", on=site.bare)
    assert bootstrapped.status == 0, bootstrapped.output
    assert "cat > /etc/booty/secrets.new" in " ".join(bootstrapped.output.split())
    again = site.play("bootstrap.yml", on=site.bare)
    assert again.recap(site.bare.name)["changed"] == 0
    deployed = site.play("deploy.yml", on=site.bare)
    assert deployed.status == 0, deployed.output
