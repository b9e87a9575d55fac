"""Where things are: the admin, its REST API, and a liveness probe."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import path, reverse_lazy
from django.views.generic import RedirectView


def healthz(request: HttpRequest) -> HttpResponse:
    """The process answers; says nothing about PostgreSQL or Redis."""
    return HttpResponse("ok\n", content_type="text/plain")


urlpatterns = [
    path("", RedirectView.as_view(url=reverse_lazy("admin:index"), permanent=False)),
    path("healthz", healthz),
    path("admin/", admin.site.urls),
]
