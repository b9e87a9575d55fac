"""Where things are: the admin, its REST API, and a liveness probe."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path, reverse_lazy
from django.views.generic import RedirectView

from controlplane import api, books, metrics, problems, views


def healthz(request: HttpRequest) -> HttpResponse:
    """The process answers; says nothing about PostgreSQL or Redis."""
    return HttpResponse("ok\n", content_type="text/plain")


urlpatterns = [
    path("", RedirectView.as_view(url=reverse_lazy("admin:index"), permanent=False)),
    path("healthz", healthz),
    path("admin/usage.csv", views.usage_csv, name="usage-csv"),
    path("admin/kill-switch/", views.kill_page, name="kill-switch"),
    path("admin/kill-switch/throw/", views.kill_throw, name="kill-switch-throw"),
    path("admin/kill-switch/targets/", views.kill_targets, name="kill-switch-targets"),
    path("admin/kill-switch/reach/", views.kill_reach, name="kill-switch-reach"),
    path("admin/kill-switch/<uuid:kill_switch_id>/", views.kill_page, name="kill-switch-thrown"),
    path("admin/kill-switch/<uuid:kill_switch_id>/acks/", views.kill_acks, name="kill-switch-acks"),
    path("admin/kill-switch/<uuid:kill_switch_id>/lift/", views.kill_lift, name="kill-switch-lift"),
    path("admin/receipts/<uuid:request_id>/", books.receipt_page, name="receipt"),
    path("admin/books/", books.books_page, name="books"),
    path("admin/suspense/", books.suspense_page, name="suspense"),
    path("admin/suspense/<uuid:attempt_id>/", books.resolve_page, name="suspense-resolve"),
    path("admin/suspense/decide/<uuid:resolution_id>/", books.decide_resolution, name="suspense-decide"),
    path("metrics", metrics.show_metrics, name="metrics"),
    path("admin/", admin.site.urls),
    path("api/", include(api.urlpatterns)),
]
handler500 = problems.server_error
