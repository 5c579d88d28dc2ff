"""WSGI (PEP 3333) on ASGI: each request of the app runs in one of a few threads."""

import asyncio
import contextvars
import io
import logging
import queue
import re
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from types import TracebackType
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

log = logging.getLogger(__name__)

# A request body of at most this size is read before a thread is taken, so that slow uploads hold no thread. Of a larger
# body, at most this much is buffered. The app's thread waits while this much of its response is unsent.
BUFFER_BYTES = 256 * 1024
# Frameworks ask for blocks of 8 KB. Each block of a file wakes the event loop once.
FILE_BLOCK_BYTES = 64 * 1024

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

_HEADER_KEYS: dict[bytes, str] = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"}
_MANY_KEYS = 1000
# 1xx begins no response.
_STATUS = re.compile(r"[2-5][0-9]{2}( |$)", re.ASCII)


class ClientLeft(ConnectionResetError):
    """The client left before its request or the response was complete."""


class WsgiApp:
    """ASGI app that serves a WSGI app; it has no lifespan and no WebSockets."""

    def __init__(self, app: Callable[..., Iterable[bytes]], threads: int, processes: int = 1) -> None:
        """Serve an app.

        Args:
            app: the WSGI app.
            threads: how many requests it may answer at a time; threads are started as they are needed.
            processes: how many processes serve the app, for `wsgi.multiprocess`.
        """
        self._app = app
        self._threads = _Threads(threads)
        self._common: Environ = {
            "SCRIPT_NAME": "",
            "wsgi.version": (1, 0),
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": processes > 1,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": _File,
        }

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            Exception: what the app raises, unless it is ClientLeft.
        """
        if scope["type"] != "http":
            return
        parts, size, more = [], 0, True
        while more and size <= BUFFER_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        exchange = _Exchange(scope["method"])
        environ = {**self._common, **_request(scope), "wsgi.errors": sys.stderr}
        environ["wsgi.input"] = exchange.upload(parts, size) if more else io.BytesIO(b"".join(parts))
        context = contextvars.copy_context()
        self._threads.run(lambda: context.run(exchange.run, self._app, environ))
        await exchange.serve(receive, send, more)


class _Threads:
    """Daemon threads, up to a limit. Unlike those of a ThreadPoolExecutor, they do not hold up the exit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._open = 0  # jobs that wait or run

    def run(self, job: Callable[[], None]) -> None:
        """Run a job that raises nothing in the next free thread."""
        with self._lock:
            self._open += 1
            start = self._open > self._started and self._started < self._limit
            self._started += start
        if start:
            try:
                threading.Thread(target=self._work, name=f"wsgi-{self._started}", daemon=True).start()
            except RuntimeError:  # the limit of the service's tasks; the other threads take the job
                with self._lock:
                    self._started -= 1
                    self._open -= not self._started
                if not self._started:
                    raise
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            job()
            del job  # it holds the request
            with self._lock:
                self._open -= 1


