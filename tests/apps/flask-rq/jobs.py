import json
import os
import time

from redis import Redis

GREETING = "first"


def note(task, number, began):
    release = os.environ["SENTRY_RELEASE"]
    Redis.from_url(os.environ["RQ_REDIS_URL"]).rpush("runs", json.dumps([task, number, GREETING, release, began]))


def count(number):
    began = time.time()
    time.sleep(0.05)
    note("count", number, began)


def fail():
    raise RuntimeError("boom")
