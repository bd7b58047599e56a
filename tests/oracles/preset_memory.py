"""The memory of a process that loads and saves a preset whose weights two processes have together.

On JAX. Each process leaves what it found in FOLDER, in bytes:

    keras-deepseek launch --nproc 2 tests/oracles/preset_memory.py FOLDER

By MALLOC_MMAP_THRESHOLD_=65536 in the environment, glibc returns to the system what is freed.
"""

import gc
import json
import re
import sys
from pathlib import Path

import keras

from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config
from keras_deepseek.training import join_cluster, transformer_layout_map

CONFIG = DeepSeekV3Config.from_preset(
    "tiny", vocabulary_size=64, hidden_dim=768, intermediate_dim=2048, num_layers=6,
    num_dense_layers=6,
)  # fmt: skip
SHARD_BYTES = 40_000_000


def build() -> DeepSeekV3CausalLM:
    return DeepSeekV3CausalLM(CONFIG)


def read_memory(name: str) -> int:
    """Returns the resident memory, `VmRSS`, or the most that there was, `VmHWM`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1])


class Peak:
    """Measures the most memory in its block beyond that before it."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self._start = read_memory("VmRSS")
        return self

    def __exit__(self, *exception):
        self.num_bytes = read_memory("VmHWM") - self._start


def main() -> None:
    cluster = join_cluster()
    folder = Path(sys.argv[1])
    mesh = keras.distribution.DeviceMesh((2,), ["batch"])
    layout_map = transformer_layout_map(build, mesh, model_axis=None, data_axis="batch")
    strategy = keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")
    with strategy.scope():
        # Compiles the initializers, which takes more memory than these weights do.
        DeepSeekV3CausalLM.from_preset(folder / "one", verbose=False)
        gc.collect()
        with Peak() as loading:
            model = DeepSeekV3CausalLM.from_preset(folder / "one", verbose=False)
        with Peak() as saving:
            model.save_to_preset(folder / "two", max_shard_bytes=SHARD_BYTES, verbose=False)
    values = [weight.value for weight in model.weights]
    report = {
        "whole": sum(value.nbytes for value in values),
        "part": sum(value.addressable_shards[0].data.nbytes for value in values),
        "largest": max(value.nbytes for value in values),
        "loading": loading.num_bytes,
        "saving": saving.num_bytes,
    }
    (folder / f"{cluster.rank}.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
