"""OpenAI's files, as clients speak of them. Pure; no I/O.

A file of purpose `batch` has a request on each line; its parts are found here, and rewritten where its deployment is known
(`proxy/stored.py`). Source: https://platform.openai.com/docs/api-reference/files.
"""

from typing import NamedTuple

from proxy.dialects.dialect import FILE
from proxy.dialects.openai import OpenAI
from proxy.dialects.stored import CREATE, DELETE, LIST, READ, StoredDialect, Verb
from proxy.errors import InvalidRequest
from proxy.wire.multipart import FormPart, MalformedForm, field, parse_form

BATCH_PURPOSE = "batch"
CONTENT = Verb("content", "GET", "/content")


class OpenAIFiles(StoredDialect, OpenAI):
    name = "openai.files"
    operation = "files"
    capability = "files"
    root = "/files"
    kind = FILE

    @property
    def is_content(self) -> bool:
        return self.verb is CONTENT


class Upload(NamedTuple):
    """`file` is where the content lies in the body."""

    purpose: str
    file: FormPart


def read_upload(body: bytes, content_type: bytes) -> Upload:
    """Raises `InvalidRequest`."""
    try:
        parts = parse_form(body, content_type)
        purpose = field(parts, body, "purpose")
    except MalformedForm as error:
        raise InvalidRequest(f"the form is not acceptable: {error}") from error
    files = [part for part in parts if part.name == "file"]
    if not purpose or len(files) != 1:
        missing = "file" if purpose else "purpose"
        raise InvalidRequest(f"the form needs `{missing}`, once", code="invalid_value", param=missing)
    return Upload(purpose, files[0])


UPLOAD = OpenAIFiles(CREATE)
FILES = OpenAIFiles(LIST)
READ_FILE = OpenAIFiles(READ)
READ_CONTENT = OpenAIFiles(CONTENT)
DELETE_FILE = OpenAIFiles(DELETE)
