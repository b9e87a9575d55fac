import pytest

from proxy.errors import InvalidRequest
from proxy.fields import Fields


def test_what_nobody_took_is_named_by_its_path():
    lost: list[str] = []
    body = Fields({"model": "m", "messages": [{"role": "user", "name": None, "audio": 1}], "odd": {"a": 1}})
    assert body.required_text("model") == "m"
    for message in body.objects("messages"):
        assert message.text("role") == "user"
        message.rest(lost)
    body.rest(lost)
    assert lost == ["messages.0.audio", "odd"]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"f": 1}, lambda fields: fields.text("f")),
        ({"f": "1"}, lambda fields: fields.integer("f")),
        ({"f": 1.5}, lambda fields: fields.integer("f")),
        ({"f": True}, lambda fields: fields.integer("f")),
        ({"f": "1"}, lambda fields: fields.number("f")),
        ({"f": 0}, lambda fields: fields.flag("f")),
        ({"f": {}}, lambda fields: fields.items("f")),
        ({"f": []}, lambda fields: fields.object("f")),
        ({"f": [1]}, lambda fields: list(fields.objects("f"))),
        ({}, lambda fields: fields.required_text("f")),
    ],
)
def test_a_field_of_the_wrong_type_is_named(value, read):
    with pytest.raises(InvalidRequest) as caught:
        read(Fields(value))
    assert caught.value.param is not None
    assert caught.value.param.startswith("f")


def test_null_is_not_there():
    fields = Fields({"f": None})
    assert not fields.has("f")
    assert (fields.text("f"), fields.integer("f"), fields.items("f"), fields.object("f")) == (None, None, [], None)


def test_a_whole_float_is_an_integer():
    assert Fields({"f": 3.0}).integer("f") == 3
