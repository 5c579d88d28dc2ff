"""Serve the app: on sockets from systemd or our own, ready when it says so, losing no request at the stop."""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from booty_runner import hooks, telemetry, verify
from booty_runner._vendor import uvloop
from booty_runner._vendor.uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from booty_runner.deadline import end_in
from booty_runner.health import Question
from booty_runner.identity import Identity
from booty_runner.internal import InternalApp
from booty_runner.lifespan import Lifespan
from booty_runner.protocol import Protocol
from booty_runner.protocol_config import Config, ServerState
from booty_runner.proxies import Proxied
from booty_runner.request_ids import RequestIds
from booty_runner.settings import Refusal, Settings
from booty_runner.websocket import WebSocketProtocol
from booty_runner.wsgi import WsgiApp

log = logging.getLogger(__name__)

# Longer than the 60 s for which common proxies pool connections: the side that reuses them should be
# the one that closes them, or a request meets a connection that is just being closed.
KEEP_ALIVE_SECONDS = 75
# The kernel caps it at net.core.somaxconn, 4096 on today's Linux. listen(2) is repeated on a socket
# that systemd passes, so this overrides the unit's Backlog=.
BACKLOG = 4096

# The name that systemd passes with the socket on which the proxy of this host asks.
PROXIED = "http"
# At a stop, WebSockets are closed one after another over this time, so that their clients do not all connect at once.
SPREAD_SECONDS = 2.0
# They begin to be closed after this time. A proxy may send the handshake of a client that connects again over a
# connection that it keeps to this process, and Booty's proxy keeps one for 0.5 s: the client would be closed twice.
KEPT_SECONDS = 0.6
# How long a request that is cut may take to end; with the flush of telemetry at most 2 s beyond the drain.
CUT_SECONDS = 0.4


@dataclass(frozen=True)
class Listener:
    """A listening socket: the internal app answers on a Unix socket, unless it is the proxy's, and the app on others.

    Which app answers depends on nothing that a client sends.
    """

    sock: socket.socket
    proxied: bool = False

    @property
    def internal(self) -> bool:
        """Whether the internal app answers here."""
        return self.sock.family == socket.AF_UNIX and not self.proxied

    @property
    def lost(self) -> bool:
        """Whether the descriptor is closed, or that of another file by now."""
        try:
            return not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            return True


def systemd_sockets() -> list[Listener]:
    """Take the sockets that systemd passed to this process, none if it passed none; see sd_listen_fds(3).

    The variables that announce them are removed, so that no child takes them for its own.
    """
    pid, count = os.environ.pop("LISTEN_PID", None), os.environ.pop("LISTEN_FDS", "0")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()):
        return []
    # Built from the descriptor, each has its true family; uvicorn's --fd takes TCP for AF_UNIX.
    sockets = [socket.socket(fileno=fd) for fd in range(3, 3 + int(count))]
    for sock in sockets:
        sock.set_inheritable(False)
    return [Listener(sock, name == PROXIED) for sock, name in zip_longest(sockets, names[: len(sockets)])]


def open_sockets(host: str, port: int, internal: Path | None) -> list[Listener]:
    """Open a TCP socket and, if a path is given, the internal Unix socket, for its owner only.

    Raises:
        Refusal: an address can't be had.
    """
    tcp = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also while connections of an earlier run linger
    sockets = [_listening(tcp, (host, port))]
    if internal:
        if internal.is_socket():  # the same for a path
            internal.unlink()
        mask = os.umask(0o177)
        try:
            sockets.append(_listening(socket.socket(socket.AF_UNIX), str(internal)))
        finally:
            os.umask(mask)
    return [Listener(sock) for sock in sockets]


def _listening(sock: socket.socket, address: tuple[str, int] | str) -> socket.socket:
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        raise Refusal(f"cannot listen on {_name(address)}: {error.strerror}") from error
    return sock


def _name(address: Any) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)


def ping() -> None:
    """Tell systemd's watchdog that the main process is alive, or leave it when systemd does not listen at once."""
    notify("WATCHDOG=1", flags=socket.MSG_DONTWAIT)


