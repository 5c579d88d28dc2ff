"""Stray and damaged files on a host: a deploy works all the same, or names the file and the next step."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import host_files
from booty_host import HostError
from booty_host.app import App
from booty_host.prune import login_home, prune
from booty_host.state import State
from booty_host.systemd import Systemd

from tests.conftest import Site, words

DAY = 86400


# Without a host


@pytest.fixture
def app(tmp_path: Path) -> App:
    """Return an app whose paths start at a temporary directory."""
    app = App("shop", tmp_path)
    for directory in (app.releases, app.layers, app.incoming):
        directory.mkdir(parents=True)
    return app


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "\0\udcff",
        "[]",
        "null",
        '"x"',
        '{"served": "abc"}',
        '{"served": null}',
        '{"served": [1]}',
        '{"abandoned": []}',
        '{"previous": []}',
    ],
)
def test_a_damaged_state_is_named(app: App, text: str) -> None:
    app.state.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(HostError, match=r"state\.json is damaged; it says what this host can go back to"):
        State.load(app)


@pytest.mark.parametrize("text", ["", "{}", '{"served": ["a"]}', '{"served": [], "abandoned": {}, "more": 1}'])
def test_a_state_that_lacks_keys_is_read(app: App, text: str) -> None:
    app.state.write_text(text)
    assert State.load(app).abandoned == {}


def stage(directory: Path, days: int = 2, **manifest: str) -> None:
    directory.mkdir()
    if manifest:
        (directory / "release.json").write_text(json.dumps(manifest))
    os.utime(directory, (time.time() - days * DAY,) * 2)


def test_pruning_skips_files_that_are_not_booty_s(app: App) -> None:
    """Neither a stray file nor a link nor a directory without a manifest stops a deploy."""
    for release in ("aa", "bb", "cc"):
        stage(app.releases / release, layer=f"layer-{release}", python="3.11")
        stage(app.layers / f"layer-{release}")
    for directory in (app.releases, app.layers):
        (directory / "notes.txt").write_text("mine")
        (directory / "current").symlink_to("aa")
        (directory / ".notes").write_text("mine")
        stage(directory / ".half")
        os.utime(directory / ".notes", (0, 0))
    state = State(app, ["cc", "bb", "aa"], {}, {}, [], {}, {})
    assert prune(app, Systemd(app), state, 2, 0) == (["aa"], [])
    assert {path.name for path in app.releases.iterdir()} == {"bb", "cc", "notes.txt", "current", ".notes"}
    assert {path.name for path in app.layers.iterdir()} == {"layer-bb", "layer-cc", "notes.txt", "current", ".notes"}
    (app.releases / "bb" / "release.json").write_text("{")
    assert prune(app, Systemd(app), state, 2, 0) == ([], [])
    assert (app.layers / "layer-bb").is_dir()


def test_a_release_that_cannot_be_removed_does_not_keep_others(app: App) -> None:
    for release in ("aa", "bb", "cc", "dd"):
        stage(app.releases / release, layer="layer", python="3.11")
    # Pruning renames a release before it deletes it. This directory takes the new name.
    stage(app.releases / ".aa.removed")
    (app.releases / ".aa.removed" / "file").touch()
    os.utime(app.releases / ".aa.removed")
    assert prune(app, Systemd(app), State(app, ["dd", "cc", "bb", "aa"], {}, {}, [], {}, {}), 2, 0) == (
        ["bb"],
        [f"{app.releases}/aa: Directory not empty"],
    )


def test_the_state_does_not_grow(app: App) -> None:
    for release in ("aa", "bb", "cc", "dd"):
        stage(app.releases / release, layer="layer", python="3.11")
    gone = [f"{number:040}" for number in range(1000)]
    state = State(
        app, ["cc", "bb", "aa", *gone], {"dd": "it failed", **dict.fromkeys(gone, "it failed")}, {}, [], {}, {}
    )
    prune(app, Systemd(app), state, 2, 0)
    assert json.loads(app.state.read_text()) == {
        "served": ["cc", "bb"],
        "abandoned": {},
        "previous": {},
        "commands": [],
        "places": {},
        "refused": {},
        "pointer": "",
    }


def test_archives_that_did_not_arrive_are_removed_after_a_day(app: App) -> None:
    copies = login_home(app) / ".ansible/tmp"
    copies.mkdir(parents=True)
    stage(copies / "ansible-tmp-1", days=2)
    stage(copies / "ansible-tmp-2", days=0)
    for name, days in (("old.tar.gz", 2), (".ansible_tmpold", 2), ("arriving.tar.gz", 0)):
        (app.incoming / name).write_text("half")
        os.utime(app.incoming / name, (time.time() - days * DAY,) * 2)
    prune(app, Systemd(app), State(app, [], {}, {}, [], {}, {}), 2, 0)
    assert [path.name for path in app.incoming.iterdir()] == ["arriving.tar.gz"]
    assert [path.name for path in copies.iterdir()] == ["ansible-tmp-2"]


@pytest.mark.parametrize(
    ("entry", "on_host", "message"),
    [
        ({"path": "/opt/d"}, None, None),
        ({"path": "/opt/d"}, "root 755 directory", None),
        ({"path": "/opt/d"}, "root 755 directory /srv/a b", None),
        (
            {"path": "/opt/d"},
            "bob 755 directory /srv/d",
            "is a link to /srv/d, which belongs to bob: chown root: /srv/d",
        ),
        (
            {"path": "/opt/d"},
            "root 755 directory /home/d",
            "a link to /home/d, which the service's sandbox hides",
        ),
        ({"path": "/etc/d"}, "root 755 directory /home/d", None),
        ({"path": "/home/a/.ssh", "owner": "a"}, "a 700 directory /home/b", None),
        (
            {"path": "/opt/d"},
            "root 777 link",
            "/opt/d is a link that leads to no directory and not a directory: move it",
        ),
        ({"path": "/opt/d"}, "root 644 file QQ==", "/opt/d is a file and not a directory: move it away"),
        ({"path": "/opt/f", "text": ""}, "root 755 directory", "/opt/f is a directory and not a file: move it away"),
        ({"path": "/opt/f", "text": ""}, "root 777 link", None),
        ({"path": "/opt/f", "text": "", "present": False}, "root 755 directory", None),
    ],
)
def test_misplaced(entry: dict[str, str], on_host: str | None, message: str | None) -> None:
    messages = host_files.misplaced([entry], {f"file {entry['path']}": on_host} if on_host else {})
    assert [str(message) in each for each in messages] == [True] * bool(message)


# On a real host


@pytest.fixture
def serving(site: Site) -> str:
    """Deploy, and return the running release."""
    site.deploy()
    return str(site.health()["release"])


@pytest.mark.parametrize(
    ("break_it", "message", "note"),
    [
        (
            "echo '[]' > /opt/booty/state.json",
            "/opt/booty/state.json is damaged; it says what this host can go back to. Put a copy of it back. Or remove"
            " it: the host then has nothing to go back to until the next deploy. Nothing was changed.",
            "/opt/booty/state.json is damaged",
        ),
        pytest.param(
            "rm /opt/booty/state.json; mkdir /opt/booty/state.json",
            "/opt/booty/state.json is damaged; it says what this host can go back to.",
            "/opt/booty/state.json is damaged",
            marks=pytest.mark.long,
        ),
        (
            "mkdir /opt/booty/releases/NEXT",
            "/opt/booty/releases/NEXT on HOST is damaged: it has no release.json that can be read. Remove it there, and"
            " deploy again: rm -r /opt/booty/releases/NEXT Nothing was changed.",
            "/opt/booty/releases/NEXT has no release.json that can be read",
        ),
        pytest.param(
            "mkdir /opt/booty/releases/NEXT; echo {} > /opt/booty/releases/NEXT/release.json",
            "/opt/booty/releases/NEXT on HOST is damaged: it has no release.json that can be read.",
            "/opt/booty/releases/NEXT has no release.json that can be read",
            marks=pytest.mark.long,
        ),
    ],
    ids=["state.json of another shape", "state.json is a directory", "no manifest", "another manifest"],
)
def test_damaged_files_are_named(site: Site, serving: str, break_it: str, message: str, note: str) -> None:
    following = site.release()
    site.run(f"cp -a /opt/booty/state.json /root/; {break_it.replace('NEXT', following)}")
    try:
        refused, shown = site.play("deploy.yml"), site.play("status.yml", status_format="json")
    finally:
        site.run(f"cd /opt/booty; rm -rf state.json releases/{following}; mv /root/state.json .")
    assert refused.status != 0
    assert message.replace("NEXT", following).replace("HOST", site.host.name) in words(refused)
    assert "Traceback" not in refused.output + shown.output
    (row,) = json.loads(shown.output)["hosts"]
    assert any(note.replace("NEXT", following) in each for each in row["notes"])
    assert site.health()["release"] == serving
    site.deploy()


def test_stray_files_stop_no_deploy(site: Site, serving: str) -> None:
    site.run(
        "cd /opt/booty; printf 'mine\\377' > layers/notes.txt; echo mine > releases/notes.txt; touch -d '3 days ago'"
        " layers/notes.txt releases/notes.txt layers/.notes; ln -s nowhere releases/current; mkdir releases/unknown;"
        " printf '# caf\\351\\n' >> /etc/booty/release.env"
    )
    try:
        site.release()
        played = site.deploy()
        assert "removed" not in played.output
        assert played.recap(site.host.name)["failed"] == 0
    finally:
        site.run(
            "sed -i '/^# caf/d' /etc/booty/release.env; cd /opt/booty;"
            " rm -rf layers/notes.txt layers/.notes releases/notes.txt releases/current releases/unknown"
        )


@pytest.fixture
def latin(site: Site, tmp_path: Path) -> Iterator[None]:
    """Give the host a locale of ISO-8859-1, as an old installation has it. Sandbox hosts have no `locales` package."""
    if not shutil.which("localedef") or not Path("/usr/share/i18n/locales/en_US").exists():
        pytest.skip("an ISO-8859-1 locale is made by this machine's localedef: apt-get install locales")
    name = "en_US.ISO-8859-1"
    subprocess.run(["localedef", "--no-archive", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / name], check=True)
    for file in (path for path in (tmp_path / name).rglob("*") if path.is_file()):
        target = f"/usr/lib/locale/{file.relative_to(tmp_path)}"
        site.run(
            f"mkdir -p {Path(target).parent}; base64 -d > {target}", input=base64.b64encode(file.read_bytes()).decode()
        )
    site.run(f"cp -a /etc/default/locale /root/; echo LC_ALL={name} > /etc/default/locale")
    try:
        assert site.run("locale charmap") == "ISO-8859-1"
        yield
    finally:
        site.run("mv /root/locale /etc/default/locale; rm -r /usr/lib/locale/en_US.ISO-8859-1")


@pytest.mark.long
@pytest.mark.usefixtures("latin")
def test_a_host_whose_locale_is_not_utf_8(site: Site, serving: str) -> None:
    site.release()
    # Without ControlPath ssh logs in again, and only a new login reads the locale.
    played = site.deploy("-e", "ansible_control_path=none")
    assert "Traceback" not in played.output
    assert site.deploy("-e", "ansible_control_path=none").recap(site.host.name)["changed"] == 0
    assert site.play("status.yml", "-e", "ansible_control_path=none").output.startswith("1 host: 1 in order\n")


def test_a_host_that_systemd_does_not_run(site: Site, serving: str) -> None:
    """A login that does not see systemd, as in a container that another program started."""
    site.run(
        "systemd-run --quiet --unit=without unshare --mount sh -c"
        " 'mount -t tmpfs none /run/systemd; mkdir -p /run/sshd; exec /usr/sbin/sshd -D -p 2222'"
    )
    try:
        site.run("nft insert rule inet booty input tcp dport 2222 accept")
        site.wait_for("ss -ltn | grep -q :2222")
        # known_hosts has the key under the address without a port, so HostKeyAlias names that.
        options = "-o ControlPath=none -o HostKeyAlias=" + site.host.address
        for arguments in ((), ("--check",)):
            played = site.play("deploy.yml", *arguments, ansible_port="2222", ansible_ssh_extra_args=options)
            assert played.status != 0
            assert (
                "systemd does not run this host (its first process is systemd). Booty needs a host that systemd"
                " started. Nothing was changed."
            ) in words(played)
        played = site.play("status.yml", ansible_port="2222", ansible_ssh_extra_args=options)
        assert "gives no answer: systemd does not run this host" in words(played)
    finally:
        site.run("systemctl stop without.service; nft -f /etc/booty/firewall.nft")
    assert site.health()["release"] == serving


def test_a_user_whose_group_has_another_name(site: Site, serving: str) -> None:
    site.release()
    site.run("groupmod --new-name web booty")
    try:
        site.deploy()
        assert site.run(f"ps -o group= -p {site.pid()}") == "web"
        assert site.run("stat -c %U:%G /var/lib/booty") == "booty:web"
    finally:
        site.run("groupmod --new-name booty web")


def test_another_name_of_root_is_refused(site: Site, serving: str) -> None:
    site.run("useradd --non-unique --uid 0 --gid 0 --no-create-home toor")
    try:
        played, bootstrapped = site.play("deploy.yml", app_user="toor"), site.play("bootstrap.yml", app_user="toor")
    finally:
        site.run("sed -i /^toor:/d /etc/passwd /etc/shadow")
    assert played.status != 0
    assert (
        f"app_user is toor, which is root on {site.host.name}: the service would have root's rights. Name another"
        " user, which bootstrap.yml makes: app_user: booty"
    ) in words(played)
    assert bootstrapped.status != 0
    assert "host_service_user is toor, which is root" in words(bootstrapped)
    assert site.health()["release"] == serving


@pytest.mark.long
def test_directories_that_are_links(site: Site, serving: str) -> None:
    """Bootstrap and a deploy use a link to a directory of root's unchanged, and refuse a link to another user's."""
    site.run(
        "mkdir -p /srv/big; mv /opt/booty /srv/big/; ln -s /srv/big/booty /opt/booty;"
        "mv /etc/booty /srv/big/etc; ln -s /srv/big/etc /etc/booty;"
        "mv /srv/big/booty/layers /srv/; ln -s /srv/layers /opt/booty/"
    )
    try:
        checked, bootstrapped = site.play("bootstrap.yml", "--check"), site.play("bootstrap.yml")
        site.release()
        site.deploy()
        site.run("chown nobody /srv/layers")
        refused = [site.play("bootstrap.yml", *arguments) for arguments in (("--check",), ())]
    finally:
        site.run(
            "chown root /srv/layers; rm /opt/booty/layers; mv /srv/layers /srv/big/booty/;"
            "rm /etc/booty; mv /srv/big/etc /etc/booty; rm /opt/booty; mv /srv/big/booty /opt/; rmdir /srv/big"
        )
    assert checked.status == 0, checked.output
    assert "Would" not in checked.output
    assert bootstrapped.status == 0, bootstrapped.output
    assert (checked.recap(site.host.name)["changed"], bootstrapped.recap(site.host.name)["changed"]) == (0, 0)
    for played in refused:
        assert played.status != 0
        message = "/opt/booty/layers is a link to /srv/layers, which belongs to nobody: chown root: /srv/layers"
        assert f"{message} Nothing was changed." in words(played)
    assert site.deploy().recap(site.host.name)["changed"] == 0
