"""`make demo`: deploys HEAD to new sandbox hosts, and finds one of their errors in the local tracker."""

import argparse
import json
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

from sandbox import acme, base, hosts, tracker
from sandbox.machine import CHECKOUT, SandboxError

PORT = 8000
# The same command as in bootstrap.yml's output and in docs/new-host.md.
PLACE_SECRETS = (
    "umask 077; cat > /etc/booty/secrets.new && test -s /etc/booty/secrets.new"
    " && mv /etc/booty/secrets.new /etc/booty/secrets.env"
)
# A minimal host has no curl, so Python sends the request.
RAISE = r"""python3 - <<'END'
import socket
with socket.socket(socket.AF_UNIX) as internal:
    internal.connect("/run/booty/internal.sock")
    internal.sendall(b"POST /raise HTTP/1.0\r\n\r\n")
    print(internal.recv(4096).decode().partition("\r\n")[0])
END"""


def main() -> int:
    """Run the demo. After an error, print one line on stderr and return the exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.demo", description=__doc__)
    parser.add_argument("--hosts", type=int, default=1, metavar="N")
    parser.add_argument("--suite", choices=base.SUITES, default=base.SUITE)
    args = parser.parse_args()
    try:
        demo(args.hosts, args.suite)
    except (SandboxError, TimeoutError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def demo(count: int, suite: str) -> None:
    """Boot, bootstrap, place the secrets, deploy HEAD, raise an error and find it in the tracker.

    Raises:
        SandboxError: a step failed, after it printed the reason.
        TimeoutError: the event did not arrive.
    """
    running = hosts.up(count=count, suite=suite, with_acme=True)
    local = tracker.find(hosts.INSTANCES / "default" / "tracker")
    ca = acme.find(hosts.INSTANCES / "default" / "acme")
    assert local, "up() starts the tracker"
    assert ca, "up() starts the CA"
    play("bootstrap.yml")
    for host in running:
        place_secrets(host, f"SENTRY_DSN={local.dsn}\n")
    play("deploy.yml")
    earlier = [event["id"] for event in local.events()]
    status = running[0].ssh(RAISE).stdout.strip()
    if "500" not in status:
        raise SandboxError(f"the route that raises answered {status!r}, not 500")
    release = health(running[0])["release"]
    event = local.wait_for_event(lambda data: data.get("release") == release, unless=earlier)
    print()
    for host in running:
        print(f"url: http://{host.address}:{PORT}/")
        verify_https(host, ca)
        print(f"https: https://{hosts.domain(host)}/")
        print(
            f"  curl --cacert {ca.root} --resolve {hosts.domain(host)}:443:{host.address} https://{hosts.domain(host)}/"
        )
    print(f"ca: {ca.root}")
    print(f"release: {release}")
    print(f"tracker: {local.url} (user {local.user}, password {local.password})")
    print(f"event: {event.url}")
    data = event.data
    print(f"  {data['exception']['values'][-1]['type']} in {data['environment']}, transaction {data['transaction']}")


def play(playbook: str, *arguments: str) -> None:
    """Run a playbook against the sandbox with `ansible-playbook`, as a user does.

    Raises:
        SandboxError: the playbook failed.
    """
    command = [str(Path(sys.executable).parent / "ansible-playbook"), playbook, *arguments]
    if subprocess.run(command, cwd=CHECKOUT, check=False).returncode:
        raise SandboxError(f"{' '.join(['ansible-playbook', playbook, *arguments])} failed")


def place_secrets(host: hosts.Host, text: str, app: str = "booty") -> None:
    """Write an app's `secrets.env` on a host over SSH, without Ansible, as an operator does."""
    if host.ssh(PLACE_SECRETS.replace("/etc/booty/", f"/etc/{app}/"), input=text).returncode:
        raise SandboxError(f"secrets.env could not be placed on {host.name}")


def health(host: hosts.Host) -> dict[str, str | None]:
    """Request `/health` of a host's service, from this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{host.address}:{PORT}/health", timeout=10) as response:
        answer: dict[str, str | None] = json.load(response)
    return answer


def verify_https(host: hosts.Host, ca: acme.Acme) -> None:
    """Request the host's domain over HTTPS, and trust the local CA alone.

    Raises:
        SandboxError: the certificate, or the answer, is not as it should be.
    """
    context = ssl.create_default_context(cafile=str(ca.root))
    try:
        with (
            socket.create_connection((host.address, 443), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=hosts.domain(host)) as connection,
        ):
            connection.sendall(f"GET /health HTTP/1.0\r\nHost: {hosts.domain(host)}\r\n\r\n".encode())
            answer = connection.recv(4096).decode()
    except OSError as error:
        raise SandboxError(f"https://{hosts.domain(host)}/ does not answer: {error}") from error
    if " 200 " not in answer.partition("\r\n")[0]:
        raise SandboxError(f"https://{hosts.domain(host)}/health answers {answer.partition(chr(13))[0]}")


if __name__ == "__main__":
    sys.exit(main())
