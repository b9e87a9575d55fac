"""The id of a user, as OpenAI takes it."""

import hashlib

# Longer ones are refused ("string too long"). Claude Code's has 150 characters and more, and it cannot be told another.
USER_CHARACTERS_MAX = 64


def user_id(user: str) -> str:
    """Of one that is too long its SHA-256 in hexadecimal: the same user has the same id, as OpenAI advises for its `user`."""
    return user if len(user) <= USER_CHARACTERS_MAX else hashlib.sha256(user.encode()).hexdigest()
