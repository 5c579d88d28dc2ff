"""HTTP/1.1 over one connection: uvicorn's protocol, with limits for a request's head, and no upgrade but WebSockets."""

import asyncio
import fcntl
import logging
import termios
from typing import Any, cast

from booty_runner import tally
from booty_runner._vendor import httptools
from booty_runner._vendor.uvicorn.protocols.http import httptools_impl
from booty_runner._vendor.uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from booty_runner._vendor.uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from booty_runner.identity import HEADER, Identity
from booty_runner.websocket import WebSocketProtocol

log = logging.getLogger(__name__)

# A request's head must be complete this long after its first byte. For the first request of a connection, the time
# starts when the connection is made. Apache's RequestReadTimeout has the same value.
HEAD_SECONDS = 20
# uvicorn's other parser (h11) has the same limit; nginx accepts half of it.
HEAD_BYTES = 64 * 1024
# The bytes of a refused request are read and dropped for this long. Closing a socket with unread bytes resets the
# connection, and the client may then lose the answer.
LINGER_SECONDS = 2


class _HeadTooLarge(httptools.HttpParserError):
    pass


class Cycle(RequestResponseCycle):
    """uvicorn's request and response; a head that can't be sent is answered with 500, as nothing of it was sent."""

    def send(self, message: Any) -> Any:
        """Send a part of the response. A part after the head costs no coroutine of its own."""
        return super().send(message) if self.response_started else self._begin(message)

    async def _begin(self, message: Any) -> None:
        try:
            await super().send(message)
        except Exception:
            self.response_started, self.chunked_encoding, self.expected_content_length = False, None, 0
            raise


# uvicorn's protocol makes each request by this name.
httptools_impl.RequestResponseCycle = Cycle  # type: ignore[misc]


