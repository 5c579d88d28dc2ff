"""Sentry for any app: with each SDK and each way to start it, the tracker gets each error once and complete."""

import json
import re
import textwrap

import pytest
from runner.tests.clients import ask
from runner.tests.conftest import ROOT
from runner.tests.test_telemetry import internal, place

SECRET = "hunter2-planted-secret"
# The oldest and newest SDK of each interface: /store/ and /envelope/, hubs and scopes.
SDKS = ["1.5.12", "1.45.1", "2.0.1", "2.75.0"]
EVERY = ["0.20.0", "0.20.3", "1.0.0", "1.20.0", "2.20.0", *SDKS]
OLD = pytest.mark.long

APP = """
import os
{imports}
DSN = os.environ.get("TEST_DSN", "")
{start}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        {lifespan}
        raise NotImplementedError("HTTP only")
    if scope["path"].startswith("/fail"):
        {before}
        os.environ["LATE"] = "hunter3-loaded-later"
        raise LookupError("no " + os.environ["PLANTED"] + " and " + os.environ["LATE"])
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"ok"}})
"""


@pytest.fixture
def serve(start, tcp, unix, tracker, tmp_path):
    """Start a service with an app of this code and these packages."""

    def serve(code, *requirements, app="shop:app", python_with=None, **settings):
        (tmp_path / "shop.py").write_text(code)
        return start(
            sockets=[tcp, unix],
            app=app,
            python=python_with(*requirements),
            **{
                "PYTHONPATH": f"{ROOT / 'runner/src'}:{tmp_path}",
                "SENTRY_DSN": tracker.dsn,
                "SENTRY_RELEASE": "abc",
                "SENTRY_ENVIRONMENT": "staging",
                "BOOTY_TELEMETRY_GATE": "true",
                "PLANTED": SECRET,
                **settings,
            },
        )

    return serve


def plain(start="", lifespan="", before="", imports="import sentry_sdk"):
    return APP.format(start=textwrap.dedent(start), lifespan=lifespan, before=before, imports=imports)


