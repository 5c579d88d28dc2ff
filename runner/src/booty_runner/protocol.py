"""HTTP/1.1 over one connection: uvicorn's protocol with bounds for a head, and with upgrades that are ignored."""

import asyncio
import fcntl
import logging
import termios
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

log = logging.getLogger(__name__)

# A request's head must be whole this long after its first byte, the first one of a connection this long after the
# connection was made; the value is that of Apache's RequestReadTimeout.
HEAD_SECONDS = 20
# The limit of uvicorn's other parser, and twice what nginx accepts.
HEAD_BYTES = 64 * 1024
# A refused request's bytes are read and dropped for this long. To close with unread bytes resets the connection, which
# can take the answer away from the client.
LINGER_SECONDS = 2


class _HeadTooLarge(Exception):
    pass


class Protocol(HttpToolsProtocol):
    """Serves the requests of one connection, one after the other.

    Unlike uvicorn's, it

    - closes a connection whose head is late, and answers one that is too large with 431;
    - ignores each upgrade, as RFC 9110, 7.8 allows: the request and its body reach the app, without the header;
    - keeps the fields behind a chunked body out of the request's headers (RFC 9110, 6.5.1);
    - answers whole requests before it refuses what follows them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.idle_since = self.loop.time()  # or since when a head is awaited, by the loop's clock
        self._in_head = False
        self._in_body = False
        self._refused = False
        self._parsed_nothing = 0  # bytes that came since the parser had a head or a part of a body
        self._running: RequestResponseCycle | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    # --- what the server asks ---------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether the connection has a request, in flight or still in the kernel's buffer; half a head is none."""
        if self.transport.is_closing() or self._in_body or not self._answered:
            return True
        return any(fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4)))

    @property
    def stream(self) -> RequestResponseCycle | None:
        """The response whose body is under way and has no length that was announced, if there is one."""
        cycle = self._running
        if cycle is None or cycle.disconnected or cycle.response_complete or not cycle.response_started:
            return None
        return None if cycle.chunked_encoding is False else cycle  # None is an answer to HEAD

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def disconnect(self) -> None:
        """Send the apps of this connection `http.disconnect` and close it."""
        self._tell_apps()
        self.flow.resume_writing()
        self.transport.close()

    def _tell_apps(self) -> None:
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    # --- the connection ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app. uvicorn tells only that of the latest request, which may wait behind another one."""
        super().connection_lost(exc)
        self._unset_head_timer()
        self._unset_keepalive_if_required()
        self._tell_apps()

    def data_received(self, data: bytes) -> None:
        """Parse, up to the bounds of a head."""
        if self._refused:
            return
        self._parsed_nothing += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLarge):
                self._refuse(431, "The head of the request is too large.")
            else:
                self._refuse(400, "Invalid HTTP request received.")
            return
        if self._parsed_nothing > HEAD_BYTES:
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
            # The parser takes what follows the head for another protocol, and no call makes it parse a body instead.
            # So a new parser gets the head again, without the header.
            lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
            lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _await_head(self) -> None:
        """Start the clock of a head that has begun, or of one that has not.

        None runs while a request is in flight: the server itself may have paused reading.
        """
        self._unset_keepalive_if_required()
        if self._in_body or not self._answered:
            return
        if not self._in_head:
            seconds, close = self.timeout_keep_alive, self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(seconds, close)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

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
        """Answer what can't be parsed, behind the answers to whole requests, and parse nothing more."""
        if self.transport.is_closing():
            return
        self._refused = True
        log.info("refusing a request (%d): %s", status, reason)
        self._unset_head_timer()
        self._unset_keepalive_if_required()
        in_body, self._in_body = self._in_body, False
        if in_body and self.cycle is self._running:
            if self.cycle.response_started:
                self.disconnect()  # what is sent now would be a part of the response
                return
            self._tell_apps()
        elif not self._answered:
            if in_body:  # of a request that waits for the answer to another one
                self.pipeline.popleft()
                self.cycle = self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self._running)
            self.cycle.keep_alive = False  # the last whole request's; its answer closes the connection
            return
        head = [b"%s: %s\r\n" % header for header in self.server_state.default_headers if header[0] != b"connection"]
        body = reason.encode()
        length = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % len(body)
        self.transport.write(b"".join([STATUS_LINE[status], *head, length, b"connection: close\r\n\r\n", body]))
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    # --- the parser's callbacks -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head = True
        self._parsed_nothing = 0
        self.idle_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the app, unless the head is too large or will come again without its upgrade."""
        if self.parser.should_upgrade():
            return
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES:
            raise _HeadTooLarge
        super().on_headers_complete()
        self.headers = []  # of the fields behind a chunked body, not of the request
        self._in_head, self._in_body = False, True
        self._parsed_nothing = 0
        self._unset_head_timer()
        self._unset_keepalive_if_required()

    def on_body(self, body: bytes) -> None:
        """Hand a part of the body to the app."""
        self._parsed_nothing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body, unless the head will come again."""
        if self._in_head:
            return
        self._in_body = False
        super().on_message_complete()
        if self._answered:  # before the end of its body
            self.idle_since = self.loop.time()
            self._await_head()

    # --- the app ----------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Start the next request, or begin to wait for one."""
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if self._in_head or self._in_body:
            self._await_head()
