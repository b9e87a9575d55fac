"""OpenAI's APIs that answer in images, sound and seconds, and what passes through: as pure translations."""

import json

import pytest

from audit.records import Usage
from proxy.dialects import openai_audio, openai_images, openai_moderations, passthrough
from proxy.errors import InvalidRequest
from proxy.providers import openai_media
from proxy.providers.passthrough import PASSTHROUGH
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame
from tests.proxy.test_multipart import TYPE, form

PROVIDER = Provider(slug="p", api="openai", base_url="http://p")
DEPLOYMENT = Deployment(deployment_id="d", name="d", provider="p", model="m", upstream_model="upstream-1")


def test_a_transcription_is_bounded_by_what_its_bytes_can_hold_and_only_its_model_changes():
    body = form(("file", "a.mp3", b"\x00" * 7500), ("model", None, b"hear"), ("language", None, b"de"))
    call = openai_audio.TRANSCRIPTIONS.describe(body, TYPE, {})
    assert (call.alias, call.is_stream) == ("hear", False)
    assert call.units_max >= 10
    sent = openai_media.TRANSCRIPTIONS.pass_request(call, DEPLOYMENT, PROVIDER)
    assert sent.body == body.replace(b"hear", b"upstream-1")
    assert (sent.target, sent.content_type) == (b"/audio/transcriptions", TYPE)


def test_speech_is_bounded_by_its_characters_and_streams():
    call = openai_audio.SPEECH.describe('{"model":"say","input":"grüß dich","voice":"a"}'.encode(), b"", {})
    assert (call.units_max, call.is_stream) == (9, True)
    meter = openai_media.SPEECH.stream_meter(call)
    assert not meter.observe(Frame(b"\xff\xfb", b"", b""))
    assert meter.has_ended


def test_images_are_counted_from_json_and_forms():
    from_json = openai_images.GENERATIONS.describe(b'{"model":"draw","prompt":"x","n":3}', b"application/json", {})
    from_form = openai_images.EDITS.describe(form(("model", None, b"draw"), ("n", None, b"3")), TYPE, {})
    assert [(call.alias, call.units_max, call.choices) for call in (from_json, from_form)] == [("draw", 3, 3)] * 2


@pytest.mark.parametrize(
    ("dialect", "body", "content_type", "param"),
    [
        (openai_images.GENERATIONS, b'{"prompt":"x"}', b"application/json", "model"),
        (openai_images.GENERATIONS, b'{"model":"m","n":0}', b"application/json", "n"),
        (openai_images.EDITS, form(("n", None, b"1")), TYPE, "model"),
        (openai_images.EDITS, form(("model", None, b"m"), ("n", None, b"two")), TYPE, "n"),
        (openai_audio.SPEECH, b'{"model":"m"}', b"application/json", "input"),
        (openai_audio.TRANSCRIPTIONS, form(("file", "f", b"")), TYPE, "model"),
        (openai_moderations.MODERATIONS, b'{"model":1}', b"application/json", "model"),
    ],
)
def test_a_wrong_field_is_named(dialect, body, content_type, param):
    with pytest.raises(InvalidRequest) as caught:
        dialect.describe(body, content_type, {})
    assert caught.value.param == param


def test_a_moderation_without_a_model_is_openais_own():
    assert openai_moderations.MODERATIONS.describe(b'{"input":"x"}', b"", {}).alias == "omni-moderation-latest"


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"type": "duration", "seconds": 7.2}, Usage(units=8)),
        (
            {"type": "tokens", "input_tokens": 14, "input_token_details": {"audio_tokens": 14}, "output_tokens": 45},
            Usage(input_tokens=14, input_audio_tokens=14, output_tokens=45),
        ),
        (
            {
                "input_tokens": 50,
                "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
                "output_tokens": 272,
                "output_tokens_details": {"image_tokens": 272, "text_tokens": 0},
            },
            Usage(input_tokens=50, input_image_tokens=40, output_tokens=272, output_image_tokens=272),
        ),
        ({"input_tokens": -1}, None),
        (None, None),
    ],
)
def test_usage_is_read_in_tokens_and_seconds(usage, read):
    answer = json.dumps({"usage": usage, "data": []}).encode()
    assert openai_media.GENERATIONS.measure(answer).usage == read
    meter = openai_media.MediaMeter()
    done = json.dumps({"type": "transcript.text.done", "usage": usage}).encode()
    meter.observe(Frame(b"", done, b""))
    assert (meter.usage, meter.has_ended) == (read, True)


def test_subtitles_say_nothing_of_themselves():
    assert openai_media.TRANSCRIPTIONS.measure(b"1\n00:00 --> 00:01\nhello").usage is None


def test_what_passes_through_is_sent_as_it_came():
    said = {"provider": "p", "path": "v1/things%2F1", "query": "a=1&b=%20"}
    call = passthrough.METHODS["PATCH"].describe(b'{"model":"m","x":1.0}', b"application/json", said)
    sent = PASSTHROUGH.pass_request(call, DEPLOYMENT, PROVIDER)
    assert sent == (b"/v1/things%2F1?a=1&b=%20", b'{"model":"m","x":1.0}', (), b"application/json", b"PATCH")
    assert call.parameters["model"] == "m"


@pytest.mark.parametrize("path", ["../admin", "a/%2e%2e/b", "a/..%5c..", "a/./b", "a%2f..%2fb"])
def test_what_passes_through_stays_below_the_base_url(path):
    with pytest.raises(InvalidRequest):
        passthrough.METHODS["GET"].describe(b"", b"", {"provider": "p", "path": path})


@pytest.mark.parametrize(
    ("method", "is_free"), [("GET", True), ("DELETE", True), ("POST", False), ("PUT", False), ("PATCH", False)]
)
def test_reading_and_deleting_are_free(method, is_free):
    assert passthrough.METHODS[method].describe(b"", b"", {"provider": "p", "path": "v1/x"}).is_free is is_free


@pytest.mark.parametrize(
    ("body", "path", "model"),
    [
        (b'{"model":"m-1"}', "v1/x", "m-1"),
        (b'{"model":5}', "v1/x", ""),
        (b"{broken", "v1/x", ""),
        (b"", "v1beta/models/gemini-3:countTokens", "gemini-3"),
        (b"", "v1/x", ""),
    ],
)
def test_the_model_of_a_passing_call_is_known_to_the_kill_switches(body, path, model):
    call = passthrough.METHODS["POST"].describe(body, b"", {"provider": "p", "path": path})
    assert call.parameters["model"] == model
