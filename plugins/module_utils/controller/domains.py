"""The names that an app is served under: which are domains, and which of them can't be served together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

# A CA issues five certificates a week for the same name, and each host has one of its own.
MOST_HOSTS = 5


def normal(name: str) -> str:
    """Return a domain as it is written in certificates: in lower case, without a final dot, in ASCII."""
    return name.lower().removesuffix(".").encode("idna").decode()


def is_domain(value: str) -> bool:
    """Tell whether a text is a domain that can have a certificate."""
    try:
        name = normal(value)
    except UnicodeError:
        return False
    label = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    return len(name) <= 253 and bool(re.fullmatch(rf"({label}\.)+(?![0-9]+$){label}", name))


def flaws(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a problem of a host's variables together: the variable, and the rest of the sentence."""
    domains = [*map(normal, options.get("app_domains") or [])]
    redirects = [*map(normal, options.get("app_domain_redirects") or [])]
    if redirects and not domains:
        yield "app_domain_redirects", "leads to the first of app_domains, which is empty: write app_domains too."
    for name, count in Counter(domains + redirects).items():
        if count > 1:
            both = name in domains and name in redirects
            where = "is in app_domains too: a name serves or is redirected" if both else f"has {name} twice"
            variable = "app_domain_redirects" if name in redirects else "app_domains"
            yield variable, f"{f'has {name}, which ' if both else ''}{where}. Remove one."


def crowded(options: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield a problem if more hosts than a CA issues certificates for have one name; `options` are by host."""
    named: dict[str, list[str]] = {}
    for host, values in options.items():
        for name in [] if values.get("app_certificate") else values.get("app_domains") or []:
            named.setdefault(normal(name), []).append(host)
    for name, hosts in named.items():
        if len(hosts) > MOST_HOSTS:
            yield (
                f"app_domains: {len(hosts)} hosts have {name}, and a CA issues {MOST_HOSTS} certificates a week for one"
                " name. Put a load balancer in front, or write app_certificate, one certificate that all hosts share."
            )
