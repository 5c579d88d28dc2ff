"""The paths of the proxy on a host, and the names of its units and users."""

from __future__ import annotations

from pathlib import Path
from typing import Final

USER = "booty-front"
ACME_USER = "booty-acme"
SOCKET = "booty-front.socket"
# The instances of booty-front@.service. One serves; others finish the clients that they have.
INSTANCES = "abcdefgh"


def service(instance: str) -> str:
    """Return the unit of an instance."""
    return f"booty-front@{instance}.service"


class Paths:
    """Every path of the proxy. A test passes another root."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root: Final = root
        # nginx's configuration: nginx.conf, proxy.conf, apps/NAME.conf and apps/NAME.json, which the former is made of.
        self.etc: Final = root / "etc/booty-front"
        self.apps: Final = self.etc / "apps"
        # The private keys: root writes, booty-front reads.
        self.keys: Final = self.etc / "keys"
        self.pages: Final = self.etc / "pages"
        # booty-acme's own directory: account, requests, certificates, and the tokens of challenges.
        self.acme: Final = root / "var/lib/booty-acme"
        self.certificates: Final = self.acme / "certs"
        self.challenges: Final = self.acme / "www/.well-known/acme-challenge"
        self.var: Final = root / "var/lib/booty-front"
        # A file NAME in it closes the app NAME for maintenance.
        self.maintenance: Final = self.var / "maintenance"
        # The result of each name's last renewal.
        self.renewals: Final = self.var / "renewals.json"
        # A reboot clears /run. A file PID in `drain` tells that worker to end each connection after its next answer.
        self.run: Final = root / "run/booty-front"
        self.drain: Final = self.run / "drain"
        # The instance that serves, its InvocationID and the digest of its configuration.
        self.in_force: Final = self.run / "in-force.json"
        self.lock: Final = root / "run/booty-front.lock"
        # The ruleset of the host's firewall, which the bootstrap writes.
        self.firewall: Final = root / "etc/booty/firewall.nft"
        self.units: Final = root / "etc/systemd/system"
        self.program: Final = root / "usr/local/lib/booty-front.pyz"

    def certificate(self, name: str) -> Path:
        """Return the file with a name's certificate and its chain; uacme names it so."""
        return self.certificates / f"{name}-cert.pem"

    def key(self, name: str) -> Path:
        """Return the file with the private key of a certificate."""
        return self.keys / f"{name}.key"
