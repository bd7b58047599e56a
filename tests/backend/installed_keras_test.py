import os
import subprocess
import sys

import pytest

WITHOUT_TENSORFLOW = """
import importlib.util, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "tensorflow" else found(name)
from keras_deepseek.ROOM import *
"""


@pytest.mark.torch_alone
@pytest.mark.parametrize("room", ["callbacks", "deploy", "layers", "models", "training"])
def test_a_framework_that_is_missing_is_told_with_one_that_is_there(tmp_path, room):
    environ = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW.replace("ROOM", room)],
        env={**environ, "KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert "Keras runs on tensorflow unless KERAS_BACKEND names another" in last
    assert "Set KERAS_BACKEND=" in last
    assert "The above exception" not in done.stderr
