"""Which path is whose: every endpoint that clients may call, its method and dialect. No I/O.

Paths are matched as they were sent; what a path or a query says besides is in `parameters`.
"""

import re
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import unquote

from proxy.dialects import (
    anthropic,
    anthropic_batches,
    cohere_chat,
    cohere_embed,
    cohere_rerank,
    gemini,
    openai_audio,
    openai_batches,
    openai_files,
    openai_images,
    openai_moderations,
    openai_stored_responses,
    passthrough,
)
from proxy.dialects.dialect import Dialect
from proxy.dialects.openai_chat import CHAT
from proxy.dialects.openai_completions import COMPLETIONS
from proxy.dialects.openai_embeddings import EMBEDDINGS
from proxy.dialects.openai_realtime import REALTIME
from proxy.dialects.openai_responses import RESPONSES

# What answers: an inference call with admission, a session of many, or the list of what the key may use.
INFER = "infer"
CONVERSE = "converse"
MODELS = "models"
# What providers keep: one thing of it, or the list.
STORED = "stored"
STORED_LIST = "stored_list"
# What a request of the project has cost.
RECEIPT = "receipt"


class Endpoint(NamedTuple):
    """`header` is one that only this dialect's clients send, where two dialects share a path."""

    method: str
    path: str
    dialect: Dialect
    action: str = INFER
    header: bytes = b""


# `{name}` is one segment of a path, `{name*}` the rest of it; percent-decoded, but for what is passed on. The first that
# fits counts.
RAW = "path"
ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", CHAT),
    Endpoint("POST", "/v1/embeddings", EMBEDDINGS),
    Endpoint("POST", "/v1/messages", anthropic.MESSAGES),
    Endpoint("POST", "/v1/messages/count_tokens", anthropic.COUNT_TOKENS),
    Endpoint("GET", "/v1/models", anthropic.MESSAGES, MODELS, header=b"anthropic-version"),
    Endpoint("GET", "/v1/models/{model*}", anthropic.MESSAGES, MODELS, header=b"anthropic-version"),
    Endpoint("GET", "/v1/models", gemini.GENERATE, MODELS, header=b"x-goog-api-key"),
    Endpoint("GET", "/v1/models/{model*}", gemini.GENERATE, MODELS, header=b"x-goog-api-key"),
    Endpoint("GET", "/v1/models", CHAT, MODELS),
    Endpoint("GET", "/v1/models/{model*}", CHAT, MODELS),
    Endpoint("POST", "/v1/responses", RESPONSES),
    Endpoint("GET", "/v1/responses/{id}", openai_stored_responses.READ_RESPONSE, STORED),
    Endpoint("DELETE", "/v1/responses/{id}", openai_stored_responses.DELETE_RESPONSE, STORED),
    Endpoint("POST", "/v1/responses/{id}/cancel", openai_stored_responses.CANCEL_RESPONSE, STORED),
    Endpoint("GET", "/v1/responses/{id}/input_items", openai_stored_responses.READ_INPUT_ITEMS, STORED),
    Endpoint("POST", "/v1/files", openai_files.UPLOAD, STORED),
    Endpoint("GET", "/v1/files", openai_files.FILES, STORED_LIST),
    Endpoint("GET", "/v1/files/{id}", openai_files.READ_FILE, STORED),
    Endpoint("DELETE", "/v1/files/{id}", openai_files.DELETE_FILE, STORED),
    Endpoint("GET", "/v1/files/{id}/content", openai_files.READ_CONTENT, STORED),
    Endpoint("POST", "/v1/batches", openai_batches.CREATE_BATCH, STORED),
    Endpoint("GET", "/v1/batches", openai_batches.BATCHES, STORED_LIST),
    Endpoint("GET", "/v1/batches/{id}", openai_batches.READ_BATCH, STORED),
    Endpoint("POST", "/v1/batches/{id}/cancel", openai_batches.CANCEL_BATCH, STORED),
    Endpoint("POST", "/v1/messages/batches", anthropic_batches.CREATE_BATCH, STORED),
    Endpoint("GET", "/v1/messages/batches", anthropic_batches.BATCHES, STORED_LIST),
    Endpoint("GET", "/v1/messages/batches/{id}", anthropic_batches.READ_BATCH, STORED),
    Endpoint("DELETE", "/v1/messages/batches/{id}", anthropic_batches.DELETE_BATCH, STORED),
    Endpoint("GET", "/v1/messages/batches/{id}/results", anthropic_batches.READ_RESULTS, STORED),
    Endpoint("POST", "/v1/messages/batches/{id}/cancel", anthropic_batches.CANCEL_BATCH, STORED),
    *(
        endpoint
        for version in ("v1beta", "v1alpha", "v1")
        for endpoint in (
            Endpoint("POST", f"/{version}/models/{{model*}}:generateContent", gemini.GENERATE),
            Endpoint("POST", f"/{version}/models/{{model*}}:streamGenerateContent", gemini.STREAM),
            Endpoint("POST", f"/{version}/models/{{model*}}:countTokens", gemini.COUNT_TOKENS),
            Endpoint("POST", f"/{version}/models/{{model*}}:embedContent", gemini.EMBED),
            Endpoint("POST", f"/{version}/models/{{model*}}:batchEmbedContents", gemini.EMBED),
        )
    ),
    Endpoint("GET", "/v1beta/models", gemini.GENERATE, MODELS),
    Endpoint("GET", "/v1beta/models/{model*}", gemini.GENERATE, MODELS),
    Endpoint("POST", "/v1/completions", COMPLETIONS),
    Endpoint("POST", "/v1/rerank", cohere_rerank.RERANK_V1),
    Endpoint("POST", "/v2/rerank", cohere_rerank.RERANK),
    Endpoint("POST", "/v2/chat", cohere_chat.CHAT),
    Endpoint("POST", "/v2/embed", cohere_embed.EMBED),
    Endpoint("POST", "/v1/embed", cohere_embed.EMBED_V1),
    Endpoint("POST", "/v1/audio/speech", openai_audio.SPEECH),
    Endpoint("POST", "/v1/audio/transcriptions", openai_audio.TRANSCRIPTIONS),
    Endpoint("POST", "/v1/audio/translations", openai_audio.TRANSLATIONS),
    Endpoint("POST", "/v1/images/generations", openai_images.GENERATIONS),
    Endpoint("POST", "/v1/images/edits", openai_images.EDITS),
    Endpoint("POST", "/v1/images/variations", openai_images.VARIATIONS),
    Endpoint("POST", "/v1/moderations", openai_moderations.MODERATIONS),
    Endpoint("GET", "/v1/realtime", REALTIME, CONVERSE),
    Endpoint("GET", "/v1/receipts/{id}", CHAT, RECEIPT),
    *(Endpoint(method, "/passthrough/{provider}/{path*}", dialect) for method, dialect in passthrough.METHODS.items()),
)


