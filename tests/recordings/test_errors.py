"""Every recorded error in every dialect: its class, its words and when to come again stay the same."""

import pytest

from proxy.dialects.dialect import Dialect
from proxy.dialects.table import ENDPOINTS, INFER
from proxy.errors import UpstreamRefused
from proxy.providers.provider import Api
from proxy.providers.table import PROVIDERS
from tests.recordings.corpus import Recording, api_of, parameters, recordings

DIALECTS = {endpoint.dialect.name: endpoint.dialect for endpoint in ENDPOINTS if endpoint.action == INFER}


def _readers() -> dict[str, Api]:
    """For each dialect an API that speaks it, to read what its clients are told."""
    found: dict[str, Api] = {}
    for provider in PROVIDERS.values():
        for api in provider.apis:
            if not api.has_own_errors:
                found.setdefault(api.name, api)
    return {name: found[name] for name in DIALECTS if name in found}


READERS = _readers()


ERRORS = parameters([found for found in recordings() if found.status >= 400 and api_of(found) is not None])


@pytest.mark.parametrize("recording", ERRORS)
def test_an_error_keeps_its_meaning_in_every_dialect(recording: Recording) -> None:
    api = api_of(recording)
    assert api is not None
    error = api.read_error(recording.status, recording.body)
    assert error.message
    refused = UpstreamRefused(
        recording.status, error.message, kind=error.kind, code=error.code, param=error.param, body=None, headers=[]
    )
    # A failure of the provider's is one of a gateway's.
    assert refused.status_code == (recording.status if recording.status < 500 else 502)
    for dialect, reader in READERS.items():
        told = reader.read_error(refused.status_code, DIALECTS[dialect].render_error(refused, "req-1"))
        assert error.message in told.message, dialect
        _check_kind(DIALECTS[dialect], refused, told.kind)


def _check_kind(dialect: Dialect, refused: UpstreamRefused, kind: str) -> None:
    """The client's own words for the class of an error, which its library knows."""
    if dialect.name.startswith("anthropic"):
        assert kind in ("invalid_request_error", "not_found_error", "authentication_error", "permission_error",
                        "request_too_large", "rate_limit_error", "api_error", "overloaded_error")  # fmt: skip
    elif dialect.name.startswith("openai") and refused.status_code == 429:
        assert kind == "rate_limit_error"


@pytest.mark.parametrize("dialect", READERS)
def test_an_error_in_a_stream_is_read_by_who_speaks_the_dialect(dialect: str) -> None:
    speaks, api = DIALECTS[dialect], READERS[dialect]
    refused = UpstreamRefused(529, "overloaded", kind="", code="", param="", body=None, headers=[])
    if not api.is_translatable or api.capability != "chat":
        return
    parser, reader = api.frames(), api.stream_reader()
    frames = parser.feed(speaks.render_error_event(refused, "req-1"))
    tail = parser.finish()
    events = [event for frame in [*frames, *([tail] if tail is not None else [])] for event in reader.read(frame)]
    assert any(type(event).__name__ == "Failed" and "overloaded" in event.error.message for event in events)
