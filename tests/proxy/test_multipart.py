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
    assert field(parts, body, "prompt") is None
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


def test_a_field_that_comes_as_a_file_too_is_refused():
    body = form(("model", "model.txt", b"dear"), ("model", None, b"cheap"))
    with pytest.raises(MalformedForm):
        field(parse_form(body, TYPE), body, "model")


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="x"; name="model"',
        b'Content-Disposition: form-data; name="x"\r\nContent-Disposition: form-data; name="model"',
        b"Content-Disposition: form-data; name=\"x\"; name*=utf-8''model",
        b'Content-Disposition: form-data; name="x\\"; name=\\"model"',
        b'Content-Disposition: form-data; name="x"\nContent-Disposition: form-data; name="model"',
        b'Content-Disposition: form-data;\r\n name="x"',
    ],
)
def test_a_part_that_can_be_named_in_two_ways_is_refused(head):
    with pytest.raises(MalformedForm):
        parse_form(b"--xx\r\n" + head + b"\r\n\r\ndear\r\n--xx--\r\n", TYPE)


@pytest.mark.parametrize(
    "value",
    [
        b'cheap\n--xx\nContent-Disposition: form-data; name="model"\n\ndear',
        b"cheap--xx--",
    ],
)
def test_a_boundary_that_only_some_parsers_see_is_refused(value):
    with pytest.raises(MalformedForm):
        parse_form(form(("a", None, value)), TYPE)


def test_what_comes_after_the_end_is_no_form():
    with pytest.raises(MalformedForm):
        parse_form(form(("model", None, b"cheap")) + form(("model", None, b"dear")), TYPE)


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data; xboundary=xx; boundary=yy",
        b"multipart/form-data; boundary=xx; boundary=yy",
        b"multipart/form-data; boundary=xx; boundary*=utf-8''yy",
        b"text/plain; boundary=xx",
    ],
)
def test_a_boundary_is_named_once(content_type):
    with pytest.raises(MalformedForm):
        parse_form(form(("model", None, b"cheap")), content_type)


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="file"; filename="a \\"b\\".wav"',
        b'form-data; name="file"; filename="a.wav"; filename*=utf-8\'\'a%20b.wav',
        b"form-data; name=\"file\"; filename*=utf-8''a%20b.wav",
        b'form-data; name="file"; filename=""',
    ],
)
def test_a_file_is_known_by_any_name_that_it_has(disposition):
    body = b"--xx\r\nContent-Disposition: " + disposition + b"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n--xx--\r\n"
    assert parse_form(body, TYPE)[0].file_name is not None


def test_only_its_disposition_names_a_part():
    body = b'--xx\r\nX-Note: a; name="x"\r\nContent-Disposition: form-data; name="model"\r\n\r\ncheap\r\n--xx--\r\n'
    assert field(parse_form(body, TYPE), body, "model") == "cheap"
