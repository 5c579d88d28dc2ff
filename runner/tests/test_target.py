"""Loading an app by its name, and comparing its code with the release in its label."""

import json
import os
import sys
from contextlib import contextmanager

import booty
import pytest

from booty_runner import target
from booty_runner.settings import Refusal, Settings, current


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes the module `shop` of a release `abc`."""
    code = tmp_path / "abc" / "shop.py"
    code.parent.mkdir()
    monkeypatch.syspath_prepend(code.parent)
    monkeypatch.setattr(target, "code", None)
    monkeypatch.delitem(target.sys.modules, "shop", raising=False)

    def write(text):
        code.write_text(text)
        return code

    return write


def label(monkeypatch, directory, release="abc"):
    monkeypatch.setenv("BOOTY_RELEASE_DIR", str(directory))
    monkeypatch.setenv("SENTRY_RELEASE", release)
    current.cache_clear()


@pytest.mark.parametrize("name", ["shop:app", "shop:inner.app", "shop:make()"])
def test_an_app_is_an_attribute_or_what_a_function_returns(module, name):
    module("class inner:\n    app = 1\n\napp = 1\n\ndef make():\n    return 1\n")
    assert target.load(name) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shop", "shop is not the name of an app: write module:attribute or module:factory()"),
        ("shop:make(1)", "is not the name of an app: write"),
        ("nowhere.shop:app", "there is no module nowhere, which nowhere.shop:app names"),
        ("shop.web:app", "there is no module shop.web, which shop.web:app names"),
        ("shop:none", "shop:none does not exist: module 'shop' has no attribute 'none'"),
    ],
)
def test_a_missing_module_or_attribute_is_refused(module, name, words):
    module("")
    with pytest.raises(Refusal) as caught:
        target.load(name)
    assert words in str(caught.value)


def test_a_module_that_lacks_another_one_is_no_refusal(module):
    module("import no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        target.load("shop:app")


def test_label_must_fit_the_running_code(module, monkeypatch, tmp_path):
    code = module("app = 1\n")
    link = tmp_path / "current"
    link.symlink_to(code.parent)
    for directory in (code.parent, link):
        label(monkeypatch, directory)
        assert target.load("shop:app") == 1
        assert target.label_flaw() is None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for directory, release, flaw in [
        (code.parent, "other", "the directory is named abc, SENTRY_RELEASE is other"),
        (code.parent, "", "the directory is named abc, SENTRY_RELEASE is not set"),
        (elsewhere, "elsewhere", f"the running code is not in {elsewhere} but in {code.parent}"),
        ("/nowhere", "abc", "the running code is not in /nowhere but in "),
    ]:
        label(monkeypatch, directory, release)
        assert target.label_flaw().startswith(flaw)
        with pytest.raises(Refusal, match="BOOTY_RELEASE_DIR must be the directory that holds the running code"):
            target.load("shop:app")


def test_the_code_may_be_a_locked_dependency(module, monkeypatch, tmp_path):
    """The app may be a dependency of its repository. Then it lies in a layer that the release's manifest names."""
    release = tmp_path / "opt/shop/releases/def"
    release.mkdir(parents=True)
    layers = tmp_path / "opt/shop/layers"
    layers.mkdir()
    (layers / "l1").symlink_to(module("app = 1\n").parent)
    label(monkeypatch, release, "def")
    monkeypatch.setattr(sys, "prefix", str(release / "venv"))
    with pytest.raises(Refusal, match="the running code is not in"):
        target.load("shop:app")
    for layer, words in (("l1", None), ("l2", "the running code is not in")):
        manifest = {"release": "def", "contract": 3, "path": ".", "layer": layer}
        (release / "release.json").write_text(json.dumps(manifest))
        assert (target.label_flaw() or "").startswith(words or "")
        assert bool(target.label_flaw()) == bool(words)


def test_removed_code_is_a_flaw(module, monkeypatch):
    code = module("app = 1\n")
    label(monkeypatch, code.parent)
    target.load("shop:app")
    code.unlink()
    assert target.label_flaw() == f"the running code is gone from {code.parent}"


@contextmanager
def unreadable(path):
    """Make a directory that this process can't read, even if root runs the tests."""
    path.chmod(0)
    os.seteuid(65534 if os.getuid() == 0 else os.getuid())
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        path.chmod(0o700)


