"""Callers of the REST API for tests: a Django client that carries the token of a service account."""

import secrets

from django.test import Client

from teams.scopes import BEYOND_A_TEAM, SCOPES
from tests import factories

EVERY_SCOPE = list(SCOPES)
SCOPES_OF_A_TEAM = [scope for scope in SCOPES if scope not in BEYOND_A_TEAM]


def token_of(account, **fields) -> str:
    """A new token's secret."""
    secret = f"tgapi-{secrets.token_urlsafe(24)}"
    factories.ApiTokenFactory(service_account=account, secret=secret, **fields)
    return secret


def client_of(account, **fields) -> Client:
    return Client(headers={"Authorization": f"Bearer {token_of(account, **fields)}"})


def client_with(*scopes: str, team=None) -> Client:
    """With every scope there is (for a team: that a team may have) where none is named."""
    chosen = list(scopes) or (EVERY_SCOPE if team is None else SCOPES_OF_A_TEAM)
    return client_of(factories.ServiceAccountFactory(scopes=chosen, team=team))


def url(resource: str, pk: object = None, act: str = "") -> str:
    return "/".join(["/api/v1", resource, *([str(pk)] if pk else []), *([act] if act else []), ""])


def post(client: Client, path: str, body: object = None, **headers: str):
    return client.post(path, body or {}, content_type="application/json", headers=headers or None)


def patch(client: Client, path: str, body: object):
    return client.patch(path, body, content_type="application/json")


def results(answer) -> list:
    assert answer.status_code == 200, answer.content
    return answer.json()["results"]


def assert_problem(answer, status: int, *words: str) -> dict:
    """The answer is a problem of this status whose text holds these words; the problem."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status and problem["title"] and problem["instance"]
    for word in words:
        assert word in problem["detail"]
    return problem