LABELS = 'release="9.9", environment="theirs"'
WAYS = {
    "not at all": plain(imports=""),
    "init": plain(f"sentry_sdk.init({LABELS})"),
    "init with a DSN": plain(f"sentry_sdk.init(DSN, {LABELS})"),
    "init with a dict": plain('sentry_sdk.init({"dsn": DSN, "release": "9.9"})'),
    "init twice": plain(f"sentry_sdk.init({LABELS}); sentry_sdk.init(dsn=DSN, {LABELS})"),
    "init without a DSN": plain('sentry_sdk.init(dsn="")'),
    "init in the lifespan": plain(lifespan=f"sentry_sdk.init({LABELS})"),
    "init in a request": plain(before=f"sentry_sdk.init({LABELS})"),
    "a client": plain(
        f"""
        client = sentry_sdk.Client(DSN, {LABELS})
        if hasattr(sentry_sdk, "get_global_scope"):
            sentry_sdk.get_global_scope().set_client(client)
        else:
            sentry_sdk.Hub.main.bind_client(client)
        """
    ),
    "a hub": plain(
        f"hub = sentry_sdk.Hub(sentry_sdk.Client(DSN, {LABELS}))",
        before='hub.capture_message("of the hub", "error")',
    ),
    "before_send": plain(
        """
        def before_send(event, hint):
            return {**event, "release": "8.8", "environment": "filtered", "extra": {"a": os.environ["PLANTED"]}}

        sentry_sdk.init(before_send=before_send)
        """
    ),
    "hardly any": plain("sentry_sdk.init(sample_rate=1e-9)"),
    "scopes": plain(
        "sentry_sdk.init()",
        before='sentry_sdk.set_tag("mine", os.environ["PLANTED"]); sentry_sdk.add_breadcrumb(message="m")',
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sdk", [pytest.param(sdk, marks=() if sdk == "1.45.1" else OLD) for sdk in EVERY])
def test_errors_of_any_client_arrive_once_under_this_label(serve, tcp, unix, tracker, python_with, sdk, way):
    service = serve(WAYS[way], f"sentry-sdk=={sdk}", python_with=python_with, TEST_DSN=tracker.dsn).ready()
    assert [event["message"] for event in tracker.events] == ["Booty release is being proven"]
    status = internal(unix, "/status")["telemetry"]
    for number in range(3):
        assert ask(tcp, f"/fail/{number}")[0] == 500
    service.stop()
    ended, stderr = service.wait()
    assert ended == 0, stderr
    errors = [event for event in tracker.events[1:] if "exception" in event]
    assert len(tracker.events[1:]) == {"hardly any": 0, "a hub": 6}.get(way, 3)
    texts = [error["exception"]["values"][-1]["value"] for error in errors]
    assert texts == ["no [Filtered] and [Filtered]"] * (3 * (way != "hardly any"))
    for event in tracker.events:
        assert (event["release"], event["environment"]) == ("abc", "staging")
        assert SECRET not in json.dumps(event)
        assert event["sdk"]["version"] == sdk
    for error in errors:
        assert error["transaction"] == "(no route)"
        assert error["request"]["method"] == "GET"
        assert re.fullmatch("[0-9a-f]{32}", error["tags"]["request_id"])
        frame = error["exception"]["values"][-1]["stacktrace"]["frames"][-1]
        assert frame["context_line"].strip().startswith("raise LookupError(")
        assert "vars" not in frame
        assert "sys.argv" not in error.get("extra", {})
    if way.startswith("init with a"):
        assert re.fullmatch(
            r"the app's client \(made in shop\.py:\d+, whose release.* the runner overrules\)", status["client"]
        )
    elif way == "not at all":
        assert status["client"] == "the runner's client"


def test_an_app_without_an_sdk_is_reported_by_the_private_one(serve, tcp, unix, tracker, python_with):
    service = serve(plain(imports=""), python_with=python_with).ready()
    assert ask(tcp, "/fail/1")[0] == 500
    service.stop()
    assert service.wait()[0] == 0
    _, error = tracker.events
    assert (error["release"], error["environment"], error["transaction"]) == ("abc", "staging", "(no route)")
    assert error["exception"]["values"][-1]["value"] == "no [Filtered] and [Filtered]"


def test_an_app_without_an_sdk_still_can_t_import_it(serve, tracker, python_with):
    service = serve(plain(), python_with=python_with)
    status, stderr = service.wait()
    assert status == 3
    assert "No module named 'sentry_sdk'" in stderr
    (event,) = tracker.events
    assert (event["transaction"], event["release"]) == ("import", "abc")


# --- the gate -------------------------------------------------------------------------------------------


@pytest.fixture
def refused(serve, python_with):
    """Start a service that refuses to serve, and return its last line."""

    def refused(code, *requirements, **settings):
        status, stderr = serve(code, *requirements, python_with=python_with, **settings).wait()
        assert status == 1, stderr
        assert "Traceback" not in stderr
        return stderr.splitlines()[-1].partition("ERROR   ")[2]

    return refused


@pytest.mark.parametrize("sdk", [pytest.param(sdk, marks=() if sdk == "1.5.12" else OLD) for sdk in SDKS])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (403, "refuses the key in SENTRY_DSN (403)"),
        (404, "has no such project as SENTRY_DSN names (404)"),
        (413, "finds the event too large (413)"),
        (429, "takes no more events for now (429)"),
        (500, "fails (500)"),
        (302, "does not accept the event (302)"),
    ],
)
def test_the_gate_names_the_answer_to_any_client(refused, tracker, sdk, answer, reason):
    tracker.status, tracker.headers = answer, {"location": tracker.url} if answer == 302 else {}
    line = refused(WAYS["init"], f"sentry-sdk=={sdk}")
    assert line == f"booty: refusing to serve: the tracker at {place(tracker.dsn)} {reason}"
    assert tracker.requests == []


