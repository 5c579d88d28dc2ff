"""Say where each host goes back to, before any of them does; and afterwards which of them did not."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from .judge import serving


def serves(answer: dict[str, Any]) -> str:
    """Return the release that a host serves, or the word for none."""
    return (serving(answer["host"]) if "host" in answer else "") or "nothing"


def stays(answer: dict[str, Any]) -> str:
    """Say why a host can't go back; nothing when it can."""
    if answer.get("unreachable"):
        return f"It can't be reached: {answer.get('msg', 'no reason given')}"
    if "obstacles" not in answer:
        return str(answer.get("msg", "It gave no answer."))
    return " ".join(answer["obstacles"])


def plan(answers: dict[str, dict[str, Any]]) -> tuple[list[str], str]:
    """Return where each host goes, in lines, and why no host may go; nothing when they may.

    Args:
        answers: what booty.deploy.preflight said of each host.
    """
    going = {host: answer for host, answer in answers.items() if not stays(answer)}
    moves: dict[tuple[str, str], list[str]] = {}
    for host, answer in going.items():
        moves.setdefault((serves(answer), answer["release"]), []).append(host)
    lines = [
        f"{', '.join(hosts)}: {f'from {now} back to {release}' if now != release else f'serves {release} already'}"
        for (now, release), hosts in moves.items()
    ]
    lines += [f"{host}: stays as it is. {stays(answer)}" for host, answer in answers.items() if host not in going]
    if not going:
        return lines, "No host can go back. Nothing was changed."
    if len({now for now, _ in moves}) > 1 and len({release for _, release in moves}) > 1:
        return lines, (
            "The hosts serve different releases, and would go back to different ones, so nobody knows which one is bad."
            " Nothing was changed. Name the release that all of them go back to: -e app_release=<sha>. Or choose hosts:"
            " --limit"
        )
    return lines, ""


def outcome(answers: dict[str, dict[str, Any]], cutovers: dict[str, dict[str, Any]]) -> str:
    """Say which hosts did not go back, why, and what to do; nothing when all did.

    A host that serves nothing is none of them: it has nothing to go back from.

    Args:
        answers: what booty.deploy.preflight said of each host.
        cutovers: what became of each host that was to go back.
    """
    missing = {host: stays(answer) for host, answer in answers.items() if stays(answer) and not idle(answer)}
    missing |= {
        host: "\n".join([*result.get("notices", []), str(result.get("msg", "No reason given."))])
        for host, result in cutovers.items()
        if not result.get("skipped") and result.get("state") != "switched"
    }
    if not missing:
        return ""
    lines = [f"{host} did not go back: {why}" for host, why in missing.items()]
    if rest := [host for host, answer in answers.items() if not stays(answer) and host not in missing]:
        lines.append(f"{', '.join(rest)} stay where they went back to.")
    targets = {answer["release"] for answer in answers.values() if not stays(answer)}
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
    """Tell whether a host surely serves nothing: it says so, or has no Python."""
    return answer.get("rc") == 127 or ("host" in answer and serves(answer) == "nothing")


def has_it(answer: dict[str, Any], release: str) -> bool:
    """Tell whether a host has a release; one that gave no answer may have it."""
    return "host" not in answer or release in answer["host"]["releases"] or (release == "<sha>" and not stays(answer))


class RollbackAction(ActionBase):
    """Judge the `answers` of booty.deploy.preflight, by host; with `cutovers`, what became of the hosts."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return as `msg` where each host goes, or which ones did not go back; fail when nobody may, or one did not."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            {"answers": {"type": "dict", "required": True}, "cutovers": {"type": "dict"}}
        )
        if given["cutovers"] is not None:
            said = outcome(given["answers"], given["cutovers"])
            return {**result, "failed": bool(said), "msg": said}
        lines, refusal = plan(given["answers"])
        return {
            **result,
            "failed": bool(refusal),
            "msg": "\n".join([*lines, *([refusal] if refusal else [])]),
            "_ansible_verbose_always": True,
        }
