"""An HTTP/2 client that sends whatever it is given: frames and headers as they are, without a check."""

from __future__ import annotations

import ssl
import struct
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
# The indexes of `:status` in HPACK's static table, RFC 7541, appendix A.
STATUSES = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """Return an integer with a prefix of so many bits, RFC 7541, 5.1."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    rest, value = [first | limit], value - limit
    while value >= 128:
        rest.append(value % 128 + 128)
        value //= 128
    return bytes([*rest, value])


def block(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return headers as literals without an index."""
    return b"".join(b"\0" + integer(len(name), 7) + name + integer(len(value), 7) + value for name, value in headers)


@dataclass
class Answer:
    """What came back on a stream: the status, or None with the number of the error that ended it."""

    status: int | None = None
    error: int | None = None
    body: bytes = b""
    ended: bool = field(default=False, repr=False)


def ask(connection: ssl.SSLSocket, headers: list[tuple[bytes, bytes]], body: bytes = b"", end: bool = True) -> Answer:
    """Send one request on a new connection, and return the answer."""
    last = b"" if body or not end else b"\1"
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
    connection.sendall(frame(HEADERS, END_HEADERS | (last[0] if last else 0), 1, block(headers)))
    if body:
        connection.sendall(frame(DATA, END_STREAM if end else 0, 1, body))
    answer, received = Answer(), b""
    while not answer.ended:
        try:
            part = connection.recv(65536)
        except (ConnectionError, TimeoutError, ssl.SSLError):
            break
        if not part:
            break
        received += part
        while len(received) >= 9 and len(received) >= 9 + (size := int.from_bytes(received[:3])):
            kind, flags, payload = received[3], received[4], received[9 : 9 + size]
            received = received[9 + size :]
            take(answer, kind, flags, payload)
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(frame(SETTINGS, ACK, 0, b""))
    return answer


def take(answer: Answer, kind: int, flags: int, payload: bytes) -> None:
    """Add a frame to an answer."""
    if kind == HEADERS:
        answer.status = status(payload)
    elif kind == DATA:
        answer.body += payload
    elif kind == RST_STREAM:
        answer.error, answer.ended = int.from_bytes(payload), True
    elif kind == GOAWAY:
        answer.error, answer.ended = int.from_bytes(payload[4:8]), True
    if kind in {HEADERS, DATA} and flags & END_STREAM:
        answer.ended = True


def status(payload: bytes) -> int:
    """Return the status, which nginx writes first: an index of the static table, or a literal with that name."""
    if 0x20 <= payload[0] < 0x40:  # a change of the dynamic table's size
        payload = payload[1:]
    if payload[0] & 0x80:
        return STATUSES[payload[0] & 0x7F]
    size = payload[1]
    text = payload[2 : 2 + (size & 0x7F)]
    return int(text) if not size & 0x80 else digits(text)


def digits(text: bytes) -> int:
    """Return the number in Huffman's code: 0, 1 and 2 have five bits, the other digits have six."""
    bits = "".join(f"{byte:08b}" for byte in text)
    found = ""
    while len(found) < 3:
        size = 5 if int(bits[:5], 2) < 3 else 6
        code = int(bits[:size], 2)
        found += str(code if size == 5 else code - 0x19 + 3)
        bits = bits[size:]
    return int(found)
