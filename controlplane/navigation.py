"""The admin's sidebar: the red button first, then in the order in which finance and security ask."""

from collections.abc import Callable

from django.http import HttpRequest
from django.urls import reverse_lazy
from django.utils import timezone

from audit.actors import Actor
from audit.querysets import WRITERS
from budgets.models import Increase
from budgets.services import identity

SECTIONS: list[tuple[str, list[tuple[str, str, str, str]]]] = [
    ("", [("Kill switch", "emergency_home", "kill-switch", "keys.view_killswitch")]),
    (
        "Spend",
        [
            ("Overview", "monitoring", "admin:index", ""),
            ("Budgets", "account_balance_wallet", "admin:budgets_budget_changelist", "budgets.view_budget"),
            ("Alerts", "notifications", "admin:budgets_alert_changelist", "budgets.view_alert"),
            ("Usage records", "receipt_long", "admin:audit_usagerecord_changelist", "audit.view_usagerecord"),
            ("In suspense", "pending_actions", "suspense", "audit.view_usagerecord"),
            ("Books", "fact_check", "books", "budgets.view_verification"),
            ("Prices", "sell", "admin:routing_price_changelist", "routing.view_price"),
            ("Proposed prices", "difference", "admin:routing_priceproposal_changelist", "routing.view_priceproposal"),
            ("Contracts", "handshake", "admin:routing_contract_changelist", "routing.view_contract"),
            ("Re-rates", "published_with_changes", "admin:routing_rerate_changelist", "routing.view_rerate"),
            (
                "Exchange rates",
                "currency_exchange",
                "admin:routing_exchangerate_changelist",
                "routing.view_exchangerate",
            ),
            (
                "Exchange rate feeds",
                "rss_feed",
                "admin:routing_exchangeratefeed_changelist",
                "routing.view_exchangeratefeed",
            ),
        ],
    ),
    (
        "Control",
        [
            ("Past kill switches", "history_toggle_off", "admin:keys_killswitch_changelist", "keys.view_killswitch"),
            ("Limits", "speed", "admin:budgets_limit_changelist", "budgets.view_limit"),
            ("Increases", "trending_up", "admin:budgets_increase_changelist", "budgets.view_increase"),
            ("Audit", "history", "admin:audit_auditentry_changelist", "audit.view_auditentry"),
        ],
    ),
    (
        "Access",
        [
            ("Virtual keys", "key", "admin:keys_virtualkey_changelist", "keys.view_virtualkey"),
            ("Projects", "folder_open", "admin:teams_project_changelist", "teams.view_project"),
            ("Teams", "groups", "admin:teams_team_changelist", "teams.view_team"),
        ],
    ),
    (
        "Models",
        [
            ("Model aliases", "alt_route", "admin:routing_modelalias_changelist", "routing.view_modelalias"),
            ("Deployments", "dns", "admin:routing_deployment_changelist", "routing.view_deployment"),
            ("Models", "neurology", "admin:routing_model_changelist", "routing.view_model"),
            ("Providers", "cloud", "admin:routing_provider_changelist", "routing.view_provider"),
            ("Credentials", "lock", "admin:keys_upstreamcredential_changelist", "keys.view_upstreamcredential"),
            ("Credential pools", "inventory_2", "admin:keys_credentialpool_changelist", "keys.view_credentialpool"),
        ],
    ),
    (
        "Administration",
        [
            ("Users", "person", "admin:teams_user_changelist", "teams.view_user"),
            ("Alert channels", "campaign", "admin:budgets_channel_changelist", "budgets.view_channel"),
            ("Groups", "badge", "admin:teams_group_changelist", "teams.view_group"),
            ("Service accounts", "smart_toy", "admin:teams_serviceaccount_changelist", "teams.view_serviceaccount"),
            ("API tokens", "vpn_key", "admin:teams_apitoken_changelist", "teams.view_apitoken"),
        ],
    ),
]


def increases_to_decide(request: HttpRequest) -> int:
    """How many increases wait for this user: nobody decides on their own."""
    if not request.user.has_perm("budgets.decide_increase"):
        return 0
    undecided = Increase.objects.for_user(request.user, WRITERS).undecided(timezone.now())
    return undecided.exclude(requested_by=identity(Actor.from_request(request))).count()


# How much of it waits for the user, by the view.
TO_DO: dict[str, Callable[[HttpRequest], int]] = {"admin:budgets_increase_changelist": increases_to_decide}


def sidebar(request: HttpRequest) -> list[dict[str, object]]:
    """Only what this user may open."""
    navigation: list[dict[str, object]] = []
    for title, links in SECTIONS:
        items = [
            {"title": name, "icon": icon, "link": reverse_lazy(view), **_badge(request, view)}
            for name, icon, view, permission in links
            if not permission or request.user.has_perm(permission)
        ]
        if items:
            navigation.append({"title": title, "separator": True, "items": items})
    return navigation


def _badge(request: HttpRequest, view: str) -> dict[str, object]:
    count = TO_DO[view](request) if view in TO_DO else 0
    return {"badge": count, "badge_variant": "warning"} if count else {}
