"""What a Realtime session's events say of its use, and what must be held for it: both generations of events, no sockets."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.records import Usage
from budgets.pricing import Price, cost_nanos, hold_nanos
from proxy.dialects.openai_realtime import REALTIME
from proxy.errors import InvalidRequest, TrafficHalted
from proxy.providers.openai_realtime import RealtimeMeter
from proxy.snapshot import Deployment

# gpt-realtime: text 4, sound 32, images 5, cached 0.4; out 16 and 64 dollars per million tokens.
PRICE = Price(
    price_id="p",
    input_nanos=4_000_000_000,
    output_nanos=16_000_000_000,
    cache_read_nanos=400_000_000,
    cache_write_nanos=4_000_000_000,
    input_audio_nanos=32_000_000_000,
    input_image_nanos=5_000_000_000,
    output_audio_nanos=64_000_000_000,
)
DEPLOYMENT = Deployment(
    deployment_id="d",
    name="d",
    provider="openai",
    model="gpt-realtime",
    upstream_model="gpt-realtime",
    price=PRICE,
    context_window=32_000,
    max_output_tokens=4_096,
    operations=("realtime",),
)
BOUND_NANOS = hold_nanos(PRICE, 32_000, 4_096, has_audio=True, has_images=True)


class Session:
    """A meter and short words to drive it with."""

    def __init__(self, *, turns: Any = None, **session: Any) -> None:
        self.meter = RealtimeMeter("voice", DEPLOYMENT)
        heard = {"format": {"type": "audio/pcm", "rate": 24_000}, "turn_detection": turns, "transcription": None}
        spoken = {"format": {"type": "audio/pcm", "rate": 24_000}}
        audio = {"input": {**heard, **session.pop("heard", {})}, "output": spoken}
        self.says("session.created", session={"model": "gpt-realtime", "audio": audio, **session})

    def says(self, kind: str, **fields: Any) -> None:
        self.meter.received(json.dumps({"type": kind, **fields}).encode())

    def send(self, kind: str, **fields: Any) -> bytes:
        return self.meter.sent(json.dumps({"type": kind, **fields}).encode())

    def ends(self, response_id: str, usage: Any = None, status: str = "completed", **fields: Any) -> None:
        self.says("response.done", response={"id": response_id, "status": status, "usage": usage, **fields})

    @property
    def answers_held(self) -> int:
        """For how many answers there must be room, beside what was used."""
        needed = self.meter.needed_nanos(PRICE) - cost_nanos(self.meter.usage, PRICE)
        assert needed % BOUND_NANOS == 0
        return needed // BOUND_NANOS


DONE = {
    "total_tokens": 1_500,
    "input_tokens": 1_000,
    "output_tokens": 500,
    "input_token_details": {
        "text_tokens": 300,
        "audio_tokens": 600,
        "image_tokens": 100,
        "cached_tokens": 512,
        "cached_tokens_details": {"text_tokens": 112, "audio_tokens": 400, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 100, "audio_tokens": 400},
}


def test_an_answer_costs_what_openai_bills_for_it():
    session = Session()
    session.ends("r1", DONE)
    assert session.meter.usage == Usage(
        input_tokens=1_000,
        cache_read_input_tokens=512,
        input_audio_tokens=200,
        input_image_tokens=100,
        output_tokens=500,
        output_audio_tokens=400,
    )
    text, cached, heard, seen, written, spoken = (
        188 * 4_000,
        512 * 400,
        200 * 32_000,
        100 * 5_000,
        100 * 16_000,
        400 * 64_000,
    )
    assert cost_nanos(session.meter.usage, PRICE) == text + cached + heard + seen + written + spoken


def test_answers_add_up():
    session = Session()
    for number in range(3):
        session.ends(f"r{number}", DONE)
    assert session.meter.usage.input_tokens == 3_000
    assert cost_nanos(session.meter.usage, PRICE) == 3 * 35_056_800 // 1
    assert not session.meter.is_estimated


def test_the_names_and_how_the_last_answer_ended_are_kept():
    session = Session()
    session.ends("r1", DONE, status="incomplete", status_details={"type": "incomplete", "reason": "max_output_tokens"})
    assert (session.meter.response_model, session.meter.finish_reason) == ("gpt-realtime", "max_output_tokens")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {"type": "tokens", "input_tokens": 26, "output_tokens": 17, "input_token_details": {"audio_tokens": 20, "text_tokens": 6}},
            Usage(input_tokens=26, output_tokens=17, input_audio_tokens=20),
        ),
        ({"type": "tokens", "input_tokens": 26, "output_tokens": 17}, Usage(input_tokens=26, output_tokens=17, input_audio_tokens=26)),
        ({"type": "duration", "seconds": 2.01}, Usage(input_tokens=21, input_audio_tokens=21)),
        (None, Usage()),
        ({"type": "tokens", "input_tokens": -1}, Usage()),
        ({"type": "duration", "seconds": "two"}, Usage()),
    ],
)  # fmt: skip
def test_a_transcription_counts_as_sound_that_was_heard(usage, expected):
    session = Session()
    session.says("conversation.item.input_audio_transcription.completed", item_id="i", transcript="Hi", usage=usage)
    assert session.meter.usage == expected


# What the hold must cover


def test_nothing_more_is_held_while_nobody_asks():
    session = Session()
    session.send("conversation.item.create", item={"type": "message"})
    assert session.answers_held == 0
    session.send("response.create")
    assert session.answers_held == 1
    session.says("response.created", response={"id": "r1"})
    assert session.answers_held == 1
    session.ends("r1", DONE)
    assert session.answers_held == 0


def test_each_answer_that_was_asked_for_at_once_is_held_for():
    session = Session()
    for _ in range(3):
        session.send("response.create", response={"conversation": "none"})
    assert session.answers_held == 3
    session.says("response.created", response={"id": "r1"})
    session.says("response.created", response={"id": "r2"})
    session.ends("r1", DONE)
    assert session.answers_held == 2


@pytest.mark.parametrize(
    "error",
    [
        {"code": "conversation_already_has_active_response", "event_id": None},
        {"code": "invalid_value", "param": "response.max_output_tokens", "event_id": None},
        {"code": "whatever", "param": None, "event_id": "mine"},
    ],
)
def test_an_answer_that_was_refused_needs_no_room(error):
    session = Session()
    session.send("response.create", event_id="mine")
    session.says("error", error=error)
    assert session.answers_held == 0
    session.meter.finish()
    assert not session.meter.is_estimated


def test_an_error_about_something_else_frees_nothing():
    session = Session()
    session.send("response.create")
    session.says("error", error={"code": "invalid_value", "param": "session.voice", "event_id": None})
    assert session.answers_held == 1


def test_where_the_provider_answers_by_itself_the_next_answer_is_held_for_too():
    session = Session(turns={"type": "server_vad"})
    assert session.answers_held == 0
    session.send("input_audio_buffer.append", audio="AAAA")
    assert session.answers_held == 1
    session.says("response.created", response={"id": "r1"})
    assert session.answers_held == 2
    session.ends("r1", DONE)
    assert session.answers_held == 1


@pytest.mark.parametrize("turns", [None, {"type": "server_vad", "create_response": False}])
def test_where_the_client_asks_for_each_answer_only_those_are_held_for(turns):
    session = Session(turns=turns)
    session.send("input_audio_buffer.append", audio="AAAA")
    assert session.answers_held == 0
    session.send("session.update", session={"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}})
    assert session.answers_held == 1, "it may be in force before we are told so"


def test_the_beta_tells_its_turn_detection_elsewhere():
    session = Session(turns={"type": "server_vad"})
    session.send("input_audio_buffer.append", audio="AAAA")
    session.says("session.updated", session={"model": "gpt-4o-realtime-preview", "turn_detection": None})
    assert session.answers_held == 0


def test_a_shorter_answer_needs_less_room_and_a_longer_one_more():
    session = Session()
    session.send("response.create")

    def held(tokens: int) -> bool:
        bound = hold_nanos(PRICE, 32_000, tokens, has_audio=True, has_images=True)
        return session.meter.needed_nanos(PRICE) == bound

    assert held(4_096)
    session.says("session.updated", session={"max_output_tokens": 100})
    assert held(100)
    session.says("session.updated", session={"max_output_tokens": "inf"})
    assert held(4_096)
    session.send("response.create", response={"max_output_tokens": 8_000})
    session.says("response.created", response={"id": "r1"})
    session.ends("r1", DONE)
    bound = hold_nanos(PRICE, 32_000, 8_000, has_audio=True, has_images=True)
    assert session.meter.needed_nanos(PRICE) == bound + cost_nanos(session.meter.usage, PRICE)


def test_what_is_heard_while_it_is_transcribed_is_held_for_until_it_is_paid():
    session = Session(heard={"transcription": {"model": "whisper-1"}})
    second = base64.b64encode(bytes(48_000)).decode()
    session.send("input_audio_buffer.append", audio=second)
    room = session.meter.needed_nanos(PRICE)
    # Ten tokens of sound and a little for the frame, and as many of text.
    assert 10 * (32_000 + 16_000) <= room <= 12 * (32_000 + 64_000)
    for _ in range(2):
        session.says(
            "conversation.item.input_audio_transcription.completed", usage={"type": "duration", "seconds": 1.0}
        )
    assert session.meter.needed_nanos(PRICE) == 20 * 32_000


# What never said its usage


def test_an_answer_that_was_cut_is_estimated_from_the_conversation_and_what_was_seen():
    session = Session()
    session.send("response.create")
    session.says("response.created", response={"id": "r1"})
    session.ends("r1", DONE)
    session.send("response.create")
    session.says("response.created", response={"id": "r2"})
    for _ in range(3):
        session.says("response.output_audio_transcript.delta", response_id="r2", delta=" Hello")
        session.says("response.output_audio.delta", response_id="r2", delta=base64.b64encode(bytes(4_800)).decode())
    session.meter.finish()
    estimated = session.meter.usage
    assert session.meter.is_estimated
    assert estimated.input_tokens >= 1_000 + 1_500
    # Three times a word of two tokens, and 100 ms of sound, that is two.
    assert (estimated.output_tokens, estimated.output_audio_tokens) == (500 + 12, 400 + 6)


def test_an_estimate_is_never_more_than_what_was_held():
    session = Session()
    session.send("conversation.item.create", item={"content": "x" * 1_000_000})
    session.send("response.create")
    session.says("response.created", response={"id": "r1"})
    for _ in range(200):
        session.says("response.output_audio.delta", response_id="r1", delta="A" * 100_000)
    needed = session.meter.needed_nanos(PRICE)
    session.meter.finish()
    assert session.meter.usage.input_tokens == 32_000
    assert session.meter.usage.output_tokens == 4_096
    assert cost_nanos(session.meter.usage, PRICE) <= needed


def test_a_failed_answer_without_usage_costs_nothing_and_any_other_is_estimated():
    session = Session()
    session.ends("r1", None, status="failed")
    assert (session.meter.usage, session.meter.is_estimated) == (Usage(), False)
    session.ends("r2", None, status="cancelled")
    assert session.meter.is_estimated
    assert session.meter.usage.input_tokens > 0


def test_what_did_not_go_on_was_not_asked():
    session = Session()
    session.send("response.create")
    session.meter.withheld(b'{"type":"response.create"}')
    assert session.answers_held == 0


# What passes


@pytest.mark.parametrize(
    "message",
    [
        b'{ "type":"session.update", "session" : {"voice":"marin", "temperature": 1.0} }',
        b'{"type":"session.update","session":{"model":null}}',
        b'{"type":"session.update","session":{"audio":{"input":{"transcription":{"model":"whisper-1"}}}}}',
        b'{"type":"session.update","session":{"audio":null,"input_audio_transcription":"what"}}',
        b'{"type":"session.update","session":7}',
        b'{"type":"session.update"}',
        b'{"type":["session.update"]}',
        b'{"type":"response.create","response":{"max_output_tokens":"inf"}, "x":1.50}',
    ],
)
def test_a_message_that_names_no_model_goes_on_as_it_came(message):
    assert Session().meter.sent(message) == message


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (
            b'{"type":"session.update", "session":{"a": 1.50, "model": "voice", "b":[ ]}}',
            b'{"type":"session.update","session":{"a":1.50,"model":"gpt-realtime","b":[ ]}}',
        ),
        (
            b'{"type":"session.update","session":{"model":"another-dearer-one"}}',
            b'{"type":"session.update","session":{"model":"gpt-realtime"}}',
        ),
        (
            b'{"type":"session.update","session":{"audio":{"input":{"transcription":{"model":"voice"}}}}}',
            b'{"type":"session.update","session":{"audio":{"input":{"transcription":{"model":"gpt-realtime"}}}}}',
        ),
        (
            b'{"type":"transcription_session.update","session":{"input_audio_transcription":{"model":"voice"}}}',
            b'{"type":"transcription_session.update","session":{"input_audio_transcription":{"model":"gpt-realtime"}}}',
        ),
    ],
)  # fmt: skip
def test_a_model_that_is_named_is_the_deployments_own(given, sent):
    assert Session().meter.sent(given) == sent


KINDS = st.sampled_from(
    [
        "response.create", "response.created", "response.done", "response.output_audio.delta", "session.update",
        "session.created", "session.updated", "error", "input_audio_buffer.append", "response.output_text.delta",
        "conversation.item.input_audio_transcription.completed",
    ]
)  # fmt: skip
NAMES = st.sampled_from(
    [
        "type", "response", "session", "usage", "audio", "input", "output", "format", "turn_detection", "transcription", "id",
        "input_tokens", "input_token_details", "seconds", "max_output_tokens", "error", "event_id", "delta", "response_id",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=12,
)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.booleans(), KINDS, st.dictionaries(NAMES, VALUES, max_size=6)), max_size=6), st.binary())
def test_whatever_is_said_is_read_or_let_by(events, noise):
    meter = RealtimeMeter("voice", DEPLOYMENT)
    messages = [(to_provider, json.dumps({**fields, "type": kind}).encode()) for to_provider, kind, fields in events]
    for to_provider, message in [
        *messages,
        (True, noise),
        (False, noise),
        (False, b'{"type":{}}'),
        (False, b"[" * 5_000),
    ]:
        if to_provider:
            meter.sent(message)
        else:
            meter.received(message)
        assert meter.needed_nanos(PRICE) >= 0
    meter.finish()
    assert min(meter.usage.counts) >= 0


# How it begins and ends


def test_the_query_names_the_alias_and_the_rest_of_it_is_kept():
    call = REALTIME.describe(b"", b"", {"query": "a=1&model=my%20voice&b=%C3%A4"})
    assert (call.alias, call.parameters["query"], call.is_session) == ("my voice", "a=1&b=%C3%A4", True)


@pytest.mark.parametrize("query", ["", "model=", "model=a&model=b", "model=a&call_id=rtc_1", "x"])
def test_a_query_without_one_model_or_with_a_call_is_refused(query):
    with pytest.raises(InvalidRequest):
        REALTIME.describe(b"", b"", {"query": query})


def test_the_last_words_are_an_error_event():
    error = TrafficHalted("drill", kill_switch_id="k1", scope="global")
    told = json.loads(REALTIME.render_error_event(error, "req-1"))
    assert (told["type"], told["event_id"]) == ("error", "event_req-1")
    assert told["error"]["code"] == "traffic_halted"
    assert told["error"]["kill_switch_id"] == "k1"
    assert told["error"]["event_id"] is None
