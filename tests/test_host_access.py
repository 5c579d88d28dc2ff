"""Bootstrap's conclusions from a host's answers: the logins that still work, the ports that a firewall would close."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.booty.deploy.plugins.module_utils.controller import host_access

from tests.conftest import ROOT

ANY4, ANY6 = "00000000", "0" * 32


OWN = {"tcp": [8001, 9100], "udp": [], "untracked": [8001]}
BEFORE = """table inet booty {
	comment "x"

	chain arriving {
		fib daddr type local tcp dport { 8000 } notrack
	}
	chain input {
		tcp dport { 22, 443, 8000 } accept
		udp dport { 53 } accept
		ct state vmap { established : accept, related : accept, invalid : drop }
"""


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("", {}),
        # A file of a Booty that knew one app for each host.
        (BEFORE, {"booty": {"tcp": [443, 8000], "udp": [53], "untracked": [8000]}}),
        (
            "# blog: tcp 8002 9000; udp 53; untracked 8002\n# my-shop: tcp ; udp ; untracked \n" + BEFORE,
            {
                "blog": {"tcp": [8002, 9000], "udp": [53], "untracked": [8002]},
                "my-shop": {"tcp": [], "udp": [], "untracked": []},
            },
        ),
        ("# shop: tcp 1 2; udp 3; untracked 1\n" + BEFORE, {}),
    ],
)
def test_the_ports_of_other_apps_are_kept(text: str, others: dict[str, Any]) -> None:
    answer = f"root 644 file {base64.b64encode(text.encode()).decode()}" if text else ""
    assert host_access.app_ports(answer, [22], ["blog", "booty", "my-shop"], "shop", OWN) == {**others, "shop": OWN}
    assert host_access.app_ports(answer, [22], [], "shop", OWN) == {"shop": OWN}  # the others were removed


@pytest.mark.parametrize(
    ("sockets", "texts"),
    [
        # A fresh cloud image: sshd, systemd-resolved, a DHCP client, ICMPv6 of systemd-networkd.
        (
            f"tcp:{ANY4}:0016:1:sshd tcp6:{ANY6}:0016:2:sshd tcp:3500007F:0035:3:systemd-resolve"
            f" udp:3500007F:0035:4:systemd-resolve udp:{ANY4}:14EB:5:systemd-resolve"
            f" udp:0F02000A:0044:6:systemd-network udp6:{'1' * 32}:0222:7:dhcpcd"
            f" raw6:{ANY6}:003A:8:systemd-network",
            [],
        ),
        (f"tcp:{ANY4}:0050:1:nginx tcp6:{ANY6}:0050:2:nginx", ["TCP 80 (nginx)"]),
        ("tcp:010011AC:1538:1:postgres", ["TCP 5432 on 172.17.0.1 (postgres)"]),
        (
            "tcp:010011AC:1538:1:postgres tcp:0B0012C6:1538:2:postgres",
            ["TCP 5432 on 172.17.0.1, 198.18.0.11 (postgres)"],
        ),
        ("tcp6:0000000000000000FFFF0000010011AC:1538:1:java", ["TCP 5432 on 172.17.0.1 (java)"]),
        ("tcp6:00000000000000000000000001000000:1538:1:java", []),
        ("tcp6:0000000000000000FFFF00000100007F:1538:1:java", []),
        (f"udp:{ANY4}:CA6C:1: udp6:{ANY6}:CA6C:2:", ["UDP 51820 (a socket of the kernel, such as WireGuard has)"]),
        (f"udp:{ANY4}:0035:1:systemd-resolve", ["UDP 53 (systemd-resolve)"]),
        (f"raw:{ANY4}:0070:1:keepalived", ["IP protocol 112 (keepalived)"]),
        (f"tcp:{ANY4}:1F40:1:serve udp:{ANY4}:01BB:1:nginx", []),
        (f"tcp:{ANY4}:0035:1:a:b", ["TCP 53 (a:b)"]),
        ("", []),
    ],
)
def test_what_the_firewall_would_close(sockets: str, texts: list[str]) -> None:
    assert [listener["text"] for listener in host_access.listeners(sockets, [22, 8000], [443])] == texts


def test_the_variables_that_keep_a_port_open() -> None:
    def keep_open(sockets: str) -> str:
        return str(host_access.keep_open(host_access.listeners(sockets, [22, 8000], []), [8000], []))

    assert keep_open(f"tcp:{ANY4}:01BB:1:nginx tcp:{ANY4}:0050:1:nginx udp:{ANY4}:01BB:1:nginx") == (
        "To keep it open, set host_firewall_ports: [8000, 80, 443] and host_firewall_udp_ports: [443]."
    )
    assert keep_open(f"raw:{ANY4}:0070:1:keepalived").startswith("Protocols besides TCP, UDP and ICMP have no list")


KEYS = "/home/deploy/.ssh/authorized_keys"


@pytest.mark.parametrize(
    ("config", "reasons"),
    [
        ("pubkeyauthentication yes;authorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2;", []),
        ("authenticationmethods any;allowusers root;allowusers dep*;", []),
        ("allowusers root;allowusers admin;", ['AllowUsers is "root admin", which lacks deploy']),
        # Booty does not compare addresses: the trial login shows whether sshd accepts this one.
        ("allowusers deploy@10.0.0.*;denyusers deploy@10.9.*;", []),
        ("denyusers deploy;", ["DenyUsers has deploy"]),
        ("allowgroups wheel;allowgroups ssh-users;", []),
        ("allowgroups wheel;", ['AllowGroups is "wheel", which lacks a group of deploy\'s (deploy ssh-users)']),
        ("denygroups ssh-*;", ["DenyGroups has a group of deploy's (deploy ssh-users)"]),
        ("pubkeyauthentication no;", ["PubkeyAuthentication is no"]),
        ("authenticationmethods publickey,password publickey;", []),
        (
            "authenticationmethods publickey,password;",
            ['AuthenticationMethods is "publickey,password", so that a key alone is not enough'],
        ),
        ("authorizedkeysfile /etc/keys/%u %h/.ssh/authorized_keys;", []),
        ("authorizedkeysfile /etc/keys/%u;", [f'AuthorizedKeysFile is "/etc/keys/%u", which lacks {KEYS}']),
        ("authorizedkeysfile none;", [f'AuthorizedKeysFile is "none", which lacks {KEYS}']),
        ("", []),
    ],
)
def test_why_sshd_refuses_a_user(config: str, reasons: list[str]) -> None:
    assert host_access.sshd_refusals(config, "deploy", "deploy ssh-users", KEYS) == reasons


def test_the_command_for_the_secrets_has_ansibles_ssh_options(tmp_path: Path) -> None:
    """The ssh options come from variables, the environment and the command line."""
    inventory = {
        "booty": {
            "hosts": {
                "plain": {},
                "jump": {
                    "ansible_ssh_args": "-C -o ControlMaster=auto -o ControlPersist=60s -J bastion",
                    "ansible_ssh_common_args": "-o ServerAliveInterval=9",
                    "ansible_ssh_extra_args": "-v",
                    "ansible_host": "10.0.0.1",
                    "ansible_port": 2222,
                    "ansible_user": "deploy",
                },
                "su": {"ansible_become_method": "su", "ansible_user": "deploy"},
                "here": {"ansible_connection": "local", "ansible_user": "root"},
            }
        }
    }
    play = {
        "hosts": "booty",
        "gather_facts": False,
        "vars": {"app_name": "booty"},
        "vars_files": [str(ROOT / "roles/app/vars/main.yml")],
        "tasks": [
            {
                "name": "Show it",
                "ansible.builtin.debug": {"msg": "{{ inventory_hostname }}: {{ __app_secrets_steps.write[1] }}"},
            }
        ],
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "hosts.yml", "play.yml", "--private-key", "/k"],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_SSH_COMMON_ARGS": "-F /etc/jump"},
        capture_output=True,
        text=True,
        check=False,
    )
    place = (
        "-c 'umask 077; cat > /etc/booty/secrets.new && test -s /etc/booty/secrets.new"
        " && mv /etc/booty/secrets.new /etc/booty/secrets.env'"
    )
    for line in (
        f'plain: ssh -C -i /k -F /etc/jump plain "sudo sh {place}"',
        f'jump: ssh -C -J bastion -p 2222 -i /k -o ServerAliveInterval=9 -v deploy@10.0.0.1 "sudo sh {place}"',
        f'su: ssh -C -t -i /k -F /etc/jump deploy@su "su {place}"',
        f"here: sh {place}",
    ):
        assert line in done.stdout.replace("\\", ""), done.stdout
