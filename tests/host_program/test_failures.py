"""The end of a failed start: what libraries really write, and the next step that Booty names for it."""

from __future__ import annotations

import time

import pytest
from booty_host import failures

PSYCOPG = """\
Traceback (most recent call last):
  File "/opt/shop/layers/0-py3.11-x86_64/psycopg/connection.py", line 126, in connect
    raise last_ex.with_traceback(None)
psycopg.OperationalError: connection failed: connection to server at "127.0.0.1", port 5999 failed: Connection refused
	Is the server running on that host and accepting TCP/IP connections?
"""
MYSQL = """\
    sock.connect(sa)
ConnectionRefusedError: [Errno 111] Connection refused

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/opt/shop/layers/0-py3.11-x86_64/pymysql/connections.py", line 754, in connect
    raise exc
pymysql.err.OperationalError: (2003, "Can't connect to MySQL server on '127.0.0.1' ([Errno 111] Connection refused)")
"""
PYDANTIC = """\
pydantic_core._pydantic_core.ValidationError: 2 validation errors for Settings
database_url
  Field required [type=missing, input_value={}, input_type=dict]
    For further information visit https://errors.pydantic.dev/2.14/v/missing
api_key
  Field required [type=missing, input_value={}, input_type=dict]
    For further information visit https://errors.pydantic.dev/2.14/v/missing
"""
PYDANTIC_1 = """\
pydantic.error_wrappers.ValidationError: 1 validation error for Settings
database_url
  field required (type=value_error.missing)
"""
DJANGO_ENVIRON = """\
  File "<frozen os>", line 679, in __getitem__
KeyError: 'DATABASE_URL'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/opt/shop/layers/0-py3.11-x86_64/environ/environ.py", line 524, in get_value
    raise ImproperlyConfigured(error_msg) from exc
django.core.exceptions.ImproperlyConfigured: Set the DATABASE_URL environment variable
"""
TREE = "/opt/shop/releases/0123abcd/tree/"
NEEDS = "The app needs the setting {}: add it to app_settings, or to secrets.env on the host if it is a secret."
LISTENS = "Nothing listens where the app looks for its database or another server: "


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("  File \"<frozen os>\", line 679, in __getitem__\nKeyError: 'DATABASE_URL'", NEEDS.format("DATABASE_URL")),
        # Python 3.13 shows the line of its own library where it has the source.
        (
            "  File \"<frozen os>\", line 709, in __getitem__\n    raise KeyError(key) from None\nKeyError: 'A_B'",
            NEEDS.format("A_B"),
        ),
        (DJANGO_ENVIRON, NEEDS.format("DATABASE_URL")),
        (PYDANTIC, NEEDS.format("DATABASE_URL, API_KEY")),
        (PYDANTIC_1, NEEDS.format("DATABASE_URL")),
        (
            "django.core.exceptions.ImproperlyConfigured: The SECRET_KEY setting must not be empty.",
            NEEDS.format("SECRET_KEY"),
        ),
        (
            "decouple.UndefinedValueError: SECRET_KEY not found. Declare it as envvar or define a default value.",
            NEEDS.format("SECRET_KEY"),
        ),
        ('environs.exceptions.EnvNotSetError: Environment variable "API_KEY" not set', NEEDS.format("API_KEY")),
        ("KeyError: \"Config 'SECRET_KEY' is missing, and has no default.\"", NEEDS.format("SECRET_KEY")),
        (PSYCOPG, LISTENS),
        (MYSQL, LISTENS),
        ("redis.exceptions.ConnectionError: Error 111 connecting to localhost:5997. Connection refused.", LISTENS),
        ("ConnectionRefusedError: [Errno 111] Connect call failed ('127.0.0.1', 5999)", LISTENS),
        ('FATAL:  password authentication failed for user "me"', "The database refuses the login: "),
        ("pymysql.err.OperationalError: (1045, \"Access denied for user 'me'@'localhost'", "The database refuses the"),
        (
            'OperationalError: could not translate host name "db.invalid" to address: Name or service not known',
            "The host does not find a name that the app connects to: ",
        ),
        ("ModuleNotFoundError: No module named 'pg8000'", "The release has no module pg8000: add its package"),
        ("ModuleNotFoundError: No module named 'yaml.loader'", "The release has no module yaml: add its package"),
        (
            'File "/usr/lib/python3.11/subprocess.py", line 1955, in _execute_child\n'
            "    raise child_exception_type(errno_num, err_msg, err_filename)\n"
            "FileNotFoundError: [Errno 2] No such file or directory: 'git'",
            "The app runs the program git, which the host lacks: name the Debian package that has it in app_packages",
        ),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'config.ini'", ""),
        (
            f"OSError: [Errno 30] Read-only file system: '{TREE}media/a b.png'",
            "The app writes media/a b.png in its own",
        ),
        (
            f"OSError: [Errno 30] Read-only file system: '{TREE.removesuffix('tree/')}var'",
            "Flask or Quart takes the app for an installed package: give it a folder in its HOME, /var/lib/NAME:",
        ),
        ("OSError: [Errno 30] Read-only file system: '/var/log/shop.log'", "The app writes /var/log/shop.log, and may"),
        (
            "sqlite3.OperationalError: attempt to write a readonly database",
            "The app's SQLite file is where the app can't",
        ),
        ("sqlite3.OperationalError: unable to open database file", "The app's SQLite file is where the app can't"),
        (
            "DisallowedHost: Invalid HTTP_HOST header: 'localhost'. You may need to add 'localhost' to ALLOWED_HOSTS.",
            "The app does not accept the Host header localhost: set app_health_host",
        ),
        (
            "MemoryError: Cannot allocate write+execute memory for ffi.callback(). You might be running on a system",
            "The app makes code at run time, which its sandbox forbids: app_sandbox_allow: [jit]",
        ),
        ("LLVM ERROR: Unable to allocate section memory!", "The app makes code at run time"),
        # No cause that is known: the app's own errors, and the tracker's.
        ("KeyError: 'DATABASE_URL'", ""),
        ("urllib3.exceptions.NewConnectionError: <urllib3.x object>: [Errno 111] Connection refused", ""),
        ("ValueError: invalid literal for int() with base 10: 'x'", ""),
        ("", ""),
    ],
)
def test_the_next_step(text: str, step: str) -> None:
    found = failures.next_step(failures.excerpt(text))
    assert found.startswith(step) if step else found == ""


