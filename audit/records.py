"""The usage event: what the data path says about one attempt. No database, no Django, no clock.

An event travels worker → journal file and Redis stream → ledger. Its JSON is the wire format of all three.
"""

from typing import Literal

import msgspec

State = Literal["posted", "voided", "suspense"]
UsageSource = Literal["provider", "estimated", "none"]


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one attempt used, tokens as OpenTelemetry `gen_ai.usage.*` counts them.

    `input_tokens` includes the cached, written, audio and image ones; `output_tokens` includes the reasoning, audio and image
    ones; `cache_write_input_tokens` includes those written for an hour. `tool_calls` are the provider's own tools' runs that
    it bills each (web searches, …). `units` is what an API bills by that is no token: images, seconds of audio, characters
    of speech, search units; the operation says which.
    """

    input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_1h_input_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_audio_tokens: int = 0
    output_image_tokens: int = 0
    tool_calls: int = 0
    units: int = 0

    @property
    def has_rare_meters(self) -> bool:
        """Whether tokens were used that may have a rate of their own, apart from cached ones."""
        return bool(
            self.cache_write_1h_input_tokens
            or self.input_audio_tokens
            or self.input_image_tokens
            or self.output_audio_tokens
            or self.output_image_tokens
        )


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A deployment that the route was chosen from: in which place it stands and why, or why it was passed over."""

    deployment: str
    reason: str = ""
    is_passed_over: bool = False


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt (one upstream call), as it ended. Ids are UUID strings, moments are Unix microseconds.

    `upstream_id` is what the provider calls what it keeps of the attempt: a response, a file, a batch. In suspense, with
    such an id, it is a job: the provider goes on with it, and can be asked. `pool` is the credential pool. `downgraded_from` is
    the alias that was asked for, where a budget had a cheaper one take its place.
    `route` is what there was to choose from, in the order of trial; empty where there was no choice. `tag_sources` says where
    tags came from: `project` or `key` (a default), `body`; those of the header, which wins, are not named.
    """

    attempt_id: str
    request_id: str
    attempt_number: int = 1
    admitted_at_us: int
    team_id: str
    project_id: str
    virtual_key_id: str
    environment: str = ""
    end_user: str = ""
    alias: str
    downgraded_from: str = ""
    provider: str
    model: str
    deployment: str
    pool: str = ""
    operation: str = "chat"
    request_model: str
    response_model: str = ""
    upstream_id: str = ""
    is_stream: bool = False
    state: State = "posted"
    status_code: int = 0
    error_type: str = ""
    finish_reason: str = ""
    usage: Usage = Usage()
    usage_source: UsageSource = "none"
    cost_nanos: int = 0
    held_nanos: int = 0
    price_id: str = ""
    latency_ms: int = 0
    first_token_ms: int = 0
    kill_switch_id: str = ""
    tags: dict[str, str] = {}
    tag_sources: dict[str, str] = {}
    route: tuple[Candidate, ...] = ()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(UsageEvent)


def encode_event(event: UsageEvent) -> bytes:
    return _encoder.encode(event)


def decode_event(body: bytes) -> UsageEvent:
    """Raises `msgspec.DecodeError` or `msgspec.ValidationError` when `body` is not a usage event."""
    return _decoder.decode(body)
