"""Trainings of a model on one device, and with its layers on two: TensorFlow and PyTorch.

TensorFlow has two logical devices of the CPU, PyTorch the CPU and `other_device`. Prints, for each
way to train, or optimizer, the largest difference to the same training on one device; for
"resumed" that to a training in one piece, and for "places" where TensorFlow's operations are.

    KERAS_BACKEND=torch python tests/oracles/divided_layers.py WAYS...
"""

import contextlib
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

sys.path.insert(0, str(Path(__file__).parents[2]))

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.trainers import build_for_training
from keras_deepseek.training import Trainer
from keras_deepseek.training.cluster import placement

IS_TENSORFLOW = keras.backend.backend() == "tensorflow"
if IS_TENSORFLOW:
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    FIRST, SECOND = "cpu:0", "cpu:1"
    using_devices = contextlib.nullcontext
else:
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    import other_device

    from keras_deepseek.backend.torch import step

    other_device.register()
    FIRST, SECOND = "cpu:0", other_device.NAME
    using_devices = other_device.OtherDevice

    def move_variables(devices: Any, optimizer: Any) -> bool:
        """Does as the backend's own, which keeps the parameter, as PyTorch can't for wrappers."""
        is_any_moved = False
        for variable, device in devices:
            value = variable._value
            if value.device.type != torch.device(device).type:
                moved = value.detach().to(device)
                variable._value = torch.nn.Parameter(moved, requires_grad=value.requires_grad)
                is_any_moved = True
        return is_any_moved

    backend.current().devices.move_variables = move_variables
    # An exception ends a second computation early, and the device's guard can't be asked then.
    step.set_checkpoint_early_stop = functools.partial(
        lambda early_stop, _: early_stop(False), step.set_checkpoint_early_stop
    )
    placement.choose_layer_devices = lambda device_map, count_devices: device_map

DEVICE_MAP = {"encoder*": FIRST, "inner_home": FIRST, "decoder.*|attention": SECOND}
RNG = np.random.default_rng(0)
X = RNG.integers(0, 9, (24, 5))
Y = RNG.integers(0, 3, (24, 5))
WEIGHTS = RNG.uniform(0.5, 2.0, (24, 5)).astype("float32")


@keras.saving.register_keras_serializable("oracle")
class Block(keras.layers.Layer):
    """Has all that may go wrong: a mask, dropout, statistics, a loss, and sums of the framework."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.attention = keras.layers.MultiHeadAttention(
            2, 3, dropout=0.3, seed=1, name="attention"
        )
        self.norm = keras.layers.BatchNormalization()
        self.dense = keras.layers.Dense(6, kernel_regularizer="l2")
        self.dropout = keras.layers.Dropout(0.4, seed=2)

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        self.attention.build(input_shape, input_shape)
        self.norm.build(input_shape)
        self.dense.build(input_shape)
        self.scale = self.add_weight(shape=(6,), initializer="ones")

    def call(self, inputs: Any) -> Any:
        """Returns the outputs."""
        hidden = self.norm(inputs + self.attention(inputs, inputs))
        self.add_loss(0.1 * ops.mean(ops.square(ops.cast(hidden, "float32"))))
        return inputs + self.dropout(self.dense(hidden)) * self.scale


def build() -> keras.Model:
    """Returns a model with a layer that is called twice, and one inside a model inside it."""
    inputs = keras.Input((5,), dtype="int32")
    hidden = keras.layers.Embedding(9, 6, mask_zero=True, name="encoder_table")(inputs)
    hidden = Block(name="encoder_block")(hidden)
    twice = keras.layers.Dense(6, activation="tanh", name="decoder_twice")
    hidden = twice(twice(hidden)) + hidden
    hidden = build_inner()(hidden)
    hidden = Block(name="decoder_block")(hidden)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(hidden))


def build_inner() -> keras.Model:
    """Returns a model for the second device, with a layer for the first."""
    inputs = keras.Input((5, 6))
    outputs = keras.layers.Dense(7, name="inner_away")(inputs)
    outputs = keras.layers.Dense(11, activation="gelu", name="inner_home")(outputs)
    outputs = keras.layers.Dense(6, name="inner_back")(outputs)
    return keras.Model(inputs, outputs + inputs, name="decoder_model")


def build_small() -> keras.Model:
    """Returns a model that is compiled in a few seconds."""
    inputs = keras.Input((5,), dtype="int32")
    hidden = keras.layers.Embedding(9, 6, mask_zero=True, name="encoder_table")(inputs)
    hidden = keras.layers.BatchNormalization(name="decoder_norm")(build_inner()(hidden))
    hidden = keras.layers.Dropout(0.3, seed=1, name="decoder_dropout")(hidden) + hidden
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(hidden))


class Unbuilt(keras.Model):
    """Is built by its first batch, and adds up what its layers return."""

    def __init__(self) -> None:
        super().__init__()
        self.table = keras.layers.Embedding(9, 6, mask_zero=True, name="encoder_table")
        self.block = Block(name="decoder_block")
        self.head = keras.layers.Dense(3, name="inner_home")

    def call(self, inputs: Any) -> Any:
        """Returns the outputs."""
        hidden = self.table(inputs)
        return self.head(self.block(hidden) + hidden)


class OwnStep(keras.Model):
    """Has a step of its own."""

    def train_step(self, data: Any) -> Any:
        """Makes Keras's step."""
        return super().train_step(data)


