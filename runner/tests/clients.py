"""Clients of the service on raw sockets, which retry nothing and hide no failure."""

import http.client
import socket
import threading
import time


class Connection:
    """A raw keep-alive connection. It retries nothing, and reads only complete responses."""

    def __init__(self, listener):
        self.sock = socket.socket(listener.family)
        self.sock.settimeout(10)
        self.sock.connect(listener.getsockname())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, path, method="GET", **headers):
        lines = [f"{method} {path} HTTP/1.1", "host: test", *(f"{k}: {v}" for k, v in headers.items())]
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def receive(self):
        """Return status, headers and body."""
        response = http.client.HTTPResponse(self.sock)
        response.begin()
        return response.status, response.headers, response.read()

    def ask(self, path, method="GET", **headers):
        self.send(path, method, **headers)
        return self.receive()

    def ended(self):
        """Wait until the server closes the connection; return whether it sent FIN and no data."""
        return self.sock.recv(1) == b""


def ask(listener, path, method="GET", **headers):
    with Connection(listener) as connection:
        return connection.ask(path, method, **headers)


def answers(connection, count):
    """Return this many responses with `Content-Length`, which may share a packet, and the bytes after them."""
    responses = []
    with connection.sock.makefile("rb") as file:
        for _ in range(count):
            status = int(file.readline().split()[1])
            headers = http.client.parse_headers(file)
            responses.append((status, file.read(int(headers["content-length"]))))
        return responses, file.read()


class Load:
    """Clients that send requests until the end of the `with` block, and count failures."""

    def __init__(self, listener, keep_alive, fresh, slow):
        self.listener = listener
        self.ending = threading.Event()
        self.answers = 0
        self.failures = []
        kinds = [(self.keep_alive, keep_alive), (self.fresh, fresh), (self.slow, slow)]
        self.threads = [threading.Thread(target=self.record, args=(kind,)) for kind, n in kinds for _ in range(n)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        for thread in self.threads:
            thread.join()

    def record(self, kind):
        try:
            while not self.ending.is_set():
                kind()
        except Exception as error:
            self.failures.append(f"{kind.__name__}: {error!r}")

    def keep_alive(self):
        with Connection(self.listener) as connection:
            while not self.ending.is_set():
                if self.check(connection.ask("/")) == "close":
                    return
                time.sleep(0.005)

    def fresh(self):
        with Connection(self.listener) as connection:
            self.check(connection.ask("/", connection="close"))

    def slow(self):
        with Connection(self.listener) as connection:
            self.check(connection.ask("/slow?seconds=0.5"))

    def check(self, answer):
        status, headers, _ = answer
        assert status == 200
        self.answers += 1
        return headers["connection"]