class Protocol(HttpToolsProtocol):
    """Serves the requests of one connection, one after the other.

    Unlike uvicorn's protocol, this one

    - closes a connection whose head is late, and answers 431 to a head that is too large;
    - upgrades to WebSockets if the app may have some, and ignores other upgrades, as RFC 9110, 7.8 allows: the app gets
      the request and its body, without the `Upgrade` header;
    - tells those who ask with this process's invocation id which release answers (see `identity`);
    - keeps the trailer fields after a chunked body out of the request's headers (RFC 9110, 6.5.1);
    - answers the complete requests on a connection before it refuses a broken one after them.
    """

    def __init__(self, identity: Identity, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # uvicorn logs each request as soon as the root logger has a handler
        self._identity = identity
        self._answer: list[tuple[bytes, bytes]] = []  # what the next response says of this process
        self.idle_since = self.loop.time()  # of an idle connection or half a head, on the loop's clock
        self._in_head = False
        self._in_body = False
        self._refused = False
        self._pending_bytes = 0  # received since the parser last completed a head or a part of a body
        self._running: RequestResponseCycle | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    # --- for the server ---------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a request is in flight or in the kernel's buffer. A half-received head does not count."""
        if self.transport.is_closing() or self._in_body or not self._answered:
            return True
        return any(fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4)))

    @property
    def stream(self) -> RequestResponseCycle | None:
        """The response that is being sent without `Content-Length`, if there is one."""
        cycle = self._running
        if cycle is None or cycle.disconnected or cycle.response_complete or not cycle.response_started:
            return None
        return None if cycle.chunked_encoding is False else cycle  # it is None for an answer to HEAD

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def disconnect(self) -> None:
        """Send `http.disconnect` to the apps that answer on this connection, and close it."""
        self._disconnect_apps()
        self.flow.resume_writing()
        self.transport.close()

    def _disconnect_apps(self) -> None:
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    # --- the connection ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer of the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Send `http.disconnect` to the running request too; uvicorn sends it to the last pipelined one only."""
        super().connection_lost(exc)
        self._unset_head_timer()
        self._unset_keepalive_if_required()
        self._disconnect_apps()

    def data_received(self, data: bytes) -> None:
        """Parse the data, and refuse a head that is too large or can't be parsed."""
        if self._refused:
            return
        self._pending_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            if isinstance(error, _HeadTooLarge) or isinstance(error.__context__, _HeadTooLarge):
                self._refuse(431, "The head of the request is too large.")
            else:
                self._refuse(400, "Invalid HTTP request received.")
            return
        if self._pending_bytes > HEAD_BYTES:
            self._refuse(431, "The head of the request is too large.")
        elif self._in_head and self._head_timer is None:
            self._await_head()

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            if method == b"CONNECT":
                raise httptools.HttpParserError("CONNECT is for proxies")
            if self._is_websocket(method, version):
                self._start_websocket(data)
                return
            # After an upgrade, the parser parses no body: it expects another protocol. So a new parser gets the head
            # again, without the Upgrade header.
            self.headers = [header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            self.parser.feed_data(self._head(method, version))

    def _head(self, method: bytes, version: bytes) -> bytes:
        lines = [b"%s %s HTTP/%s" % (method, self.url, version), *(b"%s: %s" % header for header in self.headers)]
        return b"\r\n".join([*lines, b"", b""])

    def _is_websocket(self, method: bytes, version: bytes) -> bool:
        """Whether the request becomes a WebSocket: one with a body, or behind another request, does not."""
        names = {name for name, value in self.headers if value != b"0"}
        return (
            self._should_upgrade()
            and (method, version) == (b"GET", b"1.1")
            and names & {b"content-length", b"transfer-encoding", b"sec-websocket-key"} == {b"sec-websocket-key"}
            and self._answered
        )

    def _start_websocket(self, data: bytes) -> None:
        """Hand the connection over; `data` came behind the head."""
        self._read_head()
        self._in_head, self._pending_bytes = False, 0
        self._unset_head_timer()
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        websocket = WebSocketProtocol(self.config, self.server_state, self.app_state)
        websocket.default_headers += self._answer
        websocket.connection_made(self.transport)
        self.transport.set_protocol(websocket)
        websocket.data_received(self._head(b"GET", b"1.1") + data)

    def _read_head(self) -> None:
        """Measure the head, and take the question out of it who answers."""
        size, asked = len(self.url), None
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == HEADER:
                asked = value
        if size > HEAD_BYTES:
            raise _HeadTooLarge
        self._answer = []
        if asked is not None:
            self._answer = self._identity.answer(asked)
            self.headers[:] = [header for header in self.headers if header[0] != HEADER]
            if self._answer and self._identity.behind_proxy:
                self.scope["scheme"] = "https"
        if self.config.counted and not self._answer:
            tally.requests.add()

    def _await_head(self) -> None:
        """Start the head timer after the first byte of a head, or else the keep-alive timer.

        No head timer runs while a request is in flight, because the server itself may have paused reading then. The
        keep-alive timer runs on during requests: a new one for each would cost a microsecond twice.
        """
        if self._in_body or not self._answered:
            return
        if not self._in_head:
            if self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it was idle for so long, else look again later."""
        self.timeout_keep_alive_task = None
        if self._in_head or self._in_body or not self._answered:
            return  # the next response starts the timer again
        left = self.idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            self.transport.close()

    def _unset_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self._in_head:
            self._refuse(408, "The head of the request took too long.")
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer a request that can't be parsed, after the complete requests before it, and stop parsing."""
        if self.transport.is_closing():
            return
        self._refused = True
        log.info("refusing a request (%d): %s", status, reason)
        self._unset_head_timer()
        self._unset_keepalive_if_required()
        in_body, self._in_body = self._in_body, False
        if in_body and self.cycle is self._running:
            if self.cycle.response_started:
                self.disconnect()  # an error answer would become part of the response that has begun
                return
            self._disconnect_apps()
        elif not self._answered:
            if in_body:  # the broken request waits behind others
                self.pipeline.popleft()
                self.cycle = self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self._running)
            self.cycle.keep_alive = False  # the answer to the last complete request closes the connection
            return
        head = [b"%s: %s\r\n" % header for header in self.server_state.default_headers if header[0] != b"connection"]
        body = reason.encode()
        length = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % len(body)
        self.transport.write(b"".join([STATUS_LINE[status], *head, length, b"connection: close\r\n\r\n", body]))
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    # --- the parser's callbacks -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note that a head has begun."""
        self._in_head = True
        self._pending_bytes = 0
        self.idle_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the app, unless the head is too large, or will be parsed again without its upgrade."""
        if self.parser.should_upgrade():
            return
        self._read_head()
        super().on_headers_complete()
        if self._answer:
            # A copy: `Connection: close` of a drain that begins now is missing in this response.
            self.cycle.default_headers = [*self.cycle.default_headers, *self._answer]
        self.headers = []  # collects trailer fields from here on, apart from the request's headers
        self._in_head, self._in_body = False, True
        self._pending_bytes = 0
        self._unset_head_timer()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body to the app; a part that comes alone is not copied, which uvicorn does twice."""
        self._pending_bytes = 0
        if self.cycle.response_complete:
            return
        if not self.cycle.body:
            self.cycle.body = body  # type: ignore[assignment]
        else:
            if isinstance(self.cycle.body, bytes):
                self.cycle.body = bytearray(self.cycle.body)
            self.cycle.body += body
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End the body, unless the head will be parsed again."""
        if self._in_head:
            return
        self._in_body = False
        if self._answered:  # the app answered before the end of the body
            self.idle_since = self.loop.time()
            self._await_head()
        else:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    # --- the app ----------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or wait for one."""
        self.idle_since = self.loop.time()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._await_head()
