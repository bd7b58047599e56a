"""What docs/layers.md shows runs, from top to bottom, and it names every layer of ours."""

import re
from pathlib import Path

import keras

from keras_deepseek import layers

PAGE = (Path(__file__).parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")


def test_the_code_runs():
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/layers.md", "exec"), names)


def test_every_layer_is_named():
    ours = set(layers.__all__) - set(dir(keras.layers)) - {"LayerNorm"}
    assert {name for name in ours if f"`{name}" not in PAGE} == set()
