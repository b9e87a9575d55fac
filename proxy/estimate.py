"""What a call has used whose provider never said: reckoned from what was seen of it, and from what calls of its deployment have
lately used. No I/O, no clock.

A tokenizer would know the models of one maker only, and takes a second and 150 MB of every worker. Providers count each call that
ends well, so a worker learns from them how many tokens the bytes of its own traffic make.
"""

import re
from collections.abc import Mapping
from itertools import product
from math import ceil, sqrt
from typing import NamedTuple

import msgspec

from audit.records import Usage
from budgets.pricing import Price, cost_nanos

# What a byte is taken for until something is learned.
BYTES_PER_TOKEN = 4
# What was seen before counts by so much less with each call: some fifty are remembered.
FORGETTING = 0.98
# What fewer calls say is chance.
CALLS_MIN = 8
# An estimate must not be too low: so many standard deviations above what is likely.
DEVIATIONS = 3
# How much faster a call may run than the fastest of late.
FASTER = 1.125
# Tokens a second that a deployment makes at most of which nothing is known yet: no provider is as fast.
FASTEST_OF_ALL = 5_000.0
# A stream that has shown itself for less has no pace of its own.
PACE_FROM_S = 0.1
# A provider that has shown nothing for longer has stopped making what would show.
SILENCE_S_MAX = 1.0
# What a provider caches up to, in the requests that are sent to it; and where that is for longer than five minutes.
_CACHE_MARK = re.compile(rb'"(?:cache_control|cachePoint|prompt_cache_breakpoint)"\s*:\s*\{')
_LONG_MARK = re.compile(rb'"ttl"\s*:\s*"(?!5m")')
# What a prompt is made of, as its provider puts it together, by the names that requests have for it.
_PROMPT_FIELDS = ("tools", "toolConfig", "instructions", "system", "messages", "input")

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_pieces = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Line:
    """How one quantity follows another: least squares, in which what is long ago counts little."""

    __slots__ = ("_calls", "_mean_x", "_mean_y", "_weight", "_xx", "_xy", "_yy")

    def __init__(self) -> None:
        self._calls = 0
        self._weight = self._mean_x = self._mean_y = self._xx = self._xy = self._yy = 0.0

    def note(self, x: float, y: float) -> None:
        self._calls += 1
        self._weight = self._weight * FORGETTING + 1
        from_x, from_y = x - self._mean_x, y - self._mean_y
        self._mean_x += from_x / self._weight
        self._mean_y += from_y / self._weight
        self._xx = self._xx * FORGETTING + from_x * (x - self._mean_x)
        self._xy = self._xy * FORGETTING + from_x * (y - self._mean_y)
        self._yy = self._yy * FORGETTING + from_y * (y - self._mean_y)

    def at_most(self, x: float) -> float | None:
        """What comes with `x`, and hardly ever more; None while too little was seen."""
        if self._calls < CALLS_MIN:
            return None
        if not self._xx:
            return self._mean_y * max(x / self._mean_x, 1.0) if self._mean_x else None
        slope = max(self._xy / self._xx, 0.0)
        variance = max(self._yy - slope * self._xy, 0.0) / self._weight
        # Far from what was seen less is sure.
        spread = 1 + 1 / self._weight + (x - self._mean_x) ** 2 / self._xx
        return self._mean_y + slope * (x - self._mean_x) + DEVIATIONS * sqrt(variance * spread)


class Seen(NamedTuple):
    """What was seen of an output. Durations in seconds: `shown_s` from the first of it to the last, `running_s` since the call was
    sent. `in_flight_s` is how long the provider may have gone on beyond what was seen: 0 when it was at its end, None where it
    could not be seen at work at all (a whole answer that never came)."""

    chunks: int
    output_bytes: int
    shown_s: float
    running_s: float
    in_flight_s: float | None


class Cached(NamedTuple):
    """Shares of a prompt that are to be written to a cache: in all, and of that for long."""

    written: float = 0.0
    for_long: float = 0.0


