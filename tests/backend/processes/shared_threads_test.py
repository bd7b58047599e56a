from types import SimpleNamespace

import pytest

from keras_deepseek.backend.processes.shared_threads import share_threads


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [(["cpu", "cpu"], True), (["cpu"], False), (["gpu", "gpu"], False), ([], False)],
)
def test_several_cpus_of_a_process_do(platforms, expected):
    devices = [SimpleNamespace(platform=platform) for platform in platforms]
    assert share_threads(devices) is expected
