import socket

import pytest

from keras_deepseek.artifacts.network_address import (
    check_is_answered,
    join_address,
    parse_address,
)
from keras_deepseek.errors import InvalidInputError, PeerLostError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1:29500", "10.0.0.1", 29500),
        ("Node-1.cluster.local:1", "node-1.cluster.local", 1),
        ("worker_0:65535", "worker_0", 65535),
        ("[::1]:80", "::1", 80),
        ("[FE80::1%eth0]:80", "fe80::1%eth0", 80),
    ],
)
def test_host_and_port_are_taken_apart_and_joined(text, host, port):
    assert parse_address("coordinator", text) == (host, port)
    assert join_address(host, port) == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":80",
        "host:port",
        "host:0",
        "host:65536",
        "host:-1",
        "::1:80",
        "[]:80",
        "[host:80",
        "http://host:80",
        "user@host:80",
        "a b:80",
        "host:80 ",
        "host:80\n",
        None,
        29500,
        ("host", 80),
    ],
)
def test_anything_else_is_refused_with_what_was_received(text):
    with pytest.raises(InvalidInputError, match="MASTER_ADDR must be HOST:PORT") as raised:
        parse_address("MASTER_ADDR", text)
    assert repr(text) in str(raised.value)


def test_an_address_that_nobody_listens_at_is_said():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        check_is_answered("Ray cluster", f"127.0.0.1:{port}")
    with pytest.raises(PeerLostError, match=f"no Ray cluster at '127.0.0.1:{port}'"):
        check_is_answered("Ray cluster", f"127.0.0.1:{port}")
    with pytest.raises(InvalidInputError, match="The address of Ray cluster must be HOST:PORT"):
        check_is_answered("Ray cluster", "somewhere")
