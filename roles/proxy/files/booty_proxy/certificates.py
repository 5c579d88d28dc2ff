"""Certificates: those of a CA that speaks ACME, and one's own, which somebody else places on the host."""

from __future__ import annotations

import base64
import grp
import hashlib
import http.client
import json
import os
import random
import re
import secrets
import shutil
import socket
import ssl
import time
import urllib.request
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from booty_host import HostError
from booty_host.files import read, write_atomically
from booty_host.health import within
from booty_host.processes import JOURNALCTL, run, run_tail

from booty_proxy import paths
from booty_proxy.config import Site
from booty_proxy.host import checked
from booty_proxy.paths import Paths

# Seconds in which the other hosts with the same name have to start their proxies.
PATIENCE = 30
# How long another machine with the name of a certificate may take to answer, in seconds.
ASTRAY_SECONDS = 20
# How many characters of a CA's sentence are shown.
DETAIL = 1000
NEXT_STEPS = {
    "rateLimited": "The CA issues no more for now. Nothing has to be done: the timer asks again.",
    "connection": "The CA can't reach port 80 of this host: open it in the firewall of the provider too.",
    "dns": "The CA finds no address of the name: create its record.",
    "caa": "A CAA record of the domain forbids this CA: add it there.",
    "unauthorized": "The CA reached another machine, or a program changes the answer: look at the name's addresses.",
}


