"""The proxy on a real host: certificates from a local CA, names, headers, maintenance, and swaps under load."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import acme, demo
from sandbox import hosts as sandbox
from sandbox.hosts import Host
from tests.conftest import INSTANCE, Play, Repository, start, words
from tests.load import Load

NAME, OTHER, WWW = (f"{label}.{acme.DOMAIN}" for label in ("shop", "other", "www"))
APP = """
import asyncio
from fastapi import APIRouter, Request, WebSocket
from fastapi.responses import StreamingResponse
router = APIRouter()
@router.get("/slow")
async def slow(seconds: float = 1.0) -> dict[str, float]:
    await asyncio.sleep(seconds)
    return {"slept": seconds}
@router.get("/echo")
async def echo(request: Request) -> dict:
    return {"headers": dict(request.headers), "client": request.client.host, "url": str(request.url)}
@router.post("/size")
async def size(request: Request) -> dict[str, int]:
    count = 0
    async for part in request.stream():
        count += len(part)
    return {"size": count}
@router.get("/events")
async def events() -> StreamingResponse:
    async def parts():
        for number in range(3):
            yield f"data: {number}\\n\\n"
            await asyncio.sleep(0.3)
    return StreamingResponse(parts(), media_type="text/event-stream")
@router.websocket("/socket")
async def ws(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())
"""


class Front:
    """A host with the proxy, its CA, and requests to its names."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host, self.inventory = host, directory / "inventory/hosts.yml"
        found = acme.find(sandbox.INSTANCES / host.instance / "acme")
        assert found
        self.ca = found
        self.repository = Repository(directory / "repository")
        self.variables: dict[str, Any] = {
            **self.repository.variables(directory),
            "app_path": "app",
            "app_domains": [NAME],
            "host_firewall_ports": [],
            "app_registration": False,
        }

    def play(self, playbook: str, *arguments: str, **variables: Any) -> Play:
        """Run a playbook to its end."""
        return start(playbook, self.inventory, {**self.variables, **variables}, *arguments).end()

    def good(self, playbook: str, *arguments: str, **variables: Any) -> Play:
        """Run a playbook; fail the test if its exit status is not 0."""
        played = self.play(playbook, *arguments, **variables)
        assert played.status == 0, played.output
        return played

    def release(self) -> str:
        """Commit a change of the app, and return the SHA."""
        self.repository.write("app/src/booty/routes.py", f"{APP}# {time.monotonic()}\n")
        return self.repository.commit("Change routes.py")

    def run(self, command: str) -> str:
        """Run a shell command on the host; fail the test when it fails."""
        done = self.host.ssh(command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def connect(self, name: str = NAME, protocols: tuple[str, ...] = ()) -> ssl.SSLSocket:
        """Return a TLS connection for a name, verified with the CA's root."""
        context = ssl.create_default_context(cafile=str(self.ca.root))
        if protocols:
            context.set_alpn_protocols([*protocols])
        return context.wrap_socket(socket.create_connection((self.host.address, 443), timeout=10), server_hostname=name)

    def ask(self, request: str, name: str = NAME, body: bytes = b"") -> tuple[int, str, bytes]:
        """Send a request, such as `GET /`, over HTTPS, and return status, head and body."""
        with self.connect(name) as connection:
            return exchange(connection, request, name, body)

    def plain(self, request: str, name: str = NAME) -> tuple[int, str, bytes]:
        """Send a request over HTTP."""
        with socket.create_connection((self.host.address, 80), timeout=10) as connection:
            return exchange(connection, request, name)

    def serial(self) -> str:
        """Return the serial number of the certificate that is served."""
        with self.connect() as connection:
            return str(connection.getpeercert()["serialNumber"])  # type: ignore[index]

    def settle(self) -> None:
        """Wait until a swap is over."""
        deadline = time.monotonic() + 120
        while len(self.instances()) > 1:
            assert time.monotonic() < deadline
            time.sleep(1)

    def instances(self) -> list[str]:
        """Return the main PIDs of the running instances."""
        return self.run("systemctl show 'booty-front@*' --property=MainPID --value | sed '/^$/d'").split()


class Straight(urllib.request.HTTPSHandler):
    """Makes urllib connect to a host for a name that this machine can't resolve."""

    def __init__(self, front: Front, name: str) -> None:
        super().__init__(context=ssl.create_default_context(cafile=str(front.ca.root)))
        self._front, self._name = front, name

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request)  # type: ignore[arg-type]

    def _connection(self, host: str, timeout: float) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(host, timeout=timeout)
        connection.sock = self._front.connect(self._name)
        return connection


