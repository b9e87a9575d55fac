"""Where everything of the REST API is, its schema and its documentation. The resources are in the apps' `api.py`."""

import functools
from typing import Any

from django.urls import URLPattern, URLResolver, include, path, re_path
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.routers import SimpleRouter

from audit import api as audit
from budgets import alert_api as alerts
from budgets import api as budgets
from budgets import price_api as prices
from controlplane import kill_api, receipt_api
from controlplane.problems import NotFoundView
from keys import api as keys
from routing import api as routing
from teams import api as teams


class OnceGenerator(SchemaGenerator):
    """The schema is the same for everybody, and is made once per process: it takes a second."""

    def get_schema(self, request: Any = None, public: bool = False) -> Any:
        return _schema()


@functools.cache
def _schema() -> Any:
    return SchemaGenerator().get_schema(public=True)  # type: ignore[no-untyped-call]


router = SimpleRouter(use_regex_path=False)
for prefix, view in (
    ("teams", teams.TeamView),
    ("projects", teams.ProjectView),
    ("service-accounts", teams.ServiceAccountView),
    ("api-tokens", keys.ApiTokenView),
    ("virtual-keys", keys.VirtualKeyView),
    ("credential-pools", keys.CredentialPoolView),
    ("upstream-credentials", keys.UpstreamCredentialView),
    ("providers", routing.ProviderView),
    ("models", routing.ModelView),
    ("prices", routing.PriceView),
    ("exchange-rates", routing.ExchangeRateView),
    ("exchange-rate-feeds", routing.ExchangeRateFeedView),
    ("contracts", routing.ContractView),
    ("price-proposals", prices.PriceProposalView),
    ("rerates", prices.RerateView),
    ("deployments", routing.DeploymentView),
    ("model-aliases", routing.ModelAliasView),
    ("budgets", budgets.BudgetView),
    ("limits", budgets.LimitView),
    ("increases", budgets.IncreaseView),
    ("alerts", alerts.AlertView),
    ("alert-channels", alerts.ChannelView),
    ("alert-deliveries", alerts.DeliveryView),
    ("usage", budgets.UsageView),
    ("usage-records", audit.UsageRecordView),
    ("receipts", receipt_api.ReceiptView),
    ("audit-entries", audit.AuditEntryView),
    ("kill-switches", kill_api.KillSwitchView),
    ("workers", kill_api.WorkerView),
):
    router.register(prefix, view, basename=prefix)

urlpatterns: list[URLPattern | URLResolver] = [
    path("v1/", include(router.urls)),
    path("schema/", SpectacularAPIView.as_view(generator_class=OnceGenerator), name="api-schema"),
    path("docs/", SpectacularSwaggerSplitView.as_view(url_name="api-schema"), name="api-docs"),
    re_path(r"^", NotFoundView.as_view()),
]
