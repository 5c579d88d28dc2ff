"""Artifacts that hosts fetch from a store themselves: a real HTTP server, on the controller's side of the bridge."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sandbox import demo
from tests.conftest import Site, words


class Store(ThreadingHTTPServer):
    """A store that serves a copy of app_cache; `asked` lists the paths of all requests."""

    def __init__(self, address: str, directory: Path) -> None:
        super().__init__((address, 0), partial(Handler, directory=str(directory)))
        self.url = f"http://{address}:{self.server_address[1]}"
        self.directory = directory
        self.asked: list[str] = []
        self.before: Callable[[], object] = lambda: None
        self.goes_on = threading.Event()
        self.sends = -1
        self.forbids = False

    def publish(self, site: Site) -> None:
        """Copy the controller's artifacts to the store, as docs/scale.md says."""
        shutil.copytree(site.variables["app_cache"], self.directory, dirs_exist_ok=True)

    def archive(self, sha: str) -> Path:
        """Return the archive of a release."""
        (path,) = self.directory.glob(f"releases/{sha}-*.tar.gz")
        return path

    def __enter__(self) -> Store:
        threading.Thread(target=self.serve_forever, args=[0.05]).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.goes_on.set()
        self.shutdown()
        self.server_close()


class Handler(SimpleHTTPRequestHandler):
    """Answers a request; paths below /moved/ are redirected."""

    server: Store

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.before()
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.end_headers()
        elif self.server.forbids:
            self.send_error(403)
        elif self.server.sends < 0:
            super().do_GET()
        elif file := self.send_head():
            self.wfile.write(file.read(self.server.sends))
            self.server.goes_on.wait(60)
            file.close()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def store(site: Site, tmp_path: Path) -> Iterator[Store]:
    address = urlsplit(site.tracker.url).hostname
    assert address
    with Store(address, tmp_path / "store") as server:
        yield server


def build(site: Site) -> str:
    """Commit another release with another layer, build both as docs/scale.md says, and return the SHA."""
    lock = site.repository.path / "app/requirements.txt"
    # A package may have any number of hashes, and they decide the layer's name.
    one_more = f"--hash=sha256:{time.time_ns():064x} --hash="
    lock.write_text(lock.read_text().replace("--hash=", one_more, 1))
    sha = site.release()
    site.deploy("--check")
    return sha


def state(site: Site) -> str:
    """Return the running release, and all releases and layers, complete or not."""
    look = "systemctl show booty.service --property=MainPID; cat /etc/booty/release.env"
    return site.run(f"{look}; find /opt/booty -mindepth 2 -maxdepth 2 | sort")


def received(site: Site, port: int) -> tuple[int, int]:
    """Return the bytes that the host received so far over SSH, and from a store's port."""
    listed = json.loads(site.run("nft --json list table inet count"))["nftables"]
    ssh, http = (part["rule"]["expr"][1]["counter"]["bytes"] for part in listed if "rule" in part)
    return ssh, http


def test_a_host_fetches_what_it_lacks(site: Site, store: Store) -> None:
    site.deploy()
    port = store.server_address[1]
    rules = f"add rule inet count in tcp dport 22 counter; add rule inet count in tcp sport {port} counter"
    site.run(f"nft 'add table inet count; add chain inet count in {{ type filter hook input priority -9; }}; {rules}'")
    try:
        sent = []
        for url in ("", store.url):
            sha = build(site)
            store.publish(site)
            before = received(site, port)
            assert site.deploy(app_artifact_url=url).recap(site.host.name)["changed"] > 0
            sent.append([now - then for now, then in zip(received(site, port), before, strict=True)])
            assert site.health()["release"] == sha
        sha = site.release()
        site.deploy("--check")
        store.publish(site)
        before = received(site, port)
        site.deploy(app_artifact_url=f"{store.url}/moved/")
        sent.append([now - then for now, then in zip(received(site, port), before, strict=True)])
    finally:
        site.run("nft delete table inet count")
    print("SSH, store:", *sent)
    (ssh, from_store), fetched, small = sent
    assert ssh > 7_000_000
    assert from_store == 0
    assert fetched[0] < 450_000
    assert fetched[1] > 7_000_000
    assert small[0] < 300_000
    layer, release, moved, followed = (path.split("/")[-2] for path in store.asked)
    assert (layer, release, moved, followed) == ("layers", "releases", "releases", "releases")
    assert site.run("ls -A /opt/booty/incoming") == ""
    assert site.deploy(app_artifact_url=store.url).recap(site.host.name)["changed"] == 0


