"""Ask the other hosts of an app for a token of theirs: the CA may reach any host that has the name."""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException

from booty_proxy.config import Site

MISSING = "404 Not Found", b""


def answer(sites: dict[str, Site]) -> None:
    """Answer one request of nginx on standard input."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < 16384:
        if not (part := os.read(0, 4096)):
            break
        head += part
    status, body = find(head.decode("latin-1"), sites)
    text = f"HTTP/1.0 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    sys.stdout.buffer.write(text.encode() + body)
    sys.stdout.buffer.flush()


def find(head: str, sites: dict[str, Site]) -> tuple[str, bytes]:
    """Return the status and the body of the answer to a request."""
    path = re.match(r"GET (/\.well-known/acme-challenge/[A-Za-z0-9_-]{1,128}) HTTP/", head)
    name = re.search(r"^host:\s*(\S+)\s*$", head, re.IGNORECASE | re.MULTILINE)
    peers = [peer for site in sites.values() if name and name[1] in site.names for peer in site.peers]
    if not path or not name or not peers:
        return MISSING
    with ThreadPoolExecutor(len(peers)) as pool:
        for body in pool.map(lambda peer: token(peer, name[1], path[1]), peers):
            if body:
                return "200 OK", body
    return MISSING


def token(peer: str, name: str, path: str) -> bytes:
    """Return a peer's token; nothing if it has none or does not answer."""
    connection = HTTPConnection(peer, 80, timeout=2)
    try:
        connection.request("GET", path, headers={"Host": name, "X-Booty-Peer": "1", "Connection": "close"})
        response = connection.getresponse()
        return response.read(1024) if response.status == 200 else b""
    except (TimeoutError, OSError, HTTPException):
        return b""
    finally:
        connection.close()