class _Exchange:
    """One request and its response, between the event loop and a thread.

    The methods `run`, `start_response` and `write` are the thread's, the others are the event loop's.
    """

    def __init__(self, method: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()  # the thread waits for it; guards all below that both sides write
        self._wake = asyncio.Event()
        self._woken = False  # whether the event loop will look at the pieces soon
        self._gone = False  # whether the client has left
        self._upload: _Upload | None = None
        # The response.
        self._head_only = method == "HEAD"
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._left: int | None = None  # bytes of the body still to come, if the app announced its length
        self._begun = False  # whether the event loop has the status and the headers
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0  # of pieces that are not sent yet
        self._complete = False
        self._error: BaseException | None = None

    # --- the thread -------------------------------------------------------------------------------------

    def run(self, app: Callable[..., Iterable[bytes]], environ: Environ) -> None:
        """Call the app and pass its response, or its error, to the event loop."""
        try:
            result = app(environ, self.start_response)
            try:
                self._take(result)
            finally:
                if close := getattr(result, "close", None):
                    close()
        except ClientLeft:
            self._finish()
        except BaseException as error:
            self._fail(error)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Take the status and the headers, as PEP 3333 defines it."""
        if exc_info:
            try:
                if self._begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # breaks a reference cycle
        elif self._status:
            raise AssertionError("start_response was called a second time without exc_info")
        if not _STATUS.match(status):
            raise ValueError(f"{status!r} is no status line of a response")
        self._status = int(status[:3])
        self._headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self._left = None
        if self._status in {204, 304}:  # they have no body, even if the headers have a length
            self._headers = [header for header in self._headers if header[0] != b"content-length"]
        elif not self._head_only:
            length = next((value for name, value in self._headers if name == b"content-length"), None)
            if length is not None and not length.isdigit():
                raise ValueError(f"{length.decode('latin-1')!r} is no Content-Length")
            self._left = None if length is None else int(length)
        return self.write

    def write(self, piece: bytes) -> None:
        """Pass a piece of the body to the event loop, and wait while the client is slow.

        Raises:
            ClientLeft: the client has left.
        """
        if not self._status:
            raise AssertionError("the app sent a body before it called start_response")
        if not isinstance(piece, bytes):
            raise TypeError(f"the app sent a body of the type {type(piece).__name__}, not bytes")
        if self._gone:
            raise ClientLeft("the client left within the response")
        if self._left is not None:
            piece = piece[: self._left]
            self._left -= len(piece)
        if not piece or self._complete:
            return
        if self._head_only or self._status in {204, 304}:
            piece = b""
        with self._changed:
            self._put(piece, complete=self._left == 0)
            while self._waiting_bytes > BUFFER_BYTES and not self._gone and not self._complete:
                self._changed.wait()

    def _take(self, result: Iterable[bytes]) -> None:
        if isinstance(result, (list, tuple)) and not self._begun:
            body = b"".join(result)
            if self._left is not None and len(body) < self._left:
                raise ValueError(f"the app announced {self._left} bytes, and returned {len(body)}")
            known = self._left is not None or self._status in {204, 304}
            if self._status and not known and not (self._head_only and not body):
                self._announce(len(body))
            self.write(body)
        else:
            for piece in result:
                self.write(piece)
        if not self._status:
            raise AssertionError("the app returned without a call of start_response")
        if not self._begun and self._left is None and self._status not in {204, 304} and not self._head_only:
            self._announce(0)
        self._finish()

    def _announce(self, length: int) -> None:
        if not any(name in {b"content-length", b"transfer-encoding"} for name, _ in self._headers):
            self._headers.append((b"content-length", b"%d" % length))
            self._left = None if self._head_only else length

    def _finish(self) -> None:
        with self._changed:
            if not self._complete:
                self._put(None, complete=True)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._complete:  # the client has its response; the error comes from close()
                log.error("the app failed after its response", exc_info=error)
                return
            self._error = error
            self._put(None, complete=True)

    def _put(self, piece: bytes | None, complete: bool) -> None:
        if piece is not None:
            self._begun = True
            self._pieces.append(piece)
            self._waiting_bytes += len(piece)
        self._complete = complete
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: the process ends
                self._loop.call_soon_threadsafe(self._wake.set)

    # --- the event loop ---------------------------------------------------------------------------------

    def upload(self, parts: list[bytes], size: int) -> io.BufferedReader:
        """Return the file from which the app reads a body that is not complete yet."""
        self._upload = _Upload(self._changed, parts, size)
        return io.BufferedReader(self._upload, FILE_BLOCK_BYTES)

    async def serve(self, receive: Receive, send: Send, more: bool) -> None:
        """Send the response while the thread makes it, and pass the rest of the request's body to the thread."""
        follow: asyncio.Task[None] | None = None
        begun = False
        try:
            if more:
                follow = self._loop.create_task(self._follow(receive, more))
            while True:
                await self._wake.wait()
                self._wake.clear()
                with self._changed:
                    self._woken = False
                    pieces, self._pieces, complete = self._pieces, [], self._complete
                if complete and (self._error or not self._status) and not pieces:
                    break
                if not begun:
                    begun = True
                    await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                if complete and not self._error:
                    await send({"type": "http.response.body", "body": body})
                    return
                if follow is None:
                    follow = self._loop.create_task(self._follow(receive, more=False))
                await send({"type": "http.response.body", "body": body, "more_body": True})
                if complete:
                    break
                with self._changed:
                    self._waiting_bytes -= len(body)
                    self._changed.notify_all()
            if self._error:
                raise _as_exception(self._error)
        finally:
            if follow:
                follow.cancel()
            self._leave()
            self._error = None  # breaks a reference cycle

    async def _follow(self, receive: Receive, more: bool) -> None:
        """Pass the rest of the request's body to the thread, then wait until the client leaves."""
        while True:
            if self._upload and more:
                await self._upload.room()
            message = await receive()
            if message["type"] == "http.disconnect":
                self._leave()
                return
            if self._upload and more:
                more = message.get("more_body", False)
                self._upload.feed(message.get("body", b""), more)

    def _leave(self) -> None:
        with self._changed:
            self._gone = True
            if self._upload:
                self._upload.gone = True
            self._changed.notify_all()


def _as_exception(error: BaseException) -> Exception:
    """Return an error that a task may raise: a SystemExit would end the event loop."""
    if isinstance(error, Exception):
        return error
    other = RuntimeError(f"a request raised {type(error).__name__}")
    other.__cause__ = error
    return other


class _Upload(io.RawIOBase):
    """A request body that is still arriving: the event loop feeds it, the app's thread reads it."""

    def __init__(self, changed: threading.Condition, parts: list[bytes], size: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = changed
        self._parts: deque[bytes | memoryview] = deque(part for part in parts if part)
        self._size = size
        self._room = asyncio.Event()
        self._more = True
        self.gone = False

    async def room(self) -> None:
        """Wait until the app has read enough."""
        while self._size > BUFFER_BYTES:
            await self._room.wait()
            self._room.clear()

    def feed(self, part: bytes, more: bool) -> None:
        """Add a part."""
        with self._changed:
            if part:
                self._parts.append(part)
                self._size += len(part)
            self._more = more
            self._changed.notify_all()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what is there, and wait if there is nothing.

        Raises:
            ClientLeft: the client left before its body was complete.
        """
        view = memoryview(buffer).cast("B")
        part = self._next()
        count = min(len(part), len(view))
        view[:count] = part[:count]
        if count < len(part):
            with self._changed:
                self._parts.appendleft(part[count:])
                self._size += len(part) - count
        return count

    def readall(self) -> bytes:
        """Return all that is left of the body."""
        parts = []
        while part := self._next():
            parts.append(part)
        return b"".join(parts)

    def _next(self) -> bytes | memoryview:
        with self._changed:
            while not self._parts and self._more and not self.gone:
                self._changed.wait()
            if not self._parts:
                if self._more:
                    raise ClientLeft("the client left within its request")
                return b""
            part = self._parts.popleft()
            was_full = self._size > BUFFER_BYTES
            self._size -= len(part)
            if was_full and self._size <= BUFFER_BYTES:
                with suppress(RuntimeError):  # the loop is closed: the process ends
                    self._loop.call_soon_threadsafe(self._room.set)
            return part


class _File(FileWrapper):
    def __init__(self, filelike: Any, blksize: int = 0) -> None:
        super().__init__(filelike, max(blksize, FILE_BLOCK_BYTES))


def _request(scope: MutableMapping[str, Any]) -> Environ:
    """Return the environ's entries for a request."""
    raw_path: bytes = scope["raw_path"]
    server, client = scope.get("server"), scope.get("client")
    query = scope["query_string"].decode("latin-1")
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "PATH_INFO": (unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": raw_path.decode("latin-1") + (f"?{query}" if query else ""),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": server[0] if server else "localhost",
        "SERVER_PORT": str(server[1] or 80) if server else "80",
        "wsgi.url_scheme": scope["scheme"],
    }
    if client:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client[0], str(client[1])
    for name, value in scope["headers"]:
        key = _HEADER_KEYS.get(name) or _header_key(name)
        if key in environ:
            environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value.decode("latin-1")
        elif key:
            environ[key] = value.decode("latin-1")
    return environ


def _header_key(name: bytes) -> str:
    """Return a header's key in the environ; "" for a name with "_", which could pass for one with "-"."""
    if b"_" in name:
        return ""
    key = f"HTTP_{name.decode('latin-1').upper().replace('-', '_')}"
    if len(_HEADER_KEYS) < _MANY_KEYS:
        _HEADER_KEYS[name] = key
    return key