@pytest.mark.parametrize("sdk", [pytest.param(sdk, marks=() if sdk == "1.5.12" else OLD) for sdk in SDKS])
@pytest.mark.parametrize(
    ("dsn", "reason"),
    [
        (
            "http://key@127.0.0.1:9/1",
            "127.0.0.1:9 is not reached: Connection refused; if only a proxy leads there, set HTTP_PROXY",
        ),
        ("http://key@tracker.invalid/1", "tracker.invalid:80 is not reached: "),
    ],
)
def test_the_gate_says_why_a_tracker_is_not_reached_by_any_client(refused, sdk, dsn, reason):
    assert reason in refused(WAYS["init"], f"sentry-sdk=={sdk}", SENTRY_DSN=dsn)


def test_the_gate_says_whose_dsn_it_is(refused, tracker):
    tracker.status = 403
    line = refused(
        WAYS["init with a DSN"], "sentry-sdk==2.75.0", SENTRY_DSN="http://key@127.0.0.1:9/1", TEST_DSN=tracker.dsn
    )
    assert line.endswith(f"the tracker at {place(tracker.dsn)} refuses the key in the app's own DSN (403)")


@pytest.mark.parametrize("environment", ["production", "Prod"])
def test_production_needs_the_variable_also_if_the_app_has_a_dsn(refused, tracker, environment):
    settings = {
        "SENTRY_DSN": "",
        "SENTRY_ENVIRONMENT": environment,
        "BOOTY_TELEMETRY_GATE": "false",
        "TEST_DSN": tracker.dsn,
    }
    line = refused('print("imported", flush=True)\n' + WAYS["init with a DSN"], "sentry-sdk==2.75.0", **settings)
    assert line == (
        f"booty: SENTRY_DSN is not set, and {environment} does not run without it: write it into secrets.env, also if"
        " the app has a DSN in its code"
    )
    assert tracker.events == []


def test_elsewhere_an_app_s_own_dsn_will_do(serve, tcp, unix, tracker, python_with):
    service = serve(
        WAYS["init with a DSN"], "sentry-sdk==1.45.1", python_with=python_with, SENTRY_DSN="", TEST_DSN=tracker.dsn
    ).ready()
    assert ask(tcp, "/fail/1")[0] == 500
    service.stop()
    assert service.wait()[0] == 0
    assert [event["release"] for event in tracker.events] == ["abc", "abc"]


FUNCTION = "sentry_sdk.init(transport=lambda event: None)"
REFUSED = {
    "transport": (
        FUNCTION,
        "has a transport of its own, so nobody can see whether errors arrive: leave out `transport`",
    ),
    "before_send": ("sentry_sdk.init(before_send=lambda event, hint: None)", "drops every error by its before_send"),
    "rate": ("sentry_sdk.init(sample_rate=0)", "drops every error by its sample_rate of 0"),
}


@pytest.mark.parametrize("sdk", [pytest.param(sdk, marks=() if sdk == "2.75.0" else OLD) for sdk in SDKS])
@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_the_gate_refuses_what_can_t_be_proven(refused, sdk, options, reason):
    line = refused(plain(options), f"sentry-sdk=={sdk}")
    assert f"the app's Sentry client (made in shop.py:5) {reason}" in line
    assert "app_telemetry_gate: false" in line


TAKEN_AWAY = """
if hasattr(sentry_sdk, "get_global_scope"):
    sentry_sdk.get_global_scope().set_client(None)
else:
    sentry_sdk.Hub.main.bind_client(None)
"""


@pytest.mark.parametrize("sdk", [pytest.param(sdk, marks=() if sdk == "2.75.0" else OLD) for sdk in SDKS])
def test_the_gate_refuses_an_app_without_a_client(refused, sdk):
    line = refused(plain(TAKEN_AWAY), f"sentry-sdk=={sdk}")
    assert line.startswith("booty: refusing to serve: the app has taken Sentry's client away, so no error would be")
    assert "SENTRY_DSN is not set" in refused(plain(imports=""), SENTRY_DSN="")


# --- messages, transactions and sessions ----------------------------------------------------------------


