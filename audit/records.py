"""The usage event: what the data path says about one attempt. No database, no Django, no clock.

An event travels worker → journal file and Redis stream → ledger. Its JSON is the wire format of all three.
"""

from typing import Literal

import msgspec

State = Literal["posted", "voided", "suspense"]
# "invoice": what it has cost was entered by hand, from the provider's bill.
UsageSource = Literal["provider", "estimated", "none", "invoice"]


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one attempt used, tokens as OpenTelemetry `gen_ai.usage.*` counts them.

    `input_tokens` includes the cached, written, audio and image ones; `output_tokens` includes the reasoning, audio and image
    ones; `cache_write_input_tokens` includes those written for an hour. `tool_calls` are the provider's own tools' runs that
    it bills each, `searches` of them such that looked something up on the web. `units` is what an API bills by that is no token: images, seconds of audio, characters
    of speech, search units; the operation says which. `batch_requests` is how many a batch has answered, 0 for what is none.
    `service_tier` (batch, flex, priority, fast; "" is standard) and
    `inference_geo` ("" is anywhere) are what the provider says it served at, and billed for.
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
    searches: int = 0
    batch_requests: int = 0
    service_tier: str = ""
    inference_geo: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        return msgspec.structs.astuple(self)[:-2]  # The last two are words.

    def __add__(self, other: "Usage") -> "Usage":
        """Of both together; where it was served at, as the later one says."""
        sums = {
            name: one + more if isinstance(one, int) else more or one
            for name, one, more in zip(
                self.__struct_fields__, msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True
            )
        }
        return Usage(**sums)


class PriceTerms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was made of a price's rates: its currency and what a unit of it was worth, a region's uplift, and what the contract
    with the provider gave at that moment. Basis points are hundredths of a percent."""

    currency: str = "USD"
    usd_per_unit_nanos: int = 1_000_000_000
    uplift_basis_points: int = 0
    discount_basis_points: int = 0
    contract_id: str = ""
    has_free_tokens: bool = False
    has_free_requests: bool = False


LIST_TERMS = PriceTerms()


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
    `terms` and `currency_cost_nanos` (None: as `cost_nanos`) say what `price_id` came to. `adjusts` makes it no attempt at all, but a
    correction of that one's cost: `cost_nanos` is the difference, and nothing else counts.
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
    terms: PriceTerms = LIST_TERMS
    currency_cost_nanos: int | None = None
    adjusts: str = ""
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
