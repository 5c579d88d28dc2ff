import base64
import json
import time

import pytest

from booty_runner.redact import FILTERED, MANY, Redactor, of_environment, secrets_in

DSN = "https://0123456789abcdef@tracker.example/7"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
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
def test_secrets_of_a_variable(name, value, expected):
    secrets = secrets_in({name: value})
    assert expected <= secrets
    # All other secrets are other spellings of the expected ones.
    assert bool(secrets) == bool(expected)
    assert not {"shop", "db.example", "user=shop"} & secrets


PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----"
ACCOUNT = {"type": "service_account", "private_key": PEM, "nested": [{"api_token": "t0k1"}], "pin": 1234}


@pytest.mark.parametrize(
    ("name", "value", "texts"),
    [
        ("CONFIG", json.dumps(ACCOUNT), ["hkiG9w0BAQEFAASC", "t0k1", json.dumps(PEM)[1:-1]]),
        ("CONFIG", base64.b64encode(json.dumps(ACCOUNT).encode()).decode(), ["hkiG9w0BAQEFAASC", "t0k1"]),
        ("CONFIG", json.dumps({"inner": json.dumps({"password": "hunter2"})}), ["hunter2"]),
        ("CONFIG", '["a-first-one", "a-second-one"]', ["a-first-one", "a-second-one"]),
        ("API_KEYS", '["ab12", {"of": "cd34"}]', ["ab12", "cd34"]),
        ("CODES", '{"pin_key": 123456, "n": 12345678901234567}', ["123456", "12345678901234567"]),
        ("CONFIG", "{'password': 'hunter2'}", ["hunter2"]),
        ("CONFIG", "{not JSON, password: hunter2}", ["hunter2"]),
        ("LIST", "first-one1,second-one2", ["first-one1", "second-one2"]),
        ("LIST", "first-one1; second-one2", ["first-one1", "second-one2"]),
        ("LIST", "first-one1\tsecond-one2 third-one3", ["first-one1", "second-one2", "third-one3"]),
        ("TOKENS", "abcd,efgh", ["abcd", "efgh"]),
        ("TOKENS", "abcdefgh ijklmnop", ["abcdefgh", "ijklmnop"]),
        ("TOKENS", "shop=abcd,other=efgh", ["abcd", "efgh"]),
        ("HEADERS", "authorization=Bearer ab-12-cd,x-api-key=ef34", ["ab-12-cd", "ef34"]),
        ("LOGIN", "shop:hunter2", ["hunter2", base64.b64encode(b"shop:hunter2").decode()]),
        ("LOGINS", "shop:hunter2,other:hunter3", ["hunter2", "hunter3"]),
        ("URL", "redis://:a%2Fb%40c@cache", ["a%2Fb%40c", "a/b@c", base64.b64encode(b":a/b@c").decode()]),
        ("URL", "postgres://shop:a/b#c?d@e@db/shop", ["a/b#c?d@e"]),
        ("URL", "shop:hunter2@db:5432/shop", ["hunter2"]),
        ("URLS", "redis://:pw12@one,redis://:pw34@two", ["pw12", "pw34"]),
        ("URL", "jdbc:postgresql://db/shop?user=shop&password=hunter2", ["hunter2"]),
        ("SIGNING_KEY", PEM.replace("\n", "\\n"), [PEM, PEM.replace("\n", "\\n"), "hkiG9w0BAQEFAASC"]),
        ("ANYTHING", PEM.replace("\n", "\\n"), ["hkiG9w0BAQEFAASC"]),
    ],
)
def test_parts_of_a_value_are_secrets_as_well(name, value, texts):
    redactor = Redactor(secrets_in({name: value}))
    for text in texts:
        assert redactor.text(f"before ({text}) after") == f"before ({FILTERED}) after"
    assert redactor.text("private key of shop, a service_account") == "private key of shop, a service_account"


PLAIN = [
    *("localhost", "production", "PostgreSQL", "disabled", "verify-full", "localhost:5432", "sqlite3"),
    *("db.internal", "db-1.shop.example.com:5432", "*.example.com", "d111111abcdef8.cloudfront.net", "cache.lan"),
    *("10.20.30.40", "10.20.30.40:8080", "10.20.0.0/16", "2001:db8::1", "[2001:db8::1]:443", "fd00::/8"),
    *("eu-central-1", "us-gov-west-1", "europe-west4-a", "northamerica-northeast1", "westeurope", "germanywestcentral"),
    *(
        "12345678",
        "-1001234567890",
        "3.14159265",
        "2026-11-28",
        "1024,2048,4096",
        "12:30:00",
        "8000-8999",
    ),
    *("/srv/data/uploads", "./data/shop.sqlite3", "~/.config/shop", "/usr/lib/python3.11"),
    *("https://api.example.com/v1/orders", "http://localhost:9000", "redis://cache:6379/0", "sqlite:////srv/shop.db"),
    *("postgres://db.internal/shop?sslmode=require", "https://one.example.com https://two.example.com"),
    *("Europe/Berlin", "one.example.com,two.example.com", "true,false,none"),
]