def make_own_step() -> keras.Model:
    """Returns a model with a step of its own."""
    model = build()
    return OwnStep(model.inputs, model.outputs)


def train(device_map: Any, way: dict[str, Any]) -> list[Any]:
    """Returns the numbers of a training."""
    way = dict(way)
    epochs, resumes = way.pop("epochs", 2), way.pop("resumes", False)
    make_model, run_eagerly = way.pop("make_model", build), way.pop("run_eagerly", False)
    optimizer = way.pop("optimizer", lambda: keras.optimizers.SGD(0.1))
    reduction = way.pop("reduction", "sum_over_batch_size")

    def make_trainer() -> Trainer:
        keras.utils.set_random_seed(1)
        model = make_model()
        model.compile(run_eagerly=run_eagerly, auto_scale_loss=False)
        return Trainer(
            model,
            optimizer=optimizer(),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction),
            metrics=["accuracy"],
            device_map=device_map,
            **way,
        )

    data = {"x": X, "y": Y, "batch_size": 8, "sample_weight": WEIGHTS, "shuffle": False}
    trainer = make_trainer()
    if resumes:
        trainer.fit(**data, epochs=1, verbose=0)
        trainer = make_trainer()
    history = trainer.fit(
        **data, epochs=epochs, verbose=0, resume=resumes, validation_data=(X, Y)
    ).history
    model = trainer.model
    assert not [name for name in vars(model) if name == "call" or name.startswith("make_")]
    variables = [*model.variables, *model.optimizer.variables]
    check_devices(model, device_map)
    return [
        history,
        [ops.convert_to_numpy(variable.value) for variable in variables],
        trainer.evaluate(X, Y, verbose=0),
        trainer.predict(X, verbose=0),
    ]


def device_of(variable: keras.Variable) -> str:
    """Returns the device of a variable, as Keras names it."""
    value = variable._value
    return value.device.split("device:")[-1].lower() if IS_TENSORFLOW else f"{value.device.type}:0"


def check_devices(model: keras.Model, device_map: Any) -> None:
    """Raises an error where variables are not where they should be."""
    if device_map is None:
        return
    away = ("decoder", "attention", "inner_away", "inner_back")
    for path, device in sorted(
        (variable.path, device_of(variable)) for variable in model.trainable_variables
    ):
        is_away = any(name in path for name in away) and "inner_home" not in path
        assert device == (SECOND if is_away else FIRST), (path, device)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    for name in ("momentums", "_momentums", "_velocities", "_model_variables_moving_average"):
        for slot, weight in zip(
            getattr(optimizer, name, []), model.trainable_variables, strict=False
        ):
            assert device_of(slot) == device_of(weight), (slot.path, device_of(slot))