def lifetime(file: Path) -> tuple[float, float] | None:
    """Return from when and until when a certificate is valid, in seconds since 1970; None without a certificate."""
    # The folder belongs to booty-acme, which could put something there that openssl waits for.
    done = run("openssl", "x509", "-noout", "-dates", "-in", str(file)) if file.is_file() else None
    dates = re.findall(r"not(?:Before|After)=(.+)", done.stdout) if done else []
    if len(dates) != 2:
        return None
    begin, end = (datetime.strptime(date, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp() for date in dates)
    return begin, end


def ends(host: Paths, site: Site) -> dict[str, str]:
    """Return until when the certificate of each name is valid, as a date; names without a certificate are left out."""
    dates = {name: lifetime(host.certificate(site.certificate_of(name))) for name in site.names}
    return {name: moment(lasts[1])[:10] for name, lasts in dates.items() if lasts}


def due(file: Path, now: float) -> bool:
    """Tell whether a certificate has to be renewed: it is not there, or a third of its life is left."""
    dates = lifetime(file)
    return not dates or dates[1] - now < (dates[1] - dates[0]) / 3


def early(host: Paths, site: Site, name: str) -> bool:
    """Tell whether the CA wants a certificate renewed now, by its renewal information (ARI, RFC 9773).

    uacme asks for it only since version 1.7.6, which ignores times with a fraction of a second. So Booty asks first, as
    the user that uacme runs as, and starts uacme only for a renewal.
    """
    text = run("openssl", "x509", "-noout", "-serial", "-ext", "authorityKeyIdentifier",
               "-in", str(host.certificate(name))).stdout  # fmt: skip
    identity = (f"--reuid={paths.ACME_USER}", f"--regid={paths.ACME_USER}", "--clear-groups", "--no-new-privs")
    program = ("/usr/bin/python3", "-I", str(host.program), "renewal-info", site.acme_url, identifier(text))
    # The program fails without a usable answer, and the timer asks again.
    return run("timeout", "30", "setpriv", *identity, *program).returncode == 0


def identifier(text: str) -> str:
    """Return the CA's identifier of a certificate (RFC 9773, section 4.1), from what openssl prints of it."""
    key = re.search(r"(?:[0-9A-F]{2}:)+[0-9A-F]{2}", text)
    serial = re.search(r"serial=([0-9A-F]+)", text)
    if not key or not serial:
        return ""
    number = int(serial[1], 16)
    # The serial number is that of DER, whose first bit is the sign.
    parts = (bytes.fromhex(key[0].replace(":", "")), number.to_bytes(number.bit_length() // 8 + 1, "big"))
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def begun(url: str, certificate: str) -> bool:
    """Ask the CA when it wants a certificate renewed; tell whether a random moment of the window that it names is past.

    Any exception means that the CA names no window.

    Args:
        url: the CA's directory.
        certificate: the certificate's identifier.
    """

    context = ssl.create_default_context()
    # Python 3.13 refuses a CA of one's own without a key usage, which uacme and browsers accept.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def get(address: str) -> Any:
        with urllib.request.urlopen(address, timeout=10, context=context) as answer:
            return json.loads(answer.read(65536))

    window = get(f"{get(url)['renewalInfo'].rstrip('/')}/{certificate}")["suggestedWindow"]
    start, end = (datetime.fromisoformat(window[key]).timestamp() for key in ("start", "end"))
    return start < end and time.time() > random.uniform(start, end)


def judge(site: Site) -> str:
    """Return the digest of the key of one's own certificate, which names its files.

    Raises:
        HostError: the certificate can't be used; the message says why and what to do.
    """
    folder = Path(site.certificate)
    chain, key = folder / "fullchain.pem", folder / "privkey.pem"
    for file in (chain, key):
        if not file.is_file():
            raise HostError(f"app_certificate: {file} is missing. Place it there, as root; the key with the mode 0600.")
    mode = key.stat()
    if mode.st_mode & 0o077 or mode.st_uid:
        raise HostError(f"app_certificate: {key} is open to others. As root: chown root:root {key}; chmod 0600 {key}")
    publics = [run("openssl", *words).stdout for words in (
        ("x509", "-noout", "-pubkey", "-in", str(chain)),
        ("pkey", "-pubout", "-in", str(key), "-passin", "pass:"))]  # fmt: skip
    if not publics[0]:
        raise HostError(f"app_certificate: {chain} holds no certificate in PEM form.")
    if not publics[1]:
        raise HostError(f"app_certificate: {key} holds no private key in PEM form without a password.")
    if publics[0] != publics[1]:
        raise HostError(f"app_certificate: {key} is not the key of {chain}. Place the two that belong together.")
    begin, end = lifetime(chain) or (0.0, 0.0)
    if end < time.time():
        raise HostError(f"app_certificate: {chain} has expired on {moment(end)}. Place a new one.")
    if begin > time.time():
        raise HostError(f"app_certificate: {chain} is valid from {moment(begin)} on. Look at the clock: timedatectl")
    wrong = [name for name in site.names if " does match" not in run(
        "openssl", "x509", "-noout", "-checkhost", name, "-in", str(chain)).stdout]  # fmt: skip
    if wrong:
        raise HostError(f"app_certificate: {chain} is not for {', '.join(wrong)}. Place one with all names of the app.")
    done = run("openssl", "verify", "-untrusted", str(chain), str(chain))
    if done.returncode:
        reason = re.findall(r"error \d+ at .*: (.+)", done.stderr)
        raise HostError(
            f"app_certificate: the chain in {chain} does not end at a CA that this host trusts"
            f" ({reason[0] if reason else 'openssl verify refuses it'}). Add the CA's intermediate certificates to the"
            " file. A CA of your own goes into /usr/local/share/ca-certificates; then update-ca-certificates"
        )
    return hashlib.sha256(publics[0].encode()).hexdigest()[:12]


def moment(seconds: float) -> str:
    """Return a time for a message."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def install_own(host: Paths, site: Site) -> None:
    """Copy one's own certificate, which was judged, to where nginx reads it."""
    folder, name = Path(site.certificate), f"{site.name}-{site.own_key}"
    for source, file, mode in ((folder / "privkey.pem", host.key(name), 0o640),
                               (folder / "fullchain.pem", host.certificate(name), 0o644)):  # fmt: skip
        if read(file) != source.read_text():
            write_atomically(file, source.read_text(), mode)
            # booty-acme may put a link there meanwhile.
            os.chown(file, 0, grp.getgrnam(paths.USER).gr_gid, follow_symlinks=False)


def request(host: Paths, name: str) -> None:
    """Make the key of a name and the request for its certificate, once."""
    key, csr = host.key(name), host.certificates / f"{name}.csr"
    if not key.exists():
        text = checked("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        write_atomically(key, text, 0o640)
        shutil.chown(key, "root", paths.USER)
        csr.unlink(missing_ok=True)
    if not csr.exists():
        text = checked(
            "openssl", "req", "-new", "-key", str(key), "-subj", "/", "-addext", f"subjectAltName=DNS:{name}"
        )
        write_atomically(csr, text)


def astray(host: Paths, site: Site, name: str) -> str:
    """Say why the CA would not reach this host under a name; "" if it would.

    Each address of the name must answer for a token that only this host has: the name's IPv6 address too, which the CA
    tries first. Other hosts with the same name ask this one. In a run that gives all of them the name, their proxies
    start some seconds apart, so a host with peers tries several times.
    """
    try:
        found = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return f"{name} has no address ({error.strerror}). Create its DNS record; the timer asks again."
    token, answer = f"booty-{secrets.token_hex(8)}", secrets.token_hex(16)
    path, addresses = f"/.well-known/acme-challenge/{token}", sorted({str(entry[4][0]) for entry in found})
    file = host.challenges / token
    write_atomically(file, answer)
    deadline = time.monotonic() + (PATIENCE if site.peers else 0)
    try:
        while wrong := [
            f"{address} ({fault})" for address in addresses if (fault := differs(address, name, path, answer))
        ]:
            if time.monotonic() > deadline:
                break
            time.sleep(1)
    finally:
        file.unlink()
    if not wrong:
        return ""
    return (
        f"{name} does not lead to this host, so the CA was not asked: {', '.join(wrong)}. Correct the DNS record, or"
        " remove that address; the timer asks again."
    )


def differs(address: str, name: str, path: str, answer: str) -> str:
    """Say how the answer of an address to a request differs from the right one; "" if it does not."""
    connection = http.client.HTTPConnection(address, 80, timeout=10)
    try:
        with within(ASTRAY_SECONDS):
            connection.request("GET", path, headers={"Host": name})
            told = connection.getresponse().read(100).decode(errors="replace")
        return "" if told == answer else "another machine answers"
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()


def ask(host: Paths, site: Site, name: str) -> str:
    """Have uacme ask the CA for a certificate; return why there is none, or "" if all is well."""
    account = host.acme / "accounts" / hashlib.sha256(site.acme_url.encode()).hexdigest()[:12]
    directory = host.run / "acme"
    (directory / "root").mkdir(parents=True, exist_ok=True)
    values = {"ACME_URL": site.acme_url, "ACCOUNT": account, "ACME_EMAIL": site.acme_email}
    write_atomically(directory / f"{name}.env", "".join(f"{key}={value}\n" for key, value in values.items()), 0o600)
    unit = f"booty-acme@{name}.service"
    run("systemctl", "start", unit)
    state = dict(line.partition("=")[::2] for line in run(
        "systemctl", "show", unit, "--property=Result,ExecMainStatus,InvocationID").stdout.splitlines())  # fmt: skip
    if state.get("Result") == "success":
        return ""
    run("systemctl", "reset-failed", unit)
    match = f"_SYSTEMD_INVOCATION_ID={state.get('InvocationID')}"
    return reason(run_tail(1_000_000, *JOURNALCTL, "--output=cat", match))


def reason(output: str) -> str:
    """Return what the CA said, from uacme's output: the type and the detail of its last problem, and the next step.

    The CA may have written anything. The sentence is one line.
    """
    problems = re.findall(r'"type"\s*:\s*"urn:ietf:params:acme:error:(\w+)"', output)
    details = re.findall(r'"detail"\s*:\s*"((?:[^"\\]|\\.)*)"', output)
    if problems:
        detail = details[-1] if details else "no detail"
        with suppress(ValueError):
            detail = json.loads(f'"{detail}"', strict=False)
        detail = " ".join(detail.split())[:DETAIL]
        return f"The CA says {problems[-1]}: {detail}. {NEXT_STEPS.get(problems[-1], 'The timer asks again.')}"
    last = next((line for line in reversed(output.splitlines()) if line.startswith("uacme: ")), "no reason given")
    return f"The CA does not answer as it should: {last[:DETAIL]}. The timer asks again."


def renew(host: Paths, sites: list[Site], only: str = "") -> list[str]:
    """Renew what is due, and return a sentence for each name without a usable certificate or with a failed renewal.

    Args:
        host: the paths.
        sites: the apps.
        only: the app whose names are asked for; "" for all.
    """
    records: dict[str, Any] = json.loads(read(host.renewals) or "{}")
    sentences = []
    for site in (site for site in sites if not site.certificate and only in {"", site.name}):
        for name in site.names:
            file, record = host.certificate(name), records.get(name, {})
            moved = file.exists() and record.get("url", site.acme_url) != site.acme_url
            # A deploy does not wait for the CA unless it must.
            if not (moved or due(file, time.time()) or (not only and early(host, site, name))):
                records[name] = {"url": site.acme_url, "at": record.get("at"), "problem": ""}
                continue
            request(host, name)
            problem = astray(host, site, name) or ask(host, site, name)
            url = record.get("url", site.acme_url) if problem and moved else site.acme_url
            records[name] = {"url": url, "at": int(time.time()), "problem": problem}
            if problem:
                sentences.append(problem if name in problem else f"{name}: {problem}")
    for backup in sorted(host.certificates.glob("*-cert-[0-9]*.pem"))[:-20]:
        backup.unlink(missing_ok=True)
    names = {name for site in sites for name in site.names}
    write_atomically(host.renewals, json.dumps({k: v for k, v in records.items() if k in names}, indent=1) + "\n")
    return sentences


def served(name: str) -> float | None:
    """Return until when the certificate that port 443 shows for a name is valid; None if there is none."""
    done = run("timeout", "5", "sh", "-c",
               f"openssl s_client -connect 127.0.0.1:443 -servername {name} </dev/null 2>/dev/null"
               " | openssl x509 -noout -enddate 2>/dev/null")  # fmt: skip
    date = re.search(r"notAfter=(.+)", done.stdout)
    return datetime.strptime(date[1], "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp() if date else None