def test_transactions_sessions_and_logs_have_the_label_and_no_secret(serve, tcp, tracker, python_with):
    start = """
    sentry_sdk.init(
        release="9.9", environment="theirs", traces_sample_rate=1.0, auto_session_tracking=True, enable_logs=True,
        include_local_variables=True,
    )
    from sentry_sdk.integrations.asgi import SentryAsgiMiddleware
    """
    before = 'sentry_sdk.logger.error("log of " + os.environ["PLANTED"]); mine = os.environ["PLANTED"] + "!"'
    code = plain(start, before=before) + "\napp = SentryAsgiMiddleware(app)\n"
    service = serve(code, "sentry-sdk==2.75.0", python_with=python_with).ready()
    assert ask(tcp, f"/fail/{SECRET}?q={SECRET}")[0] == 500
    service.stop()
    assert service.wait()[0] == 0
    kinds = {item.type: item.get_bytes().decode() for item in tracker.items}
    assert kinds.keys() >= {"event", "transaction", "log", "sessions"}
    assert not [kind for kind, text in kinds.items() if SECRET in text]
    assert not [kind for kind, text in kinds.items() if "9.9" in text or "theirs" in text]
    assert json.loads(kinds["transaction"])["release"] == json.loads(kinds["event"])["release"] == "abc"
    assert json.loads(kinds["sessions"])["attrs"]["release"] == "abc"
    # The app itself asks for local variables.
    frame = json.loads(kinds["event"])["exception"]["values"][-1]["stacktrace"]["frames"][-1]
    assert frame["vars"]["mine"] == "'[Filtered]!'"


def test_an_error_that_an_sdk_without_its_own_check_reports_twice_arrives_once(serve, tcp, tracker, python_with):
    start = """
    sentry_sdk.init(default_integrations=False)
    from sentry_sdk.integrations.asgi import SentryAsgiMiddleware
    """
    code = plain(start) + "\napp = SentryAsgiMiddleware(app)\n"
    service = serve(code, "sentry-sdk==2.75.0", python_with=python_with).ready()
    assert ask(tcp, "/fail")[0] == 500
    service.stop()
    assert service.wait()[0] == 0
    assert len(tracker.events) == 2


# --- whole apps -----------------------------------------------------------------------------------------

DJANGO = """
        import os
        import sys
        import types
        from django.conf import settings
        {init}
        settings.configure(ROOT_URLCONF="shop", ALLOWED_HOSTS=["*"], SECRET_KEY="x" * 40)
        from django.core.asgi import get_asgi_application
        from django.http import HttpResponse
        from django.urls import include, path

        def fail(request, it):
            raise LookupError("no " + it)

        shop = types.ModuleType("shop_urls")
        shop.urlpatterns = [path("fail/<it>", fail)]
        urlpatterns = [path("health", lambda request: HttpResponse("ok")), path("shop/", include(shop))]
        app = get_asgi_application()
        """
