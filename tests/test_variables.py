"""Every variable of all roles: a bad value is refused by name, and a good value means the same in every form."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.booty.deploy.plugins.module_utils.controller import settings, variables
from booty_host import secrets

from tests.conftest import ROOT

SPECS = {name: spec for role in ("app", "host") for name, spec in variables.specs(role).items()}
NAMES = sorted(SPECS)
# Values that are bad for every variable of a type. A dict and null are bad for every type.
NEVER: list[Any] = [None, {}, {"a": 1}]
BAD: dict[str, list[Any]] = {
    "bool": [*NEVER, "", "maybe", "y", "t", "2", 2, 1.5, "none", [True], [], "true false"],
    "int": [*NEVER, "", "many", "-1", -1, "1.5", 1.5, True, "0x10", "1_0", "٣", [], [1], "1 2", "50%", "30s"],
    "str": [*NEVER, True, 1.5, [], ["a"], "two\nlines\0", "\x1b[31m", "\x00"],
    "path": [*NEVER, True, 1.5, [], ["a"], "two\nlines", "\x1b[31m"],
    "dict": [None, {1: "a"}, "", "a=b", True, 7, [], ["a"], "[1]", "{"],
    "list": [*NEVER, True, [None], [[]], [{}], [""], [True], "[", "[1, {}]", "a: 1", ["\x1b[31m"], 1.5],
}
# Lists of commands, which take any text of a line.
COMMANDS = {"app_build", "app_release_command", "app_post_deploy_command"}
# A good value of a variable, which is neither the default nor in another row.
GOOD: dict[str, Any] = {
    "app_name": "shop", "app_serve": "shop.web:app",
    "app_lock": "../uv.lock", "app_lock_extras": ["web"], "app_lock_groups": ["prod", "x.y"],
    "app_state_paths": ["media/", "db.sqlite3"],
    "app_release": "v1.2", "app_repository": "/srv/shop", "app_path": "services/web",
    "app_environment": "staging", "app_address": "fd00::1", "app_port": 8443, "app_user": "web", "app_workers": 4,
    "app_memory_max": "512M", "app_tasks_max": "10%", "app_keep_releases": 9, "app_waves": ["10%", "2"],
    "app_wave_check": "test -d /srv\ntrue", "app_artifact_url": "https://store.example.com", "app_cache": "/srv/cache",
    "app_health_path": "/healthz?full=1", "app_health_host": "shop.test:8443", "app_sandbox_allow": ["jit"],
    "app_settings": {"A": "b, c", "DEBUG": "false"}, "app_config_dir": str(ROOT / "roles/app/meta"),
    "app_trusted_proxies": ["10.0.0.1", "fd00::/8"],
    "app_domains": ["shop.example.com", "www.shop.example.com"], "app_domain_redirects": ["example.com"],
    "app_certificate": "/etc/shop-tls", "app_acme_url": "https://ca.example.com/dir",
    "app_acme_email": "ops@example.com", "app_body_max": "512k",
    "app_maintenance_allow": ["203.0.113.7", "2001:db8::/32"],
    "host_service_user": "web", "host_deploy_user": "operator", "host_first_user": "debian",
    "host_deploy_keys": ['from="10.0.0.1,10.0.0.2" ssh-ed25519 AAAAC3Nz me@here', "ssh-rsa AAAAB3Nz"],
    "host_firewall_ports": [8000, 443], "host_journal_size": "64M", "status_file": "/tmp/status.json",
    "app_packages": ["libpq5", "g++"],
    "app_release_command": ["flask db upgrade, then", "true"], "app_post_deploy_command": ["true"],
    "app_build": ["npm ci", "npm run build, then"], "app_build_settings": {"A": "b, c", "DEBUG": "false"},
    "app_processes": {
        "beat": {"command": "celery beat", "count": 1, "stop_signal": "SIGINT", "stop_seconds": 5, "one_host": True}
    },
    "app_timers": {"nightly": {"command": "echo it, too", "schedule": "Mon 03:00", "one_host": True}},
    "app_static": {"/assets/": "web/dist", "/shop/static/": "public"}, "app_keep_assets": 1,
    "process": "worker", "command": "echo a\necho b", "since": "10min",
}  # fmt: skip


def good(name: str) -> Any:
    """Return a good value of a variable, in its type."""
    if name in GOOD:
        return GOOD[name]
    spec = SPECS[name]
    others = {"bool": True, "int": 7, "str": spec.get("choices", ["a text"])[-1], "path": "/srv/x", "list": []}
    return others[spec["type"]]


def problems(values: dict[str, dict[str, Any]]) -> list[str]:
    """Return the messages about the variables of hosts."""
    collected = variables.Problems(values)
    typed = {host: variables.typed(of_host, host, collected) for host, of_host in values.items()}
    return [*collected] or [*variables.differing(typed)]


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_value_is_refused_by_name(name: str) -> None:
    spec = SPECS[name]
    for bad in BAD[spec["type"]]:
        if name in COMMANDS and bad == "a: 1":
            continue
        (message,) = problems({"web1": {name: bad}})
        assert message.startswith(f"{name} is "), message
        assert ": write " in message
        assert message.endswith(".")
    if "choices" in spec:
        (message,) = problems({"web1": {name: "other"}})
        assert message == f'{name} is "other": write {", ".join(spec["choices"][:-1])} or {spec["choices"][-1]}.'


@pytest.mark.parametrize("name", NAMES)
def test_a_good_value_means_the_same_in_every_form(name: str) -> None:
    value, kind = good(name), SPECS[name]["type"]
    forms = [value, f"{value}"]
    if kind == "bool":
        forms = [True, "true", "True", "TRUE", "yes", "Yes", "on", "1", 1]
        assert [variables.convert(name, form) for form in (False, "false", "No", "off", "0", 0)] == [False] * 6
    elif kind == "int":
        forms += [f" {value} "]
    elif kind == "list":
        separator = "\n" if name in variables.BY_LINES else ","
        forms = [value, tuple(value), separator.join(map(str, value)), json.dumps(value), [*map(str, value)]]
    elif kind == "dict":
        forms = [value, json.dumps(value), *([{**value, "DEBUG": False}] if "DEBUG" in value else [])]
    for form in forms:
        assert variables.convert(name, form) == value, form
        assert type(variables.convert(name, form)) is type(value)


@pytest.mark.parametrize("name", NAMES)
def test_a_default_is_a_good_value(name: str) -> None:
    default = SPECS[name].get("default")
    if default is not None and "{{" not in str(default):
        variables.convert(name, default)


SERVES = ("shop", "a-b:app", "shop:1a", "shop:app(1)", "shop/web:app", "shop:app; id", "shop:app'")


@pytest.mark.parametrize(
    ("name", "value", "write"),
    [
        *(("app_port", value, "a port, 1 to 65535") for value in (0, 65536, "70000")),
        *(
            ("app_waves", value, "for each wave a number of hosts, 1 or more, or a share of all, 1% to 100%")
            for value in ("0%", "150%", "101%", "0", "-1", "many", "12.5%", "50 %", ["50%", 0], "50%,", "%", [-1])
        ),
        ("app_waves", [], 'a list such as ["25%", "100%"]'),
        ("app_waves", "", 'a list such as ["25%", "100%"]'),
        ("app_waves", "[]", 'a list such as ["25%", "100%"]'),
        *(("host_firewall_ports", value, "ports, 1 to 65535") for value in ([0], "8443,", "http", [8443, "x"], 65536)),
        *(
            ("app_address", value, variables.RULES["app_address"].write)
            for value in ("localhost", "[::]", "0.0.0.0:80", "10.0.0", 8000)
        ),
        *(
            ("app_environment", value, "1 to 64 characters without blanks or slashes, such as staging")
            for value in ("two words", "a/b", "None", "x" * 65)
        ),
        *(
            ("app_user", value, "a user's name (lower-case letters, digits, _ and -, at most 32), not root")
            for value in ("root", "0", "Web", "a b", "-x", "a" * 33, "web;id")
        ),
        *(("app_lock", value, variables.RULES["app_lock"].write) for value in ("/srv/uv.lock", "a b")),
        *(("app_state_paths", value, variables.RULES["app_state_paths"].write) for value in (["/srv"], "a: b")),
        ("app_lock_groups", "a b", "names of letters, digits, dashes, dots and underscores"),
        *(("app_serve", value, "module:attribute or module:factory(), such as shop.web:app") for value in SERVES),
        *(
            ("app_memory_max", value, variables.RULES["app_memory_max"].write)
            for value in ("0", "0%", "101%", "512MB", "half", "1.5G")
        ),
        ("app_keep_releases", 1, "a whole number, 2 or more: the release that serves, and the one to go back to"),
        ("app_workers", "0", "a whole number, 1 or more"),
        ("app_health_path", "healthz", variables.RULES["app_health_path"].write),
        ("app_health_path", "/a b", variables.RULES["app_health_path"].write),
        ("app_health_path", "/$HOME'", variables.RULES["app_health_path"].write),
        ("app_health_host", "https://shop.test", variables.RULES["app_health_host"].write),
        ("app_sandbox_allow", ["jit", "network"], "a list of these: jit"),
        *(
            ("app_trusted_proxies", value, variables.RULES["app_trusted_proxies"].write)
            for value in (["proxy"], ["10.0.0.1/8"], "10.0.0.0/33")
        ),
        ("app_start_seconds", 0, "a whole number of seconds, 1 or more"),
        ("app_canary", "-1", "a whole number, 0 or more"),
        ("host_journal_size", "a lot", "bytes, also with K, M, G or T, such as 500M"),
        (
            "host_deploy_keys",
            ["~/.ssh/id_ed25519.pub"],
            "for each key one line of an authorized_keys file, such as ssh-ed25519 AAAA… you@laptop",
        ),
    ],
)  # fmt: skip
def test_bad_values_of_the_right_type(name: str, value: Any, write: str) -> None:
    assert problems({"web1": {name: value}}) == [f"{name} is {json.dumps(value, ensure_ascii=False)}: write {write}."]


@pytest.mark.parametrize(
    ("value", "write"),
    [
        ("static", 'URL prefixes with folders, such as {"/static/": "static"}'),
        (["static"], 'URL prefixes with folders, such as {"/static/": "static"}'),
        *(
            (
                {prefix: "static"},
                "a path of one or two parts with a slash at both ends, such as /static/, in place of " + repr(prefix),
            )
            for prefix in (
                *("static", "/static", "static/", "/", "//", "", "/a/b/c/", "/../", "/.git/", "/a//", "/a b/", "/é/"),
                *("/static/;", "/$host/", "/a{}/", "/a\n/", "https://cdn.example.com/", "/static/*"),
            )
        ),
        *(
            (
                {"/static/": folder},
                f"a folder below the app's folder, such as static, for /static/ in place of {folder!r}",
            )
            for folder in ("", ".", "/srv/static", "../static", "a/../..", "a\nb", 3, None, ["a"])
        ),
        (
            {"/static/": "a", "/static/admin/": "b"},
            "one of /static/ and /static/admin/, which lies in it",
        ),
    ],
)  # fmt: skip
def test_bad_static_folders(value: Any, write: str) -> None:
    (message,) = problems({"web1": {"app_static": value}})
    assert message.endswith(f": write {write}.")


def test_static_folders_have_a_normal_form() -> None:
    value = {"/static/": "./public/", "/assets/": "web//dist/.vite/..", "/~a/_b/": ".output/public"}
    assert variables.convert("app_static", value) == {
        "/assets/": "web/dist", "/static/": "public", "/~a/_b/": ".output/public"}  # fmt: skip


ADDRESS = {"A": "postgres://me:hunter2@db/shop"}


@pytest.mark.parametrize(
    ("value", "write"),
    [
        ("x", 'names with values, such as {"DEBUG": false}'),
        ({True: "x"}, "a name of letters, digits and _, in quotes, in place of 'True'"),
        ({"two words": "x"}, "a name of letters, digits and _, in quotes, in place of 'two words'"),
        ({"A": 1.1}, "a text of one line for A, in quotes"),
        ({"A": None}, "a text of one line for A, in quotes"),
        ({"A": ["x"]}, "a text of one line for A, in quotes"),
        ({**ADDRESS, "B": "x\ny"}, "a text of one line for B; keep a longer one in a file of app_config_dir"),
        ({"A": "x\n"}, "a text of one line for A; keep a longer one in a file of app_config_dir"),
        ({"A": "\x1b[0m"}, "a text without control characters for A"),
        ({"A": "\ud83c"}, "a text without control characters for A"),
        ({"A": "x" * 131072}, "a shorter text for A, of less than 128 KB; keep a longer one in app_config_dir"),
        ({**ADDRESS, "PORT": 80}, "no PORT there: app_port sets it"),
        ({"SENTRY_RELEASE": "x"}, "no SENTRY_RELEASE there: app_release sets it"),
        ({"SENTRY_DSN": "x"}, "no SENTRY_DSN there: it belongs in secrets.env"),
        ({"BOOTY_WORKERS": 2}, "no BOOTY_WORKERS there: the variable of the inventory that begins with app_ sets it"),
        ({"PYTHONPATH": "x"}, "no PYTHONPATH there: it makes the process load code from outside of the release"),
    ],
)
def test_bad_settings_are_refused_without_a_value(value: Any, write: str) -> None:
    for name in ("app_settings", "app_build_settings"):
        (message,) = problems({"web1": {name: value}})
        assert message == f"{name} is a value that is not shown here: write {write}."


def test_settings_are_texts() -> None:
    value = {"Z": "", "INT": 8, "YES": True, "NO": False, "TEXT": "007", "BOOTY_LOG_LEVEL": "debug"}
    assert [*settings.typed_settings(value).items()] == [
        ("BOOTY_LOG_LEVEL", "debug"),
        ("INT", "8"),
        ("NO", "false"),
        ("TEXT", "007"),
        ("YES", "true"),
        ("Z", ""),
    ]


def test_no_setting_has_a_name_that_secrets_env_may_not_have() -> None:
    """Both lists name what the unit and systemd set; controller code and host program share no code."""
    names = [f"{word}{rest}" for word in ("BOOTY_", "") for rest in dir_of_words()]
    for name in names:
        if any(re.fullmatch(pattern, name) for pattern, _ in secrets.RESERVED):
            with pytest.raises(ValueError, match=f"no {name} there"):
                settings.typed_settings({name: "x"})


def dir_of_words() -> set[str]:
    """Return the words of both lists, and those around their brackets."""
    text = " ".join(pattern for pattern, _ in (*secrets.RESERVED, *settings.RESERVED))
    words = {*re.findall(r"[A-Z_]+", text)}
    pairs = {f"{one}{other}" for one in words for other in words}
    return words | pairs | {name.removeprefix("BOOTY_") for name in words | pairs}


def test_names_that_look_like_secrets() -> None:
    value = {
        **{"API_KEY": "x", "db_password": "x", "STRIPE_SECRET": "x", "MY_TOKEN": "x", "URL": ADDRESS["A"]},
        **{"KEYCLOAK_URL": "x", "STRIPE_PUBLIC_KEY": "x", "TOKENIZER": "x", "HOME_URL": "https://a.b/c:d@e"},
        **{"SORT_KEY": "x", "BOOTY_NOT_SECRET": "SORT_KEY, OTHER"},
    }
    assert [*settings.suspects(value)] == ["API_KEY", "MY_TOKEN", "STRIPE_SECRET", "URL", "db_password"]


def test_the_folder_of_app_config_dir(tmp_path: Path) -> None:
    def refusal() -> str:
        (message,) = problems({"web1": {"app_config_dir": str(tmp_path / "config")}})
        return message.partition(": write ")[2]

    folder = tmp_path / "config"
    assert refusal() == "a folder on this machine."
    folder.mkdir()
    assert refusal() == "a folder with files in it."
    (folder / "a.py").write_text("A = 1")
    (folder / "sub").mkdir()
    (folder / "sub/b.pem").symlink_to(folder / "a.py")
    assert settings.config_files(str(folder)) == {"a.py": b"A = 1", "sub/b.pem": b"A = 1"}
    (folder / "link").symlink_to(folder / "sub")
    assert refusal() == "a folder without links to other folders, such as link."
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    assert refusal() == "a folder of files: pipe is none."
    (folder / "pipe").unlink()
    (folder / "large").write_bytes(bytes(settings.CONFIG_BYTES))
    assert refusal() == "a folder with files of at most 1 MB together."


def test_hosts_are_named_where_they_differ() -> None:
    assert problems({"web1": {"app_port": 0}, "web2": {"app_port": 0}}) == ["app_port is 0: write a port, 1 to 65535."]
    assert problems({"web1": {"app_port": 1}, "web2": {"app_port": "x"}}) == [
        'app_port of web2 is "x": write a port, 1 to 65535.'
    ]
    many = {f"web{number}": {"app_workers": 0 if number else 1} for number in range(8)}
    assert problems(many) == [
        "app_workers of web1, web2, web3, web4 and 3 others is 0: write a whole number, 1 or more."
    ]


@pytest.mark.parametrize("name", variables.RUN_WIDE)
def test_run_wide_variables_must_be_equal_on_all_hosts(name: str) -> None:
    (message,) = problems({"web1": {}, "web2": {name: good(name)}, "web3": {}}) or ("",)
    if good(name) == SPECS[name]["default"]:
        (message,) = problems({"web1": {}, "web2": {name: False}, "web3": {}})
    assert message.startswith(f"{name} must be equal on all hosts of a run and is ")
    assert "on web1, web3; " in message
    assert problems({"web1": {name: good(name)}, "web2": {name: f"{good(name)}".replace("'", '"')}}) == []


def test_a_long_value_and_one_that_may_be_a_secret_are_not_shown_whole() -> None:
    assert len(problems({"web1": {"app_serve": "x-" * 999}})[0]) < 200
    assert "hunter2" not in problems({"web1": {"app_artifact_url": "https://me:hunter2@store.example.com"}})[0]
    assert "hunter2" not in problems({"web1": {"app_wave_check": ["hunter2"]}})[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("web", "web", True, []), "host_deploy_user is web, which is the service's user: write another, such as"),
        (("deploy", "web", False, []), "host_ssh_root is false: write host_deploy_keys as well, which let somebody"),
        (("deploy", "web", False, ["key"]), None),
        (("deploy", "web", True, []), None),
    ],
)  # fmt: skip
def test_a_login_stays_possible(options: tuple[Any, ...], message: str | None) -> None:
    collected = variables.Problems(["web1"])
    variables.access("web1", dict(zip(variables.ACCESS, options, strict=True)), collected)
    assert [sentence.startswith(str(message)) for sentence in collected] == ([True] if message else [])


# Ansible evaluates this playbook, so the values come from a real inventory and a real command line.
PROBE = """
- name: Begin
  hosts: booty
  gather_facts: false
