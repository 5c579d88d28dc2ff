"""Requests that come through a proxy: the client's address and scheme, from headers that only a known proxy may set."""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxied:
    """ASGI middleware that takes the client's address and the scheme from `X-Forwarded-For` and `X-Forwarded-Proto`.

    It does so only if the peer is a known proxy. The client is then the last address in `X-Forwarded-For` that is not a
    known proxy: a client may have sent those before it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], networks: Sequence[Network], always: bool = False) -> None:
        """Wrap an app.

        Args:
            app: the ASGI app.
            networks: the addresses of the known proxies.
            always: whether each peer is a known proxy, since only the proxy can connect to the socket.
        """
        self._app = app
        self._networks = networks
        self._always = always

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Correct the scope of one request, and pass it on."""
        if self._always or (scope["client"] and self._knows(scope["client"][0])):
            forwarded: list[str] = []
            for name, value in scope["headers"]:
                if name == b"x-forwarded-for":
                    forwarded += value.decode("latin-1").split(",")
                elif name == b"x-forwarded-proto":
                    # The nearest proxy's word is the last one.
                    proto = value.decode("latin-1").rpartition(",")[2].strip().lower()
                    if proto in {"http", "https", "ws", "wss"}:
                        # A proxy may name the scheme of the connection for any request on it.
                        scheme = "ws" if scope["type"] == "websocket" else "http"
                        scope["scheme"] = f"{scheme}s" if proto in {"https", "wss"} else scheme
            for host in map(_host, reversed(forwarded)):
                if host is None:  # not an address, so not a proxy's
                    break
                scope["client"] = (host, 0)
                if not self._knows(host):
                    break
        await self._app(scope, receive, _at_once(send) if self._always else send)

    def _knows(self, host: str) -> bool:
        address = _address(host)
        return address is not None and any(address in network for network in self._networks)


def _at_once(send: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return a `send` that has the proxy pass a response without an announced length on as it comes.

    nginx would keep the parts of a stream of events until it ends, if its client speaks TLS.
    """

    async def pass_on(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ())]
            if not {name.lower() for name, _ in headers} & {b"content-length", b"x-accel-buffering"}:
                message = {**message, "headers": [*headers, (b"x-accel-buffering", b"no")]}
        await send(message)

    return pass_on


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # An IPv4 client of a socket for both kinds.
    return getattr(address, "ipv4_mapped", None) or address


def _host(entry: str) -> str | None:
    """Return the address in an entry of X-Forwarded-For, which may have a port, or None."""
    entry = entry.strip()
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    address = _address(entry)
    return str(address) if address else None