class Match(NamedTuple):
    """`methods` is what the path takes; `endpoint` is None where the method is another."""

    endpoint: Endpoint | None
    parameters: dict[str, str]
    methods: tuple[str, ...] = ()


class Table:
    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        # The paths that nothing is read from, of one dialect each: nearly all traffic.
        self._exact: dict[tuple[str, str], Match] = {}
        self._patterns: list[tuple[re.Pattern[str], Endpoint]] = []
        for endpoint in endpoints:
            if "{" in endpoint.path or endpoint.header:
                self._patterns.append((_pattern(endpoint.path), endpoint))
            elif not any(other.path == endpoint.path and other.header for other in endpoints):
                self._exact[endpoint.method, endpoint.path] = Match(endpoint, {})
            else:
                self._patterns.append((_pattern(endpoint.path), endpoint))

    def find(self, method: str, path: str, headers: Collection[bytes] = ()) -> Match:
        """`path` as it was sent, `headers` their names. Never fails: an unknown path takes no method."""
        if method == "HEAD":
            method = "GET"
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact
        methods: list[str] = [known for known, known_path in self._exact if known_path == path]
        for pattern, endpoint in self._patterns:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            if endpoint.method == method and (not endpoint.header or endpoint.header in headers):
                said = found.groupdict()
                return Match(endpoint, {name: text if name == RAW else unquote(text) for name, text in said.items()})
            methods.append(endpoint.method)
        return Match(None, {}, tuple(dict.fromkeys(methods)))


def dialect_of(path: str) -> Dialect:
    """In which dialect to refuse a path that is nobody's: that of its nearest relative, or OpenAI's."""
    for prefix, dialect in RELATIVES:
        if path.startswith(prefix):
            return dialect
    return CHAT


RELATIVES: tuple[tuple[str, Dialect], ...] = (
    ("/v1/messages", anthropic.MESSAGES),
    ("/v1beta", gemini.GENERATE),
    ("/v2/", cohere_chat.CHAT),
)


def _pattern(path: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+\*?)\}", path)
    text = ""
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            text += re.escape(piece)
        elif piece.endswith("*"):
            text += f"(?P<{piece[:-1]}>.+)"
        else:
            text += f"(?P<{piece}>[^/:]+)"
    return re.compile(text)


TABLE = Table(ENDPOINTS)