def cached_of(request: bytes) -> Cached:
    """Of a request's body, as its provider gets it: its marks have everything cached that stands before them, to the end of the
    message, block or tool that they stand in."""
    if _CACHE_MARK.search(request) is None:
        return Cached()
    try:
        fields = _decode_fields(request)
        pieces = [piece for name in _PROMPT_FIELDS if name in fields for piece in _pieces_of(bytes(fields[name]))]
    except msgspec.DecodeError:
        return Cached()
    whole = max(sum(map(len, pieces)), 1)
    # One that stands beside the prompt is for all of it.
    beside = b",".join(
        b'"%s":%s' % (name.encode(), value) for name, value in fields.items() if name not in _PROMPT_FIELDS
    )
    so_far, written, for_long = 0, _cached_in(beside) * whole, _cached_for_long_in(beside) * whole
    for piece in pieces:
        so_far += len(piece)
        written = max(written, so_far * _cached_in(piece))
        for_long = max(for_long, so_far * _cached_for_long_in(piece))
    return Cached(written / whole, for_long / whole)


def _pieces_of(value: bytes) -> list[bytes]:
    return [bytes(piece) for piece in _decode_pieces(value)] if value[:1] == b"[" else [value]


def _cached_in(piece: bytes) -> bool:
    return _CACHE_MARK.search(piece) is not None


def _cached_for_long_in(piece: bytes) -> bool:
    return _cached_in(piece) and _LONG_MARK.search(piece) is not None


def dearest(usage: Usage, price: Price, alternatives: Mapping[str, tuple[object, ...]]) -> Usage:
    """Of all that a call may be billed as, what costs most. `alternatives` by the field of `Usage`."""
    names = tuple(alternatives)
    every = (
        msgspec.structs.replace(usage, **dict(zip(names, one, strict=True))) for one in product(*alternatives.values())
    )
    return max(every, key=lambda one: cost_nanos(one, price))


class Experience:
    """What calls of one deployment have lately used. `geo` is where one was served last that named no geography; None while
    nobody knows."""

    __slots__ = ("_by_bytes", "_by_chunks", "_fastest", "_prompts", "geo")

    def __init__(self) -> None:
        self._prompts = Line()
        self._by_chunks = Line()
        self._by_bytes = Line()
        # Tokens a second; 0 while nobody knows.
        self._fastest = 0.0
        self.geo: str | None = None

    def note(self, usage: Usage, prompt_bytes: int, seen: Seen, *, is_stream: bool) -> None:
        """A call has ended, and its provider has said what it used."""
        self._prompts.note(prompt_bytes, usage.input_tokens)
        if is_stream and seen.chunks:
            self._by_chunks.note(seen.chunks, usage.output_tokens)
            self._by_bytes.note(seen.output_bytes, usage.output_tokens)
        if seen.running_s > 0:
            self._fastest = max(usage.output_tokens / seen.running_s, self._fastest * FORGETTING)

    def input_tokens(self, prompt_bytes: int) -> int:
        """Of a prompt of so many bytes, one token each at most."""
        likely = self._prompts.at_most(prompt_bytes)
        return min(_whole(prompt_bytes / BYTES_PER_TOKEN if likely is None else max(likely, 0.0)), prompt_bytes)

    def output_tokens(self, seen: Seen, *, is_visible: bool, held: int, most: int) -> int:
        """What a provider may bill as output of a call that was cut: never less than was seen, never more than the call may make
        (`most`), and beyond what was seen never more than is `held` (both in tokens).

        Where all output shows, what was seen is counted, and what was on its way is added at the pace of the stream, or of the
        fastest of late. Where it does not, nobody can have made more than the fastest in as long.
        """
        if not most:
            return 0
        fastest = self._fastest * FASTER
        shown = self._shown(seen)
        if is_visible and seen.in_flight_s is not None:
            pace = max(pace_of(shown, seen.shown_s), fastest) or FASTEST_OF_ALL
            made = shown + _whole(pace * seen.in_flight_s)
        else:
            made = _whole((fastest or FASTEST_OF_ALL) * seen.running_s)
        return min(max(shown, min(made, held)), most)

    def _shown(self, seen: Seen) -> int:
        """Tokens of the output that has come: many providers send each in a chunk of its own, and none sends half a one."""
        if not seen.chunks:
            return 0
        lines = self._by_chunks.at_most(seen.chunks), self._by_bytes.at_most(seen.output_bytes)
        likely = [tokens for tokens in lines if tokens is not None] or [seen.output_bytes / BYTES_PER_TOKEN]
        return max(seen.chunks, _whole(min(likely)))


def pace_of(tokens: int, shown_s: float) -> float:
    """In tokens a second; 0 for a stream that has not shown itself for long enough to have one."""
    return tokens / shown_s if shown_s > PACE_FROM_S else 0.0


def _whole(tokens: float) -> int:
    """Rounded up, but for what is only an error of the arithmetic."""
    return ceil(tokens - 1e-6)
