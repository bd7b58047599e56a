import subprocess
import sys

import pytest

from keras_deepseek.inference.server.open_files import most_connections

resource = pytest.importorskip("resource")

RAISES = """
import resource, sys
from keras_deepseek.inference.server.open_files import most_connections, raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
print(most_connections(4096, 2), most_connections(10, 2))
raise_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_limit_is_raised_as_far_as_it_may_be_and_connections_fit_in_it():
    answer = subprocess.check_output([sys.executable, "-c", RAISES], text=True)
    assert answer.splitlines() == ["64 10", "(512, 512)"]


def test_without_a_limit_all_connections_are_allowed(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert most_connections(10**6, 1) == 10**6
