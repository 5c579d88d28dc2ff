from django.http import JsonResponse
from django.urls import path

GREETING = "first"


async def greet(request):
    return JsonResponse({"greeting": GREETING})


async def boom(request):
    raise RuntimeError("boom")


urlpatterns = [path("", greet), path("boom", boom)]
