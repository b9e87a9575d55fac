import pytest

from proxy.dialects.table import TABLE


@pytest.mark.parametrize(
    ("method", "path", "name", "parameters"),
    [
        ("POST", "/v1/chat/completions", "openai.chat", {}),
        ("HEAD", "/v1/models", "openai.chat", {}),
        ("GET", "/v1/models/org/a-model", "openai.chat", {"model": "org/a-model"}),
        ("GET", "/v1/models/org%2Fa-model", "openai.chat", {"model": "org/a-model"}),
        ("POST", "/v1beta/models/org/m:generateContent", "gemini.generate", {"model": "org/m"}),
        ("POST", "/v1/models/m%3A1:countTokens", "gemini.count_tokens", {"model": "m:1"}),
        ("POST", "/v1beta/models/m:embedContent", "gemini.embed", {"model": "m"}),
        ("POST", "/passthrough/openai/v1/x%2Fy", "passthrough", {"provider": "openai", "path": "v1/x%2Fy"}),
    ],
)
def test_a_path_finds_its_dialect(method, path, name, parameters):
    match = TABLE.find(method, path)
    assert match.endpoint is not None
    assert match.endpoint.dialect.name == name
    assert match.parameters == parameters


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m"])
def test_two_dialects_share_a_path_by_what_their_clients_send(path):
    dialects = [
        TABLE.find("GET", path, headers).endpoint.dialect.name
        for headers in ((), (b"anthropic-version",), (b"x-goog-api-key",))
    ]  # type: ignore[union-attr]
    assert dialects == ["openai.chat", "anthropic.messages", "gemini.generate"]


def test_a_wrong_method_is_told_what_the_path_takes():
    match = TABLE.find("DELETE", "/v1/chat/completions")
    assert (match.endpoint, match.methods) == (None, ("POST",))


@pytest.mark.parametrize("path", ["/", "/v1/chat/completions/", "/v1%2Fchat/completions", "/passthrough/openai"])
def test_nobodys_path_takes_no_method(path):
    assert TABLE.find("POST", path).methods == ()