def notify(*lines: str, flags: int = 0) -> None:
    """Tell systemd the state of the service, if it asked; see sd_notify(3), and send(2) for the flags."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # A leading @ stands for the zero byte of an abstract address.
            sock.sendto("\n".join(lines).encode(), flags, f"\0{address[1:]}" if address[0] == "@" else address)
    except OSError as error:
        log.warning("cannot notify systemd: %s", error)


def report(state: str) -> None:
    """Tell systemd that the service is up, and whether it is `serving` or `paused`."""
    notify("READY=1", f"STATUS={state}")


def keep_watch(seconds: float) -> None:
    """Have systemd kill the main process when it does not ping for so long; 0 ends that."""
    notify(f"WATCHDOG_USEC={round(seconds * 1e6)}")


def run(
    settings: Settings,
    app: Any,
    listeners: Sequence[Listener],
    identity: Identity,
    question: Question,
    on_state: Callable[[str], None] = report,
) -> None:
    """Serve until SIGTERM or SIGINT and return once stopped.

    Args:
        settings: the runner's.
        app: an ASGI app.
        listeners: the sockets; they are closed at the stop.
        identity: of the main process.
        question: that the app must answer before it serves.
        on_state: called with `serving` once all of them are served, and with `paused` or `serving` whenever a signal
            changes that.

    Raises:
        Refusal: the service does not start.
        SystemExit: the app itself refuses to start.
        Exception: what the lifespan raises.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, app, listeners, identity, question, on_state))


async def _serve(
    settings: Settings,
    app: Any,
    listeners: Sequence[Listener],
    identity: Identity,
    question: Question,
    on_state: Callable[[str], None],
) -> None:
    server, lifespan, serving = Server(settings, identity, on_state), Lifespan(app), False
    try:
        # Entered here and not by uvicorn, which takes a failed startup for an app without a lifespan.
        async with lifespan as state:
            public = RequestIds(app, hooks.route)
            internal = RequestIds(InternalApp(settings), InternalApp.route)
            flaw = await question.flaw(public, state, identity.behind_proxy) or await verify.start_flaw(settings)
            if flaw:
                raise Refusal(f"refusing to serve: {flaw}")
            names = ", ".join(_name(listener.sock.getsockname()) for listener in listeners)
            log.info("serving release %s on %s", settings.sentry_release or "(unknown)", names)
            lifespan.on_end(server.stop)
            # A WSGI app has no WebSockets: its requests for one are ordinary requests.
            websocket = None if isinstance(app, WsgiApp) else WebSocketProtocol
            configs = []
            for listener in listeners:
                answers: Any = internal if listener.internal else public
                if not listener.internal and (settings.booty_trusted_proxies or listener.proxied):
                    answers = Proxied(public, settings.booty_trusted_proxies, listener.proxied)
                protocol = None if listener.internal else websocket
                config = Config(
                    loaded_app=answers,
                    timeout_keep_alive=KEEP_ALIVE_SECONDS,
                    access_log=settings.booty_access_log and not listener.internal,
                    ws_protocol_class=protocol,
                    counted=not listener.internal,
                )
                configs.append((listener.sock, config))
            serving = True
            finished = await server.run(configs, state)
    except Exception as error:
        if not isinstance(error, Refusal):
            telemetry.report(error, "shutdown" if serving else "startup")
        raise
    finally:
        # Blocks the loop, which has nothing else left to do, and needs no thread that may be stuck.
        telemetry.stop()
    if not finished:
        # A thread can't be cut, and an ordinary end would wait for it beyond the bound.
        logging.shutdown()
        os._exit(0)


