"""Any other path of a provider, as its own clients speak it: `/passthrough/{provider}/{path}`. Pure; no I/O.

Nothing is known of what such a call uses, so a fixed amount that an administrator set is held and charged for it; reading
and deleting are free. The same admission, the same kill switches, the same ledger.
"""

import re
from collections.abc import Mapping
from urllib.parse import unquote

import msgspec

from proxy.dialects.dialect import Call, form_of, is_form
from proxy.dialects.openai import OpenAI
from proxy.errors import InvalidRequest

FREE_METHODS = frozenset({"GET", "DELETE"})

_MODEL_IN_PATH = re.compile(r"(?:^|/)(?:models/(?P<of_google>[^/:]+)|(?:model|deployments)/(?P<other>[^/]+))")

_decode_head = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Passthrough(OpenAI):
    """One instance per method."""

    name = "passthrough"
    operation = "passthrough"
    capability = "passthrough"
    request_headers = (
        b"accept",
        b"anthropic-version",
        b"anthropic-beta",
        b"openai-beta",
        b"x-goog-api-client",
        b"x-goog-upload-protocol",
        b"x-goog-upload-command",
    )

    def __init__(self, method: str) -> None:
        self.method = method

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        path = parameters["path"]
        segments = unquote(unquote(path)).replace("\\", "/").split("/")
        # A path stays below the provider's base URL, whoever reads it later; some leave out what follows a semicolon.
        if (
            any(segment.partition(";")[0] in (".", "..") for segment in segments)
            or not path.isascii()
            or not path.isprintable()
        ):
            raise InvalidRequest("this path leads out of the provider's base URL", code="invalid_path")
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=f"passthrough/{parameters['provider']}",
            body=body,
            content_type=content_type,
            parameters={**parameters, "method": self.method, "model": _model(body, content_type, path)},
            input_tokens_max=0,
            output_tokens_max=0,
            is_free=self.method in FREE_METHODS,
        )


def _model(body: bytes, content_type: bytes, path: str) -> str:
    """The model that the call names in its body, or in its path as `…/models/{model}:…` (Google), `…/model/{model}/…` (Amazon)
    or `…/deployments/{model}/…` (Azure); "" where it names none."""
    named = _model_in(body, content_type)
    if named:
        return named
    found = _MODEL_IN_PATH.search(unquote(path))
    return (found["of_google"] or found["other"]) if found else ""


def _model_in(body: bytes, content_type: bytes) -> str:
    try:
        if is_form(content_type):
            return form_of(body, content_type).text("model") or ""
        return msgspec.json.decode(_decode_head(body).get("model", msgspec.Raw(b'""')), type=str)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidRequest):
        return ""  # Of what is no JSON and no form nothing is known.


METHODS = {method: Passthrough(method) for method in ("GET", "POST", "PUT", "PATCH", "DELETE")}
