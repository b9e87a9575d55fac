"""What an API must be told besides its address, and what it must not."""

import pytest

from proxy.providers.table import PROVIDERS
from routing.addresses import check_base_url
from routing.apis import APIS, InvalidOptions, check_options

VERTEX = {"project": "acme-1", "location": "europe-west4"}


@pytest.mark.parametrize(
    ("api", "options"),
    [
        ("openai", {}),
        ("azure", {}),
        ("azure", {"url_style": "models"}),
        ("azure", {"url_style": "deployments", "api_version": "2024-10-21"}),
        ("vertex", VERTEX),
        ("vertex", VERTEX | {"token_url": "https://oauth2.example.com/token"}),
        ("bedrock", {"region": "eu-central-1"}),
    ],
)
def test_what_an_api_has_to_be_told_is_taken(api, options):
    check_options(APIS[api], options, may_be_private=False)


@pytest.mark.parametrize(
    ("api", "options", "words"),
    [
        ("openai", {"region": "eu"}, "OpenAI has no option 'region'; it has none"),
        ("bedrock", {}, "Amazon Bedrock needs region"),
        ("bedrock", {"regoin": "eu"}, "has no option 'regoin'; it has region"),
        ("vertex", {"project": "acme"}, "needs location; its options are project, location, token_url"),
        ("vertex", {}, "needs project and location"),
        ("vertex", VERTEX | {"token_url": "http://oauth2.example.com"}, "token_url: Use https"),
        ("vertex", VERTEX | {"token_url": "https://10.0.0.1/token"}, "token_url: This host is on a private network"),
        ("vertex", VERTEX | {"project": "../evil"}, "project: letters, digits"),
        ("bedrock", {"region": ""}, "region: letters, digits"),
        ("bedrock", {"region": "eu-central-1\n"}, "region: letters, digits"),
        ("bedrock", {"region": 1}, "region: a text, in quotes"),
        ("bedrock", ["region"], "Write them as"),
        ("azure", {"url_style": "v2"}, "url_style: v1 or deployments or models"),
    ],
)
def test_what_is_wrong_is_named(api, options, words):
    with pytest.raises(InvalidOptions) as refused:
        check_options(APIS[api], options, may_be_private=False)
    assert words in str(refused.value)


def test_a_token_may_come_from_a_private_host_where_that_is_allowed():
    check_options(APIS["vertex"], VERTEX | {"token_url": "http://127.0.0.1:9/token"}, may_be_private=True)


def test_every_api_that_can_be_chosen_is_spoken_by_the_provider_of_its_name():
    assert [provider.name for provider in PROVIDERS.values()] == list(APIS)


@pytest.mark.parametrize("name", APIS)
def test_every_address_that_is_suggested_would_be_taken(name):
    api = APIS[name]
    assert bool(api.base_url) != bool(api.example)
    check_base_url(api.base_url or api.example, may_be_private=api.example.startswith("http://127."))
