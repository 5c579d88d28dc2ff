"""A release on the host is complete or absent."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import resource
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from booty_host import HostError, stage
from booty_host.app import App


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("lib/app.py")
        text = b"def f():\n    raise ValueError\n"
        entry.size, entry.mode = len(text), 0o644
        tar.addfile(entry, io.BytesIO(text))
        link = tarfile.TarInfo("bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/bin/python3"
        tar.addfile(link)
    return path


def unpack(archive: Path, digest: str, dest: Path) -> None:
    with archive.open("rb") as file:
        stage.unpack(file, digest, dest)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_archive_is_unpacked_and_compiled(archive: Path, tmp_path: Path) -> None:
    dest = tmp_path / "releases" / "abc"
    dest.parent.mkdir()
    unpack(archive, sha256(archive), dest)
    assert (dest / "bin/python").readlink() == Path("/usr/bin/python3")
    (compiled,) = dest.rglob("*.pyc")
    # The compiled code has the final path, so that tracebacks of the running release name it.
    assert str(dest / "lib/app.py").encode() in compiled.read_bytes()
    assert [path.name for path in dest.parent.iterdir()] == ["abc"]


def test_root_follows_no_link_to_what_an_app_can_write(tmp_path: Path) -> None:
    """A state path is a link in the tree. The app may have put there another link, to any file of the host."""
    own, host, tree = tmp_path / "var/lib/shop", tmp_path / "usr/lib/python3", tmp_path / "tree"
    host.mkdir(parents=True)
    own.mkdir(parents=True)
    (tree / "pkg").mkdir(parents=True)
    (host / "secret.env").write_text("KEY = 'hunter2hunter2'\n")
    (own / "__pycache__").symlink_to(host)
    (own / "state.py").symlink_to(host / "secret.env")
    (tree / "pkg/subprocess.py").write_text("")
    (tree / "pkg/__pycache__").symlink_to(own / "__pycache__")
    (tree / "state.py").symlink_to(own / "state.py")
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, "tree")
    dest = tmp_path / "abc"
    unpack(archive, sha256(archive), dest)
    assert [path.name for path in host.iterdir()] == ["secret.env"]
    assert [path.relative_to(dest).parts[:3] for path in dest.rglob("*.pyc")] == [("tree", "pkg", "__pycache__")]
    assert (dest / "tree/state.py").is_symlink()


@pytest.mark.parametrize(
    "members",
    [
        [("a", "/etc"), ("a/x", b"")],
        [("a", "/etc"), ("a", b"")],
        [("a", "b"), ("b", "/etc"), ("a/x", "/own")],
        [("../x", b"")],
        [("/x", b"")],
        [("a/./x", b"")],
    ],
)
def test_root_writes_nothing_outside_of_the_directory(tmp_path: Path, members: list[tuple[str, str | bytes]]) -> None:
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            tar.addfile(entry, io.BytesIO(b""))
    with pytest.raises(HostError, match="which is no file or link in a folder of its own"):
        unpack(archive, sha256(archive), tmp_path / "abc")
    assert [path.name for path in tmp_path.iterdir()] == ["archive.tar.gz"]


def test_a_damaged_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    digest = sha256(archive)
    archive.write_bytes(archive.read_bytes()[:-7])
    with pytest.raises(ValueError, match="arrived damaged"):
        unpack(archive, digest, tmp_path / "abc")
    assert [path.name for path in tmp_path.iterdir()] == ["archive.tar.gz"]


def test_code_that_needs_too_much_to_compile_has_no_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `finally:` within another one doubles the code, so these few lines would take hours, and all memory."""
    deep = "".join(f"{' ' * n}try:\n{' ' * n} x\n{' ' * n}finally:\n" for n in range(19)) + " " * 19 + "y" * 9 + "\n"
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in (("a.py", "x = 1\n"), *((f"b/{n}.py", deep * 20) for n in range(9))):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    monkeypatch.setattr(stage, "CPU_SECONDS", 2)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    (tmp_path / "releases").mkdir()
    unpack(path, sha256(path), tmp_path / "releases/abc")
    assert time.monotonic() - began < 30
    assert max(before, 700_000) >= resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert [each.name.partition(".")[0] for each in (tmp_path / "releases").rglob("*.pyc")] == ["a"]
    assert (tmp_path / "releases/abc/b/8.py").is_file()


@pytest.mark.parametrize("step", ["extractall", "rename"])
def test_a_failure_leaves_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    owner = {"extractall": tarfile.TarFile, "rename": Path}[step]
    monkeypatch.setattr(owner, step, full)
    with pytest.raises(OSError, match="No space"):
        unpack(archive, sha256(archive), tmp_path / "abc")
    assert [path.name for path in tmp_path.iterdir()] == ["archive.tar.gz"]


def test_two_deploys_of_one_release_unpack_it_once(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, compile_all = [], stage.compile_all

    def slowly(*arguments: Any) -> None:
        calls.append(arguments[0])
        time.sleep(0.2)
        compile_all(*arguments)

    monkeypatch.setattr(stage, "compile_all", slowly)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: unpack(archive, sha256(archive), tmp_path / "abc"), range(3)))
    assert len(calls) == 1
    assert (tmp_path / "abc/lib/app.py").exists()


class Store(http.server.BaseHTTPRequestHandler):
    """Sends pieces without an end."""

    def do_GET(self) -> None:
        server: Any = self.server
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(server.piece)
                time.sleep(server.pause)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("piece", "pause", "words"),
    [(b"x" * 100_000, 0, "is longer than what was built"), (b"x", 0.05, "did not send it within 1.0 seconds")],
)
def test_a_store_whose_answer_has_no_end_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: bytes, pause: float, words: str
) -> None:
    app = App("booty", tmp_path)
    app.incoming.mkdir(parents=True)
    monkeypatch.setattr(stage, "SILENCE", 1 / 3)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store) as serving:
        serving.piece, serving.pause = piece, pause  # type: ignore[attr-defined]
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            with pytest.raises(HostError, match=words):
                stage.stage(app, "releases/a", "0", "", f"http://127.0.0.1:{serving.server_port}/a", False, size=9000)
        finally:
            serving.shutdown()


def test_the_files_of_a_killed_run_are_removed(archive: Path, tmp_path: Path) -> None:
    abandoned = tmp_path / ".abc.x1y2"
    abandoned.mkdir()
    (abandoned / "half").touch()
    unpack(archive, sha256(archive), tmp_path / "abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["abc", "archive.tar.gz"]
    assert os.access(tmp_path / "abc", os.X_OK)
