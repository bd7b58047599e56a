"""Training on a device: its memory, its precision, its update, its place."""

import time
from typing import Any

import keras
import numpy as np

from gpu_tests.place import Place, Skipped, full_float32, is_on
from keras_deepseek import backend
from keras_deepseek.testing import assert_close
from keras_deepseek.training import Trainer

MEMORY_FACTOR = 2.0
"""The largest ratio of the allocator's peak to what `measure_memory` counts, either way.

Not counted are the batch, room for one operation at a time, and what a library reserves; XLA keeps
less where it computes anew."""


def small_data(num_rows: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and their classes, which a small model learns."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_rows, 16)).astype("float32")
    return x, np.argmax(x @ rng.normal(size=(16, 4)), axis=1).astype("int32")


def small_model() -> keras.Model:
    """Returns a classifier with the same weights each time, on every device."""
    layers = [
        keras.Input((16,)),
        keras.layers.Dense(64, activation="relu", name="first"),
        keras.layers.Dense(64, activation="relu", name="second"),
        keras.layers.Dense(4, activation="softmax", name="last"),
    ]
    model = keras.Sequential(layers)
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=weight.shape, scale=0.2) for weight in model.weights]
    model.set_weights(weights)
    return model


def train(epochs: int = 5, **options: Any) -> tuple[Trainer, list[float]]:
    """Returns a trainer that has trained, and its loss in each epoch."""
    trainer = Trainer(
        small_model,
        optimizer=keras.optimizers.AdamW(3e-3),
        loss="sparse_categorical_crossentropy",
        seed=0,
        **options,
    )
    x, y = small_data()
    history = trainer.fit(x, y, batch_size=64, epochs=epochs, shuffle=False, verbose=0)
    return trainer, history.history["loss"]


def check_memory(target: Place) -> str:
    """Holds what `measure_memory` counts against the peak of the framework's allocator."""
    read = backend.current().devices.read_device_memory
    old_memory = read() if target.is_gpu else None
    width, rows = (1024, 8192) if target.is_gpu else (64, 256)
    hidden = [keras.layers.Dense(width, activation="gelu") for _ in range(8)]
    model = keras.Sequential([keras.Input((width,)), *hidden, keras.layers.Dense(1)])
    trainer = Trainer(model, optimizer="adam", loss="mse", device_map={target.kind: 0})
    x = np.random.default_rng(0).normal(size=(2 * rows, width)).astype("float32")
    y = np.zeros((2 * rows, 1), "float32")
    counted = target.measured(trainer.measure_memory(x, y, batch_size=rows).total)
    trainer.fit(x, y, batch_size=rows, verbose=0)
    if old_memory is None:
        own_bytes = 4 * (4 * model.count_params() + 8 * rows * width)
        assert own_bytes <= counted <= 3 * own_bytes, (
            f"{counted} bytes were counted, at least {own_bytes} are held"
        )
        raise Skipped(f"{counted / 2**20:.1f} MiB counted; a CPU has no allocator that counts")
    peak = read()["peak"] - old_memory["in_use"]
    ratio = peak / counted
    text = f"{counted / 2**20:.0f} MiB counted, {peak / 2**20:.0f} MiB at the peak, x {ratio:.2f}"
    assert 1 / MEMORY_FACTOR <= ratio <= MEMORY_FACTOR, text
    return text


def check_float16(target: Place) -> str:
    """Trains in float16 near float32; an overflow leaves out its step and halves the scale."""
    half = {"fp16_enabled": True} if target.is_gpu else {"precision": "float16"}
    _, expected = train(device_map={target.kind: 0})
    trainer, losses = train(device_map={target.kind: 0}, **half)
    optimizer, model = trainer.model.optimizer, trainer.model
    assert trainer.policy.name == "mixed_float16", trainer.policy.name
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer), type(optimizer)
    assert losses[-1] < 0.7 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
    assert_close(target.measured(losses), expected, 0.05, "Losses in float16")

    def step(scale: float) -> tuple[bool, float]:
        optimizer.dynamic_scale.assign(scale)
        old_weights = [np.array(weight) for weight in model.get_weights()]
        x, y = small_data(64)
        trainer.fit(x, y, batch_size=64, verbose=0)
        new_weights = model.get_weights()
        assert all(np.isfinite(weight).all() for weight in new_weights), "weights are not finite"
        are_equal = all(
            np.array_equal(*pair) for pair in zip(old_weights, new_weights, strict=True)
        )
        return are_equal, float(optimizer.dynamic_scale)

    trained_with = float(optimizer.dynamic_scale)
    was_left_out, scale = step(2.0**100)
    assert was_left_out, "the step whose gradients overflowed was made"
    assert target.measured(scale) == 2.0**99, f"the scale went from 2^100 to {scale:g}"
    was_left_out, _ = step(2.0**10)
    assert not was_left_out, "a step after the overflow was left out"
    return (
        f"loss {losses[0]:.3f} to {losses[-1]:.4f} (float32: {expected[-1]:.4f}), scale "
        f"{trained_with:g}; 2^100 overflowed, was halved"
    )


