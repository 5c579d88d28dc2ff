"""Plan a rollback before it changes a host, and name the hosts that did not go back after it."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from .fleet import serving
from .playbook import completed


def serves(answer: dict[str, Any]) -> str:
    """Return the release that a host serves, or "nothing"."""
    return (serving(answer["host"]) if "host" in answer else "") or "nothing"


def problem(answer: dict[str, Any]) -> str:
    """Return the reason why a host can't go back; "" when it can."""
    if answer.get("unreachable"):
        return f"It can't be reached: {answer.get('msg', 'no reason given')}"
    if "problems" not in answer:
        return str(answer.get("msg", "It gave no answer."))
    return " ".join(answer["problems"])


def plan(answers: dict[str, dict[str, Any]]) -> tuple[list[str], str]:
    """Return a line for each move of hosts, and the reason to refuse the rollback; "" when it may start.

    Args:
        answers: the results of booty.deploy.preflight, by host.
    """
    going = {host: answer for host, answer in answers.items() if not problem(answer)}
    moves: dict[tuple[str, str], list[str]] = {}
    for host, answer in going.items():
        moves.setdefault((serves(answer), answer["release"]), []).append(host)
    lines = [
        f"{', '.join(hosts)}: {f'from {now} back to {release}' if now != release else f'serves {release} already'}"
        for (now, release), hosts in moves.items()
    ]
    lines += [f"{host}: stays as it is. {problem(answer)}" for host, answer in answers.items() if host not in going]
    if not going:
        return lines, "No host can go back. Nothing was changed."
    if crossing := [answer["crosses"] for answer in going.values() if answer["crosses"]]:
        return lines, "\n".join([*crossing, "Nothing was changed."])
    if len({now for now, _ in moves}) > 1 and len({release for _, release in moves}) > 1:
        return lines, (
            "The hosts serve different releases, and would go back to different ones, so Booty can't tell which one is"
            " bad. Nothing was changed. Name one release for all: -e app_release=<sha>. Or choose hosts: --limit"
        )
    return lines, ""


def outcome(answers: dict[str, dict[str, Any]], cutovers: dict[str, dict[str, Any]]) -> str:
    """Return the hosts that did not go back, each with the reason and the next step; "" when all did.

    A host that serves nothing is left out, because it has no release to leave.

    Args:
        answers: the results of booty.deploy.preflight, by host.
        cutovers: the results of the verb cutover, by host.
    """
    missing = {host: problem(answer) for host, answer in answers.items() if problem(answer) and not idle(answer)}
    missing |= {
        host: "\n".join([*result.get("notices", []), str(result.get("msg", "No reason given."))])
        for host, result in cutovers.items()
        if not result.get("skipped") and result.get("state") != "switched"
    }
    if not missing:
        return ""
    lines = [f"{host} did not go back: {text}" for host, text in missing.items()]
    if switched := [host for host, answer in answers.items() if not problem(answer) and host not in missing]:
        lines.append(f"These hosts went back, and stay there: {', '.join(switched)}.")
    targets = {answer["release"] for answer in answers.values() if not problem(answer)}
    release = targets.pop() if len(targets) == 1 else "<sha>"
    lacking = [host for host in missing if not has_it(answers[host], release)]
    for playbook, hosts in (
        ("rollback.yml", [host for host in missing if host not in lacking]),
        ("deploy.yml", lacking),
    ):
        if hosts:
            command = f"ansible-playbook {playbook} --limit {','.join(hosts)} -e app_release={release}"
            lines.append(f"Fix that, then: {command}")
    return "\n".join(lines)


def idle(answer: dict[str, Any]) -> bool:
    """Return whether a host serves nothing for certain: its answer says so, or the shell found no Python (127)."""
    return answer.get("rc") == 127 or ("host" in answer and serves(answer) == "nothing")


def has_it(answer: dict[str, Any], release: str) -> bool:
    """Return whether a host may have a release. A host that gave no answer may have it."""
    return "host" not in answer or release in answer["host"]["releases"] or (release == "<sha>" and not problem(answer))


class RollbackAction(ActionBase):
    """Plan a rollback from `answers` of booty.deploy.preflight; with `cutovers`, report its outcome."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the plan or the outcome as `msg`; fail if the plan is refused or a host did not go back."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {"answers": {"type": "dict", "required": True}, "cutovers": {"type": "dict"}}
        )
        if arguments["cutovers"] is not None:
            message = completed(outcome(arguments["answers"], arguments["cutovers"]), task_vars or {})
            return {**result, "failed": bool(message), "msg": message}
        lines, refusal = plan(arguments["answers"])
        return {
            **result,
            "failed": bool(refusal),
            "msg": "\n".join([*lines, *([refusal] if refusal else [])]),
            "_ansible_verbose_always": True,
        }
