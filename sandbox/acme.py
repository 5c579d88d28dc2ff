"""The local CA: Debian's pebble, which speaks ACME as Let's Encrypt does, and a name server for the hosts and for it.

pebble refuses one nonce in twenty, as a CA may, and its root is new at each start: `root.pem` keeps the earlier ones.
"""

import json
import ssl
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox.base import SUITES
from sandbox.machine import SandboxError, build_once, cache, give, kill, processes, run, spawn

DOMAIN = "booty.test"
# Days that a certificate is valid.
DAYS = 90
# The newest suite's pebble, on hosts of any suite: it has renewal information (ARI), and runs on older Debians.
_SUITE = SUITES[-1]
_PORT, _MANAGEMENT, _NAMES = 14000, 15000, 8055
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Acme:
    """A running CA."""

    directory: Path
    address: str

    @property
    def url(self) -> str:
        """The CA's directory, for app_acme_url."""
        return f"https://{self.address}:{_PORT}/dir"

    @property
    def root(self) -> Path:
        """The file with the roots of the certificates that the CA issues, and issued before it was started again."""
        return self.directory / "root.pem"

    @property
    def trusted(self) -> Path:
        """The file with the root of the CA's own certificate, which hosts must trust to speak to it."""
        return self.directory / "ca.pem"

    def point(self, name: str, addresses: Iterable[str]) -> None:
        """Give a name these addresses, IPv4 or IPv6, in place of those that it has; none means no record."""
        groups: dict[str, list[str]] = {"a": [], "aaaa": []}
        for address in addresses:
            groups["aaaa" if ":" in address else "a"].append(address)
        for kind, group in groups.items():
            self._ask(f"clear-{kind}", {"host": name})
            if group:
                self._ask(f"add-{kind}", {"host": name, "addresses": group})

    def _ask(self, path: str, fields: dict[str, object]) -> None:
        request = urllib.request.Request(f"http://{self.address}:{_NAMES}/{path}", json.dumps(fields).encode())
        _OPENER.open(request, timeout=10).close()


def start(directory: Path, address: str) -> Acme:
    """Start the CA and the name server unless they run, as root: names are asked for at port 53.

    Args:
        directory: the CA's own directory.
        address: the only address that they listen on.

    Raises:
        SandboxError: one of them does not start.
    """
    programs = build_once(cache() / f"pebble-{_SUITE}", _unpack) / "usr/bin"
    acme = Acme(directory, address)
    directory.mkdir(parents=True, exist_ok=True)
    if find(directory):
        return acme
    if not acme.trusted.exists():
        _make_certificate(directory, address)
    settings = {
        "listenAddress": f"{address}:{_PORT}",
        "managementListenAddress": f"{address}:{_MANAGEMENT}",
        "certificate": str(directory / "own.pem"),
        "privateKey": str(directory / "own.key"),
        "httpPort": 80,
        "tlsPort": 443,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
        "certificateValidityPeriod": DAYS * 86400,
    }
    _config(directory).write_text(json.dumps({"pebble": settings}, indent=1))
    (directory / "address").write_text(address)
    stop(directory)
    names = ["-dns01", f"{address}:53", "-management", f"{address}:{_NAMES}", "-defaultIPv4", "", "-defaultIPv6", ""]
    others = ["-http01", "", "-https01", "", "-tlsalpn01", ""]
    spawn([str(programs / "pebble-challtestsrv"), *names, *others], directory / "names.log")
    ca = [str(programs / "pebble"), "-config", str(_config(directory)), "-dnsserver", f"{address}:53"]
    spawn(ca, directory / "pebble.log", PEBBLE_VA_NOSLEEP="1")
    _wait(acme)
    give(directory, *directory.iterdir())
    return acme


def find(directory: Path) -> Acme | None:
    """Return the running CA of a directory, or None."""
    if not processes(str(_config(directory))):
        return None
    return Acme(directory, (directory / "address").read_text())


def stop(directory: Path) -> None:
    """Stop the CA and the name server of a directory, if they run."""
    kill(str(_config(directory)))
    if (directory / "address").exists():
        kill(f"{(directory / 'address').read_text()}:53")


def _config(directory: Path) -> Path:
    return directory / "pebble.json"


def _unpack(work: Path) -> None:
    """Fetch Debian's package, and unpack it without installing it."""
    run("mmdebstrap", "--variant=extract", "--mode=root", "--include=pebble", _SUITE, work)


def _make_certificate(directory: Path, address: str) -> None:
    """Make a root, and with it the certificate that pebble's own HTTPS has."""
    key: list[str | Path] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]
    root = [*key, "-keyout", directory / "ca.key", "-out", directory / "ca.pem", "-subj", "/CN=Booty's sandbox"]
    run("openssl", "req", "-x509", *root)
    own = [*key, "-keyout", directory / "own.key", "-out", directory / "own.pem", "-subj", "/CN=pebble"]
    signed: list[str | Path] = [
        "-CA",
        directory / "ca.pem",
        "-CAkey",
        directory / "ca.key",
        "-addext",
        f"subjectAltName=IP:{address}",
    ]
    run("openssl", "req", "-x509", *own, *signed, "-addext", "basicConstraints=critical,CA:FALSE")


def _wait(acme: Acme) -> None:
    """Wait until both answer, and keep the root of the certificates that the CA will issue."""
    unverified = ssl._create_unverified_context()
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
    )
    deadline = time.monotonic() + 20
    while True:
        try:
            acme.point(f"probe.{DOMAIN}", [])
            with opener.open(f"https://{acme.address}:{_MANAGEMENT}/roots/0", timeout=5) as answer:
                earlier = acme.root.read_bytes() if acme.root.exists() else b""
                acme.root.write_bytes(earlier + answer.read())
            return
        except OSError as error:
            if time.monotonic() > deadline:
                logs = [(acme.directory / name).read_text()[-200:] for name in ("pebble.log", "names.log")]
                raise SandboxError(f"the local CA does not answer ({error}): {' / '.join(logs)}") from error
            time.sleep(0.1)
