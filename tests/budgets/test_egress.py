"""No library connects to a private address while it must not, whatever names and redirects it was led by."""

import smtplib
import socket

import httpx
import pytest
import requests

from budgets.egress import PrivateAddress, only_public

# A name that passes every check of names and leads to this machine.
LOOPBACK_NAMES = ["127.0.0.1", "localhost"]


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize("host", LOOPBACK_NAMES)
@pytest.mark.parametrize(
    ("connect", "refusal"),
    [
        (lambda host, port: socket.create_connection((host, port)), PrivateAddress),
        (lambda host, port: requests.post(f"http://{host}:{port}", timeout=5), requests.RequestException),
        (lambda host, port: httpx.post(f"http://{host}:{port}", timeout=5), httpx.ConnectError),
        (lambda host, port: smtplib.SMTP(host, port, timeout=5), OSError),
    ],
)
def test_what_leads_to_a_private_address_is_not_connected(listener, host, connect, refusal):
    with only_public(), pytest.raises(refusal, match="private network"):
        connect(host, listener.getsockname()[1])
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_outside_of_it_connections_are_as_ever(listener, family, short_tmp_path):
    with only_public():
        pass
    if family == socket.AF_INET:
        socket.create_connection(listener.getsockname()).close()
        return
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(short_tmp_path / "s"))
        server.listen()
        with only_public(), pytest.raises(PrivateAddress):
            client.connect(str(short_tmp_path / "s"))
        client.connect(str(short_tmp_path / "s"))
