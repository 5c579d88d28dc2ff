"""The app's jobs. Put your own here."""

from booty_runner import verify as verifier

from booty.queue import job


@job(every=3600, on_each_host=True, retries=0)
async def verify() -> None:
    """Check the service and its host each hour. A flaw is raised, so that it is reported like any job's error."""
    report = await verifier.verify()
    if report.flaw:
        raise verifier.VerifyError(report.flaw)
