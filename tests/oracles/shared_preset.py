"""A preset and a LoRA that several processes read and write together.

Each leaves what it found in FOLDER.

On JAX variables are shared out over the devices of all; elsewhere each process has them whole.

    keras-deepseek launch --nproc 2 tests/oracles/shared_preset.py FOLDER
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

from keras_deepseek.backend import current
from keras_deepseek.models import enable_lora, save_lora_weights, save_peft_adapter
from keras_deepseek.models.checkpoints import preset_model
from keras_deepseek.training import join_cluster
from tests.oracles.preset_model import SmallModel


def lay_out() -> None:
    """Makes Keras share variables out, where it does."""
    if keras.backend.backend() != "jax":
        return
    layout = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((2,), ["model"]))
    layout[".*experts"] = ("model", None, None)
    layout[".*logits/kernel"] = (None, "model")
    layout[".*logits/lora_kernel_b"] = (None, "model")
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout))


def main() -> None:
    cluster = join_cluster()
    lay_out()
    folder = Path(sys.argv[1])
    model = SmallModel.from_preset(folder / "one", verbose=False)
    experts = model.small_layers["mixer"].experts.value
    parts = getattr(experts, "addressable_shards", None)
    written = []
    write = preset_model.write_weights
    preset_model.write_weights = lambda *args, **kwargs: written.append(write(*args, **kwargs))
    model.save_to_preset(folder / "two", verbose=False)
    keras.utils.set_random_seed(0)  # JAX wants one value of a variable in all processes.
    names = enable_lora(model, rank=2, target_names=["logits"])
    for variable in model.trainable_variables:
        variable.assign(np.arange(np.prod(variable.shape), dtype="float32").reshape(variable.shape))
    save_lora_weights(model, folder / "lora.safetensors")
    save_peft_adapter(model, folder / "peft")
    report = {
        "adapted": names,
        "experts": list((parts[0].data if parts else experts).shape),
        "sum": float(np.sum(current().distribution.read_whole(experts))),
        "num_written": len(written),
    }
    (folder / f"{cluster.rank}.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
