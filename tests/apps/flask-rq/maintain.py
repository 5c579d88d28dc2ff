"""Do RQ's maintenance now, which its workers do every ten minutes."""

import os

from redis import Redis
from rq import Queue, Worker

Worker([Queue(connection=Redis.from_url(os.environ["RQ_REDIS_URL"]))]).clean_registries()
