from django.contrib import admin
from django.urls import path

from . import views

urlpatterns = [
    path("", views.greet),
    path("slow", views.slow),
    path("boom", views.boom),
    path("up/", views.up),
    path("visits", views.visits),
    path("admin/", admin.site.urls),
]
