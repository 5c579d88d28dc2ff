"""The job queue's hooks for the runner: a check, a member of the status, and the command `jobs`."""

import asyncio
import time
from typing import Any

import booty_runner

from booty.queue import Queue, in_thread
from booty.store import StoreError

# The queue's database must answer the check within this time.
QUEUE_SECONDS = 6


def register(queue: Queue) -> None:
    """Register the queue's hooks with the runner."""

    async def check() -> tuple[str | None, str]:
        try:
            store = queue.store
        except StoreError as error:
            return None, str(error)
        try:
            counts = await asyncio.wait_for(in_thread(store.counts), QUEUE_SECONDS)
        except StoreError as error:
            return str(error), ""
        except TimeoutError:
            return f"its database does not answer within {QUEUE_SECONDS} s", ""
        return None, ", ".join(f"{count} {state}" for state, count in counts.items())

    async def status() -> dict[str, Any]:
        try:
            return await in_thread(queue.store.counts)
        except StoreError as error:
            return {"error": str(error)}

    async def jobs(retry: str = "", drop: str = "") -> dict[str, Any]:
        try:
            store = queue.store
            if not retry and not drop:
                all_jobs = await in_thread(store.jobs)
                return {"jobs": all_jobs, "text": booty_runner.table(_rows(all_jobs))}
            if not await in_thread(store.retry if retry else store.drop, identity := retry or drop):
                raise booty_runner.CommandError(f"no job {identity} has failed")
        except StoreError as error:
            raise booty_runner.CommandError(str(error)) from error
        return {"id": identity}

    booty_runner.on_ready(queue.begin)
    booty_runner.on_drain(queue.end)
    booty_runner.add_check("queue", check)
    booty_runner.add_status("jobs", status)
    booty_runner.add_command("jobs", jobs)


def _rows(jobs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("ID", "KIND", "STATE", "FAILURES", "SINCE OR DUE", "ERROR")]
    for job in jobs:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["failed"] or job["due"]))
        rows.append((job["id"], job["kind"], job["state"], str(job["failures"]), at, job["error"] or ""))
    return rows
