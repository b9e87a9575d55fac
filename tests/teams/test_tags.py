"""Tags: what is accepted, what is refused, who wins."""

import pytest

from teams.tags import InvalidTags, from_metadata, merge, missing, parse_header, sources


@pytest.mark.parametrize(
    ("header", "tags"),
    [
        ("feature=search,customer=acme", {"feature": "search", "customer": "acme"}),
        (" feature = search , customer=a b ", {"feature": "search", "customer": "a b"}),
        ("a=1=2", {"a": "1=2"}),
        ("", {}),
        (",,", {}),
        ("empty=", {"empty": ""}),
    ],
)
def test_a_header_is_read(header, tags):
    assert parse_header(header) == tags


@pytest.mark.parametrize("header", ["feature", "=x", "a b=c", "k" * 65 + "=v", "k=" + "v" * 257, "k=\x07"])
def test_a_bad_header_is_refused(header):
    with pytest.raises(InvalidTags):
        parse_header(header)


def test_too_many_tags_are_refused():
    with pytest.raises(InvalidTags, match="at most 32"):
        parse_header(",".join(f"k{i}=v" for i in range(33)))


def test_metadata_gives_strings():
    assert from_metadata({"a": "x", "n": 3, "b": True}) == {"a": "x", "n": "3", "b": "true"}
    assert from_metadata(None) == {}


@pytest.mark.parametrize("metadata", ["text", ["list"], {"a": {"deep": 1}}, {"a": None}])
def test_metadata_of_another_shape_is_refused(metadata):
    with pytest.raises(InvalidTags):
        from_metadata(metadata)


def test_later_sources_win_and_missing_ones_are_named():
    tags = merge({"feature": "default", "team": "x"}, {}, {"feature": "search"})
    assert tags == {"feature": "search", "team": "x"}
    assert missing(["feature", "customer"], {**tags, "customer": ""}) == ["customer"]


def test_where_each_tag_came_from_is_told_but_for_those_of_the_header():
    project, key = {"team": "x", "feature": "default"}, {"feature": "of the key", "tier": "gold"}
    body, header = {"customer": "acme"}, {"tier": "lead"}
    assert sources(project, key, body, header) == {"team": "project", "feature": "key", "customer": "body"}
    assert sources({}, {}, {}, header) == {}