def exchange(connection: socket.socket, request: str, name: str, body: bytes = b"") -> tuple[int, str, bytes]:
    """Send a request whose further headers follow its first line, and read until the connection ends."""
    first, _, more = request.partition("\r\n")
    host = "" if "\r\nhost:" in request.lower() else f"Host: {name}\r\n"
    size = f"Content-Length: {len(body)}\r\n" if body else ""
    connection.sendall(f"{first} HTTP/1.1\r\n{host}{size}Connection: close\r\n{more}\r\n".encode() + body)
    answer = b""
    while part := connection.recv(65536):
        answer += part
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), rest


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Return a host that a bootstrap has given the proxy; no app is deployed."""
    directory, name = tmp_path_factory.mktemp("front"), f"{INSTANCE}-front"
    try:
        (host,) = sandbox.up(name, 1, with_tracker=False, with_acme=True, inventory=directory / "inventory/hosts.yml")
        front = Front(host, directory)
        front.ca.point(NAME, [host.address])
        front.good("bootstrap.yml")
        yield front
    finally:
        sandbox.down(name)


@pytest.fixture(scope="module")
def front(bare: Front) -> Front:
    """Return the host with an app deployed."""
    bare.release()
    bare.good("deploy.yml")
    return bare


def test_a_new_host_has_a_certificate_and_takes_no_strange_name(bare: Front) -> None:
    with bare.connect(protocols=("h2", "http/1.1")) as connection:
        assert connection.version() == "TLSv1.3"
        assert connection.selected_alpn_protocol() == "h2"
        assert ("DNS", NAME) in connection.getpeercert()["subjectAltName"]  # type: ignore[index]
    status, head, _ = bare.plain("GET /a/b?c=d")
    assert status == 308
    assert f"Location: https://{NAME}/a/b?c=d" in head
    status, _, body = bare.ask("GET /")
    assert (status, body) == (503, b"booty is not deployed behind this proxy.\n")
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        bare.connect(OTHER)
    with socket.create_connection((bare.host.address, 80), timeout=10) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {OTHER}\r\n\r\n".encode())
        assert connection.recv(100) == b""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, OSError)), socket.create_connection((bare.host.address, 443)) as raw:
        old.wrap_socket(raw, server_hostname=NAME)
    assert bare.run("systemctl is-enabled nginx.service || true") == "masked"
    for unit, exposure in (("booty-front@a.service", 10), ("booty-acme@x.service", 10)):
        bare.run(f"systemd-analyze security --no-pager --threshold={exposure} {unit}")
    with pytest.raises(OSError, match="timed out"):
        socket.create_connection((bare.host.address, 8000), timeout=1)


@pytest.mark.long
def test_a_second_run_changes_nothing(front: Front) -> None:
    before = front.instances()
    for playbook in ("bootstrap.yml", "deploy.yml"):
        assert front.good(playbook).recap(front.host.name)["changed"] == 0
    assert front.instances() == before


@pytest.mark.long
def test_the_app_sees_its_client_and_forged_addresses_are_ignored(front: Front) -> None:
    forged = (
        *("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: http", "X-Forwarded-Host: evil", "Forwarded: for=6.6.6.6"),
        *("X-Real-IP: 6.6.6.6", "Proxy: evil", "X-Forwarded-Prefix: /evil", "X-Forwarded-Port: 1", "X-Scheme: http"),
        *("X-Original-URL: /evil", "X-Rewrite-URL: /evil", "X-Forwarded-Ssl: off", "X-Forwarded-Server: evil"),
        *("X_Forwarded_For: 6.6.6.6", "X-Forwarded-Scheme: http", "X-Booty-Ask: evil", "X-Booty-Peer: 1"),
    )
    status, head, body = front.ask("GET /echo?q=1\r\n" + "".join(f"{line}\r\n" for line in forged))
    seen = json.loads(body)
    assert status == 200
    assert "Strict-Transport-Security: max-age=86400" in head.title() or "strict-transport-security" in head.lower()
    ours = str(front.ca.address)
    assert seen["client"] == ours
    assert seen["url"] == f"https://{NAME}/echo?q=1"
    assert "6.6.6.6" not in body.decode()
    assert "evil" not in body.decode()


@pytest.mark.long
def test_a_proxy_in_front_of_this_one_is_believed_if_it_is_trusted(front: Front) -> None:
    """The test plays the CDN and sends the client's address. Addresses that a client wrote before it are ignored."""
    ours = str(front.ca.address)
    said = "GET /echo\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nX-Forwarded-Proto: http\r\nForwarded: for=6.6.6.6\r\n"

    def client() -> str:
        body = front.ask(said)[2].decode()
        assert "6.6.6.6" not in body
        assert json.loads(body)["url"] == f"https://{NAME}/echo"
        return str(json.loads(body)["client"])

    assert client() == ours
    front.good("deploy.yml", app_trusted_proxies=[f"{ours}/32", "2001:db8::/32"])
    front.settle()
    assert client() == "203.0.113.9"
    front.good("deploy.yml", app_trusted_proxies=["192.0.2.0/24"])
    front.settle()
    assert client() == ours
    front.good("deploy.yml")
    front.settle()