class Server:
    """uvicorn's HTTP protocol on several listeners, with a stop that answers all who are connected.

    uvicorn's own server closes idle connections at once when it stops, also those with a request on the
    way. This one, on SIGTERM or SIGINT,

    - stops accepting: a connection that waits in the queue of a socket shared with another process, or
      held by systemd, is theirs to take;
    - finishes the requests in flight and answers new ones on open connections, all with
      `Connection: close`;
    - closes a connection that is idle for `booty_idle_seconds`, or has sent half a head for as long;
    - sends the apps of responses without an announced length `http.disconnect` after `booty_stream_seconds`, or as
      long after the response began, and closes their connections;
    - closes WebSockets with the code 1012, and passes to their apps what the clients had sent;
    - cuts the remaining connections after `booty_drain_seconds`, or at a second signal.

    Two more signals hand the sockets from one release to the next; the host program sends them only to releases whose
    manifest has `contract` 2 or more:

    - SIGUSR1 pauses: the server stops accepting, and goes on with its connections;
    - SIGUSR2 makes this process the service: it accepts again if it was paused, and the functions of
      `hooks.on_ready` are called if it was a candidate.
    """

    def __init__(self, settings: Settings, identity: Identity, on_state: Callable[[str], None] = report) -> None:
        self._on_state = on_state
        self._identity = identity
        self._candidate = settings.booty_candidate
        self._idle_seconds = settings.booty_idle_seconds
        self._stream_seconds = settings.booty_stream_seconds
        self._drain_seconds = settings.booty_drain_seconds
        self._watchdog_seconds = settings.booty_watchdog_seconds
        self._state = ServerState()  # shared by all listeners: the drain waits for the connections of each
        self._servers: list[asyncio.Server] = []
        self._orders: asyncio.Queue[int] = asyncio.Queue()  # signals, in the order of their arrival
        self._stop = asyncio.Event()
        self._cut = asyncio.Event()

    async def run(self, listeners: Sequence[tuple[socket.socket, Config]], state: dict[str, Any]) -> bool:
        """Serve each app on its socket, and on that only, until a signal; then drain.

        Args:
            listeners: listening sockets, TCP or Unix, each with its app in its config; they are closed at the stop.
            state: what the lifespan yielded, handed to each request.

        Returns:
            Whether all requests could finish.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, self._orders.put_nowait, number)
        clock = loop.create_task(self._keep_date())
        await self._accept(listeners, state)
        self._on_state("serving")
        # It goes on until the event loop ends, so a shutdown that hangs is seen as well.
        self._watch = loop.create_task(self._keep_watch())
        if not self._candidate:
            self._become_service(state)
        obedience = loop.create_task(self._obey(listeners, state))
        obedience.add_done_callback(lambda _: self.stop())  # a function of `hooks.ready` raised
        await self._stop.wait()
        obedience.cancel()
        for sock, _ in listeners:
            sock.close()
        hooks.drain_ends = time.monotonic() + self._drain_seconds
        others = asyncio.gather(*(function(hooks.Drain(hooks.drain_ends, self._cut)) for function in hooks.drain))
        finished = await self._drain()
        await others
        clock.cancel()
        with suppress(asyncio.CancelledError):
            await obedience
        return finished

    async def _obey(self, listeners: Sequence[tuple[socket.socket, Config]], state: dict[str, Any]) -> None:
        while True:
            if await self._orders.get() == signal.SIGUSR1:
                self._close()
                self._on_state("paused")
                continue
            if not self._servers:
                await self._accept(listeners, state)
            if not hooks.live:
                self._become_service(state)
            # systemd took the candidate's WATCHDOG_USEC= for the candidate's unit.
            keep_watch(self._watchdog_seconds)
            self._on_state("serving")

    def _become_service(self, state: dict[str, Any]) -> None:
        hooks.live = True
        for function in hooks.ready:
            function(state)

    async def _accept(self, listeners: Sequence[tuple[socket.socket, Config]], state: dict[str, Any]) -> None:
        for sock, config in listeners:
            # A server closes its socket; the original is kept for the next one.
            await self._listen(sock.dup(), config, state)

    def _close(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def _listen(self, sock: socket.socket, config: Config, state: dict[str, Any]) -> None:
        protocol = partial(Protocol, self._identity, config, self._state, state)
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            # Unless told not to, Python 3.13 unlinks the path at the stop: systemd's, that others still use.
            keep: dict[str, Any] = {"cleanup_socket": False}
            server = await loop.create_unix_server(protocol, sock=sock, backlog=BACKLOG, **keep)
        else:
            server = await loop.create_server(protocol, sock=sock, backlog=BACKLOG)
        self._servers.append(server)

    def stop(self) -> None:
        """Begin the drain."""
        self._stop.set()

    def _on_signal(self, number: int) -> None:
        if not self._stop.is_set():
            self.stop()
        else:
            self._cut.set()
            # Should the cut hang as well, a third signal ends the process the kernel's way.
            asyncio.get_running_loop().remove_signal_handler(number)

    async def _keep_date(self) -> None:
        while True:
            # In place: also a response that is still being prepared takes its headers from this list.
            self._state.default_headers[:1] = [(b"date", formatdate(usegmt=True).encode())]
            await asyncio.sleep(1)

    async def _keep_watch(self) -> None:
        """Have this process killed, with a traceback of each thread on stderr, once its event loop hangs."""
        seconds = self._watchdog_seconds
        if not seconds:
            return
        faulthandler.enable()  # systemd sends SIGABRT
        faulthandler.register(signal.SIGALRM, chain=True)
        keep_watch(seconds)
        try:
            while True:
                ping()
                # systemd watches the main process alone, until it stops. The kernel's timer watches all the time.
                end_in("watchdog", seconds + 1)
                await asyncio.sleep(seconds / 4)
        finally:
            end_in("watchdog", None)

    async def _drain(self) -> bool:
        loop = asyncio.get_running_loop()
        began = loop.time()
        notify("STOPPING=1", f"STATUS=draining {len(self._state.connections)} connections")
        log.info("stopping: draining %d connections", len(self._state.connections))
        self._close()
        self._state.default_headers.append((b"connection", b"close"))
        await asyncio.sleep(0)  # what was accepted in this turn of the loop is connected in the next
        streams: dict[RequestResponseCycle, float] = {}
        websockets = self._websockets()
        first = began + min(KEPT_SECONDS, self._drain_seconds / 8)
        pause = min(SPREAD_SECONDS, self._drain_seconds / 4) / len(websockets) if websockets else 0.0
        restarts = {websocket: first + number * pause for number, websocket in enumerate(websockets)}
        while self._state.connections or self._state.tasks:
            now = loop.time()
            if self._cut.is_set() or now - began >= self._drain_seconds:
                await self._cut_off(now - began)
                return False
            for websocket in self._websockets():
                if websocket.silent:
                    websocket.cut()
                elif now >= restarts.get(websocket, first):
                    websocket.restart()
            for connection in self._connections():
                if stream := connection.stream:
                    if now - streams.setdefault(stream, now) >= self._stream_seconds:
                        connection.disconnect()
                        # A client that does not read can't hold the connection until what it was sent is gone.
                        loop.call_later(self._idle_seconds, connection.transport.abort)
                elif not connection.busy and now - max(began, connection.idle_since) >= self._idle_seconds:
                    connection.transport.close()
            await asyncio.sleep(0.01)
        return True

    async def _cut_off(self, seconds: float) -> None:
        connections, websockets = self._connections(), self._websockets()
        count = len(connections) + len(websockets)
        log.warning("cutting %d requests, %d connections after %.1f s", len(self._state.tasks), count, seconds)
        for websocket in websockets:
            websocket.restart()
            websocket.cut()
        if websockets:
            await asyncio.sleep(CUT_SECONDS / 4)  # their apps get websocket.disconnect, and most end by themselves
        tasks = set(self._state.tasks)
        for connection in connections:
            if connection.stream:
                connection.disconnect()
        for task in tasks:
            task.cancel()  # uvicorn then answers 500 if nothing was sent yet
        if tasks:
            await asyncio.wait(tasks, timeout=CUT_SECONDS)
        for connection in connections:
            connection.transport.close()

    def _connections(self) -> list[Protocol]:
        return [connection for connection in self._state.connections if isinstance(connection, Protocol)]

    def _websockets(self) -> list[WebSocketProtocol]:
        return [connection for connection in self._state.connections if isinstance(connection, WebSocketProtocol)]
