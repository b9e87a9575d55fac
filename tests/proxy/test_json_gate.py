import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.wire.json_gate import COUNTED_FROM_BYTES, DEPTH_MAX, VALUES_MAX, MalformedBody, dump_object, parse_object


def accepts(body: bytes) -> bool:
    try:
        parse_object(body)
    except MalformedBody:
        return False
    return True


def reference_accepts(body: bytes) -> bool:
    """The same rules, written for the reader and not for the clock."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
        _check(value, depth=1)
    except (ValueError, RecursionError):  # Broken UTF-8 and broken JSON are both of the first kind.
        return False
    return isinstance(value, dict)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key repeats")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _check(value: Any, depth: int) -> None:
    if isinstance(value, str):
        value.encode()  # Refuses lone surrogates.
    if isinstance(value, float) and math.isinf(value):
        raise ValueError("out of range")
    if isinstance(value, dict | list) and depth > DEPTH_MAX:
        raise ValueError("too deep")
    if isinstance(value, dict):
        for key, inside in value.items():
            _check(key, depth)
            _check(inside, depth + 1)
    if isinstance(value, list):
        for inside in value:
            _check(inside, depth + 1)


def nested(depth: int) -> bytes:
    """An object of `depth` levels in all."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


GOOD = [
    b"{}",
    b" \t\r\n{ } \n",
    b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":false,"n":null}',
    b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}',
    b'{"a":"\\"","b":"\\\\","c":"\\\\\\"","d":"\\u0022","e":"\\\\u0022"}',
    b'{"a\\"":1,"a\\\\":2,"a\\u0022b":3}',
    b'{"":1}',
    b'{"a":"\\ud83d\\ude00 \xf0\x9f\x98\x80 \\u0000"}',
    b'{"a":123456789012345678901234567890,"b":-0.0,"c":1e300,"d":1E-400}',
    b'{"a":' + b"9" * 4300 + b"}",
    nested(DEPTH_MAX),
]

BAD = {
    "empty": b"",
    "array": b'[{"a":1}]',
    "string": b'"a"',
    "null": b"null",
    "trailing": b'{"a":1} {"b":2}',
    "trailing comma": b'{"a":1,}',
    "comment": b'{"a":1 /* b */}',
    "single quotes": b"{'a':1}",
    "bare key": b"{a:1}",
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "repeated key": b'{"model":"cheap","model":"dear"}',
    "repeated key, spelled apart": b'{"model":"cheap","mod\\u0065l":"dear"}',
    "repeated key, spaced": b'{"a" :1 , "b":2, "a"\n:3}',
    "repeated key below": b'{"a":[1,{"b":{"c":1,"c":1}}]}',
    "repeated empty key": b'{"":1,"":1}',
    "repeated key hidden by quotes": b'{"a":1,"b":"\\u0022\\u0022","a":2}',
    "repeated key hidden by escapes": b'{"a\\"":"\\\\\\u0022","a\\u0022":2}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b'{"a":-Infinity}',
    "float out of range": b'{"a":1e999}',
    "integer of 4,301 digits": b'{"a":' + b"9" * 4301 + b"}",
    "leading zero": b'{"a":01}',
    "leading plus": b'{"a":+1}',
    "invalid UTF-8": b'{"a":"\xff"}',
    "invalid UTF-8 below": b'{"a":{"b":["\xc3("]}}',
    "invalid UTF-8 in a key": b'{"\xff":1}',
    "overlong UTF-8": b'{"a":"\xc0\xaf"}',
    "surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "lone high surrogate": b'{"a":"\\ud800"}',
    "lone high surrogate before text": b'{"a":"\\ud800 and so on"}',
    "lone low surrogate": b'{"a":{"b":"\\udc00 and so on"}}',
    "lone surrogate in a key": b'{"a":{"\\ud800 and so on":1}}',
    "NUL": b'{"a":"\x00"}',
    "NUL after the end": b'{"a":1}\x00',
    "control character": b'{"a":"\n"}',
    "bad escape": b'{"a":"\\x41"}',
    "too deep": nested(DEPTH_MAX + 1),
    "much too deep": nested(100_000),
    "too deep, cut off": b'{"a":' * 100_000,
    "too many values": b'{"a":[' + b"[]," * VALUES_MAX + b"1]}",
}


@pytest.mark.parametrize("body", GOOD)
def test_an_object_with_one_meaning_passes(body):
    assert accepts(body)
    assert reference_accepts(body)


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_a_body_that_could_be_read_in_two_ways_is_refused(body):
    assert not accepts(body)


def test_the_reason_holds_nothing_of_the_body():
    with pytest.raises(MalformedBody) as refusal:
        parse_object(b'{"sk-secret":{"sk-secret":1,"sk-secret":2}}')
    assert str(refusal.value) == "an object in it repeats a key"


def test_values_stay_the_bytes_they_were_and_keep_their_order():
    body = b'{"z": 1.50, "a" :[ 1,2 ],"m":"\\u0041","big":123456789012345678901234567890}'
    fields = parse_object(body)
    assert {name: bytes(value) for name, value in fields.items()} == {
        "z": b"1.50",
        "a": b"[ 1,2 ]",
        "m": b'"\\u0041"',
        "big": b"123456789012345678901234567890",
    }
    fields["a"] = msgspec.Raw(b"null")
    assert dump_object(fields) == b'{"z":1.50,"a":null,"m":"\\u0041","big":123456789012345678901234567890}'


def test_a_large_body_of_text_is_not_taken_for_many_values():
    body = json.dumps({"content": "a, b, [c], {d} " * (COUNTED_FROM_BYTES // 10)}).encode()
    assert len(body) > COUNTED_FROM_BYTES
    assert accepts(body)


texts = st.text(st.characters(exclude_categories=[]), max_size=6) | st.sampled_from(['"', '\\"', "\\", "a", '":"'])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inside: st.lists(inside, max_size=4) | st.lists(st.tuples(texts, inside), max_size=4),
    max_leaves=12,
)


@st.composite
def written(draw: st.DrawFn, value: Any) -> str:
    """JSON text of `value`, where a list of pairs is an object, perhaps with repeated keys, in any spelling."""
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        space = draw(st.sampled_from(["", " ", "\n"]))
        pairs = [f"{draw(written(key))}{space}:{space}{draw(written(inside))}" for key, inside in value]
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(draw(written(inside)) for inside in value) + "]"
    if isinstance(value, str):
        if draw(st.booleans()):
            return '"' + "".join(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else char for char in value) + '"'
        return json.dumps(value, ensure_ascii=draw(st.booleans()))
    return json.dumps(value)


bodies = values.flatmap(written).map(lambda text: f'{{"x":{text}}}')


@given(bodies)
@example('{"a":1,"\\u0061":2}')
def test_it_agrees_with_the_reference_on_written_values(text):
    body = text.encode("utf-8", "surrogatepass")
    assert accepts(body) == reference_accepts(body)


@given(st.sampled_from(GOOD), st.integers(0, 200), st.sampled_from([b"", b'"', b"\\", b",", b":", b"{", b"}", b"\xc3"]))
def test_it_agrees_with_the_reference_on_damaged_bodies(body, place, damage):
    place %= len(body)
    damaged = body[:place] + damage + body[place + 1 :]
    assert accepts(damaged) == reference_accepts(damaged)


@given(bodies)
def test_what_passes_reads_the_same_after_it_was_written_again(text):
    body = text.encode("utf-8", "surrogatepass")
    if accepts(body):
        assert json.loads(dump_object(parse_object(body))) == json.loads(body)
