"""Loading an app by its name, and comparing its code with the release in its label."""

import os
from contextlib import contextmanager

import booty
import pytest

from booty_runner import target
from booty_runner.settings import Refusal, current


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


def test_removed_code_is_a_flaw(module, monkeypatch):
    code = module("app = 1\n")
    label(monkeypatch, code.parent)
    target.load("shop:app")
    code.unlink()
    assert target.label_flaw() == f"the running code is gone from {code.parent}"


@contextmanager
def unreadable(path):
    """Make a directory that this process can't read, also if root runs the tests."""
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
