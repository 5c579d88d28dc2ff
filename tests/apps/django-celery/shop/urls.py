from django.urls import path

from . import views

urlpatterns = [
    path("", views.greet),
    path("slow", views.slow),
    path("up/", views.up),
    path("jobs/<int:number>", views.enqueue),
    path("boom", views.boom),
    path("runs", views.runs),
]
