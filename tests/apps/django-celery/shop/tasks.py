import os
import time

from celery import shared_task

from .models import Run

GREETING = "first"


def _note(task, number, began):
    release = os.environ["SENTRY_RELEASE"]
    Run.objects.create(task=task, number=number, code=GREETING, release=release, began=began)


@shared_task
def count(number):
    began = time.time()
    time.sleep(0.2)
    _note("count", number, began)


@shared_task
def tick():
    _note("tick", None, time.time())


@shared_task
def fail():
    raise RuntimeError("boom")
