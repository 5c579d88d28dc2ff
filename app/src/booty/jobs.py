"""The service's own jobs: this is the file to put yours in."""

from booty_runner import verify as verifier

from booty.queue import job


@job(every=3600, on_each_host=True, retries=0)
async def verify() -> None:
    """Check the service and its host each hour; what is wrong is reported as any job's error is."""
    report = await verifier.verify()
    if report.flaw:
        raise verifier.VerifyError(report.flaw)
