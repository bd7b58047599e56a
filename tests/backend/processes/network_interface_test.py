import socket
import sys

import keras
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("Only PyTorch must be told the interface.", allow_module_level=True)

from keras_deepseek.backend.torch.distribution import find_interface


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_is_reached_by_loopback(host):
    assert find_interface(host, 1) == ("lo0" if sys.platform == "darwin" else "lo")


@pytest.mark.skipif(sys.platform != "linux", reason="Elsewhere nobody knows.")
def test_others_are_reached_by_an_interface_of_this_machine():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 1))  # An address of documentation: by the default route.
        except OSError:
            pytest.skip("No other machine is reached from here.")
        local_address = probe.getsockname()[0]
    names = [name for _, name in socket.if_nameindex()]
    assert find_interface("192.0.2.1", 1) in names
    assert find_interface(local_address, 1) == find_interface("192.0.2.1", 1)


def test_of_a_host_that_there_is_not_nobody_knows():
    assert find_interface("no-such-host.invalid", 1) is None
