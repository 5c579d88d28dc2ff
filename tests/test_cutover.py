"""Nothing is lost: deploys, rollbacks, restarts and failures under load, on a real host."""

from __future__ import annotations

import pytest

from tests.conftest import ROUTES, Site
from tests.load import Load


@pytest.fixture
def releases(site: Site) -> tuple[str, str]:
    """Return two good releases; the second serves, the first did before."""
    shas = site.release(), site.release()
    for sha in shas:
        site.deploy(app_release=sha)
    return shas


def test_a_plain_restart_loses_requests(site: Site, releases: tuple[str, str]) -> None:
    """The load sees what it is there to see: without a held socket, requests fail."""
    with Load(site.host.address) as load:
        site.run("systemctl restart booty.socket booty.service")
    assert load.report["failed"] > 0
    assert load.report["requests"] > 100


def test_a_deploy_loses_nothing(site: Site, releases: tuple[str, str]) -> None:
    newer = site.release()
    with Load(site.host.address) as load:
        site.deploy()
    assert load.report["failures"] == []
    assert set(load.report["releases"]) == {releases[1], newer}
    assert load.report["requests"] > 100


def test_a_rollback_and_its_undoing_lose_nothing(site: Site, releases: tuple[str, str]) -> None:
    old, new = releases
    with Load(site.host.address) as load:
        played = site.play("rollback.yml")
        assert played.status == 0, played.output
        assert site.health()["release"] == old
        played = site.play("rollback.yml")
        assert played.status == 0, played.output
        assert site.health()["release"] == new
    assert load.report["failures"] == []
    assert "booty_artifact" not in played.output


def test_a_rollback_to_a_named_release(site: Site, releases: tuple[str, str]) -> None:
    site.deploy()
    played = site.play("rollback.yml", app_release=releases[0][:12])
    assert played.status == 0, played.output
    assert site.health()["release"] == releases[0]
    played = site.play("rollback.yml", app_release="0123456789")
    assert played.status != 0
    assert "has no release 0123456789 to go back to" in " ".join(played.output.split())


def test_a_restart_loses_nothing(site: Site, releases: tuple[str, str]) -> None:
    pid = site.pid()
    with Load(site.host.address) as load:
        site.deploy(app_release=releases[1], app_restart="true")
    assert site.pid() != pid
    assert load.report["failures"] == []


BROKEN = {
    "does not import": ("import no_such_module\n", "No module named 'no_such_module'"),
    "exits in its startup": (ROUTES + "raise SystemExit(7)\n", "booty-candidate.service"),
    "never becomes ready": (ROUTES + "import time\ntime.sleep(60)\n", "timeout"),
    "dies at its first request": (
        ROUTES + "import os\nfrom booty import health\nhealth._directory_flaw = lambda _: os._exit(9)\n",
        "booty-candidate.service",
    ),
    "says 503": (
        ROUTES + "from booty import health\nhealth._directory_flaw = lambda _: 'no disk today'\n",
        "no disk today",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_release_leaves_what_serves_untouched(site: Site, releases: tuple[str, str], how: str) -> None:
    text, message = BROKEN[how]
    pid = site.pid()
    broken = site.release(text=text)
    with Load(site.host.address) as load:
        played = site.play("deploy.yml", app_start_seconds="3")
    site.release()
    output = " ".join(played.output.split())
    assert played.status != 0
    assert message in output
    assert f"{releases[1]} was not touched" in output
    assert site.health()["release"] == releases[1]
    assert site.pid() == pid
    assert load.report["failures"] == []
    assert site.run("systemctl is-active booty-candidate.service || true") == "inactive"
    # Never one to go back to, nor one whose dependencies count.
    assert f'"{broken}": ' in site.run("cat /opt/booty/state.json")


def test_a_failure_after_the_point_goes_back(site: Site, releases: tuple[str, str]) -> None:
    """It proves itself as a candidate, and fails as the service."""
    site.release(text=ROUTES + 'import os\nif "BOOTY_TELEMETRY_GATE" not in os.environ: raise SystemExit(7)\n')
    with Load(site.host.address) as load:
        played = site.play("deploy.yml")
    site.release()
    assert played.status != 0
    assert f"Went back to {releases[1]}, which serves" in " ".join(played.output.split())
    assert site.health()["release"] == releases[1]
    assert f"SENTRY_RELEASE={releases[1]}\n" in site.run("cat /etc/booty/release.env") + "\n"
    assert load.report["failures"] == []
    played = site.deploy()
    assert site.health()["release"] == site.repository.git("rev-parse", "HEAD")
