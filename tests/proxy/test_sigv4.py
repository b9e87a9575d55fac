import hashlib

import pytest

from proxy.providers.provider import Outgoing
from proxy.providers.sigv4 import Keys, Signer, canonical_request, signing_key

# The key, moment and requests of AWS's own test suite of Signature Version 4.
KEYS = Keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
NOW_S = 1_440_938_160.0  # 20150830T123600Z
HOST = "example.amazonaws.com"
FORM = b"application/x-www-form-urlencoded"


def outgoing(method: bytes, target: str, content_type: bytes = b"", body: bytes = b"") -> Outgoing:
    return Outgoing(target.encode(), body, content_type=content_type, method=method)


def sign(signer: Signer, request: Outgoing, authority: str = HOST, now_s: float = NOW_S) -> list[tuple[bytes, bytes]]:
    return signer.sign(request, authority, request.target, now_s)


def signature(headers: list[tuple[bytes, bytes]]) -> str:
    return dict(headers)[b"authorization"].decode().rpartition("Signature=")[2]


@pytest.mark.parametrize(
    ("method", "target", "content_type", "body", "expected"),
    [
        (b"GET", "/", b"", b"", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (b"POST", "/", b"", b"", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            b"GET",
            "/?Param2=value2&Param1=value1",
            b"",
            b"",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (b"GET", "/?ሴ=bar", b"", b"", "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"),
        (b"GET", "/ሴ", b"", b"", "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
        (b"GET", "/example space/", b"", b"", "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"),
        (b"GET", "/example/..", b"", b"", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (b"GET", "/./", b"", b"", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (b"GET", "//example//", b"", b"", "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"),
        (
            b"POST",
            "/",
            FORM,
            b"Param1=value1",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
)
def test_a_signature_is_what_amazons_test_suite_says(
    method: bytes, target: str, content_type: bytes, body: bytes, expected: str
) -> None:
    signer = Signer(KEYS, "us-east-1", "service")
    assert signature(sign(signer, outgoing(method, target, content_type, body))) == expected


def test_the_example_of_the_documentation_comes_out() -> None:
    key = signing_key(KEYS.secret_access_key, "20150830", "us-east-1", "iam")
    assert key.hex() == "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
    request = outgoing(b"GET", "/?Action=ListUsers&Version=2010-05-08", FORM + b"; charset=utf-8")
    signed = sign(Signer(KEYS, "us-east-1", "iam"), request, "iam.amazonaws.com")
    assert dict(signed)[b"authorization"] == (
        b"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, "
        b"SignedHeaders=content-type;host;x-amz-date, "
        b"Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    )
    assert dict(signed)[b"x-amz-date"] == b"20150830T123600Z"


def test_a_session_token_is_sent_and_signed() -> None:
    token = (
        "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwt"
        "hAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVX"
        "AkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
    )
    signer = Signer(KEYS._replace(session_token=token), "us-east-1", "service")
    signed = sign(signer, outgoing(b"POST", "/"))
    assert dict(signed)[b"x-amz-security-token"] == token.encode()
    assert signature(signed) == "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"


def test_what_is_encoded_on_the_wire_is_encoded_once_more_to_sign_it() -> None:
    path = b"/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A0%3Ainference-profile%2Fus.anthropic.claude-v1%3A0/converse"
    signed = {b"host": HOST.encode()}
    lines = canonical_request(outgoing(b"POST", "/"), path, signed, "host").decode().split("\n")
    assert lines == [
        "POST",
        "/model/arn%253Aaws%253Abedrock%253Aus-east-1%253A0%253Ainference-profile%252Fus.anthropic.claude-v1%253A0/converse",
        "",
        "host:example.amazonaws.com",
        "",
        "host",
        hashlib.sha256(b"").hexdigest(),
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("b=2&a=1", "a=1&b=2"),
        ("a=b+c&a=b%20c", "a=b%20c&a=b%2Bc"),
        ("a&b=%7e", "a=&b=~"),
        ("a=%2F/", "a=%2F%2F"),
    ],
)
def test_a_query_is_sorted_and_encoded_once(query: str, expected: str) -> None:
    request = canonical_request(outgoing(b"GET", "/"), f"/?{query}".encode(), {b"host": b"h"}, "host")
    assert request.decode().split("\n")[2] == expected


def test_only_what_aws_reads_is_signed() -> None:
    headers = ((b"traceparent", b"00-1"), (b"x-amzn-bedrock-trace", b"A  B "))
    signed = dict(sign(Signer(KEYS, "us-east-1", "bedrock"), Outgoing(b"/", b"{}", headers)))
    assert b"SignedHeaders=content-type;host;x-amz-date;x-amzn-bedrock-trace," in signed[b"authorization"]


def test_each_day_has_a_key_of_its_own() -> None:
    signer = Signer(KEYS, "us-east-1", "service")
    first = sign(signer, outgoing(b"GET", "/"))
    next_day = sign(signer, outgoing(b"GET", "/"), now_s=NOW_S + 86_400)
    assert b"/20150831/" in dict(next_day)[b"authorization"]
    assert signature(first) != signature(next_day)
    assert sign(signer, outgoing(b"GET", "/")) == first
