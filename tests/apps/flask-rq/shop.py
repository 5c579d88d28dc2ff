import os
import time

import jobs
from flask import Flask
from redis import Redis
from rq import Queue, Retry

app = Flask(__name__)
redis = Redis.from_url(os.environ["RQ_REDIS_URL"])


@app.get("/")
def greet():
    return {"greeting": jobs.GREETING}


@app.get("/slow")
def slow():
    time.sleep(2)
    return {"greeting": jobs.GREETING}


@app.get("/jobs/<int:number>")
def enqueue(number):
    Queue(connection=redis).enqueue(jobs.count, number, retry=Retry(max=1))
    return {"number": number}


@app.get("/boom")
def boom():
    Queue(connection=redis).enqueue(jobs.fail)
    return {}


@app.get("/runs")
def runs():
    return {"runs": [line.decode() for line in redis.lrange("runs", 0, -1)]}