def difference(expected: Any, received: Any) -> float:
    """Returns the largest difference of two structures of numbers.

    Of arrays with values beyond 1, as sums of squares, it is a share of the largest.
    """

    def compare(a: Any, b: Any) -> float:
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        scale = np.max(np.abs(b), initial=1.0)
        return float(np.max(np.abs(a - b), initial=0.0) / scale)

    return max(map(compare, keras.tree.flatten(expected), keras.tree.flatten(received)))


def places() -> dict[str, list[str]]:
    """Returns the devices of the products of matrices in a step, by layers that only they have."""
    keras.utils.set_random_seed(1)
    model = build_small()
    trainer = Trainer(
        model,
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        device_map=DEVICE_MAP,
    )
    with trainer._session.in_training():
        build_for_training(model, (X, Y))
        step = tf.function(model.train_step)
        graph = step.get_concrete_function((tf.constant(X), tf.constant(Y))).graph
    devices: dict[str, list[str]] = {}
    for operation in graph.get_operations():
        shapes = [tuple(tensor.shape) for tensor in (*operation.inputs, *operation.outputs)]
        if operation.type in ("MatMul", "BatchMatMulV2"):  # By Keras's release.
            sizes = {size for shape in shapes for size in shape}
            name = ",".join(str(size) for size in sorted(sizes & {3, 6, 7, 11}))
            devices.setdefault(name, []).append(operation.device.split("device:")[-1].lower())
    return devices


def resumed() -> float:
    """Returns how far a training that was resumed is from one that was not stopped."""
    adam = {"optimizer": lambda: keras.optimizers.AdamW(1e-3, use_ema=True)}
    with tempfile.TemporaryDirectory() as folder, using_devices():
        whole = train(DEVICE_MAP, {**adam, "checkpoint_dir": folder + "/a"})
        parts = train(DEVICE_MAP, {**adam, "checkpoint_dir": folder + "/b", "resumes": True})
    return difference(parts[1:], whole[1:])


BLOCKS = ["decoder_block", "encoder_block", "inner_away"]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "half precision": {"precision": "float16", "guard": "skip"},
    "clip": {"gradient_clip": ("norm", 0.1)},
    "micro-batches": {"micro_batches": 3, "gradient_clip": ("global_norm", 0.5)},
    "sum": {"reduction": "sum", "micro_batches": 2, "gradient_clip": ("value", 0.01)},
    "remat": {"remat": BLOCKS},
    "remat inside": {"remat": ["attention", "dense*"]},
    "averages": {"optimizer": lambda: keras.optimizers.AdamW(1e-3, use_ema=True)},
    "together": {
        "micro_batches": 2,
        "gradient_clip": ("global_norm", 0.5),
        "guard": "skip",
        "remat": BLOCKS,
        "optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
    },
    "small": {
        "make_model": build_small,
        "micro_batches": 2,
        "gradient_clip": ("global_norm", 0.5),
        "guard": "skip",
        "remat": ["decoder_model"],
        "optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
    },
    "small half": {"make_model": build_small, "precision": "bfloat16"},
    "unbuilt": {"make_model": Unbuilt},
    "own step": {"make_model": make_own_step},
    "eager": {"run_eagerly": True, "epochs": 1},
}


def main() -> None:
    """Prints the differences."""
    differences: dict[str, Any] = {}
    for name in sys.argv[1:]:
        if name in ("resumed", "places"):
            differences[name] = resumed() if name == "resumed" else places()
            continue
        way = WAYS.get(name)
        if way is None:
            way = {"optimizer": lambda name=name: getattr(keras.optimizers, name)(1e-3)}
        alone = train(None, way)
        with using_devices():
            differences[name] = difference(train(DEVICE_MAP, way), alone)
    print(json.dumps(differences))


if __name__ == "__main__":
    main()
