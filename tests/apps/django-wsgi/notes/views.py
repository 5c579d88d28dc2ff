import time

from django.db import connection
from django.http import JsonResponse

GREETING = "first"


def greet(request):
    return JsonResponse({"greeting": GREETING})


def slow(request):
    time.sleep(2)
    return JsonResponse({"greeting": GREETING})


def boom(request):
    raise RuntimeError("boom")


def up(request):
    connection.ensure_connection()
    return JsonResponse({"ok": True})


def visits(request):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS visits (at REAL)")
        cursor.execute("INSERT INTO visits VALUES (%s)", [time.time()])
        cursor.execute("SELECT count(*) FROM visits")
        return JsonResponse({"visits": cursor.fetchone()[0]})
