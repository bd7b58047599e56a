"""A step that runs from a recording, beside the same step run by Keras."""

import functools
import logging
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.backend import comparison_schedule
from keras_deepseek.training import Trainer
from keras_deepseek.training.step.gradients.batch_part import BatchPart

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others are compiled.")

RNG = np.random.default_rng(0)
ROWS = 16
IMAGES = RNG.normal(size=(ROWS, 8, 8, 3)).astype("float32")
VECTORS = RNG.normal(size=(ROWS, 6)).astype("float32")
IDS = RNG.integers(0, 9, (ROWS, 7))
CLASSES = RNG.integers(0, 5, ROWS)
TOKENS = RNG.integers(0, 5, (ROWS, 7))
WEIGHTS = RNG.uniform(0.2, 2.0, (ROWS, 7)).astype("float32")


def dense():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "gelu", kernel_regularizer="l2"), layers.Dense(5)]
    )


def images():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            # `layer_kernels_test.py` has poolings and the last axis, which sum in another order.
            layers.BatchNormalization(axis=1, momentum=0.7),
            layers.SeparableConv2D(6, 3, strides=2),
            layers.SpatialDropout2D(0.2),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def dropped(*seeds):
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activity_regularizer="l1"),
            *(layers.Dropout(0.4, seed=seed) for seed in seeds),
            layers.GaussianNoise(0.1, seed=3),
            layers.Dense(5),
        ]
    )


def encoder(rate=0.0):
    ids = keras.Input((7,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True)(ids)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4, dropout=rate, seed=1)(x, x))
    return keras.Model(ids, layers.Dense(5)(x))


def recurrent(use_cudnn=False):
    x = keras.Input((7,), dtype="int32")
    gru = layers.GRU(4, dropout=0.2, seed=5, use_cudnn=use_cudnn)
    hidden = gru(layers.Embedding(9, 6, mask_zero=True)(x))
    return keras.Model(x, layers.Dense(5)(hidden))


def low_rank():
    model = dense()
    model.layers[0].enable_lora(2)
    return model


CASES = {
    "dense": (dense, VECTORS, CLASSES, {}),
    "images": (images, IMAGES, CLASSES, {}),
    "seeded dropout": (lambda: dropped(7, 8), VECTORS, CLASSES, {}),
    "dropout without a seed": (lambda: dropped(None, 8), VECTORS, CLASSES, {}),
    "attention": (lambda: encoder(0.2), IDS, TOKENS, {}),
    "recurrent": (recurrent, IDS, CLASSES, {}),
    "low rank": (low_rank, VECTORS, CLASSES, {}),
    "micro-batches": (lambda: encoder(0.2), IDS, TOKENS, {"micro_batches": 3}),
    "clip": (dense, VECTORS, CLASSES, {"gradient_clip": ("global_norm", 0.1)}),
    "guard": (images, IMAGES, CLASSES, {"guard": "skip"}),
    "bfloat16": (images, IMAGES, CLASSES, {"precision": "bfloat16"}),
    "float16": (encoder, IDS, TOKENS, {"precision": "float16"}),
    "remat": (lambda: encoder(0.2), IDS, TOKENS, {"remat": ["multi_head_attention*"]}),
    "optimized graph": (dense, VECTORS, CLASSES, {"optimize_graph": True}),
    "statistics": (dense, VECTORS, CLASSES, {"layer_statistics": True}),
}


def make_trainer(build, *, is_eager=False, optimizer=None, metrics=(), **options):
    keras.utils.set_random_seed(1)
    model = build()
    model.compile(
        optimizer or keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=list(metrics),
        run_eagerly=is_eager,
    )
    return Trainer(model, **options)


def read(trainer):
    return [ops.convert_to_numpy(variable.value).copy() for variable in trainer.model.variables]


def assert_equal_bits(arrays, expected):
    assert len(arrays) == len(expected)
    for array, reference in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, reference)


