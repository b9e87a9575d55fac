"""Recorded exchanges with real providers, and where in the gateway each belongs: its provider, its deployment, its endpoint.

They are not part of this repository: without them everything here is skipped by name.
"""

import base64
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest

from proxy.dialects.dialect import JSON, Call
from proxy.dialects.table import TABLE
from proxy.providers.passthrough import PASSTHROUGH
from proxy.providers.provider import Api
from proxy.providers.table import PROVIDERS
from proxy.snapshot import Deployment, Provider
from routing.apis import APIS

DIRECTORY = Path(__file__).parents[2].parent / "shared" / "recordings"
ABSENT = "the recordings of real traffic are not here"
MAX_OUTPUT_TOKENS = 4_321

# Which of our providers stands for whom; the others are called the same.
KINDS = {
    "ollama-cloud": "ollama",
    "cloudflare": "openai_compatible",
    "copilot": "openai_compatible",
    "databricks": "openai_compatible",
    "doubleword": "openai_compatible",
    "mistralrs": "openai_compatible",
    "venice": "openai_compatible",
    "zai": "openai_compatible",
}
# An API that a server has beside its own, and whose.
KINDS_BY_API = {
    ("gemini", "chat-completions"): "openai_compatible",
    ("copilot", "responses"): "openai",
    ("mistralrs", "responses"): "openai",
}
# The gateway's endpoint for each family of recordings; Gemini's have the model in the path.
PATHS = {
    "chat-completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "images": "/v1/images/generations",
    "moderations": "/v1/moderations",
    "responses": "/v1/responses",
    "speech": "/v1/audio/speech",
    "messages": "/v1/messages",
    "invoke": "/v1/messages",
    "chat-v2": "/v2/chat",
}
# Servers of Anthropic's whose bodies name neither model nor stream, but the version of the API.
_OF_THE_PATH = ("anthropic_version", "anthropic_beta", "stream")


class Recording(NamedTuple):
    """`number` is its place in the index."""

    number: int
    recording_id: str
    provider: str
    api: str
    meta: dict[str, Any]
    request: dict[str, Any]
    response: dict[str, Any]

    @property
    def status(self) -> int:
        return int(self.response["status"])

    @property
    def body(self) -> bytes:
        if "body_base64" in self.response:
            return base64.b64decode(self.response["body_base64"])
        return str(self.response["body_text"]).encode()

    @property
    def is_stream(self) -> bool:
        """Whether the client asked for one and got it."""
        return bool(self.meta["streaming"])

    @property
    def asks_for_stream(self) -> bool:
        """The path may say so; the answer may be an error."""
        return self.is_stream or "stream" in str(self.request["path"]).lower()

    def header(self, name: str) -> str:
        """Of the response, "" where it has none."""
        return next((value for field, value in self.response["headers"] if field == name), "")

    @property
    def kind(self) -> str:
        return KINDS_BY_API.get((self.provider, self.api)) or KINDS.get(self.provider, self.provider)

    @property
    def target(self) -> str:
        query = self.request["query"]
        return str(self.request["path"]) + (f"?{query}" if query else "")


class Place(NamedTuple):
    """Where a recording's call is made in the gateway, and what is there. `api` is the one that answers.

    `body` is what the client sends, with the alias for the model; `name` of the place is the deployment's and the alias's.
    """

    name: str
    path: str
    query: str
    body: bytes
    provider: Provider
    deployment: Deployment
    api: Api
    call: Call

    @property
    def is_passthrough(self) -> bool:
        return self.api is PASSTHROUGH


@functools.cache
def recordings() -> tuple[Recording, ...]:
    """All there are, in the order of the index."""
    if not (DIRECTORY / "index.json").exists():
        return ()
    return tuple(
        Recording(
            number, entry["id"], entry["provider"], entry["api"], found["meta"], found["request"], found["response"]
        )
        for number, entry in enumerate(json.loads((DIRECTORY / "index.json").read_text()))
        for found in [json.loads((DIRECTORY / entry["file"]).read_text())]
    )


def parameters(chosen: Iterator[Recording] | list[Recording]) -> list[Any]:
    """For `parametrize`: one test per recording, or one that is skipped by name."""
    found = [pytest.param(recording, id=recording.recording_id) for recording in chosen]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=ABSENT), id="absent")]


def api_of(recording: Recording) -> Api | None:
    """The provider's API that the recording was made of, as the gateway has it; None for one that only passes through."""
    if recording.kind == "vertex" and not options_of(recording):
        return None  # Without a project: its "express mode".
    name = {
        "converse": "bedrock.converse",
        "ollama-chat": "ollama.chat",
        "ollama-embed": "ollama.embed",
        "predict": "vertex.predict",
    }.get(recording.api)
    if recording.provider == "vertex" and recording.api == "embed-content":
        name = "vertex.embed_content"
    if recording.provider == "voyage" and recording.api == "rerank":
        name = "voyage.rerank"
    path = gateway_path(recording, "alias")
    if name is None and path is not None:
        endpoint = TABLE.find("POST", path).endpoint
        name = endpoint.dialect.name if endpoint is not None else None
    return next((api for api in served_apis(recording) if api.name == name), None)


def served_apis(recording: Recording) -> list[Api]:
    """What its provider has for the recorded model, best first."""
    deployment, provider = deployment_of(recording, ""), provider_of(recording, "http://h", "")
    return [api for api in PROVIDERS[recording.kind].apis if api.serves(deployment, provider)]


