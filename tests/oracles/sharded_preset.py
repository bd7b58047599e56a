"""A preset that is read into variables which four devices share, on JAX: prints what it found.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python tests/oracles/sharded_preset.py FOLDER
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

from keras_deepseek.backend import current
from tests.oracles.preset_model import SmallModel, make_model, read_weights_of


class Source:
    """What is read by its indices, and notes of which rows."""

    def __init__(self, values):
        self.values = values
        self.rows = set()

    def __getitem__(self, index):
        self.rows.add((index[0].start, index[0].stop))
        return self.values[index]


def main() -> None:
    folder = Path(sys.argv[1])
    source = make_model(1, num_experts=8)
    source.save_to_preset(folder / "one", verbose=False)
    layout = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((4,), ["model"]))
    layout[".*experts"] = ("model", None, None)
    layout[".*logits/kernel"] = (None, "model")
    layout[".*embeddings"] = ("model", None)
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout))
    model = SmallModel.from_preset(folder / "one", verbose=False)
    parts = {v.path: list(v.value.addressable_shards[0].data.shape) for v in model.weights}
    pairs = zip(read_weights_of(model).values(), read_weights_of(source).values(), strict=True)
    are_equal = all(np.array_equal(first, second) for first, second in pairs)
    model.save_to_preset(folder / "two", verbose=False)
    files = [(folder / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    experts = model.small_layers["mixer"].experts
    noted = Source(np.zeros(experts.shape, "float32"))
    current().compute.assign_array(experts, noted)
    report = {
        "parts": parts,
        "are_equal": are_equal,
        "is_written_alike": files[0] == files[1],
        "rows": sorted(noted.rows),
        "is_sharded_still": experts.value.addressable_shards[0].data.shape[0] == 2,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
