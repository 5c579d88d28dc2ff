"""WebSockets over one connection: uvicorn's protocol, with a drain that loses no message that a client has sent."""

import asyncio
import fcntl
import logging
import termios
from typing import Any

from booty_runner._vendor.uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from booty_runner._vendor.websockets import http11
from booty_runner._vendor.websockets.frames import Frame
from booty_runner._vendor.websockets.protocol import State
from booty_runner.access import AccessLog

# "Service Restart" (the registry of RFC 6455): the client may connect again at once.
RESTART = 1012
# A client that has sent nothing for this long after the server's Close does not answer it any more.
ANSWER_SECONDS = 2

HEAD_LINE_BYTES = 64 * 1024
# The protocol around it limits the head; 8 KB is less than browsers and servers accept for a cookie.
http11.MAX_LINE_LENGTH = HEAD_LINE_BYTES


class _Log(logging.LoggerAdapter):  # type: ignore[type-arg]  # not generic at run time in Python 3.11
    """Leaves out uvicorn's line for each WebSocket: it has the client's address and the query."""

    level = logging.WARNING

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Log nothing."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Serves one WebSocket.

    Unlike uvicorn's protocol, this one

    - at a stop sends Close 1012, goes on passing to the app what the client had sent, and ends when the client's own
      Close comes, which is the last thing that a client sends. What the app sends in this time is dropped
      without an error, which would end the app before it has received all;
    - answers a handshake that can't be parsed;
    - does not take a client for dead while the app itself keeps its answers from being read.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = self.conn.logger = _Log(self.logger)  # type: ignore[assignment]
        if self.config.access_log:
            self.app = AccessLog(self.app)
        # Browsers would not accept the drain's `Connection: close` in the answer to a handshake.
        self.default_headers = [header for header in self.default_headers if header[0] != b"connection"]
        self._restarting = False
        self._app_knows = False  # that the WebSocket is closed
        self._heard_at = 0.0  # when the client last sent something, on the loop's clock

    # --- for the server ---------------------------------------------------------------------------------

    def restart(self) -> None:
        """Tell the client to connect again, unless the app is still to accept it, or the WebSocket is being closed."""
        if not self.handshake_complete or self.conn.state is not State.OPEN:
            return
        self._restarting = True
        self._heard_at = self.loop.time()
        self.stop_keepalive()
        self.conn.send_close(RESTART)
        self.transport.write(b"".join(self.conn.data_to_send()))

    @property
    def silent(self) -> bool:
        """Whether the client does not answer the Close, and the app has all that it had sent."""
        if not self._restarting or self.loop.time() - self._heard_at < ANSWER_SECONDS or self.transport.is_closing():
            return False
        if self.read_paused or not self.queue.empty():
            return False
        return not any(fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4)))

    def cut(self) -> None:
        """End the connection at once; the app gets `websocket.disconnect`."""
        self.transport.abort()

    # --- the connection ---------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app; at a stop with the code 1012."""
        if self._restarting:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": RESTART})
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, and answer a handshake that can't be parsed."""
        self._heard_at = self.loop.time()
        super().data_received(data)
        if self.conn.handshake_exc and not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_close(self, event: Frame) -> None:
        """Tell the app that the WebSocket is closed; at a stop with the code 1012, whatever the client answers."""
        if not self._restarting:
            super().handle_close(event)
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": RESTART, "reason": ""})
        self.transport.close()

    def keepalive_timeout(self) -> None:
        """Close the connection of a client that does not answer pings."""
        if self.read_paused:
            self.schedule_ping()
            return
        super().keepalive_timeout()

    # --- the app ----------------------------------------------------------------------------------------

    async def receive(self) -> Any:
        """Return what comes next for the app."""
        message = await super().receive()
        self._app_knows = message["type"] == "websocket.disconnect"
        return message

    async def send(self, message: Any) -> None:
        """Send what the app says; at a stop drop it, until the app has received `websocket.disconnect`."""
        if self._restarting and not self._app_knows:
            await asyncio.sleep(0)  # an app that only sends must let the client's Close come
        else:
            await super().send(message)
