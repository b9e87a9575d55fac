"""Virtual key tokens: enough entropy, a digest, and no secret in a repr."""

import hashlib

from keys.tokens import API_TOKEN_PREFIX, digest, hint, mint


def test_a_token_carries_192_random_bits():
    minted = {mint().secret for _ in range(1000)}
    assert len(minted) == 1000
    assert all(len(secret) == len("tg-") + 32 for secret in minted)


def test_the_digest_is_plain_sha256_so_that_digests_can_be_imported():
    token = mint()
    assert token.digest == hashlib.sha256(token.secret.encode()).hexdigest() == digest(token.secret)


def test_a_hint_shows_four_characters_and_a_repr_shows_no_secret():
    token = mint(API_TOKEN_PREFIX)
    assert token.hint == f"tgapi-…{token.secret[-4:]}" == hint(token.secret)
    assert token.secret not in repr(token)