@pytest.fixture
def eager_calls(monkeypatch):
    """The batches that were computed by Keras's Python, or recorded."""
    calls, by_class = [], BatchPart.__call__

    def call(part, *arguments):
        calls.append(1)
        return by_class(part, *arguments)

    monkeypatch.setattr(BatchPart, "__call__", call)
    return calls


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_step_is_that_of_keras_to_the_bit(name, eager_calls, caplog):
    build, x, y, options = CASES[name]
    caplog.set_level(logging.INFO)
    results = []
    for is_eager in (True, False):
        trainer = make_trainer(build, is_eager=is_eager, **options)
        eager_calls.clear()
        weights = WEIGHTS if y.ndim > 1 else WEIGHTS[:, 0]
        history = trainer.fit(
            x, y, sample_weight=weights, batch_size=4, epochs=4, verbose=0, shuffle=False
        ).history
        results.append((history, read(trainer), keras.random.uniform((2,)), len(eager_calls)))
    (expected_history, expected, number, num_eager), (history, values, other, num_calls) = results
    assert history == expected_history
    assert_equal_bits(values, expected)
    assert_equal_bits([ops.convert_to_numpy(other)], [ops.convert_to_numpy(number)])
    # The first batch, the second one and its recording.
    assert num_calls == 3 * num_eager // 16, caplog.text


def spy(trainer, change, at=6):
    """Trains for 12 steps, and calls `change` with the model after some of them."""
    model = trainer.model
    steps = trainer.steps(VECTORS, CLASSES, batch_size=4, epochs=3, shuffle=False)
    for number, _ in enumerate(steps):
        if number == at:
            change(model)
    return read(trainer)


def freeze(model):
    model.layers[0].trainable = False


def change_rate(model):
    model.layers[1].rate = 0.7


def change_regularizer(model):
    model.layers[0].activity_regularizer.l1 = np.float32(0.5)


def change_label_smoothing(model):
    model.loss.from_logits = False


def replace_weights(model):
    model.set_weights([0.5 * weight for weight in model.get_weights()])


def freeze_variable(model):
    model.layers[0].kernel.trainable = False


def change_loss_scale(model):
    model.optimizer.loss_scale_factor = 4.0


@pytest.mark.parametrize(
    "change",
    [
        change_loss_scale,
        freeze,
        change_rate,
        change_regularizer,
        change_label_smoothing,
        replace_weights,
        freeze_variable,
    ],
)
def test_what_changes_between_two_steps_counts(change, eager_calls):
    results = []
    for is_eager in (True, False):
        eager_calls.clear()
        trainer = make_trainer(
            lambda: dropped(7), is_eager=is_eager, optimizer=keras.optimizers.SGD(0.1)
        )
        results.append(spy(trainer, change))
    assert len(eager_calls) < 12
    assert_equal_bits(results[1], results[0])


def test_a_fused_recurrent_layer_is_recorded_to_the_bit(eager_calls):
    results = []
    for has_hook in (True, False):
        eager_calls.clear()
        trainer = make_trainer(lambda: recurrent("auto"))
        if has_hook:
            trainer.model.layers[-1].register_forward_hook(lambda *_: None)
        trainer.fit(IDS, CLASSES, batch_size=4, epochs=3, verbose=0, shuffle=False)
        results.append(read(trainer))
    assert len(eager_calls) == 3
    assert_equal_bits(results[1], results[0])


def test_hooks_are_called(eager_calls):
    trainer = make_trainer(dense)
    calls = []

    def hook(model):
        model.layers[0].register_forward_hook(lambda *_: calls.append(1))

    spy(trainer, hook)
    assert len(calls) == 5


def test_a_gradient_hook_is_called():
    trainer = make_trainer(dense)
    calls = []

    def hook(model):
        model.layers[0].kernel.value.register_hook(lambda gradient: calls.append(1))

    spy(trainer, hook)
    assert len(calls) == 5


def test_an_anomaly_is_found():
    import torch

    trainer = make_trainer(dense)
    bad = np.full_like(VECTORS, -1.0)
    trainer.model.layers[0].activation = ops.sqrt
    train = functools.partial(trainer.fit, bad, CLASSES, batch_size=4, verbose=0)
    with (
        warnings.catch_warnings(action="ignore"),
        torch.autograd.set_detect_anomaly(True),
        pytest.raises(RuntimeError, match="nan"),
    ):
        train()


