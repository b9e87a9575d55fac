"""Rows as CSV, streamed: no more than a line in memory, and no cell that a spreadsheet would run. Knows no models."""

import csv
from collections.abc import Iterable, Iterator, Sequence

from django.http import StreamingHttpResponse

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def csv_response(name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> StreamingHttpResponse:
    """A download called `name`.csv. Cells are made inert here."""
    response = StreamingHttpResponse(csv_lines(header, rows), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    response["Cache-Control"] = "no-store"
    return response


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    writer = csv.writer(_Echo())
    yield writer.writerow([inert(cell) for cell in header])
    for row in rows:
        yield writer.writerow([inert(cell) for cell in row])


def inert(text: str) -> str:
    """A cell that a spreadsheet does not run as a formula. Numbers stay numbers."""
    if not text.startswith(FORMULA_STARTS) or text.lstrip("-").replace(".", "", 1).isdigit():
        return text
    return f"'{text}"


class _Echo:
    """A file that gives back what is written to it."""

    def write(self, line: str) -> str:
        return line