@pytest.mark.long
def test_an_unchanged_django_logs_in_to_its_admin(front: Front, tmp_path: Path) -> None:
    """Django compares the scheme and the host of the request with the browser's Origin, without a setting for it.

    Nor does the health request need one, which has the first domain as its host.
    """
    repository, name = Repository(tmp_path / "notes", "tests/apps/django-wsgi", top=True), f"notes.{acme.DOMAIN}"
    front.ca.point(name, [front.host.address])
    variables = {
        **{"app_name": "notes", "app_domains": [name], "app_repository": str(repository.path), "app_path": "."},
        **{"app_port": 8103, "app_health_path": "/up/", "app_state_paths": ["db.sqlite3"]},
        "app_settings": {"ALLOWED_HOSTS": name},
        "app_build_settings": {"SECRET_KEY": "of-the-build-alone"},
    }
    front.good("bootstrap.yml", **variables)
    demo.place_secrets(front.host, "SECRET_KEY=of-the-test\n", "notes")
    front.good("deploy.yml", **variables)
    front.settle()
    user = (
        "DJANGO_SUPERUSER_PASSWORD=hunter2 python manage.py createsuperuser --noinput --username=me --email=me@x.test"
    )
    front.good("run.yml", **variables, command=f"python manage.py migrate --verbosity=0 && {user}")
    browser = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), Straight(front, name), urllib.request.HTTPCookieProcessor()
    )
    page = browser.open(f"https://{name}/admin/").read().decode()
    token = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[0]
    form = {"csrfmiddlewaretoken": token, "username": "me", "password": "hunter2", "next": "/admin/"}
    request = urllib.request.Request(
        f"https://{name}/admin/login/?next=/admin/",
        urllib.parse.urlencode(form).encode(),
        {"Origin": f"https://{name}", "Referer": f"https://{name}/admin/login/"},
    )
    with browser.open(request) as answer:
        assert answer.url == f"https://{name}/admin/"
        assert "Site administration" in answer.read().decode()
    request.add_header("Origin", "https://evil.example.com")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        browser.open(request)
    front.good("remove.yml", **variables, remove="notes")


