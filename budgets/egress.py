"""Keeps what sends alerts away from private addresses, whichever library opens the connection and wherever it was sent on to.

A name is looked up by the library that connects, and may by then mean something else than when it was checked. So the check is
where no answer can change any more: Python tells its audit hooks of every `connect`, with the address, before it happens.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from routing.addresses import is_private

_only_public: ContextVar[bool] = ContextVar("only_public", default=False)


class PrivateAddress(OSError):
    """A connection to a private address that was not made. As an OSError it is to every library a host that is not there."""


@contextmanager
def only_public() -> Iterator[None]:
    """Within the context this thread connects to addresses on the internet, and to no other."""
    _listen()
    token = _only_public.set(True)
    try:
        yield
    finally:
        _only_public.reset(token)


@functools.cache
def _listen() -> None:
    """A hook cannot be taken away again, so there is one."""
    sys.addaudithook(_vet)


def _vet(event: str, arguments: tuple[object, ...]) -> None:
    if event != "socket.connect" or not _only_public.get():
        return
    address = arguments[1]
    if not isinstance(address, tuple) or is_private(str(address[0])):
        raise PrivateAddress("this host is on a private network")