@pytest.mark.parametrize("value", PLAIN)
def test_what_is_plainly_no_secret_is_not_redacted_unless_its_name_says_so(value):
    assert secrets_in({"ANYTHING": value}, is_path=lambda _: False) == frozenset()
    assert value in secrets_in({"SOME_TOKEN": value}, is_path=lambda _: False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_HOST", "dbprimary"),
        ("HOSTS", "web1,web2"),
        ("DB_NAME", "customers"),
        ("DB_USER", "shop_owner"),
        ("S3_BUCKET", "my-shop-uploads"),
        ("DJANGO_SETTINGS_MODULE", "shop.settings.production"),
        ("app_environment", "integration"),
    ],
)
def test_names_that_say_what_is_no_secret(name, value):
    assert secrets_in({name: value}) == frozenset()


UNKNOWN = [
    *("hunter2hunter2", "Passw0rd!", "1234567890123456", "AKIAIOSFODNN7EXAMPLE"),
    *("4111-1111-1111-1111", "00000000-0000-4000-8000-000000000000", "SG.ab12cd34ef56.gh78ij90kl12", "a" * 3000),
    *("/9j4AAQSkZJRgABAQEASABI", "/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    *("https://hooks.example.com/services/T0000000/B0000000/XXXXabcd1234", "https://shop@db.example.com/shop"),
    *("https://hc.example.com/550e8400-e29b-41d4-a716-446655440000", "https://api.example.com/?sig=abcdef"),
    *(
        "https://api.example.com/?abcdefgh",
        "https://api.example.com/?token=production",
        "https://api.example.com/?password=12345678",
    ),
    *("http://[half", "https://api.example.com/#abcdefgh", "ops@example.com", "localhost,hunter2hunter2"),
]
WORDS = [
    "something",
    "qhzkvnwp",
    "deadbeefdeadbeef",
    "correct.horse.battery",
    "correcthorsebatterystaple",
    "xoxb-123-456-abcdef",
]


@pytest.mark.parametrize("value", [*UNKNOWN, *WORDS])
def test_what_looks_like_nothing_known_is_a_secret(value):
    assert value in secrets_in({"ANYTHING": value}, is_path=lambda _: False)


@pytest.mark.parametrize("value", UNKNOWN)
def test_what_is_not_made_of_words_is_a_secret_whatever_its_name(value):
    assert value in secrets_in({"DB_HOST": value}, is_path=lambda _: False)


def test_prose_is_a_secret_as_a_whole_alone():
    redactor = Redactor(secrets_in({"GREETING": "Welcome to the shop, everybody"}))
    assert redactor.text("Welcome to the shop, everybody") == FILTERED
    assert redactor.text("welcomes everybody") == "welcomes everybody"


def test_a_path_that_exists_is_no_secret(tmp_path, monkeypatch):
    path = tmp_path / "0123456789abcdef0123456789abcdef"
    monkeypatch.setenv("ANYTHING", str(path))
    assert of_environment().known(str(path)) == FILTERED
    path.touch()
    assert of_environment().known(str(path)) == str(path)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 131_000,
        "-" * 131_000,
        "key" * 40_000,
        "pass" * 30_000,
        "@" * 131_000,
        "x " * 60_000,
        "a=" * 50_000,
        "[" * 50_000,
        "a:" * 50_000,
        "://a:@" * 20_000,
        "/a" * 900,
        "us-" * 600,
    ],
)
def test_no_value_takes_long(value):
    began = time.process_time()
    secrets_in({"ANYTHING": value}, is_path=lambda _: False)
    assert time.process_time() - began < 1


def test_many_secrets_are_found_as_few_are():
    secrets = [f"secret-{number:04}" for number in range(2 * MANY)]
    redactor = Redactor([*secrets, "secret-0001-and-more"])
    text = f"{secrets[0]}, {secrets[-1]}, secret-0001-and-more, secret-, sec"
    assert redactor.known(text) == f"{FILTERED}, {FILTERED}, {FILTERED}, secret-, sec"
    began = time.process_time()
    for _ in range(1000):
        redactor.known("    def handler(self, request): return self.something(request)")
    assert time.process_time() - began < 0.5


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
    settings = {"GREETING": "good-morning-9", "MOTTO": "ever-onwards-8", "BOOTY_SETTINGS": "GREETING,MOTTO"}
    assert secrets_in({**environment, **settings}) == {"something"}


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