def gateway_path(recording: Recording, alias: str) -> str | None:
    """The endpoint for clients that speak as the recorded one did; None where there is none."""
    path = str(recording.request["path"])
    if recording.request["method"] != "POST":
        return None
    if recording.api in ("generate-content", "embed-content") or (
        recording.api == "count-tokens" and recording.provider in ("gemini", "vertex")
    ):
        return f"/v1beta/models/{alias}:{path.rpartition(':')[2]}"
    if recording.api == "count-tokens":
        return "/v1/messages/count_tokens" if recording.provider == "anthropic" else None
    if recording.api in ("embed", "rerank") and recording.provider in ("cohere", "voyage", "llamacpp"):
        return "/" + "/".join(path.split("/")[-2:])
    return PATHS.get(recording.api)


def upstream_model(recording: Recording) -> str:
    """As the recorded client named it: in the body or in the path."""
    path = unquote(recording.request["path"])
    found = re.search(
        r"(?:/models|/model|/deployments)/([^:]+?(?::\d+)?)(?::[a-zA-Z]+|/[a-z-]+|/chat/completions)$", path
    )
    body = recording.request["body"]
    names_it = recording.kind not in ("gemini", "vertex") and "/deployments/" not in path
    if names_it and isinstance(body, dict) and isinstance(body.get("model"), str):
        return str(body["model"])
    return found.group(1) if found else str(recording.meta["model"] or "unknown")


def options_of(recording: Recording) -> dict[str, str]:
    path, query = str(recording.request["path"]), str(recording.request["query"])
    version = re.search(r"api-version=([^&]+)", query)
    if recording.kind == "azure":
        style = "deployments" if "/deployments/" in path else "v1" if "/v1/" in path else "models"
        return {"url_style": style, **({"api_version": version.group(1)} if version else {})}
    if recording.kind == "vertex":
        found = re.search(r"/projects/([^/]+)/locations/([^/]+)/", path)
        return {"project": found.group(1), "location": found.group(2)} if found is not None else {}
    return {"region": "us-east-1"} if recording.kind == "bedrock" else {}


def provider_of(recording: Recording, upstream_url: str, prefix: str) -> Provider:
    """One for each recording: the recorded host becomes the first segment of its paths."""
    return Provider(
        slug=name_of(recording),
        api=recording.kind,
        base_url=f"{upstream_url}/{recording.request['host'].replace(':', '.')}{prefix}",
        output_cap_field=APIS[recording.kind].output_cap_field,
        options=options_of(recording),
        passthrough_hold_nanos=1_000,
    )


def deployment_of(recording: Recording, name: str, **changes: Any) -> Deployment:
    kind = PROVIDERS[recording.kind]
    fields: dict[str, Any] = {
        "deployment_id": name,
        "name": name,
        "provider": name,
        "model": f"model of {name}",
        "upstream_model": upstream_model(recording),
        "max_output_tokens": MAX_OUTPUT_TOKENS,
        "context_window": 1_000_000,
        "operations": tuple({api.capability for api in kind.apis}),
        **changes,
    }
    return Deployment(**fields)


def name_of(recording: Recording) -> str:
    return f"r{recording.number}"


def place_of(recording: Recording, upstream_url: str = "http://127.0.0.1:1", **changes: Any) -> Place:
    """`changes` are the deployment's."""
    name = name_of(recording)
    deployment = deployment_of(recording, name, **changes)
    path, query = gateway_path(recording, name), str(recording.request["query"])
    endpoint = TABLE.find("POST", path).endpoint if path is not None else None
    api = api_of(recording)
    if path is None or endpoint is None or api is None or api.name != endpoint.dialect.name:
        return _passthrough(recording, name, deployment, upstream_url)
    body = client_body(recording, name)
    said = {**TABLE.find("POST", path).parameters, **({"query": query} if query else {})}
    call = endpoint.dialect.describe(body, JSON, said)
    provider = provider_of(recording, upstream_url, "")
    target = api.pass_request(call, deployment, provider).target.decode()
    # What the provider's base URL has to say, so that the request arrives where the recorded one did.
    path_after, recorded_path = unquote(target.partition("?")[0]), unquote(recording.request["path"])
    if not recorded_path.endswith(path_after):
        return _passthrough(recording, name, deployment, upstream_url)
    prefix = recorded_path.removesuffix(path_after)
    provider = provider_of(recording, upstream_url, prefix)
    return Place(name, path, query, body, provider, deployment, api, call)


def _passthrough(recording: Recording, name: str, deployment: Deployment, upstream_url: str) -> Place:
    method, query = recording.request["method"], str(recording.request["query"])
    path = f"/passthrough/{name}{recording.request['path']}".replace("<", "%3C").replace(">", "%3E")
    match = TABLE.find(method, path)
    assert match.endpoint is not None
    body = as_sent(recording.request["body"])
    call = match.endpoint.dialect.describe(body, JSON, {**match.parameters, **({"query": query} if query else {})})
    return Place(name, path, query, body, provider_of(recording, upstream_url, ""), deployment, PASSTHROUGH, call)


def client_body(recording: Recording, alias: str) -> bytes:
    """The recorded request as a client of the gateway sends it."""
    body = recording.request["body"]
    if not isinstance(body, dict):
        return as_sent(body)
    if recording.provider in ("vertex", "bedrock") and recording.api in ("messages", "invoke"):
        body = {name: value for name, value in body.items() if name not in _OF_THE_PATH}
        body = {"model": alias, **body, **({"stream": True} if recording.asks_for_stream else {})}
    elif "model" in body or recording.kind not in ("gemini", "vertex"):
        body = {**body, "model": alias} if "model" in body else {"model": alias, **body}
    return as_sent(body)


def as_sent(body: Any) -> bytes:
    """With blanks and escapes that nobody's encoder makes again: what is passed on untouched shows them still."""
    return b"" if body is None else json.dumps(body, separators=(" , ", " :  ")).encode()


def is_asked_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
