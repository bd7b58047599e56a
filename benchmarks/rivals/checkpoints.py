"""The process that writes a checkpoint of Llama's shape, or measures loading and saving it.

python benchmarks/rivals/checkpoints.py make ours FOLDER '{"hidden_dim": 512, ...}'
python benchmarks/rivals/checkpoints.py measure transformers FOLDER '{"hidden_dim": 512, ...}'
"""

import functools
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from peak_memory import read_status, restart_peak

MIB = 2**20
Numbers = dict[str, Any]


def measure(function: Callable[[], Any]) -> tuple[Any, Numbers]:
    """Returns what a function returns, and its time and peak memory.

    Args:
        function: Function without arguments.
    """
    gc.collect()
    start_megabytes = read_status("VmRSS")
    restart_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function()
    numbers = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_bytes": (read_status("VmHWM") - start_megabytes) * MIB,
    }
    return result, numbers


def prepare_ours(
    folder: Path, setting: Numbers, *, reads_all: bool = False
) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Returns functions that load and save by `PresetModel`."""
    from llama_weights import LlamaWeights

    from keras_deepseek import backend

    backend.current()  # Imports what the backend needs, as it is at the first use.

    def load() -> Any:
        model = LlamaWeights.from_preset(folder, dtype=setting["dtype"], verbose=False)
        if reads_all:
            for variable in model.weights:
                variable.value.detach().sum()
        return model

    def save(model: Any, target: str, max_bytes: int) -> None:
        model.save_to_preset(target, max_shard_bytes=max_bytes, verbose=False)

    return load, save


def prepare_transformers(
    folder: Path, setting: Numbers, *, reads_all: bool = False
) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Returns functions that load and save by `transformers`."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    dtype = getattr(torch, setting["dtype"])

    def load() -> Any:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        if reads_all:
            for parameter in model.parameters():
                parameter.detach().sum()
        return model

    def save(model: Any, target: str, max_bytes: int) -> None:
        model.save_pretrained(target, max_shard_size=max_bytes)

    return load, save


PREPARE: dict[str, Callable[..., Any]] = {
    "ours": prepare_ours,
    "ours, read": functools.partial(prepare_ours, reads_all=True),
    "transformers": prepare_transformers,
    "transformers, read": functools.partial(prepare_transformers, reads_all=True),
}


def make(folder: Path, setting: Numbers) -> Numbers:
    """Writes the checkpoint, and returns how large it is and the weights of its model are."""
    from llama_weights import LlamaConfig, LlamaWeights

    names = LlamaConfig.__dataclass_fields__
    model = LlamaWeights(LlamaConfig(**{k: v for k, v in setting.items() if k in names}))
    parameters = model.count_params()
    widths = {"float32": 4, "bfloat16": 2}
    file_bytes = parameters * widths[setting["file_dtype"]]
    shard_bytes = -(-file_bytes // setting["num_shards"]) if setting["num_shards"] > 1 else 10**12
    model.save_to_preset(folder, dtype=setting["file_dtype"], max_shard_bytes=shard_bytes)
    weight_bytes = parameters * widths[setting["dtype"]]
    return {"parameters": parameters, "file_bytes": file_bytes, "weight_bytes": weight_bytes}


def main() -> int:
    action, who, folder, setting = *sys.argv[1:3], Path(sys.argv[3]), json.loads(sys.argv[4])
    if action == "make":
        print(json.dumps(make(folder, setting)))
        return 0
    load, save = PREPARE[who](folder, setting)
    keras.ops.convert_to_numpy(keras.ops.ones(1))  # What the framework sets up first is no load.
    model, loaded = measure(load)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        shard_bytes = 10**12
        if setting["num_shards"] > 1:
            sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
            shard_bytes = max(sizes)
        _, saved = measure(lambda: save(model, str(Path(work, "saved")), shard_bytes))
    print(json.dumps({"load": loaded, "save": saved}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