def test_check_fetches_nothing(site: Site, store: Store) -> None:
    build(site)
    before = state(site)
    site.deploy("--check", app_artifact_url=store.url)
    assert store.asked == []
    assert state(site) == before


def another(store: Store, archive: Path) -> str:
    archive.write_bytes(b"another")
    return (
        "is not what was built: its SHA-256 is ae448ac86c4e8e4dec645729708ef41873ae79c6dff84eff73360989487f08e5, not "
    )


def missing(store: Store, archive: Path) -> str:
    archive.unlink()
    return "answers 404."


def forbidden(store: Store, archive: Path) -> str:
    store.forbids = True
    return "answers 403: it is not there, or hosts may not read it without a secret."


def stalls(store: Store, archive: Path) -> str:
    store.sends = 1000
    return "sent nothing for 20 seconds."


def ends_early(store: Store, archive: Path) -> str:
    store.sends = 1000
    store.goes_on.set()
    return f"ended {archive.stat().st_size - 1000} bytes early."


def refuses(store: Store, archive: Path) -> str:
    with socket.create_server((urlsplit(store.url).hostname, 0)) as free:
        store.url = f"http://{free.getsockname()[0]}:{free.getsockname()[1]}"
    return "can't be fetched: [Errno 111] Connection refused."


@pytest.mark.parametrize(
    "fault",
    [
        another,
        missing,
        ends_early,
        *(pytest.param(fault, marks=pytest.mark.long) for fault in (forbidden, stalls, refuses)),
    ],
    ids=lambda fault: fault.__name__,
)
def test_an_archive_that_the_store_can_not_serve(site: Site, store: Store, fault: Callable[[Store, Path], str]) -> None:
    site.deploy()
    sha = site.release()
    site.deploy("--check")
    store.publish(site)
    archive = store.archive(sha)
    message = fault(store, archive)
    before = state(site)
    played = site.play("deploy.yml", app_artifact_url=store.url)
    assert played.status != 0
    name = f"releases/{archive.name}"
    assert f"/opt/booty/releases/{sha} can't be made: {store.url}/{name} {message}" in words(played)
    assert (
        f"Publish it: copy {name} of app_cache there. Or let the controller send it: -e app_artifact_url="
    ) in words(played)
    assert state(site) == before
    assert site.health()["status"] == "ok"


def test_https_needs_a_certificate_that_the_host_trusts(site: Site, store: Store, tmp_path: Path) -> None:
    site.deploy()
    sha = site.release()
    site.deploy("--check")
    store.publish(site)
    address = urlsplit(store.url).hostname
    pem = site.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=store"
        f" -addext subjectAltName=IP:{address} -keyout - 2>/dev/null"
    )
    (tmp_path / "store.pem").write_text(pem + "\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "store.pem")
    store.socket = context.wrap_socket(store.socket, server_side=True)
    url = store.url.replace("http:", "https:")
    played = site.play("deploy.yml", app_artifact_url=url)
    assert played.status != 0
    assert f"{url}/releases/{store.archive(sha).name} can't be fetched: [SSL: CERTIFICATE_VERIFY_FAILED]" in words(
        played
    )
    assert store.asked == []
    trusted = "/usr/local/share/ca-certificates/store.crt"
    site.run(f"cat > {trusted} && update-ca-certificates", input=pem[pem.index("-----BEGIN CERT") :] + "\n")
    try:
        site.deploy(app_artifact_url=url)
    finally:
        site.run(f"rm {trusted}; update-ca-certificates --fresh")
    assert site.health()["release"] == sha


@pytest.mark.long
def test_a_fleet_fetches_at_once_and_before_the_first_switch(site: Site, store: Store) -> None:
    played = site.play("bootstrap.yml", on=site.bare)
    assert played.status == 0, played.output
    site.play("deploy.yml", "--limit", "booty")
    old = [demo.health(host)["release"] for host in (site.host, site.bare)]
    sha = site.release()
    site.deploy("--check")
    store.publish(site)
    both, serving = threading.Barrier(2, timeout=20), []

    def meet() -> None:
        both.wait()
        serving.append(site.health()["release"])

    store.before = meet
    played = site.play("deploy.yml", "--limit", "booty", app_artifact_url=store.url)
    assert played.status == 0, played.output
    assert serving == [old[0], old[0]]
    assert len(store.asked) == 2
    assert [demo.health(host)["release"] for host in (site.host, site.bare)] == [sha, sha]
