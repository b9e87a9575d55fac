"""What a provider's secret may look like: one word, Google's key file, AWS's access key; refused without being repeated."""

import json

import pytest

from keys.credentials import LENGTH_MAX, InvalidCredential, check_credential, fingerprint, one_line

KEY_FILE = {
    "type": "service_account",
    "project_id": "acme",
    "private_key_id": "0f1e2d3c4b5a",
    "private_key": "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n",
    "client_email": "gateway@äcme.iam.gserviceaccount.com",
    "token_uri": "https://oauth2.googleapis.com/token",
}
ACCESS_KEY = {"access_key_id": "AKIACANARYEXAMPLE", "secret_access_key": "wJalr/canary+EXAMPLEKEY"}


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("sk-0123456789", "6789"),
        (json.dumps(KEY_FILE, indent=2), "4b5a"),
        (json.dumps(ACCESS_KEY), "MPLE"),
        (json.dumps(ACCESS_KEY | {"session_token": "IQoJb3"}).replace(", ", ",\r\n"), "MPLE"),
    ],
)
def test_a_secret_is_taken_and_known_by_four_characters_that_are_none_of_it(secret, shown):
    check_credential(secret)
    assert fingerprint(secret) == shown
    assert one_line(secret).isascii() and one_line(secret).isprintable()
    assert not secret.startswith("{") or json.loads(one_line(secret)) == json.loads(secret)


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("canary", "8 or more printable characters"),
        ("sk-canary 0123456", "without blanks"),
        ('{"type": "service_account", "private_key": "canary', "paste all of it"),
        ("{" * 5_000, "paste all of it"),
        ("{}", "a Google service account's key file"),
        (json.dumps({"type": "authorized_user", "refresh_token": "canary"}), "a Google service account's key file"),
        (json.dumps({"AccessKeyId": "canary", "SecretAccessKey": "canary"}), "access_key_id"),
        (
            json.dumps(KEY_FILE | {"private_key": None, "client_email": " "}),
            "private_key and client_email must be a text",
        ),
        (json.dumps(KEY_FILE | {"private_key": "canary"}), "holds no private key"),
        (json.dumps({"access_key_id": "AKIACANARY"}), "secret_access_key must be a text"),
        (json.dumps(ACCESS_KEY | {"session_token": 1}), "session_token is a text"),
        (json.dumps(ACCESS_KEY | {"session_token": "canary" * LENGTH_MAX}), "10,000 characters at most"),
    ],
)
def test_what_can_be_no_credential_is_refused_and_not_repeated(secret, words):
    with pytest.raises(InvalidCredential) as refused:
        check_credential(secret)
    assert words in str(refused.value) and "canary" not in str(refused.value).lower()