class Counting(layers.Layer):
    """Has a state that no recording sees."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs * self.calls


def test_a_layer_with_code_of_its_own_runs_each_time(caplog):
    caplog.set_level(logging.INFO)
    counting = Counting(name="counting")
    trainer = make_trainer(lambda: keras.Sequential([keras.Input((6,)), counting, layers.Dense(5)]))
    before = counting.calls
    trainer.fit(VECTORS, CLASSES, batch_size=4, epochs=3, verbose=0)
    assert counting.calls >= before + 12
    assert "'counting'" in caplog.text
    assert "Counting.call" in caplog.text


FACTOR = {"value": 1.0}
HIDDEN = {
    "a regularizer": lambda: layers.Dense(
        6, kernel_regularizer=lambda kernel: FACTOR["value"] * ops.sum(kernel**2)
    ),
    "an activation": lambda: layers.Dense(6, activation=functools.partial(Counting())),
    "arguments": lambda: layers.Lambda(
        lambda x, numbers: x * numbers["inner"]["value"], arguments={"numbers": {"inner": FACTOR}}
    ),
    "a module of PyTorch": lambda: layers.TorchModuleWrapper(torch.nn.BatchNorm1d(6)),
    "a setting that was None": layers.ReLU,
}


def change_hidden_numbers(model):
    FACTOR["value"] = 3.0
    if isinstance(model.layers[0], layers.ReLU):
        model.layers[0].max_value = 0.5


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("optimize_graph", [False, True])
def test_what_a_layer_hides_counts(name, optimize_graph):
    results = []
    for is_eager in (True, False):
        FACTOR["value"] = 1.0
        trainer = make_trainer(
            lambda: keras.Sequential([keras.Input((6,)), HIDDEN[name](), layers.Dense(5)]),
            is_eager=is_eager,
            optimizer=keras.optimizers.SGD(0.01),
            optimize_graph=optimize_graph and not is_eager,
        )
        weights = spy(trainer, change_hidden_numbers)
        results.append([*weights, ops.convert_to_numpy(trainer.model(VECTORS, training=False))])
    for received, expected in zip(*results, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


class CountedRate(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self):
        self.num_calls = 0

    def __call__(self, step):
        self.num_calls += 1
        return 0.1 / (1.0 + float(step) + self.num_calls)


class BySign(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(ops.sign(gradient), variable, learning_rate)


class Doubling(keras.optimizers.SGD):
    def scale_loss(self, loss):
        return 2.0 * loss


def test_an_optimizer_and_a_rate_of_a_user_run_beside_the_recording(eager_calls):
    results = []
    for is_eager in (True, False):
        eager_calls.clear()
        trainer = make_trainer(dense, is_eager=is_eager, optimizer=BySign(CountedRate()))
        results.append(spy(trainer, lambda model: None))
    assert len(eager_calls) == 3
    assert_equal_bits(results[1], results[0])


def test_a_scale_of_a_user_keeps_a_step_from_being_recorded(eager_calls):
    spy(make_trainer(dense, optimizer=Doubling(0.1)), lambda model: None)
    assert len(eager_calls) == 12


def test_a_loss_of_the_model_itself_runs_each_time():
    trainer = make_trainer(dense)
    calls, compute_loss = [], trainer.model.compute_loss

    def counted(*arguments, **options):
        calls.append(1)
        return compute_loss(*arguments, **options)

    trainer.model.compute_loss = counted
    spy(trainer, lambda model: None)
    assert len(calls) >= 12


def test_a_layer_that_reads_numbers_runs_each_time(caplog, eager_calls):
    caplog.set_level(logging.INFO)
    results = []
    for is_eager in (True, False):
        eager_calls.clear()
        trainer = make_trainer(
            lambda: keras.Sequential(
                [keras.Input((6,)), layers.SpectralNormalization(layers.Dense(8)), layers.Dense(5)]
            ),
            is_eager=is_eager,
        )
        results.append(spy(trainer, lambda _: None))
    assert len(eager_calls) == 13  # One to find out.
    assert_equal_bits(results[1], results[0])
    assert "reads numbers" in caplog.text


def test_a_checkpoint_that_draws_the_same_again_is_not_recorded(caplog):
    caplog.set_level(logging.INFO)

    def build():
        block = keras.Sequential([layers.Dense(6), layers.Dropout(0.5)], name="block")
        return keras.Sequential([keras.Input((6,)), block, layers.Dense(5)])

    results = []
    for is_eager in (True, False):
        trainer = make_trainer(build, is_eager=is_eager, remat=["block"])
        results.append(spy(trainer, lambda _: None))
    assert_equal_bits(results[1], results[0])
    assert "random generator" in caplog.text


def test_a_recording_that_is_broken_off_leaves_no_dropout_mask(monkeypatch, caplog):
    from keras_deepseek.backend.torch import recording

    caplog.set_level(logging.INFO)
    results = []
    for is_eager in (True, False):
        monkeypatch.setattr(recording, "_MOST_CALLS", 40)
        trainer = make_trainer(recurrent, is_eager=is_eager)
        trainer.fit(IDS, CLASSES, batch_size=4, epochs=2, verbose=0, shuffle=False)
        results.append(read(trainer))
    assert_equal_bits(results[1], results[0])
    assert "more than 40 operations" in caplog.text


def test_a_recording_that_once_differs_is_dropped(monkeypatch, caplog):
    """What a recording can't see is found by the comparisons that come now and then."""
    monkeypatch.setattr(comparison_schedule, "_SHARE", 1e9)
    functional = pytest.importorskip("torch.nn.functional")
    factor = [1.0]
    monkeypatch.setattr(
        functional, "gelu", lambda x, approximate="none": factor[0] * functional.relu(x)
    )
    trainer = make_trainer(lambda: dropped(7))
    trainer.model.layers[0].activation = keras.activations.gelu
    for number, _ in enumerate(trainer.steps(VECTORS, CLASSES, batch_size=4, epochs=9)):
        if number == 4:
            factor[0] = 2.0
    assert "other numbers" in caplog.text