WHOLE = {
    "starlette": (
        ["starlette"],
        """
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse
        from starlette.routing import Mount, Route
        {init}

        async def fail(request):
            raise LookupError("no " + request.path_params["it"])

        def health(request):
            return PlainTextResponse("ok")

        app = Starlette(routes=[Route("/health", health), Mount("/shop", routes=[Route("/fail/{{it}}", fail)])])
        """,
        "/fail/{it}",  # the SDK leaves out the prefix of a Mount
    ),
    "fastapi": (
        ["fastapi"],
        """
        from fastapi import APIRouter, FastAPI
        {init}
        app = FastAPI()
        router = APIRouter(prefix="/shop")

        @app.get("/health")
        def health():
            return "ok"

        @router.get("/fail/{{it}}")
        def fail(it: str):
            raise LookupError("no " + it)

        app.include_router(router)
        """,
        "/shop/fail/{it}",
    ),
    "django asgi": (["django"], DJANGO, "/shop/fail/{it}"),
    "litestar": (
        ["litestar"],
        """
        from litestar import Litestar, get
        {init}

        @get("/health")
        async def health() -> str:
            return "ok"

        @get("/shop/fail/{{it:str}}")
        async def fail(it: str) -> None:
            raise LookupError("no " + it)

        app = Litestar([health, fail])
        """,
        "shop.fail",
    ),
    "quart": (
        ["quart"],
        """
        from quart import Quart
        {init}
        app = Quart("shop")

        @app.get("/health")
        async def health():
            return "ok"

        @app.get("/shop/fail/<it>")
        async def fail(it):
            raise LookupError("no " + it)
        """,
        "fail",
    ),
    "flask": (
        ["flask"],
        """
        from flask import Flask
        {init}
        app = Flask("shop")

        @app.get("/health")
        def health():
            return "ok"

        @app.get("/shop/fail/<it>")
        def fail(it):
            raise LookupError("no " + it)
        """,
        "fail",
    ),
    "flask without blinker": (
        ["flask==1.1.4", "markupsafe==2.0.1"],
        """
        from flask import Flask
        {init}
        app = Flask("shop")
        app.config["PROPAGATE_EXCEPTIONS"] = True

        @app.route("/health")
        def health():
            return "ok"

        @app.route("/shop/fail/<it>")
        def fail(it):
            raise LookupError("no " + it)
        """,
        "(no route)",
    ),
    "django wsgi": (
        ["django"],
        DJANGO.replace("asgi", "wsgi"),
        "/shop/fail/{it}",
    ),
    "wsgi": (
        [],
        """
        {init}

        def app(environ, start_response):
            if environ["PATH_INFO"].startswith("/shop"):
                raise LookupError("no " + environ["PATH_INFO"].rpartition("/")[2])
            start_response("200 OK", [("content-type", "text/plain")])
            return [b"ok"]
        """,
        "(no route)",
    ),
}
INITS = {"alone": "", "init": "import sentry_sdk; sentry_sdk.init(release='9.9')"}


@pytest.mark.parametrize(
    "sdk",
    [pytest.param(sdk, marks=() if sdk in {"2.75.0", None} else OLD) for sdk in ["1.45.1", "2.0.1", "2.75.0", None]],
)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", WHOLE)
def test_an_error_of_a_whole_app_arrives_once_with_its_route(serve, tcp, tracker, python_with, kind, init, sdk):
    requirements, code, transaction = WHOLE[kind]
    if sdk is None and init == "init":
        pytest.skip("an app without an SDK can't start it")
    if (kind, init, sdk) == ("quart", "init", "1.45.1"):
        transaction = "(no route)"  # the init of this SDK does not enable its Quart integration
    code = textwrap.dedent(code).format(init=INITS[init])
    packages = [*requirements, *([f"sentry-sdk=={sdk}"] if sdk else [])]
    service = serve(code, *packages, python_with=python_with)
    if kind == "litestar" and sdk in {"1.45.1", "2.0.1"}:
        status, stderr = service.wait()
        assert status == 1
        assert "refusing to serve: litestar answers errors by itself, and Sentry's client has no integration" in stderr
        return
    service.ready()
    assert [event["message"] for event in tracker.events] == ["Booty release is being proven"]
    for _ in range(2):
        assert ask(tcp, f"/shop/fail/{SECRET}")[0] == 500
    service.stop()
    status, stderr = service.wait()
    assert status == 0, stderr
    errors = tracker.events[1:]
    assert [error["exception"]["values"][-1]["value"] for error in errors] == ["no [Filtered]"] * 2
    assert {error["release"] for error in errors} == {"abc"}
    assert {error["transaction"] for error in errors} == {transaction}
    shown = transaction if transaction[0] in "/(" else ""  # a function's name is not part of a URL
    assert {error["request"]["url"] for error in errors} == {f"http://test{shown}"}
    assert SECRET not in json.dumps(tracker.events)


def test_a_refusal_is_seen_also_if_the_app_configures_logging(refused):
    code = plain("sentry_sdk.init(sample_rate=0)") + (
        '\nimport logging.config\nlogging.config.dictConfig({"version": 1, "root": {"handlers": []}})\n'
    )
    assert "refusing to serve: the app's Sentry client" in refused(code, "sentry-sdk==2.75.0")