@pytest.mark.long
def test_the_internal_app_is_not_reached(front: Front) -> None:
    for path in ("/status", "/raise", "/../status", "//status", "/%2e%2e/status", "/.booty/closed_text"):
        for method in ("GET", "POST"):
            status, _, _ = front.ask(f"{method} {path}")
            assert status in {400, 404, 405}, (method, path, status)
    assert front.run("stat -c '%U:%G %a' /run/booty-http/booty.sock") == "root:booty-front 660"


@pytest.mark.long
def test_events_come_one_by_one_and_websockets_pass(front: Front) -> None:
    with front.connect() as connection:
        connection.sendall(f"GET /events HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        times: list[float] = []
        while len(times) < 3:
            part = connection.recv(4096)
            times += [time.monotonic()] * part.count(b"data:")
        assert times[2] - times[0] > 0.4
    with front.connect() as connection:
        upgrade = (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        )
        connection.sendall(f"GET /socket HTTP/1.1\r\nHost: {NAME}\r\n{upgrade}\r\n\r\n".encode())
        assert b" 101 " in connection.recv(4096)


@pytest.mark.long
def test_bodies_have_a_limit_that_the_answer_names(front: Front) -> None:
    status, _, body = front.ask("POST /size", body=bytes(10 * 1024**2))
    assert (status, json.loads(body)) == (200, {"size": 10 * 1024**2})
    with front.connect() as connection:
        head = f"POST /size HTTP/1.1\r\nHost: {NAME}\r\nAccept: application/json\r\nContent-Length: 10485761\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(4096)
    assert b" 413 " in answer
    assert b"application/json" in answer
    assert b"10m (app_body_max)" in answer


@pytest.mark.long
def test_maintenance_and_back_without_a_process(front: Front) -> None:
    before = front.instances()
    front.good("maintenance.yml", "-e", "maintenance=on")
    status, head, body = front.ask("POST /size", body=bytes(20 * 1024**2))
    assert status == 503
    assert "Closed for maintenance" in body.decode()
    assert "retry-after: 60" in head.lower()
    assert "no-store" in head.lower()
    assert "strict-transport-security" in head.lower()
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, head, body = front.ask(f"{method} /\r\nAccept: application/json\r\n")
        assert (status, json.loads(body)) == (503, {"detail": "This service is closed for maintenance."})
    assert front.plain("GET /")[0] == 308
    assert front.good("maintenance.yml", "-e", "maintenance=on").recap(front.host.name)["changed"] == 0
    front.good("maintenance.yml", "-e", "maintenance=off")
    assert front.ask("GET /health")[0] == 200
    assert front.instances() == before


@pytest.mark.long
def test_a_name_added_and_removed_under_load_cuts_nothing(front: Front) -> None:
    for name in (OTHER, WWW):
        front.ca.point(name, [front.host.address])
    tls: dict[str, Any] = {"host": NAME, "port": 443, "ca": str(front.ca.root)}
    more = {"app_domains": [NAME, OTHER], "app_domain_redirects": [WWW]}
    with Load(front.host.address, **tls, bodies=(10_000, 5_000_000)) as load:
        front.good("deploy.yml", **more)
        # The old instance closes each connection after an answer and then stops, soon after keepalive_timeout.
        front.settle()
    assert load.report["failures"] == []
    assert load.report["closed_idle"] == 0
    assert load.report["requests"] > 1000
    assert front.ask("GET /health", OTHER)[0] == 200
    status, head, _ = front.ask("GET /x?y", WWW)
    assert status == 308
    assert f"location: https://{NAME}/x?y" in head.lower()
    # A request for another name than that of the connection.
    assert front.ask(f"GET /health\r\nHost: {OTHER}\r\n")[0] == 421
    front.good("deploy.yml")
    front.settle()
    with pytest.raises(ssl.SSLError):
        front.connect(OTHER)


@pytest.mark.long
def test_a_reload_cuts_what_a_swap_does_not(front: Front) -> None:
    """Control: a reload cuts connections, and the load counts them."""
    tls: dict[str, Any] = {"host": NAME, "port": 443, "ca": str(front.ca.root)}
    with Load(front.host.address, **tls) as load:
        front.run("systemctl kill --kill-whom=main --signal=HUP 'booty-front@*.service'")
        time.sleep(1)
    assert load.report["closed_idle"] + load.report["failed"] > 0


@pytest.mark.long
def test_a_deploy_under_load_loses_nothing(front: Front) -> None:
    newer = front.release()
    tls: dict[str, Any] = {"host": NAME, "port": 443, "ca": str(front.ca.root)}
    before = front.instances()
    with Load(front.host.address, **tls, bodies=(10_000, 5_000_000)) as load:
        front.good("deploy.yml")
    assert load.report["failures"] == []
    assert newer in load.report["releases"]
    assert front.instances() == before


@pytest.mark.long
def test_an_upgrade_on_disk_comes_into_force_by_a_swap(front: Front) -> None:
    before = front.instances()
    front.run("cp --preserve /usr/sbin/nginx /usr/sbin/nginx.new && mv /usr/sbin/nginx.new /usr/sbin/nginx")
    tls: dict[str, Any] = {"host": NAME, "port": 443, "ca": str(front.ca.root)}
    with Load(front.host.address, **tls) as load:
        front.run("systemctl start booty-front-check.service")
        assert len(front.instances()) > len(before)
    assert load.report["failures"] == []


@pytest.mark.long
def test_an_instance_that_does_not_start_leaves_the_first_one_serving(front: Front) -> None:
    before, files = front.instances(), front.run("cat /etc/booty-front/apps/booty.conf")
    drop_in = "/etc/systemd/system/booty-front@.service.d"
    broken = '[Service]\\nExecStartPre=/bin/sh -c "echo no such thing; exit 1"\\n'
    front.run(f"mkdir -p {drop_in} && printf '{broken}' > {drop_in}/broken.conf && systemctl daemon-reload")
    tls: dict[str, Any] = {"host": NAME, "port": 443, "ca": str(front.ca.root)}
    with Load(front.host.address, **tls) as load:
        played = front.play("deploy.yml", app_body_max="9m")
    assert (played.status, "nginx does not start" in words(played), "no such thing" in played.output) == (2, True, True)
    assert (load.report["failures"], front.instances()) == ([], before)
    assert front.run("cat /etc/booty-front/apps/booty.conf") == files
    front.run(f"rm -r {drop_in} && systemctl daemon-reload")
    assert front.good("deploy.yml", app_body_max="9m").recap(front.host.name)["changed"] > 0
    front.good("deploy.yml")
    front.settle()


@pytest.mark.long
def test_a_renewed_certificate_is_served_without_a_process(front: Front) -> None:
    before, processes = front.serial(), front.instances()
    # A certificate of one day that ends in eight hours: less than a third of its life is left.
    front.run(
        "cd /root && printf '[ca]\\ndefault_ca=c\\n[c]\\ndatabase=index\\nserial=serial\\nnew_certs_dir=.\\n"
        "policy=p\\ndefault_md=sha256\\nunique_subject=no\\n[p]\\n' > ca.cnf && : > index && echo 01 > serial"
        f" && openssl ca -batch -config ca.cnf -selfsign -keyfile /etc/booty-front/keys/{NAME}.key"
        f" -in /var/lib/booty-acme/certs/{NAME}.csr -startdate $(date -u -d '16 hours ago' +%Y%m%d%H%M%SZ)"
        " -enddate $(date -u -d '7 hours' +%Y%m%d%H%M%SZ) -notext -out short.pem 2>&1"
        f" && cat short.pem > /var/lib/booty-acme/certs/{NAME}-cert.pem"
    )
    front.run("systemctl start booty-front-renew.service")
    assert front.serial() != before
    assert front.instances() == processes


@pytest.mark.long
def test_a_certificate_that_is_not_due_is_renewed_when_the_ca_says_so(front: Front) -> None:
    """The CA names a window in some weeks (ARI), and a past one for a certificate that it has revoked."""
    before, renew = front.serial(), "systemctl start booty-front-renew.service"
    front.run(renew)
    assert front.serial() == before
    # A CA that is away is no problem while nothing is due.
    front.run(
        "nft 'add table inet away; add chain inet away out { type filter hook output priority 0; };"
        f" add rule inet away out ip daddr {front.ca.address} tcp dport 14000 reject'"
    )
    try:
        front.run(renew)
        assert json.loads(front.run("cat /var/lib/booty-front/renewals.json"))[NAME]["problem"] == ""
    finally:
        front.run("nft delete table inet away")
    front.run(
        f"cp /var/lib/booty-acme/certs/{NAME}-cert.pem /root/revoked.pem && . /run/booty-front/acme/{NAME}.env"
        " && uacme -a $ACME_URL -c $ACCOUNT revoke /root/revoked.pem"
    )
    front.run(renew)
    after = front.serial()
    assert after != before
    front.run(renew)
    assert front.serial() == after


@pytest.mark.long
def test_a_name_that_leads_elsewhere_is_said_before_the_ca_is_asked(front: Front) -> None:
    for addresses, reason in (([], "has no address"), (["198.18.255.254"], "does not lead to this host"),
                              ([front.host.address, "fd00::1"], "fd00::1")):  # fmt: skip
        front.ca.point("lost.booty.test", addresses)
        played = front.good("deploy.yml", app_domains=[NAME, "lost.booty.test"])
        assert reason in words(played), played.output
        assert front.ask("GET /health")[0] == 200
        assert front.plain("GET /", "lost.booty.test")[0] == 503
    assert "lost.booty.test" not in (front.ca.directory / "pebble.log").read_text()
    # Once the record is right, the timer's service gets the certificate.
    front.ca.point("lost.booty.test", [front.host.address])
    front.run("systemctl start booty-front-renew.service")
    assert front.ask("GET /health", "lost.booty.test")[0] == 200
    front.good("deploy.yml")


@pytest.mark.long
def test_ones_own_certificate_is_judged_and_served(front: Front) -> None:
    key = "openssl ecparam -name prime256v1 -genkey -noout -out"
    front.run(
        f"mkdir -p /etc/shop-tls && cd /etc/shop-tls && {key} ca.key && openssl req -x509 -new -key ca.key -days 30"
        f" -subj /CN=own -out ca.pem && {key} privkey.pem && chmod 600 privkey.pem && openssl req -new -key privkey.pem"
        f" -subj / -addext subjectAltName=DNS:{NAME} -out own.csr && openssl x509 -req -in own.csr -CA ca.pem"
        " -CAkey ca.key -CAcreateserial -days 30 -copy_extensions copy -out fullchain.pem 2>/dev/null"
    )

    def refused(**variables: Any) -> str:
        played = front.play("deploy.yml", app_certificate="/etc/shop-tls", **variables)
        assert played.status == 2, played.output
        return words(played)

    assert "does not end at a CA that this host trusts" in refused()
    front.run("cp /etc/shop-tls/ca.pem /usr/local/share/ca-certificates/own.crt && update-ca-certificates")
    assert f"is not for {OTHER}" in refused(app_domains=[NAME, OTHER])
    front.run("chmod 644 /etc/shop-tls/privkey.pem")
    assert "is open to others" in refused()
    front.run(
        f"cd /etc/shop-tls && chmod 600 privkey.pem && cp -p privkey.pem kept && {key} new && chmod 600 new"
        " && mv new privkey.pem"
    )
    assert "is not the key of" in refused()
    front.run("cd /etc/shop-tls && mv kept privkey.pem && mv fullchain.pem gone")
    assert "fullchain.pem is missing" in refused()
    front.run("cd /etc/shop-tls && mv gone fullchain.pem")
    front.good("deploy.yml", app_certificate="/etc/shop-tls")
    ask = f"openssl s_client -connect 127.0.0.1:443 -servername {NAME} </dev/null 2>/dev/null"
    issuer = f"{ask} | openssl x509 -noout -issuer"
    front.settle()
    assert "own" in front.run(issuer)
    front.good("deploy.yml")
    front.settle()
    assert "own" not in front.run(issuer)


@pytest.mark.long
def test_slow_clients_hold_nginx_and_not_the_app(front: Front) -> None:
    slow = []
    try:
        for number in range(600):
            connection = socket.create_connection((front.host.address, 443 if number % 2 else 80), timeout=10)
            if not number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
            slow.append(connection)
        for _ in range(20):
            assert front.ask("GET /health")[0] == 200
        assert int(front.run("ss -Hx | grep -c booty-http || true")) < 50
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.long
def test_after_a_reboot_all_is_as_before(front: Front) -> None:
    sandbox.reboot(front.host.instance, front.host.name)
    assert front.ask("GET /health")[0] == 200
    assert front.good("deploy.yml").recap(front.host.name)["changed"] == 0


@pytest.mark.long
def test_a_release_from_before_is_never_given_the_proxys_socket(front: Front) -> None:
    (serving,) = re.findall(r"SENTRY_RELEASE=(\w+)", front.run("cat /etc/booty/release.env"))
    newer = front.release()
    front.good("deploy.yml")
    manifest = f"/opt/booty/releases/{serving}/release.json"
    front.run(f'sed -i.kept \'s/"contract": [0-9]/"contract": 1/\' {manifest}')
    refused = front.play("rollback.yml")
    assert refused.status == 2, refused.output
    assert "was built by a Booty that had no proxy (contract 1)" in words(refused)
    assert newer in front.run("cat /etc/booty/release.env")
    assert front.ask("GET /health")[0] == 200
    front.run(f"mv {manifest}.kept {manifest}")


@pytest.mark.long
def test_without_domains_the_proxy_drops_the_app(front: Front) -> None:
    front.good("deploy.yml", app_domains=[])
    assert front.run("systemctl is-active booty-http.socket || true") == "inactive"
    front.settle()
    with pytest.raises((ssl.SSLError, OSError)):
        front.connect()
    front.good("deploy.yml")
    assert front.ask("GET /health")[0] == 200


@pytest.mark.long
def test_hosts_with_one_name_each_get_a_certificate_whichever_the_ca_asks(tmp_path: Path) -> None:
    """Three hosts behind a round robin; one of them is down while the others get their certificates."""
    name = f"{INSTANCE}-peers"
    try:
        members = sandbox.up(name, 3, with_tracker=False, with_acme=True, inventory=tmp_path / "inventory/hosts.yml")
        fronts = [Front(host, tmp_path / host.name) for host in members]
        for each in fronts:
            each.inventory = tmp_path / "inventory/hosts.yml"
        ca = fronts[0].ca
        ca.point(NAME, [host.address for host in members])
        print(fronts[0].good("bootstrap.yml").output)  # shown if a host has no certificate
        serials = set()
        for each in fronts:
            # A host that lacks a token gets it from the host that has it. An unknown token is a 404.
            serials.add(each.serial())
            status, _, _ = each.plain("GET /.well-known/acme-challenge/unknown")
            assert status == 404
            each.run("echo -n secret > /var/lib/booty-acme/www/.well-known/acme-challenge/known-$(hostname)")
        assert len(serials) == 3
        for each in fronts:
            for other in members:
                status, _, body = each.plain(f"GET /.well-known/acme-challenge/known-{other.name}")
                assert (status, body) == (200, b"secret")
        sandbox.stop(name, members[2].name)
        ca.point(NAME, [host.address for host in members[:2]])
        for each in fronts[:2]:
            each.run(f"rm /var/lib/booty-acme/certs/{NAME}-cert.pem && systemctl start booty-front-renew.service")
            each.connect().close()
        played = fronts[0].good("deploy.yml", app_unreachable="skip")
        assert f"{members[2].name} is left behind" in " ".join(played.output.split())
        assert [each.ask("GET /health")[0] for each in fronts[:2]] == [200, 200]
    finally:
        sandbox.down(name)