def test_each_length_has_its_own_recording(eager_calls):
    lengths = [3, 5, 7, 3, 5, 7, 3, 5, 7, 3]
    results = []
    for is_eager in (True, False):
        eager_calls.clear()
        trainer = make_trainer(flexible, is_eager=is_eager)
        batches = [(IDS[:4, :length], TOKENS[:4, :length]) for length in lengths]
        for _ in trainer.steps((batch for batch in batches), steps_per_epoch=len(batches)):
            pass
        results.append(read(trainer))
    assert len(eager_calls) == 9
    assert_equal_bits(results[1], results[0])


def flexible():
    ids = keras.Input((None,), dtype="int32")
    return keras.Model(ids, layers.Dense(5)(layers.Embedding(9, 8, mask_zero=True)(ids)))


def test_ever_new_shapes_are_not_recorded_for_ever(eager_calls):
    trainer = make_trainer(flexible)
    batches = [
        (IDS[: 1 + rows % 16, : 1 + length], TOKENS[: 1 + rows % 16, : 1 + length])
        for rows in range(16)
        for length in range(7)
        for _ in range(2)
    ]
    for _ in trainer.steps((batch for batch in batches), steps_per_epoch=len(batches)):
        pass
    assert len(eager_calls) < len(batches) + 40


def test_a_tensor_may_be_input_and_target():
    results = []
    for is_eager in (True, False):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((6,)), layers.Dense(6)])
        model.compile("sgd", "mse", run_eagerly=is_eager)
        trainer = Trainer(model)
        x, y = (ops.convert_to_tensor(VECTORS[:4]), ops.convert_to_tensor(VECTORS[4:8]))
        pairs = [(x, x)] * 4 + [(x, y)] * 4 + [(y, y)] * 2
        for _ in trainer.steps((pair for pair in pairs), steps_per_epoch=len(pairs)):
            pass
        results.append(read(trainer))
    assert_equal_bits(results[1], results[0])


def test_it_is_the_training_of_keras_itself(eager_calls):
    """SGD is computed by Keras in both."""
    results = []
    for by_keras in (True, False):
        keras.utils.set_random_seed(1)
        model = images()
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)],
        )
        fit = model.fit if by_keras else Trainer(model).fit
        history = fit(IMAGES, CLASSES, batch_size=4, epochs=3, shuffle=False, verbose=0).history
        results.append((history, [ops.convert_to_numpy(v.value) for v in model.variables]))
    assert len(eager_calls) == 3
    assert results[0][0] == results[1][0]
    assert_equal_bits(results[1][1], results[0][1])


@pytest.mark.parametrize("name", ["images", "attention"])
def test_evaluations_and_predictions_are_those_of_keras_to_the_bit(name):
    build, x, y, _ = CASES[name]
    results = []
    for is_eager in (True, False):
        trainer = make_trainer(build, is_eager=is_eager)
        trainer.fit(x, y, batch_size=4, verbose=0)
        numbers = [
            (
                trainer.evaluate(x, y, batch_size=4, verbose=0),
                trainer.predict(x, batch_size=4, verbose=0).tolist(),
            )
            for _ in range(2)
        ]
        trainer.model.set_weights([0.5 * weight for weight in trainer.model.get_weights()])
        numbers.append(trainer.predict(x, batch_size=4, verbose=0).tolist())
        history = trainer.fit(x, y, batch_size=4, validation_data=(x, y), epochs=3, verbose=0)
        results.append((numbers, history.history))
    assert results[0] == results[1]
