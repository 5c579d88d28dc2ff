"""Generate nginx's configuration: one file for all, and one for each app."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Site:
    """The settings of the proxy for one app; the fields are the app's variables without `app_`.

    Attributes:
        name: the app's name.
        domains: the names that serve the app; the others of the app's names lead to the first one.
        domain_redirects: the names that are redirected to the first of `domains`.
        certificate: a folder on the host with fullchain.pem and privkey.pem; "" for ACME.
        acme_url: the directory of the CA.
        acme_email: the address that the CA may write to; "" for none.
        hsts_seconds: how long browsers must use HTTPS.
        body_max: the largest body of a request, such as 10m; 0 for no limit.
        client_connections: how many requests one address may have open at a time; 0 for no limit.
        trusted_proxies: networks of proxies in front of this one.
        maintenance_allow: addresses and networks that see the app during maintenance.
        maintenance_page: the text of an HTML page; "" for Booty's.
        peers: the other hosts that may be asked for a token under one of the names.
        own_key: the digest of the public key of one's own certificate, which names its files; "" for ACME.
    """

    name: str
    domains: list[str]
    domain_redirects: list[str] = field(default_factory=list)
    certificate: str = ""
    acme_url: str = ""
    acme_email: str = ""
    hsts_seconds: int = 86400
    body_max: str = "10m"
    client_connections: int = 200
    trusted_proxies: list[str] = field(default_factory=list)
    maintenance_allow: list[str] = field(default_factory=list)
    maintenance_page: str = ""
    peers: list[str] = field(default_factory=list)
    own_key: str = ""

    @property
    def names(self) -> list[str]:
        """All names of the app."""
        return [*self.domains, *self.domain_redirects]

    @property
    def variable(self) -> str:
        """The app's name as a part of a variable's name in nginx."""
        return self.name.replace("-", "_")

    def certificate_of(self, name: str) -> str:
        """Return the name of the files of a name's certificate."""
        return f"{self.name}-{self.own_key}" if self.own_key else name

    def text(self) -> str:
        """Return the site as JSON, as the host keeps it."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def parse(text: str) -> Site:
    """Return the site of a text that `Site.text` made, maybe in an earlier version with fewer fields."""
    fields: dict[str, Any] = json.loads(text)
    known = Site.__dataclass_fields__
    return Site(**{name: value for name, value in fields.items() if name in known})


@dataclass(frozen=True)
class System:
    """The facts of the host that affect the configuration: nginx's version, and whether the kernel has IPv6."""

    nginx: tuple[int, ...]
    ipv6: bool

    def listen(self, port: int, options: str = "") -> list[str]:
        """Return the directives that listen on a port."""
        addresses = [str(port), *([f"[::]:{port}"] if self.ipv6 else [])]
        return [f"listen {address}{options and f' {options}'};" for address in addresses]


def data(name: str) -> str:
    """Return a file of the package's folder `etc`."""
    return (pkgutil.get_data(__package__, f"etc/{name}") or b"").decode()


def indented(lines: Iterable[str], depth: int) -> str:
    """Return lines as a text, each indented by `depth` steps."""
    return "\n".join(f"{'    ' * depth}{line}" if line else "" for line in lines)


def main(system: System) -> str:
    """Return nginx.conf."""
    # From nginx 1.25 on, HTTP/2 is a directive of its own.
    separate = system.nginx >= (1, 25, 1)
    parts = {
        "@HTTP2@": "    http2 on;" if separate else "    # HTTP/2 is an option of the socket here.",
        "@LISTEN_HTTP_DEFAULT@": indented(system.listen(80, "default_server"), 2),
        "@LISTEN_HTTPS_DEFAULT@": indented(system.listen(443, f"ssl{'' if separate else ' http2'} default_server"), 2),
    }
    text = data("nginx.conf")
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text


