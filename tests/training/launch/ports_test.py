import socket

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.launch.plan import check_port_is_free, find_free_ports


def test_free_ports_are_free_and_different():
    ports = find_free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        check_port_is_free("127.0.0.1", port)


def test_a_port_that_somebody_listens_at_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InvalidInputError, match=f"127.0.0.1:{port}: Address already in use"):
            check_port_is_free("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_this_one_is_left_to_those_who_connect(host):
    check_port_is_free(host, 29500)
