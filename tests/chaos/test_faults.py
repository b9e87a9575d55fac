"""The relay does what it is told to, and counts it."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.faults import NONE, Fault, FaultProxy

SAID = b"0123456789" * 100


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says back what it hears."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):
                while heard := connection.recv(65536):
                    connection.sendall(heard)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(60)


@pytest.fixture
def relay(echo: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(echo)
    yield proxy
    proxy.close()


def _say(relay: FaultProxy, timeout_s: float = 60.0) -> bytes:
    """What comes back, until all of it is there or the connection ends. Raises OSError."""
    heard = b""
    with socket.create_connection(("127.0.0.1", relay.port), timeout_s) as client:
        client.sendall(SAID)
        while len(heard) < len(SAID) and (part := client.recv(65536)):
            heard += part
    return heard


@pytest.mark.parametrize("fault", [NONE, Fault(slice_bytes=7), Fault(latency_s=0.01)])
def test_what_is_only_delayed_or_cut_into_pieces_arrives_whole(relay, fault):
    relay.set(fault)
    assert _say(relay) == SAID
    assert bool(relay.struck) == (fault != NONE)


@pytest.mark.parametrize("fault", [Fault(reset_after=100), Fault(is_refusing=True)])
def test_a_reset_is_a_reset(relay, fault):
    relay.set(fault)
    with pytest.raises(ConnectionResetError):
        _say(relay)
    assert relay.struck == 1


def test_after_a_half_close_no_more_comes(relay):
    relay.set(Fault(half_close_after=100))
    assert _say(relay) == b""
    assert relay.struck == 1


def test_a_black_hole_takes_everything_until_it_is_gone(relay):
    relay.set(Fault(is_black_hole=True))
    with pytest.raises(TimeoutError):
        _say(relay, timeout_s=0.2)
    assert relay.struck
    relay.clear()
    assert _say(relay) == SAID