def check_update(target: Place) -> str:
    """Holds the package's update of many weights against Keras's own, and times both."""
    size, count, rounds = (512, 64, 20) if target.is_gpu else (64, 16, 3)
    rng = np.random.default_rng(0)
    with backend.current().devices.on_device(target.device):
        starts = [rng.normal(size=(size, size)).astype("float32") for _ in range(count)]
        gradients = [
            keras.ops.convert_to_tensor(rng.normal(size=(size, size)).astype("float32"))
            for _ in range(count)
        ]

        def make(is_ours: bool) -> tuple[list[keras.Variable], Any, keras.Optimizer]:
            variables = [keras.Variable(start) for start in starts]
            optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.1)
            optimizer.build(variables)
            if is_ours:
                update = backend.current().step.compile_update(optimizer, variables)
            else:
                update = lambda new_gradients: optimizer.apply(new_gradients, variables)  # noqa: E731
            return variables, update, optimizer

        def read(variables: list[keras.Variable]) -> np.ndarray:
            return np.stack([keras.ops.convert_to_numpy(variable) for variable in variables])

        values, seconds = [], []
        factor = keras.ops.convert_to_tensor(np.float32(0.5))
        for is_ours in (False, True):
            variables, update, optimizer = make(is_ours)
            for _ in range(3):
                update(gradients)
            if is_ours:  # As after a clip, which multiplies all gradients.
                backend.current().step.apply_update(optimizer, gradients, variables, factor)
            else:
                update([gradient * 0.5 for gradient in gradients])
            assert all(is_on(variable, target.kind) for variable in variables), (
                "weights are elsewhere"
            )
            values.append(read(variables))
            start = time.perf_counter()
            for _ in range(rounds):
                update(gradients)
            read(variables[-1:])  # Waits for the device.
            seconds.append((time.perf_counter() - start) / rounds)
    assert_close(target.measured(values[1]), values[0], "float32", "Weights after four updates")
    return (
        f"largest difference {np.abs(values[1] - values[0]).max():.1g}, {seconds[1] * 1e3:.2f} ms "
        f"for {count * size**2 / 1e6:.1f} million weights, Keras's {seconds[0] * 1e3:.2f} ms "
        f"(x {seconds[0] / seconds[1]:.1f})"
    )


def check_device_map(target: Place) -> str:
    """Trains by `device_map` on the first device: weights, optimizer and outputs are there."""
    with full_float32():
        trainer, losses = train(device_map={target.kind: 0})
        with backend.current().devices.on_device("cpu:0"):
            _, expected = train(device_map={"cpu": 0})
        variables = [*trainer.model.variables, *trainer.model.optimizer.variables]
        # A rate may lie where it was made.
        large = [variable for variable in variables if variable.shape]
        away = [variable.path for variable in large if not is_on(variable, target.kind)]
        assert not away, f"not on the {target.kind}: {', '.join(away)}"
        with backend.current().devices.on_device(target.device):
            output = trainer.model(keras.ops.convert_to_tensor(small_data()[0]))
        assert is_on(output, target.kind), f"outputs are on {output.device}"
        assert_close(target.measured(losses), expected, 1e-3, "Losses")
    text = f"{len(large)} weights and slots of the optimizer on {target.device}"
    return f"{text}; loss {losses[-1]:.5f}, the CPU's {expected[-1]:.5f}"


def check_two_devices(target: Place) -> str:
    """Trains over two devices, by rows and by layers, to the numbers of one."""
    if target.count < 2:
        raise Skipped(f"one {target.kind} alone")
    kind, results = target.kind, []
    by_layer = {"first": f"{kind}:0", "second": f"{kind}:1", "*": f"{kind}:0"}
    ways: dict[str, dict[str, Any]] = {"rows": {kind: [0, 1]}, "layers": by_layer}
    if keras.backend.backend() == "jax":
        del ways["layers"]  # JAX has layers on one device alone.
    with full_float32():
        _, expected = train(device_map={kind: 0})
        for name, device_map in ways.items():
            trainer, losses = train(device_map=device_map)
            assert_close(target.measured(losses), expected, 1e-3, f"Losses by {name}")
            if name == "layers":
                device = str(trainer.model.get_layer("second").kernel.value.device)
                assert device.endswith("1"), f"the second layer is on {device}"
            difference = np.abs(np.subtract(losses, expected)).max()
            results.append(f"{name}: losses differ by {difference:.1g}")
    return "; ".join(results)