def test_a_long_traceback_is_shown_from_its_beginning() -> None:
    frames = [f'  File "x.py", line {number}' for number in range(40)]
    journal = "\n".join([*("before" for _ in range(30)), failures.TRACEBACK, *frames, "ValueError: x", "one more"])
    assert failures.excerpt(journal) == [failures.TRACEBACK, *frames, "ValueError: x", "one more"]
    assert len(failures.excerpt(journal.replace("one more", "\n".join(frames * 2)))) == failures.SHOWN_AT_MOST
    assert failures.excerpt("\n".join(map(str, range(99)))) == [str(number) for number in range(79, 99)]
    assert failures.excerpt("") == []


def test_a_traceback_in_one_line_of_the_runner() -> None:
    journal = f'booty_runner: the start failed | {failures.TRACEBACK} |   File "x" | ValueError: a | b'
    assert failures.excerpt(f"a | b\n{journal}") == [
        "a | b",
        "booty_runner: the start failed",
        failures.TRACEBACK,
        '  File "x"',
        "ValueError: a",
        "b",
    ]


def test_the_traceback_of_a_group_of_exceptions_in_one_line() -> None:
    """The margin of the group is left out."""
    group = "  + Exception Group Traceback (most recent call last):"
    lines = [
        group,
        '  |   File "x"',
        "  | ExceptionGroup: two",
        "  +-+--- 1 ---",
        f"    | {failures.TRACEBACK}",
        "    | E",
    ]
    assert failures.unfolded(" | ".join(["failed", *lines])) == [
        *("failed", group, '  File "x"', "ExceptionGroup: two", "  +-+--- 1 ---", failures.TRACEBACK, "E")
    ]
    for line in ("a | b", '{"exception": "' + "\\n".join(lines) + '"}'):
        assert failures.unfolded(line) == [line]


def test_a_line_of_any_length_is_searched_in_no_time() -> None:
    began = time.process_time()
    lines = failures.excerpt("Error " * 200_000 + "\nlast")
    assert failures.next_step(lines) == ""
    assert time.process_time() - began < 5
    assert [len(line) for line in lines] == [failures.WIDTH, 4]
