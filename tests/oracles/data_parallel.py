"""Trainings on one device and on several, in a process that has several: JAX needs to be told so.

Prints, for each way to train, the largest difference to the same training on one device:

    KERAS_BACKEND=jax python tests/oracles/data_parallel.py NUM_DEVICES [all ways]

Without the last word, all options of a training are tried at once, not one by one.
"""

import json
import os
import sys
import tempfile
from typing import Any

NUM_DEVICES = int(sys.argv[1])
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={NUM_DEVICES} "
    # On a busy machine a device may be late by more than the 40 s after which XLA gives up.
    "--xla_cpu_collective_call_terminate_timeout_seconds=90"
)

import keras  # noqa: E402 - the devices are counted when JAX is loaded.
import numpy as np  # noqa: E402
from keras import ops  # noqa: E402

from keras_deepseek.layers import (  # noqa: E402
    DeepSeekMoE,
    ExpertRouter,
    MultiHeadLatentAttention,
    RotaryEmbedding,
    SwiGLU,
)
from keras_deepseek.training import Trainer, transformer_layout_map  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(61, 6)).astype("float32")  # Of four batches of 16 the last is ragged.
Y = RNG.integers(0, 3, 61)
BAD = X.copy()
BAD[20] = np.inf  # In one row, so on one device.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "half precision": {"precision": "float16"},
    "clip": {"gradient_clip": ("global_norm", 0.5)},
    "micro-batches": {"micro_batches": 3},
    "remat": {"remat": ["dense*"]},
    "guard": {"guard": "skip"},
    "checkpoints": {"checkpoint_dir": tempfile.mkdtemp},
    "sharded": {"shard_optimizer": True},
}
TOGETHER = ("sharded", "clip", "micro-batches", "remat", "checkpoints", "guard")
WAYS["all at once"] = {name: value for way in TOGETHER for name, value in WAYS[way].items()}


def build() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    hidden = [layers.Dense(16, activation="relu"), layers.BatchNormalization()]
    return keras.Sequential(
        [keras.Input((6,)), *hidden, layers.Dropout(0.3, seed=1), layers.Dense(3)]
    )


def build_wide() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(8)]
    return keras.Sequential([keras.Input((6,)), *layers])


def build_transformer() -> keras.Model:
    keras.utils.set_random_seed(1)
    attention = MultiHeadLatentAttention(
        num_heads=8,
        key_value_lora_rank=8,
        nope_head_dim=4,
        rope_head_dim=4,
        value_head_dim=4,
        rotary=RotaryEmbedding(use_interleaved_pairs=True),
        use_causal_mask=True,
    )
    moe = DeepSeekMoE(ExpertRouter(8, num_experts_per_token=2), 12, num_shared_experts=2)
    inputs = keras.Input((6,))
    # Of unit scale: the norm behind it would make small rows, and their rounding, larger.
    embedding = keras.layers.Embedding(32, 16, keras.initializers.RandomNormal(stddev=1.0))
    x = embedding(ops.cast(ops.abs(inputs) * 8, "int32") % 32)
    for layer in (attention, moe, SwiGLU(24)):
        x = x + layer(keras.layers.RMSNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(3)(ops.mean(x, axis=1)))


def descent() -> keras.optimizers.Optimizer:
    """Returns an optimizer that follows small gradients by small steps.

    Adam makes large ones of those that are rounding alone, as of an expert that few tokens choose.
    """
    return keras.optimizers.SGD(0.03, momentum=0.9, use_ema=True)


def lay_out(model: keras.Model) -> Any:
    """Returns a distribution of a transformer's weights over all devices."""
    mesh = keras.distribution.DeviceMesh((1, NUM_DEVICES), ["batch", "model"])
    layout_map = transformer_layout_map(model, mesh)
    return keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")


def train(way: str, strategy: Any, model: Any = build, optimizer: Any = None) -> list[Any]:
    """Returns the weights, predictions, losses and metrics of twenty steps."""
    arguments = {name: value() if callable(value) else value for name, value in WAYS[way].items()}
    trainer = Trainer(
        model,
        optimizer=optimizer or keras.optimizers.AdamW(0.01, use_ema=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(k=2)],
        seed=3,
        distributed_strategy=strategy,
        **arguments,
    )
    x = BAD if "guard" in arguments else X
    history = trainer.fit(x, Y, batch_size=16, epochs=5, verbose=0, validation_data=(X, Y))
    logs = {**history.history, **trainer.evaluate(X, Y, verbose=0, return_dict=True)}
    if way == "half precision":  # What rounds otherwise may win or lose a row.
        logs = {name: log for name, log in logs.items() if "accuracy" not in name}
    num_devices = len(trainer.model.weights[0].value.sharding.device_set)
    assert num_devices == (1 if strategy is None else NUM_DEVICES), num_devices
    weights = [keras.ops.convert_to_numpy(weight) for weight in trainer.model.weights]
    return [*weights, trainer.predict(X, verbose=0), *(logs[name] for name in sorted(logs))]


def differ(expected: list[Any], received: list[Any]) -> float:
    """Returns the largest difference of numbers, NaN where only one of them is."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(expected, received, strict=True)]
    return float(max(np.max(np.abs(a - b), where=a != b, initial=0.0) for a, b in pairs))


def main() -> None:
    ways = list(WAYS) if "all ways" in sys.argv else ["half precision", "all at once"]
    alone = {way: train(way, None) for way in ways}
    differences = {way: differ(alone[way], train(way, "allreduce")) for way in ways}
    if "plain" in ways:
        distribution = keras.distribution.DataParallel()
        differences["a distribution"] = differ(alone["plain"], train("plain", distribution))
        differences["a model that is there"] = differ(
            train("plain", None, build()), train("plain", "allreduce", build())
        )
    mesh = keras.distribution.DeviceMesh((1, NUM_DEVICES), ["batch", "model"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = (None, "model")
    parallel = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    model = build_wide()
    differences["layouts"] = differ(
        train("plain", None, build_wide()), train("plain", parallel, model)
    )
    kernel = model.layers[0].kernel.value
    assert kernel.sharding.shard_shape(kernel.shape) == (6, 16 // NUM_DEVICES)
    transformer = build_transformer()
    differences["transformer"] = differ(
        train("plain", None, build_transformer(), descent()),
        train("plain", lay_out(transformer), transformer, descent()),
    )
    for weight in transformer.weights:  # A device holds its part of the experts.
        if weight.path.endswith("expert_gate/kernel"):
            assert weight.value.sharding.shard_shape(weight.shape) == (8 // NUM_DEVICES, 16, 12)
    steps = [
        [step.logs["loss"] for step in make(strategy).steps(X, Y, batch_size=16, shuffle=False)]
        for strategy in (None, "allreduce")
    ]
    differences["steps"] = differ([steps[0]], [steps[1]])
    print(json.dumps(differences))


def make(strategy: Any) -> Trainer:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trainer(build, optimizer="sgd", loss=loss, distributed_strategy=strategy)


if __name__ == "__main__":
    main()
