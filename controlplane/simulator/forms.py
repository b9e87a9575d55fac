"""Bodies of `multipart/form-data` (RFC 7578). Pure."""

import re
from typing import NamedTuple

from controlplane.simulator.calls import Refused, Request

_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^;\s]+))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="([^"]*)"')
_FILE_NAME = re.compile(rb'filename="([^"]*)"')


class Upload(NamedTuple):
    name: str
    content: bytes


class Form(NamedTuple):
    """A field that is repeated keeps its last value; files keep all, under names without `[]`."""

    fields: dict[str, str]
    files: dict[str, list[Upload]]

    def file(self, name: str) -> Upload:
        """Raises `Refused`."""
        uploads = self.files.get(name)
        if not uploads:
            raise Refused(400, f"Missing required parameter: '{name}'.", code="missing_required_parameter")
        return uploads[0]

    def field(self, name: str) -> str:
        """Raises `Refused`."""
        if name not in self.fields:
            raise Refused(400, f"Missing required parameter: '{name}'.", code="missing_required_parameter")
        return self.fields[name]


def read_form(request: Request) -> Form:
    """Raises `Refused`."""
    boundary = _BOUNDARY.search(request.header(b"content-type"))
    if boundary is None:
        raise Refused(400, "The body of the request is no multipart form.")
    form = Form({}, {})
    for part in (b"\r\n" + request.body).split(b"\r\n--" + (boundary[1] or boundary[2]).encode("latin-1"))[1:]:
        head, has_body, content = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not has_body or name is None:
            continue
        field = name[1].decode(errors="replace").removesuffix("[]")
        file_name = _FILE_NAME.search(head)
        if file_name is not None:
            form.files.setdefault(field, []).append(Upload(file_name[1].decode(errors="replace"), content))
        else:
            form.fields[field] = content.decode(errors="replace")
    return form
