"""The proxy without a host: nginx's files, refused variables, what a CA says, and who may be asked for a token."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
from ansible.plugins.filter.core import FilterModule
from ansible_collections.booty.deploy.plugins.module_utils.controller import domains, proxy, variables
from booty_host.app import App
from booty_proxy import apply, certificates, config, firewall, peers
from booty_proxy.config import Site, System
from booty_proxy.paths import Paths

from tests.conftest import ROOT

BOOKWORM, TRIXIE = System((1, 22, 1), ipv6=True), System((1, 26, 3), ipv6=True)
SHOP = Site("my-shop", ["shop.example.com", "b.example.com"], ["www.example.com"], acme_url="https://ca/dir")


def problems(**values: Any) -> list[str]:
    """Return the messages about the variables of one host."""
    collected = variables.Problems(["web1"])
    typed = variables.typed(values, "web1", collected)
    for name, rest in domains.flaws(typed):
        collected.add(name, rest, "web1")
    return [*collected] or [*domains.crowded({"web1": typed})]


@pytest.mark.parametrize(
    "name",
    [
        *("https://shop.example.com", "shop.example.com/shop", "shop.example.com:443", "*.example.com", "example"),
        *("192.0.2.7", "2001:db8::1", "shop..example.com", "-shop.example.com", "shop-.example.com"),
        *("shop_1.example.com", ".example.com", "localhost", f"{'a' * 64}.example.com", f"{'a.' * 130}com"),
        *("user@example.com", "sh op.example.com"),
        *("shop.example.com;", "$host.example.com", "shop.example.com {", "1.2.3.4.5", "."),
    ],
)  # fmt: skip
def test_what_is_no_domain_is_refused(name: str) -> None:
    (message,) = problems(app_domains=[name])
    assert message.startswith("app_domains is ["), message
    assert "write for each name a domain such as shop.example.com" in message


@pytest.mark.parametrize(
    ("name", "ascii_name"),
    [
        ("Shop.Example.COM", "shop.example.com"),
        ("shop.example.com.", "shop.example.com"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("a-b.c1.example.co.uk", "a-b.c1.example.co.uk"),
    ],
)
def test_a_name_is_written_as_certificates_have_it(name: str, ascii_name: str) -> None:
    assert problems(app_domains=[name]) == []
    assert domains.normal(name) == ascii_name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"app_domains": ["a.example.com", "A.example.com."]}, "app_domains has a.example.com twice. Remove one."),
        (
            {"app_domains": ["a.example.com"], "app_domain_redirects": ["A.example.com"]},
            "app_domain_redirects has a.example.com, which is in app_domains too: a name serves or is redirected."
            " Remove one.",
        ),
        (
            {"app_domain_redirects": ["a.example.com"]},
            "app_domain_redirects leads to the first of app_domains, which is empty: write app_domains too.",
        ),
        (
            {"app_body_max": "10 MB"},
            'app_body_max is "10 MB": write a size such as 10m, 512k or 2g, or 0 for no limit.',
        ),
        (
            {"app_certificate": "tls"},
            'app_certificate is "tls": write the path of a folder on the host, such as /etc/shop-tls, or nothing for'
            " ACME.",
        ),
        (
            {"app_acme_url": "http://ca/dir"},
            'app_acme_url is "http://ca/dir": write the address of the CA\'s directory, such as'
            " https://acme-v02.api.letsencrypt.org/directory.",
        ),
        (
            {"app_acme_email": "me"},
            'app_acme_email is "me": write an address such as ops@example.com, or nothing.',
        ),
        (
            {"app_maintenance_allow": ["office"]},
            'app_maintenance_allow is ["office"]: write addresses or networks, such as 203.0.113.7 or 10.0.0.0/8.',
        ),
    ],
)
def test_bad_variables_are_refused_in_one_sentence(values: dict[str, Any], message: str) -> None:
    assert problems(**values) == [message]


def test_more_hosts_than_a_ca_issues_for_are_refused() -> None:
    def crowded(count: int, **more: Any) -> list[str]:
        return [*domains.crowded({f"web{n}": {"app_domains": ["shop.example.com"], **more} for n in range(count)})]

    assert crowded(5) == []
    assert "6 hosts have shop.example.com" in crowded(6)[0]
    assert crowded(6, app_certificate="/etc/tls") == []


def test_names_of_other_units_are_no_apps() -> None:
    for name in ("shop-http", "booty-front", "booty-acme", "booty-peers", "booty-http"):
        with pytest.raises(ValueError, match="a name of at most 31"):
            variables.convert("app_name", name)


def blocks(text: str) -> list[str]:
    """Return the `server` blocks of a configuration."""
    return re.findall(r"^server \{\n.*?^\}", text, re.MULTILINE | re.DOTALL)


def server(text: str, name: str, port: int) -> str:
    """Return the block of a name on a port."""
    (block,) = [b for b in blocks(text) if f"server_name {name};" in b and re.search(rf"listen {port}\b", b)]
    return block


def test_each_name_has_a_server_on_both_ports() -> None:
    text = config.app(SHOP, BOOKWORM)
    assert len(blocks(text)) == 6
    for name in SHOP.names:
        assert "location ^~ /.well-known/acme-challenge/" in server(text, name, 80)
        assert f"!= {name}) {{ return 421; }}" in server(text, name, 443)
    assert "return 308 https://shop.example.com$request_uri" in server(text, "www.example.com", 80)
    assert "return 308 https://shop.example.com$request_uri" in server(text, "www.example.com", 443)
    assert "proxy_pass" not in server(text, "www.example.com", 443)


def test_without_a_certificate_port_80_redirects_nobody() -> None:
    plain = server(config.app(SHOP, BOOKWORM), "b.example.com", 80)
    assert "if (-f /var/lib/booty-acme/certs/b.example.com-cert.pem) { return 308 https://b.example.com" in plain
    assert 'return 503 "b.example.com has no certificate yet' in plain


def test_an_app_without_a_release_is_said_in_one_sentence() -> None:
    secure = server(config.app(SHOP, BOOKWORM), "shop.example.com", 443)
    assert "if (!-f /etc/systemd/system/my-shop-http.socket) { return 424; }" in secure
    assert "return 503 'my-shop is not deployed behind this proxy.\\n';" in secure


def test_the_run_names_the_domains_after_a_change() -> None:
    ends = {"shop.example.com": "2027-02-26", "b.example.com": "2027-02-27"}
    answer: dict[str, Any] = {"changed": True, "notices": ["c.example.com has no address."], "until": ends}
    assert proxy.sentences(answer) == [
        "HTTPS for shop.example.com (certificate until 2027-02-26), b.example.com (certificate until 2027-02-27)",
        "c.example.com has no address.",
    ]
    assert proxy.sentences({**answer, "changed": False}) == ["c.example.com has no address."]
    assert proxy.sentences({"changed": True, "until": {}}) == []


def test_http2_is_written_as_each_nginx_wants_it() -> None:
    assert "listen 443 ssl http2 default_server;" in config.main(BOOKWORM)
    assert "http2 on;" not in config.main(BOOKWORM)
    assert "listen 443 ssl default_server;" in config.main(TRIXIE)
    assert "http2 on;" in config.main(TRIXIE)


def test_a_kernel_without_ipv6_has_no_ipv6_sockets() -> None:
    without = System((1, 22, 1), ipv6=False)
    assert "[::]" not in config.main(without) + config.app(SHOP, without)
    files = apply.texts(Paths(Path("/")), {"my-shop": SHOP}, without)
    assert (
        "ListenStream=0.0.0.0:80\nListenStream=0.0.0.0:443\n" in files[Path("/etc/systemd/system/booty-front.socket")]
    )
    assert "NGINX=3;4;\n" in files[Path("/etc/systemd/system/booty-front@.service")]


def test_a_certificate_of_ones_own_has_one_pair_of_files_for_all_names() -> None:
    own = Site("shop", ["a.example.com"], ["b.example.com"], certificate="/etc/tls", own_key="0123456789ab")
    text = config.app(own, BOOKWORM)
    assert "    a.example.com shop-0123456789ab;" in text
    assert "    b.example.com shop-0123456789ab;" in text


def test_every_name_serves_the_files_of_its_release() -> None:
    serves, leads = (server(config.app(SHOP, BOOKWORM), name, 443) for name in ("b.example.com", "www.example.com"))
    top = "/var/lib/booty-front/static/my-shop/current"
    assert f"if (-f {top}/marks$booty_first_part) {{ set $booty_way files; }}" in serves
    assert serves.count(f"root {top}/files;") == serves.count("include files.conf;") == 2
    assert f"{App('my-shop').static}/current" == top
    assert "static" not in leads


@pytest.mark.parametrize(
    ("path", "is_hashed"),
    [
        *((f"/static/{name}", True) for name in ("main.8e2f7c1a.js", "css/base.0a1b2c3d4e5f.css", "x-8e2f7c1a.js.map")),
        *((f"/assets/{name}", True) for name in ("index-BxK3lQ9a.js", "vendor-5W7X3YZA.css", "a.b-D_3x-Qzz.mjs")),
        ("/_app/immutable/chunks/entry.js", True),
        *((f"/static/{name}", False) for name in ("style.css", "jq-3.7.1.min.js", "my-settings.js", "a-feedbeef.js")),
        *((f"/static/{name}", False) for name in ("a-20240101.pdf", "logo-original.png", "a-Version2.png", "8e2f")),
        *((f"/static/{name}", False) for name in ("main.8e2f7c1a/style.css", "app-1.0.0-beta.js", "immutable.js")),
    ],
)  # fmt: skip
def test_only_plain_hashes_are_cached_for_ever(path: str, is_hashed: bool) -> None:
    (block,) = re.findall(r"map \$uri \$booty_caching \{\n(.*?)\}\n", config.main(TRIXIE), re.DOTALL)
    patterns = re.findall(r'^ +"~(.+)" "public, max-age=31536000, immutable";$|^ +"~(.+?)" ', block, re.MULTILINE)
    assert len(patterns) == 3
    assert any(re.search(one or other, path, re.ASCII) for one, other in patterns) == is_hashed


@pytest.mark.parametrize("header", ["Forwarded", "X-Real-IP", "X-Forwarded-Prefix", "X-Booty-Ask", "X-Rewrite-URL"])
def test_what_a_client_says_of_itself_is_dropped(header: str) -> None:
    assert f'proxy_set_header {header} "";' in config.data("proxy.conf")


def test_a_site_survives_the_way_to_the_host() -> None:
    assert config.parse(SHOP.text()) == SHOP
    newer = json.dumps({**json.loads(SHOP.text()), "of_a_later_version": 1})
    assert config.parse(newer) == SHOP


def test_only_a_change_that_needs_a_process_changes_the_digest() -> None:
    host = Paths(Path("/"))

    def digest(site: Site) -> str:
        return apply.digest(host, apply.texts(host, {site.name: site}, BOOKWORM))

    fields = json.loads(SHOP.text())
    assert digest(config.parse(json.dumps({**fields, "maintenance_page": "<p>closed"}))) == digest(SHOP)
    assert digest(config.parse(json.dumps({**fields, "body_max": "20m"}))) != digest(SHOP)
    assert digest(config.parse(json.dumps({**fields, "domains": ["shop.example.com"]}))) != digest(SHOP)


def test_the_controller_sends_what_the_host_takes() -> None:
    options: dict[str, Any] = {f"app_{name}": [] for name in proxy.FIELDS} | {
        "app_name": "shop",
        "app_maintenance_page": "",
    }
    options["app_domains"] = ["Shop.example.com"]
    fields = proxy.site(options, ["192.0.2.2"])
    site = config.parse(json.dumps(fields))
    assert (site.name, site.domains, site.peers) == ("shop", ["shop.example.com"], ["192.0.2.2"])
    assert {*fields} <= {*Site.__dataclass_fields__}


def test_the_words_of_the_ca_and_the_next_step() -> None:
    output = """uacme: the server reported the following error:
{
    "type": "urn:ietf:params:acme:error:rateLimited",
    "detail": "too many certificates already issued for \\"example.com\\"",
    "status": 429
}"""
    assert certificates.reason(output) == (
        'The CA says rateLimited: too many certificates already issued for "example.com". The CA issues no more for'
        " now. Nothing has to be done: the timer asks again."
    )
    away = "uacme: fetching directory\nuacme: failed to fetch directory at https://ca/dir: Connection refused"
    assert "Connection refused" in certificates.reason(away)


# Of RFC 9773, section 4.1, as OpenSSL 3 and OpenSSL 1.1 print it.
KEY_ID = "69:88:5B:6B:87:46:40:41:E1:B3:7B:84:7B:A0:AE:2C:DE:01:C8:D4"


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        (f"serial=87654321\nX509v3 Authority Key Identifier: \n    {KEY_ID}\n", "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"),
        (f"serial=7654\nX509v3 Authority Key Identifier: \n    keyid:{KEY_ID}\n", "aYhba4dGQEHhs3uEe6CuLN4ByNQ.dlQ"),
        ("serial=87654321\nNo extensions matched\n", ""),
    ],
)
def test_the_cas_identifier_of_a_certificate(text: str, identifier: str) -> None:
    assert certificates.identifier(text) == identifier


@pytest.mark.parametrize(
    ("window", "begun"),
    [
        ({"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}, True),
        ({"start": "2020-01-01T00:00:00.928718747Z", "end": "2020-01-01T00:30:00.928718747+02:00"}, False),
        ({"start": "2020-01-01T00:00:00.928718747+02:00", "end": "2020-01-01T00:30:00.928718747Z"}, True),
        ({"start": "2120-01-01T00:00:00Z", "end": "2120-01-02T00:00:00Z"}, False),
        ({"start": "2020-01-02T00:00:00Z", "end": "2020-01-01T00:00:00Z"}, False),
        ({"start": "2020-01-01T00:00:00Z", "end": "soon"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_when_the_ca_wants_a_certificate_renewed(
    tmp_path: Path, window: dict[str, str] | None, begun: bool | None
) -> None:
    """An error is no answer, and renews nothing."""
    directory = {"renewalInfo": f"{tmp_path.as_uri()}/info/"} if window is not None else {"newOrder": "x"}
    (tmp_path / "directory").write_text(json.dumps(directory))
    (tmp_path / "info").mkdir()
    (tmp_path / "info/a.b").write_text(json.dumps({"suggestedWindow": window}))
    if begun is None:
        with pytest.raises((ValueError, KeyError)):
            certificates.begun((tmp_path / "directory").as_uri(), "a.b")
    else:
        assert certificates.begun((tmp_path / "directory").as_uri(), "a.b") is begun


@pytest.mark.parametrize(
    ("detail", "words"),
    [
        (r"bad \q escape", r"bad \q escape"),
        ("two\nlines", "two lines"),
        (r"two\nlines", "two lines"),
        ("x" * 9999, "x" * 1000),
    ],
)
def test_a_ca_that_writes_anything_stops_no_other_certificate(detail: str, words: str) -> None:
    output = f'"type": "urn:ietf:params:acme:error:dns", "detail": "{detail}"'
    assert certificates.reason(output).startswith(f"The CA says dns: {words}. The CA finds no address")


@pytest.mark.parametrize(
    "head",
    [
        "POST /.well-known/acme-challenge/abc HTTP/1.0\r\nHost: shop.example.com\r\n\r\n",
        "GET /.well-known/acme-challenge/../../etc/passwd HTTP/1.0\r\nHost: shop.example.com\r\n\r\n",
        "GET /other HTTP/1.0\r\nHost: shop.example.com\r\n\r\n",
        "GET /.well-known/acme-challenge/abc HTTP/1.0\r\nHost: other.example.com\r\n\r\n",
        "",
    ],
)
def test_peers_are_asked_for_tokens_of_their_names_alone(head: str) -> None:
    site = Site("shop", ["shop.example.com"], peers=["192.0.2.1"])
    assert peers.find(head, {"shop": site}) == peers.MISSING


def ruleset(moving: bool, others: dict[str, Any]) -> str:
    """Return the ruleset that a bootstrap writes for the app booty on port 8000, which moves or has moved."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters.update(FilterModule().filters())
    ports = [80, 443, *([8000] if moving else [])]
    apps = {**others, "booty": {"tcp": ports, "udp": [], "untracked": ports}}
    tcp, udp, untracked = (
        sorted({port for app in apps.values() for port in app[kind]}) for kind in ("tcp", "udp", "untracked")
    )
    variables = {"__host_tcp_ports": [22, *tcp], "__host_udp_ports": udp, "__host_untracked_ports": untracked}
    return environment.from_string((ROOT / "roles/host/templates/firewall.nft.j2").read_text()).render(
        ansible_managed="Managed", __host_app="booty", __host_has_proxy=True, __host_moving=moving, app_port=8000,
        __host_app_ports=apps, **variables,
    )  # fmt: skip


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"blog": {"tcp": [8002], "udp": [53], "untracked": [8002]}},
        {"blog": {"tcp": [8000, 8002], "udp": [], "untracked": []}},
        {
            "blog": {"tcp": [], "udp": [], "untracked": []},
            "booty-two": {"tcp": [18000], "udp": [], "untracked": [8000]},
        },
    ],
)
def test_the_port_of_an_app_that_has_moved_is_closed_as_a_bootstrap_would(others: dict[str, Any]) -> None:
    before = ruleset(True, others)
    assert firewall.moving(before, "booty") == 8000
    assert firewall.moving(before, "blog") == 0
    assert firewall.closed(before, "booty") == ruleset(False, others)
    assert firewall.moving(ruleset(False, others), "booty") == 0
