"""The usage event: what the data path says about one attempt. No database, no Django, no clock.

An event travels worker → journal file and Redis stream → ledger. Its JSON is the wire format of all three. The bounds below are
what the ledger's columns, indexes and sums bear. They are checked where an event is read, and cost the data path nothing.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

# A call's meters are far below it, and millions of records at it can still be added up in 63 bits.
METER_MAX = 10**12
INT16_MAX, INT32_MAX, INT64_MAX = 2**15 - 1, 2**31 - 1, 2**63 - 1
YEAR_2020_US, YEAR_2100_US = 1_577_836_800_000_000, 4_102_444_800_000_000  # Unix microseconds.

Meter = Annotated[int, Meta(ge=0, le=METER_MAX)]
Milliseconds = Annotated[int, Meta(ge=0, le=INT32_MAX)]
Nanos = Annotated[int, Meta(ge=0, le=INT64_MAX)]
# Three of the words are in one index, which takes 2,704 bytes.
Word = Annotated[str, Meta(max_length=200)]
Text = Annotated[str, Meta(max_length=2_000)]
TAG_KEY_LENGTH_MAX = 64
TagKey = Annotated[str, Meta(max_length=TAG_KEY_LENGTH_MAX)]
TagValue = Annotated[str, Meta(max_length=256)]
_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
Id = Annotated[str, Meta(pattern=f"^{_UUID}$")]
IdOrNone = Annotated[str, Meta(pattern=f"^({_UUID})?$")]  # None is "".

State = Literal["posted", "voided", "suspense"]
# "invoice": what it has cost was entered by hand, from the provider's bill.
UsageSource = Literal["provider", "estimated", "none", "invoice"]
# Of these the cost follows from the meters and a price, and can be reckoned again.
METERED: tuple[UsageSource, ...] = ("provider", "estimated")
Kind = Literal["attempt", "cache_hit", "shadow"]

# The `error_type` of an attempt whose credential the provider did not take.
CREDENTIAL_REFUSED = "upstream_credential_refused"


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one attempt used, tokens as OpenTelemetry `gen_ai.usage.*` counts them.

    `input_tokens` includes the cached, written, audio and image ones; `output_tokens` includes the reasoning, audio and image
    ones; `cache_write_input_tokens` includes those written for an hour. `tool_calls` are the provider's own tools' runs that
    it bills each, `searches` of them such that looked something up on the web. `units` is what an API bills by that is no token: images, seconds of audio, characters
    of speech, search units; the operation says which. `batch_requests` is how many a batch has answered, 0 for what is none.
    `service_tier` (batch, flex, priority, fast; "" is standard) and
    `inference_geo` ("" is anywhere) are what the provider says it served at, and billed for.
    """

    input_tokens: Meter = 0
    cache_read_input_tokens: Meter = 0
    cache_write_input_tokens: Meter = 0
    output_tokens: Meter = 0
    reasoning_tokens: Meter = 0
    cache_write_1h_input_tokens: Meter = 0
    input_audio_tokens: Meter = 0
    input_image_tokens: Meter = 0
    output_audio_tokens: Meter = 0
    output_image_tokens: Meter = 0
    tool_calls: Meter = 0
    units: Meter = 0
    searches: Meter = 0
    batch_requests: Meter = 0
    service_tier: Word = ""
    inference_geo: Word = ""

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
    usd_per_unit_nanos: Annotated[int, Meta(ge=1)] = 1_000_000_000
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

    `kind` tells two that are none of those which the client's answer was sought with. A `shadow` is a second call, made to compare:
    it costs what it costs. A `cache_hit` was answered by the gateway itself: no provider was called, nothing was used, and
    `saved_nanos` is what the call would have cost at `price_id`.
    `upstream_id` is what the provider calls what it keeps of the attempt: a response, a file, a batch. In suspense, with
    such an id, it is a job: the provider goes on with it, and can be asked. `pool` is the credential pool. `downgraded_from` is
    the alias that was asked for, where a budget had a cheaper one take its place.
    `terms` and `currency_cost_nanos` (None: as `cost_nanos`) say what `price_id` came to. `adjusts` makes it no attempt at all, but a
    correction of that one's cost: `cost_nanos` is the difference, and nothing else counts.
    `budget_ids` are the budgets whose counters held it.
    `route` is what there was to choose from, in the order of trial; empty where there was no choice. `tag_sources` says where
    tags came from: `project` or `key` (a default), `body`; those of the header, which wins, are not named.
    """

    attempt_id: str
    request_id: Id
    kind: Kind = "attempt"
    attempt_number: Annotated[int, Meta(ge=0, le=INT16_MAX)] = 1
    admitted_at_us: Annotated[int, Meta(ge=YEAR_2020_US, le=YEAR_2100_US)]
    team_id: str
    project_id: str
    virtual_key_id: str
    environment: Word = ""
    end_user: Text = ""
    alias: Word
    downgraded_from: Word = ""
    provider: Word
    model: Word
    deployment: Text
    pool: Text = ""
    operation: Word = "chat"
    request_model: Text
    response_model: Text = ""
    upstream_id: Text = ""
    is_stream: bool = False
    state: State = "posted"
    status_code: Annotated[int, Meta(ge=0, le=999)] = 0
    error_type: Word = ""
    finish_reason: Word = ""
    usage: Usage = Usage()
    usage_source: UsageSource = "none"
    cost_nanos: int = 0
    held_nanos: Nanos = 0
    saved_nanos: Nanos = 0
    price_id: IdOrNone = ""
    terms: PriceTerms = LIST_TERMS
    currency_cost_nanos: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    adjusts: str = ""
    latency_ms: Milliseconds = 0
    first_token_ms: Milliseconds = 0
    kill_switch_id: IdOrNone = ""
    tags: dict[TagKey, TagValue] = {}
    tag_sources: dict[TagKey, Word] = {}
    route: tuple[Candidate, ...] = ()
    budget_ids: tuple[Id, ...] = ()


# Where these are not sound, nobody knows whose it is or what it has cost.
_MONEY = frozenset({"attempt_id", "team_id", "project_id", "virtual_key_id", "state", "cost_nanos", "adjusts"})
_SIDE_FIELDS = [field for field in msgspec.structs.fields(UsageEvent) if field.name not in _MONEY]

# PostgreSQL has no NUL in a text. An escaped one: what follows an odd number of backslashes only looks like it.
_NUL, _ESCAPED_NUL = "\0", re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(UsageEvent)


def storable(text: str) -> str:
    """As the ledger stores it. What names a counter is this, so that its name is the same on both sides."""
    return text.replace(_NUL, "\ufffd") if _NUL in text else text


def encode_event(event: UsageEvent) -> bytes:
    return _encoder.encode(event)


def decode_event(body: bytes) -> UsageEvent:
    """As `read_event`, whatever had to be mended."""
    event, _ = read_event(body)
    return event


def read_event(body: bytes) -> tuple[UsageEvent, list[str]]:
    """The event, and which of its side fields had to be mended: money is not lost for a silly duration, nor for a NUL in a
    provider's words.

    Raises `msgspec.DecodeError` or `msgspec.ValidationError` when `body` does not say whose it is and what it has cost.
    """
    if b"u0000" in body:
        body = _ESCAPED_NUL.sub(rb"\1\\ufffd", body)
    try:
        return _decoder.decode(body), []
    except msgspec.ValidationError:
        raw = msgspec.json.decode(body)
        if not isinstance(raw, dict):
            raise
    silly = [field for field in _SIDE_FIELDS if field.name in raw and not _is_sound(raw[field.name], field.type)]
    mended = raw | {field.name: _mended(field, raw) for field in silly}
    sound = {name: value for name, value in mended.items() if value is not msgspec.UNSET}
    return msgspec.convert(sound, UsageEvent), [field.name for field in silly]


def _mended(field: msgspec.structs.FieldInfo, raw: Mapping[str, Any]) -> Any:
    """The nearest to what is said, else as if nothing were said. The same event is always mended alike."""
    if field.name == "request_id":
        return raw.get("attempt_id")
    made_at_us = _made_at_us(raw.get("attempt_id")) if field.name == "admitted_at_us" else None
    near = _nearest(raw[field.name] if made_at_us is None else made_at_us, field.type)
    if _is_sound(near, field.type):
        return near
    return "" if field.required else msgspec.UNSET


def _is_sound(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _nearest(value: Any, kind: Any) -> Any:
    """Cut to the bounds of its kind; None where it is nothing of the kind."""
    match msgspec.inspect.type_info(kind), value:
        case msgspec.inspect.IntType(ge=int(low), le=int(high)), int() | float():
            return int(max(low, min(value, high)))
        case msgspec.inspect.StrType(max_length=length), str():
            return value[:length]
        case msgspec.inspect.DictType(), dict():
            return {key[:TAG_KEY_LENGTH_MAX]: _nearest(one, TagValue) or "" for key, one in value.items()}
        case msgspec.inspect.StructType(cls=struct), dict() if struct is Usage:
            near = {field.name: _nearest(value.get(field.name), field.type) for field in msgspec.structs.fields(Usage)}
            return {name: one for name, one in near.items() if one is not None}
    return None


def _made_at_us(attempt_id: object) -> int | None:
    """When the attempt's id was made, which is when it was admitted (UUID version 7)."""
    try:
        made = UUID(str(attempt_id))
    except ValueError:
        return None
    return (made.int >> 80) * 1000 if made.version == 7 else None
