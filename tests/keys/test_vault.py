"""The vault: what is sealed opens for its own row under a known master key, and for nothing else."""

import base64
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys.vault import (
    MasterKey,
    Secret,
    VaultError,
    open_bytes,
    open_sealed,
    parse_master_keys,
    rewrap,
    seal,
    seal_bytes,
)

OLD, NEW = MasterKey(b"o" * 32), MasterKey(b"n" * 32)
SECRET = "sk-live-0123456789"


@given(st.text(max_size=300).filter(lambda text: text.isprintable()), st.uuids())
def test_what_is_sealed_opens(secret, record_id):
    sealed = seal(secret, str(record_id), [NEW])
    assert open_sealed(sealed, str(record_id), [OLD, NEW]).reveal() == secret
    assert secret not in sealed or len(secret) < 4


def test_the_same_secret_is_never_sealed_alike():
    assert seal(SECRET, "row", [NEW]) != seal(SECRET, "row", [NEW])


def test_a_sealed_text_moved_to_another_row_does_not_open():
    with pytest.raises(VaultError):
        open_sealed(seal(SECRET, "row", [NEW]), "another row", [NEW])


def test_without_its_master_key_nothing_opens():
    with pytest.raises(VaultError, match=OLD.key_id):
        open_sealed(seal(SECRET, "row", [OLD]), "row", [NEW])


def test_no_altered_text_opens():
    sealed = seal(SECRET, "row", [NEW])
    for position in range(len(sealed)):
        altered = sealed[:position] + ("A" if sealed[position] != "A" else "B") + sealed[position + 1 :]
        if base64_equal(altered, sealed):
            continue  # The last character of base64 has spare bits.
        with pytest.raises(VaultError):
            open_sealed(altered, "row", [NEW])


def base64_equal(one, other):
    def raw(text):
        return [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in text.split(".")[2:]]

    return one.split(".")[:2] == other.split(".")[:2] and raw(one) == raw(other)


@pytest.mark.parametrize("text", ["", "v1", "v2.a.b.c.d", "v1.a.b.c", "v1.a.b.c.d.e", f"v1.{NEW.key_id}.!.!.!"])
def test_nonsense_is_refused(text):
    with pytest.raises(VaultError):
        open_sealed(text, "row", [NEW])


def test_rewrapping_moves_a_secret_to_the_first_master_key():
    sealed = seal(SECRET, "row", [OLD])
    moved = rewrap(sealed, [NEW, OLD])
    assert open_sealed(moved, "row", [NEW]).reveal() == SECRET
    assert moved.split(".")[3:] == sealed.split(".")[3:]  # The ciphertext is not touched.


def test_the_first_of_several_master_keys_seals():
    keys = parse_master_keys(f"{base64.b64encode(b'n' * 32).decode()}, {base64.b64encode(b'o' * 32).decode()},")
    assert [key.key_id for key in keys] == [NEW.key_id, OLD.key_id]
    assert seal(SECRET, "row", keys).startswith(f"v1.{NEW.key_id}.")


@pytest.mark.parametrize("text", ["", " , ", "not base64!", base64.b64encode(b"short").decode()])
def test_a_malformed_master_key_is_refused_without_being_repeated(text):
    with pytest.raises(VaultError) as refused:
        parse_master_keys(text)
    assert not text.strip(" ,") or text not in str(refused.value)


def test_a_secret_never_prints_itself():
    secret = Secret(SECRET)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>30}", f"{[secret]}", repr(NEW), str({"key": secret})]
    assert all(SECRET not in text and "nnnn" not in text for text in shown)
    assert secret == Secret(SECRET) and secret != Secret("another")
    with pytest.raises(TypeError):
        pickle.dumps(secret)


# Bytes


@given(st.binary(max_size=300))
def test_bytes_that_are_sealed_open_for_their_row_alone(clear):
    sealed = seal_bytes(clear, "row", [NEW])
    assert open_bytes(sealed, "row", [OLD, NEW]) == clear
    for row, keys in (("another row", [NEW]), ("row", [OLD])):
        with pytest.raises(VaultError):
            open_bytes(sealed, row, keys)


def test_no_altered_bytes_open():
    sealed = seal_bytes(b"an answer", "row", [NEW])
    for position in range(len(sealed)):
        altered = sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1 :]
        with pytest.raises(VaultError):
            open_bytes(altered, "row", [NEW])
        with pytest.raises(VaultError):
            open_bytes(sealed[:position], "row", [NEW])
