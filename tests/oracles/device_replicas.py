"""Trainings on one device and on several, of which each computes some rows: TensorFlow alone.

Prints, for each way to train, the largest difference to the same training on one device:

    KERAS_BACKEND=tensorflow python tests/oracles/device_replicas.py NUM_DEVICES
"""

import functools
import json
import sys
import tempfile
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deepseek.training import Muon, Trainer

NUM_DEVICES = int(sys.argv[1])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(49, 6)).astype("float32")  # Of four batches of 16 the last has one row.
Y = RNG.integers(0, 3, 49)
BAD = X.copy()
BAD[20] = np.inf  # In one row, so on one device.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "half precision": {"precision": "float16"},
    "clip": {"gradient_clip": ("global_norm", 0.5)},
    "micro-batches": {"micro_batches": 3},
    "remat": {"remat": ["dense*"]},
    "guard": {"guard": "skip", "x": BAD},
    "sum": {"reduction": "sum"},
    "eager": {"run_eagerly": True},
    "checkpoints": {"checkpoint_dir": tempfile.mkdtemp},
}


@keras.saving.register_keras_serializable("oracle")
class Whereabouts(keras.layers.Layer):
    """Hands on its inputs, and remembers where it was called to train."""

    devices: "set[str]" = set()  # noqa: RUF012 - of all that there are.

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Returns the inputs."""
        if training:
            self.devices.add(tf.DeviceSpec.from_string(tf.identity(inputs).device).to_string())
        return inputs


def build() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [Whereabouts(), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6,)), *layers])


def build_normalized() -> keras.Model:
    """Returns a model whose moving mean is that of its inputs, whoever computes which rows."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.3), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6,)), *layers])


def build_embedded() -> keras.Model:
    """Returns a model with sparse gradients."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Embedding(9, 4), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6,)), *layers])


def placed(strategy: Any) -> dict[str, Any]:
    """Returns arguments of a trainer: a string of indices names devices that divide the rows."""
    if isinstance(strategy, str) and strategy.startswith("cpu "):
        return {"device_map": {"cpu": [int(index) for index in strategy.split()[1:]]}}
    return {"distributed_strategy": strategy}


@functools.cache
def train(way: str, strategy: Any, model: Any = build) -> list[Any]:
    """Returns the weights, predictions, losses and metrics of twenty steps."""
    options = WAYS.get(way, {})
    arguments = {name: value() if callable(value) else value for name, value in options.items()}
    x = arguments.pop("x", X)
    is_eager = arguments.pop("run_eagerly", False)
    optimizer = keras.optimizers.AdamW(0.01, use_ema=True)
    trainer = Trainer(
        model,
        optimizer=Muon.for_model(model, 0.01) if way == "muon" else optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction=arguments.pop("reduction", "sum_over_batch_size")
        ),
        metrics=["accuracy"],
        seed=3,
        **placed(strategy),
        **arguments,
    )
    trainer.model.run_eagerly = is_eager
    if model is build_embedded:
        x = np.abs(X * 2).astype("int32")
    Whereabouts.devices.clear()
    history = trainer.fit(x, Y, batch_size=16, epochs=5, verbose=0, validation_data=(x, Y))
    if model is build:
        num_used = len(Whereabouts.devices)
        assert num_used == (1 if strategy is None else NUM_DEVICES), Whereabouts.devices
    logs = {**history.history, **trainer.evaluate(x, Y, verbose=0, return_dict=True)}
    if way == "half precision":  # What rounds otherwise may win or lose a row.
        logs = {name: log for name, log in logs.items() if "accuracy" not in name}
    if model is build_normalized:
        return [trainer.model.layers[0].moving_mean.numpy()]
    return [*trainer.model.get_weights(), *(logs[name] for name in sorted(logs))]


def differ(expected: list[Any], received: list[Any]) -> float:
    """Returns the largest difference of numbers, NaN where only one of them is."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(expected, received, strict=True)]
    return float(max(np.max(np.abs(a - b), where=a != b, initial=0.0) for a, b in pairs))


def main() -> None:
    devices = [tf.config.LogicalDeviceConfiguration()] * NUM_DEVICES
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, devices)
    alone = {way: train(way, None) for way in WAYS}
    differences = {way: differ(alone[way], train(way, "allreduce")) for way in WAYS}
    # Without a clip Keras itself takes a sparse gradient for others where a token comes twice.
    for name, make in {"plain": build_normalized, "clip": build_embedded}.items():
        differences[make.__name__] = differ(train(name, None, make), train(name, "allreduce", make))
    by_speed = "cpu " + " ".join(map(str, range(NUM_DEVICES)))
    for way in ("plain", "micro-batches", "guard", "eager"):
        differences[f"{way}, by speed"] = differ(alone[way], train(way, by_speed))
    strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(NUM_DEVICES)])
    differences["a strategy"] = differ(alone["plain"], train("plain", strategy))
    differences["a model that is there"] = differ(
        train("plain", None, build()), train("plain", "allreduce", build())
    )
    differences["muon"] = differ(train("muon", None, build()), train("muon", "allreduce", build()))
    steps = [
        [step.logs["loss"] for step in make_trainer(strategy).steps(X, Y, batch_size=16)]
        for strategy in (None, "allreduce")
    ]
    differences["steps"] = differ([steps[0]], [steps[1]])
    print(json.dumps(differences))


def make_trainer(strategy: Any) -> Trainer:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trainer(build, optimizer="sgd", loss=loss, seed=1, distributed_strategy=strategy)


if __name__ == "__main__":
    main()
