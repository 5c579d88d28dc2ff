import time

from django.http import JsonResponse
from django.templatetags.static import static

from . import tasks
from .models import Run


def greet(request):
    return JsonResponse({"greeting": tasks.GREETING, "style": static("shop/style.css")})


def slow(request):
    time.sleep(2)
    return JsonResponse({"greeting": tasks.GREETING})


def up(request):
    return JsonResponse({"runs": Run.objects.count()})


def enqueue(request, number):
    tasks.count.delay(number)
    return JsonResponse({"number": number})


def boom(request):
    tasks.fail.delay()
    return JsonResponse({})


def runs(request):
    return JsonResponse(
        {"runs": [[run.task, run.number, run.code, run.release, run.began] for run in Run.objects.all()]}
    )