def test_a_release_that_can_not_be_read(module, monkeypatch):
    code = module("app = 1\n")
    label(monkeypatch, code.parent)
    target.load("shop:app")
    with unreadable(code.parent):
        assert target.label_flaw() == f"{code.parent} can't be read: Permission denied"
    assert target.label_flaw() is None


def test_without_a_release_there_is_nothing_to_compare():
    assert target.load("booty:__version__") == booty.__version__
    assert target.label_flaw() is None


# --- what kind of app it is -----------------------------------------------------------------------------

KINDS = """
import functools
from aiohttp.web import Application
from tornado.web import Tornado

async def asgi(scope, receive, send): ...
def asgi2(scope): ...
def wsgi(environ, start_response): ...
def plain(scope, receive, send): return asgi(scope, receive, send)
def make(): return wsgi
def takes(config): return wsgi
def many(*args): ...
def five(a, b, c, d, e): ...
async def make_async(): return wsgi

class Asgi:
    async def __call__(self, scope, receive, send): ...
class Wsgi:
    def __call__(self, environ, start_response, extra=None): ...
class Asgi2:
    def __init__(self, scope): ...
class Slot:
    __slots__ = ("__call__",)
    def __init__(self, call):
        self.__call__ = call
@functools.wraps(wsgi)
def wrapped(*args, **kwargs): ...

asgi_object, wsgi_object, part = Asgi(), Wsgi(), functools.partial(asgi)
slot, slot2, wsgi_slot = Slot(asgi), Slot(asgi2), Slot(wsgi)
aiohttp, tornado, settings = Application(), Tornado(), {}
"""


@pytest.fixture
def kinds(module, tmp_path, monkeypatch):
    module(KINDS)
    for name, text in (
        ("aiohttp", "class Application:\n    def __call__(self): ..."),
        ("tornado", "class Tornado: ..."),
    ):
        package = tmp_path / "abc" / name
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "web.py").write_text(text)
        for loaded in (name, f"{name}.web"):
            monkeypatch.delitem(target.sys.modules, loaded, raising=False)
    return lambda name: target.adapt(target.load(f"shop:{name}"), f"shop:{name}", Settings())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("asgi", "function"), ("plain", "function"), ("part", "partial"), ("asgi_object", "Asgi"),
        ("slot", "Slot"), ("slot2", "_Asgi2"), ("wsgi_slot", "WsgiApp"), ("asgi2", "_Asgi2"), ("Asgi2", "_Asgi2"),
        ("wsgi", "WsgiApp"), ("wrapped", "WsgiApp"), ("many", "WsgiApp"), ("wsgi_object", "WsgiApp"),
        ("make()", "WsgiApp"),
    ],
)  # fmt: skip
def test_the_kind_of_an_app_is_seen_from_the_object(kinds, name, kind):
    assert type(kinds(name)).__name__ == kind


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "make",
            "shop:make is a function, and no ASGI or WSGI app, but takes no arguments: if it returns the "
            "app, write shop:make()",
        ),
        (
            "Wsgi",
            "shop:Wsgi is a class, and no ASGI or WSGI app, but takes no arguments: if it returns the app, "
            "write shop:Wsgi()",
        ),
        (
            "takes",
            "shop:takes is a function, and no ASGI or WSGI app, but takes the argument config: write a "
            "function without arguments that calls it",
        ),
        ("five", "shop:five is a function, and no ASGI or WSGI app: it takes 5 arguments"),
        (
            "make_async()",
            "shop:make_async() calls an async function: write a function that is not async, or name the app "
            "itself",
        ),
        (
            "aiohttp",
            "shop:aiohttp is an object of the type Application, and no ASGI or WSGI app: aiohttp serves by "
            "itself, which Booty does not support",
        ),
        (
            "tornado",
            "shop:tornado is an object of the type Tornado, and no ASGI or WSGI app: Tornado serves by "
            "itself, which Booty does not support",
        ),
        (
            "settings",
            "shop:settings is an object of the type dict, and no ASGI or WSGI app: write module:attribute of "
            "an app, or module:factory() of a function that returns one",
        ),
        (
            "functools",
            "shop:functools is a module, and no ASGI or WSGI app: write module:attribute of an app, or "
            "module:factory() of a function that returns one",
        ),
    ],
)  # fmt: skip
def test_what_is_no_app_is_refused_in_one_sentence(kinds, name, line):
    with pytest.raises(Refusal) as caught:
        kinds(name)
    assert str(caught.value) == line