def app(site: Site, system: System) -> str:
    """Return the file of an app."""
    first, variable = site.domains[0], site.variable
    lines = [
        f"# {site.name}: managed by Booty. Changes are lost at the next bootstrap or deploy.",
        "",
        f"upstream booty_{variable} {{",
        f"    server unix:/run/booty-http/{site.name}.sock;",
        "    # The app keeps idle connections longer than this at every moment, so none is closed while it is chosen.",
        "    keepalive 32;",
        "    keepalive_timeout 500ms;",
        "}",
        "# The name that the TLS handshake asked for.",
        f"map $ssl_server_name $booty_name_{variable} {{",
        '    default "";',
        *(f"    {name} {name};" for name in site.names),
        "}",
        "# Its certificate.",
        f"map $ssl_server_name $booty_cert_{variable} {{",
        "    default none;",
        *(f"    {name} {site.certificate_of(name)};" for name in site.names),
        "}",
        "# An HSTS header of the app's own wins.",
        f"map $upstream_http_strict_transport_security $booty_hsts_{variable} {{",
        '    default "";',
        f'    "" "max-age={site.hsts_seconds}";',
        "}",
        "# Who sees the app during maintenance.",
        f"geo $booty_closed_{variable} {{",
        "    default yes;",
        *(f'    {network} "";' for network in site.maintenance_allow),
        "}",
        "",
        *(line for name in site.names for line in plain(site, name, system)),
        *(line for name in site.domains for line in secure(site, name, system, serving(site))),
        *(
            line
            for name in site.domain_redirects
            for line in secure(site, name, system, redirecting(f"https://{first}$request_uri"))
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def plain(site: Site, name: str, system: System) -> list[str]:
    """Return the server of a name on port 80: it answers the CA, and redirects everything else."""
    target = site.domains[0] if name in site.domain_redirects else name
    ready = f"/var/lib/booty-acme/certs/{site.certificate_of(target)}-cert.pem"
    answer = [
        f"if (-f {ready}) {{ return 308 https://{target}$request_uri; }}",
        "default_type text/plain;",
        f'return 503 "{target} has no certificate yet. status.yml says why.\\n";',
    ]
    return [
        "server {",
        *indent(system.listen(80)),
        f"    server_name {name};",
        *indent(real_ip(site)),
        *indent(challenge(site)),
        "    error_page 418 = @last;",
        "    location / {",
        *indent(drain(), 2),
        *indent(answer, 2),
        "    }",
        "    location @last {",
        "        keepalive_timeout 0;",
        *indent(answer, 2),
        "    }",
        "}",
        "",
    ]


def challenge(site: Site) -> list[str]:
    """Return the location of the CA's challenges, which no redirect and no maintenance takes."""
    return [
        "location ^~ /.well-known/acme-challenge/ {",
        "    root /var/lib/booty-acme/www;",
        "    disable_symlinks on from=$document_root;",
        "    default_type text/plain;",
        f"    try_files $uri {'@peers' if site.peers else '=404'};",
        "}",
        *(PEERS if site.peers else []),
    ]


# This file tells a worker that its instance is being replaced.
DRAIN = "/run/booty-front/drain/$pid"
# A token of another host that has the same name. A host that is asked by another one answers for itself alone.
PEERS = [
    "location @peers {",
    "    if ($http_x_booty_peer) { return 404; }",
    "    limit_req zone=peers burst=20 nodelay;",
    "    proxy_set_header Host $host;",
    "    proxy_connect_timeout 2s;",
    "    proxy_read_timeout 8s;",
    "    proxy_pass http://unix:/run/booty-peers.sock;",
    "}",
]


def secure(site: Site, name: str, system: System, locations: list[str]) -> list[str]:
    """Return the server of a name on port 443."""
    variable = site.variable
    return [
        "server {",
        *indent(system.listen(443, "ssl")),
        f"    server_name {name};",
        f"    ssl_certificate /var/lib/booty-acme/certs/$booty_cert_{variable}-cert.pem;",
        f"    ssl_certificate_key /etc/booty-front/keys/$booty_cert_{variable}.key;",
        *indent(real_ip(site)),
        f"    add_header Strict-Transport-Security $booty_hsts_{variable} always;",
        "    # A connection for one name asks for another one.",
        f"    if ($booty_name_{variable} != {name}) {{ return 421; }}",
        "    error_page 418 = @last;",
        *indent(locations),
        "}",
        "",
    ]


def redirecting(target: str) -> list[str]:
    """Return the locations of a name that leads to another one."""
    return [
        "location / {",
        *indent(drain()),
        f"    return 308 {target};",
        "}",
        "location @last {",
        "    keepalive_timeout 0;",
        f"    return 308 {target};",
        "}",
    ]


def serving(site: Site) -> list[str]:
    """Return the locations of a name that serves the app."""
    variable, hsts = site.variable, f"add_header Strict-Transport-Security $booty_hsts_{site.variable} always;"
    pass_on = ["include proxy.conf;", f"proxy_pass http://booty_{variable};"]
    limit = f"limit_conn client {site.client_connections};"
    retry = [hsts, 'add_header Retry-After "60" always;', 'add_header Cache-Control "no-store" always;']
    large = f"A request to {site.name} may have a body of {site.body_max} (app_body_max)."
    return [
        f"client_max_body_size {site.body_max};",
        *([limit] if site.client_connections else []),
        "# Here and not in a location: nginx compares the size of a body before it looks into the location.",
        'set $booty_closed "";',
        f"if (-f /var/lib/booty-front/maintenance/{site.name}) {{ set $booty_closed $booty_closed_{variable}; }}",
        "# nginx comes here again for the page itself, as a GET.",
        'if ($uri ~ ^/\\.booty/closed_) { set $booty_closed ""; }',
        "if ($booty_closed) { return 503; }",
        "error_page 503 /.booty/closed_$booty_wants;",
        "error_page 413 @large_$booty_wants;",
        *static(site),
        "error_page 424 = @bare;",
        "location / {",
        # nginx's -e knows no sockets, so the socket's unit is looked for.
        f"    if (!-f /etc/systemd/system/{site.name}-http.socket) {{ return 424; }}",
        *indent(ways(site)),
        *indent(pass_on),
        "}",
        "# Before the first deploy behind the proxy, and after remove.yml.",
        "location @bare {",
        "    keepalive_timeout 0;",
        *indent(retry),
        "    default_type text/plain;",
        f"    return 503 '{site.name} is not deployed behind this proxy.\\n';",
        "}",
        "location @last {",
        "    keepalive_timeout 0;",
        *indent(pass_on),
        "}",
        "location = /.booty/closed_text {",
        "    internal;",
        "    client_max_body_size 0;",
        *indent(retry),
        "    default_type text/html;",
        "    root /etc/booty-front/pages;",
        f"    try_files /{site.name}.html =503;",
        "}",
        "location = /.booty/closed_json {",
        "    internal;",
        "    client_max_body_size 0;",
        *indent(retry),
        "    default_type application/json;",
        '    return 503 \'{"detail": "This service is closed for maintenance."}\\n\';',
        "}",
        "location @large_text {",
        "    default_type text/plain;",
        f"    return 413 '{large}\\n';",
        "}",
        "location @large_json {",
        "    default_type application/json;",
        f'    return 413 \'{{"detail": "{large}"}}\\n\';',
        "}",
    ]


def ways(site: Site) -> list[str]:
    """Return the lines that choose who answers: the app, or nginx with a file of app_static.

    The host program publishes the files, and marks the prefixes of the release that serves; see its module `static`.
    """
    marks = f"/var/lib/booty-front/static/{site.name}/current/marks"
    return [
        "set $booty_way app;",
        f"if (-f {marks}$booty_first_part) {{ set $booty_way files; }}",
        f"if (-f {marks}$booty_two_parts) {{ set $booty_way files; }}",
        f'if (-f {DRAIN}) {{ set $booty_way "$booty_way, last"; }}',
        "if ($booty_way = files) { return 419; }",
        'if ($booty_way = "files, last") { return 420; }',
        'if ($booty_way = "app, last") { return 418; }',
    ]


def static(site: Site) -> list[str]:
    """Return the locations of the files of app_static."""
    files = [
        f"root /var/lib/booty-front/static/{site.name}/current/files;",
        f"add_header Strict-Transport-Security $booty_hsts_{site.variable} always;",
        "include files.conf;",
    ]
    return [
        "error_page 419 = @files;",
        "error_page 420 = @files_last;",
        "location @files {",
        *indent(files),
        "}",
        "location @files_last {",
        "    keepalive_timeout 0;",
        *indent(files),
        "}",
    ]


def real_ip(site: Site) -> list[str]:
    """Return the directives that take the client's address from proxies in front of this one."""
    if not site.trusted_proxies:
        return []
    return [
        *(f"set_real_ip_from {network};" for network in site.trusted_proxies),
        "real_ip_header X-Forwarded-For;",
        "real_ip_recursive on;",
    ]


def drain() -> list[str]:
    """Return the line that ends a connection after its answer, in a worker of an instance that is being replaced."""
    return [f"if (-f {DRAIN}) {{ return 418; }}"]


def indent(lines: Iterable[str], depth: int = 1) -> list[str]:
    """Return lines, each indented by `depth` steps."""
    return [f"{'    ' * depth}{line}" for line in lines]
