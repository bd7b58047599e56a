"""FSDP over JAX's virtual devices, beside the same trainings on one device.

Prints for each model the largest difference of losses and weights, and for each option:

    KERAS_BACKEND=jax python tests/oracles/fully_sharded.py NUM_DEVICES
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

NUM_DEVICES = int(sys.argv[1])
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={NUM_DEVICES} "
    # On a busy machine a device may be late by more than the 40 s after which XLA gives up.
    "--xla_cpu_collective_call_terminate_timeout_seconds=90"
)

import keras  # noqa: E402 - the devices are counted when JAX is loaded.
import numpy as np  # noqa: E402

from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config  # noqa: E402
from keras_deepseek.training import Trainer, transformer_layout_map  # noqa: E402

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 128, (44, 17))  # Of three batches of 16 the last is ragged.
X = {"token_ids": TOKENS[:, :-1], "padding_mask": np.ones_like(TOKENS[:, :-1])}
Y = TOKENS[:, 1:]
SIZES: dict[str, Any] = {
    "vocabulary_size": 128,
    "hidden_dim": 64,
    "intermediate_dim": 128,
    "num_layers": 2,
    "num_heads": 8,
    "moe_intermediate_dim": 32,
    "num_experts": 8,
    "num_experts_per_token": 2,
    "num_groups": 1,
    "num_groups_per_token": 1,
}


def build_dense() -> keras.Model:
    keras.utils.set_random_seed(1)
    config = DeepSeekV3Config.from_preset("tiny", **{**SIZES, "num_dense_layers": 2})
    return DeepSeekV3CausalLM(config)


def build_mixture() -> keras.Model:
    keras.utils.set_random_seed(1)
    config = DeepSeekV3Config.from_preset("tiny", **{**SIZES, "num_dense_layers": 1})
    return DeepSeekV3CausalLM(config)


def build_plain() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inputs = {name: keras.Input((16,), dtype="int32", name=name) for name in X}
    x = layers.Embedding(128, 64)(inputs["token_ids"])
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(8, 8, dropout=0.1)(y, y, use_causal_mask=True)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(64)(layers.Dense(256, "gelu")(y))
    return keras.Model(inputs, layers.Dense(128)(x))


MODELS = {"dense": build_dense, "mixture": build_mixture, "plain": build_plain}


def lay_out(
    build: Any, *, by_expert: bool = False, num_devices: int = NUM_DEVICES
) -> keras.distribution.ModelParallel:
    """Returns a distribution that shards all matrices over the devices."""
    num_experts = 2 if by_expert else 1
    mesh = keras.distribution.DeviceMesh(
        (num_devices // num_experts, num_experts),
        ["batch", "expert"],
        [f"cpu:{device}" for device in range(num_devices)],
    )
    layout_map = transformer_layout_map(
        build, mesh, model_axis=None, expert_axis="expert", data_axis="batch"
    )
    return keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")


def train(
    model: Any,
    strategy: Any,
    *,
    make_optimizer: Any = lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    epochs: int = 3,
    resume: bool = False,
    **options: Any,
) -> tuple[Trainer, list[float]]:
    """Returns a trainer after some steps, and their losses."""
    trainer = Trainer(
        model,
        optimizer=make_optimizer(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=3,
        distributed_strategy=strategy,
        **options,
    )
    arguments = {"batch_size": 16, "shuffle": False, "epochs": epochs, "verbose": 0}
    return trainer, trainer.fit(X, Y, resume=resume, **arguments).history["loss"]


def compare(build: Any, *, is_built: bool = False, **options: Any) -> dict[str, float]:
    """Returns the largest difference to a training on one device, and the shares of a device."""
    alone_options = {**options, "shard_optimizer": False}
    alone, alone_losses = train(build, None, **alone_options)
    model = build() if is_built else build
    trainer, losses = train(model, lay_out(model, by_expert=build is build_mixture), **options)
    pairs = zip(alone.model.get_weights(), trainer.model.get_weights(), strict=True)
    return {
        "losses": float(np.max(np.abs(np.subtract(alone_losses, losses)))),
        "weights": max(float(np.max(np.abs(a - b))) for a, b in pairs),
        "share of weights": share(trainer.model.variables),
        "share of the optimizer": share(trainer.model.optimizer.variables),
    }


def share(variables: list[keras.Variable]) -> float:
    """Returns the share of the bytes of variables that a device has."""
    values = [variable.value for variable in variables]
    parts = sum(value.addressable_shards[0].data.nbytes for value in values)
    return parts / sum(value.nbytes for value in values)


OPTIONS: dict[str, dict[str, Any]] = {
    "together": {
        "gradient_clip": ("global_norm", 0.5),
        "micro_batches": 2,
        "remat": True,
        "guard": "skip",
        "shard_optimizer": True,
        "make_optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
    },
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},  # With a loss scale.
    "accumulation": {
        "gradient_clip": ("adaptive", 0.1),
        "make_optimizer": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=3),
    },
}


def resume(numbers: list[int | None]) -> dict[str, float]:
    """Returns how far trainings that go on with other numbers of devices are from one alone."""
    build = build_mixture
    folder = Path(tempfile.mkdtemp())
    _, alone = train(build, None, epochs=3, checkpoint_dir=folder / "alone")
    train(build, lay_out(build, by_expert=True), epochs=2, checkpoint_dir=folder / "first")
    differences = {}
    for number in numbers:
        shutil.copytree(folder / "first", folder / str(number))
        after = None if number is None else lay_out(build, num_devices=number)
        _, losses = train(build, after, resume=True, checkpoint_dir=folder / str(number))
        differences[str(number)] = abs(alone[-1] - losses[-1])
    return differences


def main() -> None:
    report: dict[str, Any] = {name: compare(build) for name, build in MODELS.items()}
    for name, options in OPTIONS.items():
        report[name] = compare(build_mixture, **options)
    report["a model that is there"] = compare(
        build_plain, is_built=True, make_optimizer=lambda: keras.optimizers.AdamW(1e-3)
    )
    report["resumed"] = resume([NUM_DEVICES // 2, None])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