- name: Wave
  hosts: booty
  gather_facts: false
  serial: "{{ 'booty' | booty.deploy.waves }}"
  vars_files: [ROLE_VARS]
  vars:
    host_deploy_keys: []
  tasks:
    - name: Tell
      ansible.builtin.debug:
        msg: "<{{ ansible_play_batch | length }} {{ __host_firewall_ports }} {{ __host_has_deploy_user }}>"
      run_once: true
"""


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((), ["1", "3"]),
        (("-e", "app_canary=0"), ["4"]),
        (("-e", "app_canary=2 app_waves=50%"), ["2", "2"]),
        (("-e", "app_waves=1,2"), ["1", "1", "2"]),
        (("-e", 'app_waves=["25%","2"]'), ["1", "1", "2"]),
        (("-e", '{"app_canary": "0", "app_waves": [3]}'), ["3", "1"]),
        (("--limit", "web2,web3", "-e", "app_canary=0"), ["2"]),
    ],
)  # fmt: skip
def test_waves_from_every_source(tmp_path: Path, arguments: tuple[str, ...], shown: list[str]) -> None:
    assert [batch for batch, _ in probe(tmp_path, *arguments)] == shown


@pytest.mark.parametrize(
    ("arguments", "ports", "has_user"),
    [
        (("-e", "host_firewall_ports=8443"), "[8443]", "False"),
        (("-e", "host_firewall_ports=8443,9000"), "[8443, 9000]", "False"),
        (("-e", "host_firewall_ports=[] host_deploy_keys=[]"), "[]", "False"),
        (("-e", 'host_firewall_ports=[80] host_deploy_keys="ssh-ed25519 AAAA me"'), "[80]", "True"),
    ],
)
def test_lists_of_role_host_from_every_source(
    tmp_path: Path, arguments: tuple[str, ...], ports: str, has_user: str
) -> None:
    assert probe(tmp_path, "-e", "app_canary=0", *arguments) == [("4", f"{ports} {has_user}")]


def probe(directory: Path, *arguments: str) -> list[tuple[str, str]]:
    """Run the probe; return the size of each wave, and the variables that the probe prints."""
    (directory / "probe.yml").write_text(PROBE.replace("ROLE_VARS", str(ROOT / "roles/host/vars/main.yml")))
    (directory / "hosts").write_text("[booty]\nweb1\nweb2\nweb3\nweb4\n[all:vars]\nhost_firewall_ports=[8000]\n")
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-playbook",
            directory / "probe.yml",
            "-i",
            directory / "hosts",
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    messages = [line.strip()[1:-1] for line in done.stdout.splitlines() if line.strip().startswith("<")]
    return [(message.split(" ", 1)[0], message.split(" ", 1)[1]) for message in messages]


def test_the_playbooks_check_the_variables_of_all_roles() -> None:
    """A playbook checks only the variables of the roles in `__app_roles`, so each role of its plays must be there."""
    for path in (ROOT / "playbooks").glob("*.yml"):
        plays = yaml.safe_load(path.read_text())
        if path.name != "hosts.yml":
            imports = [task["ansible.builtin.import_role"] for play in plays for task in play.get("tasks", [])]
            # Ansible's own check is off: it has other rules, and reads the specification again for each import.
            assert all(imported["rolespec_validate"] is False for imported in imports)
            roles = {imported["name"].removeprefix("booty.deploy.") for imported in imports}
            # The role proxy has no variables of its own.
            assert {*plays[0].get("vars", {}).get("__app_roles", ["app"])} == roles - {"proxy"}, path


def test_a_variable_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("[booty]\nweb1 app_environment=staging app_module=shop.web\n")
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "deploy.yml", "-i", tmp_path / "hosts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "app_module is no variable any more: write what the runner serves" in " ".join(done.stderr.split())


def test_a_name_that_booty_does_not_know_is_told() -> None:
    names = ["app_port", "app_prot", "app_base_of_ours", "host_time_zone", "app", "ansible_host", "app_module"]
    assert variables.unknown(names) == ["app_prot", "app_base_of_ours", "host_time_zone"]
    assert variables.similar("app_prot") == " Did you mean app_port?"
    assert variables.similar("app_base_of_ours") == ""


def test_a_variable_of_the_command_line_without_its_prefix_is_told() -> None:
    extra = ["watch", "restart", "journal", "procss", "lines", "command", "app_port", "ours", "ansible_user"]
    assert [*variables.mistyped(extra)] == [
        "-e watch: Booty has no variable watch. Did you mean app_watch?",
        "-e restart: Booty has no variable restart. Did you mean app_restart?",
        "-e journal: Booty has no variable journal. Did you mean host_journal?",
        "-e procss: Booty has no variable procss. Did you mean process?",
    ]
    # These are all options that the playbooks have.
    texts = [path.read_text() for path in (ROOT / "roles/app/tasks").glob("*.yml")]
    found = {name for text in texts for name in re.findall(r"(?<![.\w])(?!__)([a-z_]+) \| default\(", text)}
    # The filters of hosts.yml read these two.
    assert {*variables.OPTIONS} == {*found, "app", "maintenance"} - {
        "ansible_connection",
        "ansible_user",
        "app_environment",
    }
