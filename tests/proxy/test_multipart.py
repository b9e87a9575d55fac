import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.multipart import MalformedForm, field, parse_form, replace_field

TYPE = b'multipart/form-data; boundary="xx"'


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    body = b""
    for name, file_name, value in parts:
        told = f'; filename="{file_name}"' if file_name is not None else ""
        body += f'--xx\r\nContent-Disposition: form-data; name="{name}"{told}\r\n\r\n'.encode() + value + b"\r\n"
    return body + b"--xx--\r\n"


def test_fields_and_files_are_told_apart():
    body = form(("model", None, b"whisper"), ("file", "a.mp3", b"\x00\r\n--x\xff"), ("n", None, b"2"))
    parts = parse_form(body, TYPE)
    assert [(part.name, part.file_name) for part in parts] == [("model", None), ("file", "a.mp3"), ("n", None)]
    assert field(parts, body, "model") == "whisper"
    assert field(parts, body, "file") is None
    assert body[parts[1].start : parts[1].end] == b"\x00\r\n--x\xff"


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "model"]), st.binary().filter(lambda value: b"--xx" not in value))),
    st.text(alphabet="abc-.", max_size=30),
)
def test_replacing_a_field_changes_nothing_else(values, replacement):
    parts = [(name, None, value) for name, value in values]
    body = form(*parts) if parts else form(("a", None, b""))
    changed = replace_field(parse_form(body, TYPE), body, "model", replacement)
    first = next((i for i, (name, _) in enumerate(values) if name == "model"), None)
    if first is None:
        assert changed == body
    else:
        parts[first] = ("model", None, replacement.encode())
        assert changed == form(*parts)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(("a", None, b"1")), b"multipart/form-data"),
        (b"", TYPE),
        (b"--yy\r\n", TYPE),
        (b'--xx\r\nContent-Disposition: form-data; name="a"\r\n\r\nno end', TYPE),
        (b"--xx\r\nContent-Type: text/plain\r\n\r\nno name\r\n--xx--", TYPE),
        (form(*[("a", None, b"")] * 200), TYPE),
    ],
)
def test_a_broken_form_is_refused(body, content_type):
    with pytest.raises(MalformedForm):
        parse_form(body, content_type)


def test_a_field_that_comes_twice_is_refused():
    body = form(("model", None, b"cheap"), ("model", None, b"dear"))
    with pytest.raises(MalformedForm):
        field(parse_form(body, TYPE), body, "model")


@given(st.binary(max_size=300))
def test_nothing_that_is_sent_breaks_the_reader(noise):
    try:
        parse_form(b"--xx" + noise, TYPE)
    except MalformedForm:
        pass
