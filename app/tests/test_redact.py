import time

import pytest

from booty.redact import Redactor, secrets_in

DSN = "https://0123456789abcdef@tracker.example/7"


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("ANYTHING", "eight-ch", {"eight-ch"}),
        ("ANYTHING", "seven-c", set()),
        ("DB_PASSWORD", "four", {"four"}),
        ("API_TOKEN", "abc", set()),
        ("FILE", "/etc/booty/some-file", set()),
        ("LANG", "de_DE.UTF-8", set()),
        ("LC_TIME", "de_DE.UTF-8", set()),
        ("STATE_DIRECTORY", "var/lib/booty", set()),
        ("BOOTY_LOG_FORMAT", "something", set()),
        ("SENTRY_ENVIRONMENT", "production", set()),
        ("SENTRY_DSN", DSN, {DSN, "0123456789abcdef"}),
        ("URL", "postgres://shop:pw12@db.example/shop", {"postgres://shop:pw12@db.example/shop", "pw12"}),
        ("URL", "postgres://shop@db.example/shop", {"postgres://shop@db.example/shop"}),
        ("URL", "https://token-of-16-chars@x.example", {"https://token-of-16-chars@x.example", "token-of-16-chars"}),
        ("URL", "redis://:a%2Fb%40c@cache.example", {"redis://:a%2Fb%40c@cache.example", "a%2Fb%40c", "a/b@c"}),
        ("CONNECT", "host=db password=hunter2 user=shop", {"host=db password=hunter2 user=shop", "hunter2"}),
        ("BAD_URL", "http://[half", {"http://[half"}),
    ],
)
def test_secrets_of_a_variable(name, value, found):
    secrets = secrets_in({name: value})
    assert found <= secrets
    # What else there is are other spellings of the same.
    assert bool(secrets) == bool(found)
    assert not {"shop", "db.example", "user=shop"} & secrets


def test_a_secret_is_found_in_every_spelling():
    value = 'pass "word"/\n-----second line-----'
    redactor = Redactor(secrets_in({"KEY_FILE": value}))
    texts = [
        value,
        repr(value),
        'pass \\"word\\"/\\n-----second line-----',
        "pass+%22word%22%2F%0A-----second+line-----",
    ]
    for text in [*texts, "pass%20%22word%22%2F%0A-----second%20line-----", "-----second line-----"]:
        assert "line" not in redactor.text(f"before {text} after")
        assert redactor.text(f"before {text} after").startswith("before")


def test_a_value_that_is_also_a_label_is_none():
    assert secrets_in({"SENTRY_RELEASE": "abcdefgh1234", "DEPLOYED": "abcdefgh1234"}) == frozenset()


def test_variables_named_as_no_secret():
    environment = {"REGION": "eu-central-1", "DB": "customers", "OTHER": "something", "BOOTY_NOT_SECRET": "REGION, DB"}
    assert secrets_in(environment) == {"something"}


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("", ""),
        ("nothing to see", "nothing to see"),
        ("it is hunter2hunter2, really", "it is [Filtered], really"),
        ("hunter2hunter2-and-more", "[Filtered]"),
        ("cannot connect to postgres://shop:other@db/shop", "cannot connect to postgres://shop:[Filtered]@db/shop"),
        ("404 for url: https://api.example/x?a=1&token=other.", "404 for url: https://api.example/x?[Filtered]"),
        (
            "Max retries exceeded with url: /x?token=other (Caused)",
            "Max retries exceeded with url: /x?[Filtered] (Caused)",
        ),
        ("really? yes=no", "really? yes=no"),
        (
            "1 error\na\n  Input [type=int_parsing, input_value={'a': 'other'}, input_type=dict]",
            "1 error\na\n  Input [type=int_parsing, input_value=[Filtered], input_type=dict]",
        ),
        (
            "1 validation error:\n  {'type': 'int', 'loc': ('a',), 'msg': 'no', 'input': {'p': 'other'}}\n\n  File",
            "1 validation error:\n  {'type': 'int', 'loc': ('a',), 'msg': 'no', 'input': [Filtered]\n\n  File",
        ),
        ("Command '['psql', '-pother']' returned non-zero exit", "Command [Filtered] returned non-zero exit"),
        ("[SQL: INSERT] [parameters: ('other', 1)] (more)", "[SQL: INSERT] [parameters: [Filtered]]"),
    ],
)
def test_text(text, redacted):
    assert Redactor(["hunter2hunter2", "hunter2hunter2-and-more", ""]).text(text) == redacted


@pytest.mark.parametrize(
    "part", ["://a:", "?a=", "input_value=", "{'type': 'loc': ", "[parameters: ", "Command '", "' Command '", "(://"]
)
def test_no_text_takes_long(part):
    text = f"'input': {part * (100_000 // len(part))}"
    began = time.process_time()
    Redactor(["hunter2hunter2"]).text(text)
    assert time.process_time() - began < 1


def test_value():
    redactor = Redactor(["hunter2hunter2"])
    value = {"a": ["hunter2hunter2", 1, None], "hunter2hunter2": {"b": ("hunter2hunter2!",)}}
    assert redactor.value(value) == {"a": ["[Filtered]", 1, None], "[Filtered]": {"b": ["[Filtered]!"]}}
    assert redactor.value(value, keys=False)["hunter2hunter2"] == {"b": ["[Filtered]!"]}
