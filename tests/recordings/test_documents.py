"""What the documents say of the code, and of the recordings, holds."""

import pytest

from tests.recordings.corpus import ABSENT, recordings
from tests.recordings.exceptions import EXCEPTIONS
from tests.recordings.foreign import DIALECTS
from tests.recordings.tables import DOCS, PARAMETERS, TABLES, is_read, said_in, table_in

STALE = "the table is not what the code makes of it: python -m tests.recordings.tables"
# Made from the recordings as well.
_OF_RECORDINGS = ("recordings",)


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, tables in TABLES.items() for name in tables], ids=lambda word: word
)
def test_a_table_is_what_the_code_makes_of_it(file: str, name: str) -> None:
    if name in _OF_RECORDINGS and not recordings():
        pytest.skip(ABSENT)
    assert table_in((DOCS / file).read_text(), name) == TABLES[file][name](), STALE


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["tools", "max_output_tokens", *PARAMETERS])
def test_what_a_dialect_says_is_read(dialect: str, name: str) -> None:
    if name in said_in(dialect):
        assert is_read(dialect, name)


def test_every_exception_is_a_recording() -> None:
    if not recordings():
        pytest.skip(ABSENT)
    assert {found.recording_id for found in EXCEPTIONS} <= {recording.recording_id for recording in recordings()}
