"""Who answers: the main process's release and PID, in the responses to those who know the process's invocation id.

Only root and the process itself know the id, which systemd makes for each start.
"""

import hmac
import os
from dataclasses import dataclass

from booty_runner.settings import Settings

HEADER = b"x-booty-ask"


@dataclass(frozen=True)
class Identity:
    """The identity of a service's main process; its workers share it.

    Attributes:
        release: its label.
        pid: its PID.
        invocation: systemd's INVOCATION_ID; "" if systemd did not start the process, which then adds no headers.
        behind_proxy: whether known proxies may set the scheme. Then the health request counts as one over HTTPS, as
            through such a proxy.
    """

    release: str
    pid: int
    invocation: str
    behind_proxy: bool

    @classmethod
    def of_this_process(cls, settings: Settings) -> "Identity":
        """Return the identity of this process."""
        invocation = os.environ.get("INVOCATION_ID", "")
        return cls(settings.sentry_release or "", os.getpid(), invocation, bool(settings.booty_trusted_proxies))

    def answer(self, asked: bytes) -> list[tuple[bytes, bytes]]:
        """Return the headers for a response to a request that has `X-Booty-Ask`; none if it names another process."""
        if not self.invocation or not hmac.compare_digest(asked, self.invocation.encode()):
            return []
        return [(b"x-booty-release", self.release.encode()), (b"x-booty-pid", b"%d" % self.pid)]
