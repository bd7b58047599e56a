import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend.keras_training import loss_functions
from keras_deepseek.training import Trainer
from keras_deepseek.training.label_check import marking_wrong_labels

PROBABILITIES = np.full((2, 3), 1 / 3, "float32")
IS_JAX = keras.backend.backend() == "jax"


def compute(loss, labels, outputs=PROBABILITIES):
    with marking_wrong_labels():
        labels, outputs = ops.convert_to_tensor(labels), ops.convert_to_tensor(outputs)
        return float(ops.convert_to_numpy(ops.sum(loss(labels, outputs))))


def is_each(loss):
    """Returns whether a loss is one of each row, and not their mean."""
    return not isinstance(loss, keras.losses.Loss)


def own(labels, outputs):
    return keras.losses.sparse_categorical_crossentropy(labels, outputs)


def by_operation(labels, outputs):
    labels = ops.squeeze(labels, -1) if len(labels.shape) == 2 else labels
    return ops.sparse_categorical_crossentropy(labels, outputs)


@pytest.mark.parametrize("loss", [own, by_operation, keras.losses.SparseCategoricalCrossentropy()])
@pytest.mark.parametrize("label", [-1, 3, np.nan])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_label_that_is_no_class_makes_the_loss_nan(loss, label, shape):
    good = np.reshape(np.array([0, 2], "float32"), shape)
    assert compute(loss, good) == pytest.approx(np.log(3) * (2 if is_each(loss) else 1))
    bad = np.reshape(np.array([0, label], "float32"), shape)
    found = None
    with contextlib.suppress(Exception):  # The others raise an error, on a CPU.
        found = compute(loss, bad)
    assert np.isnan(found) if IS_JAX else found is None or np.isnan(found)


def test_a_class_that_is_ignored_is_none_that_is_wrong():
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1, reduction="sum")
    assert compute(loss, np.array([1, -1])) == pytest.approx(np.log(3))


@pytest.mark.parametrize("from_logits", [False, True])
def test_a_binary_label_is_from_0_to_1(from_logits):
    loss = keras.losses.BinaryCrossentropy(from_logits, label_smoothing=0.1)
    outputs = np.full((2, 1), 0.5, "float32")
    for label in (0, 1, 0.3):
        assert np.isfinite(compute(loss, np.array([[1.0], [label]]), outputs))
    for label in (2, -1):
        found = np.nan
        with contextlib.suppress(RuntimeError):  # PyTorch's, of labels of probabilities.
            found = compute(loss, np.array([[1.0], [label]]), outputs)
        assert np.isnan(found)


def test_who_asks_last_takes_the_marks_away():
    functions = loss_functions()
    plain = functions.binary_crossentropy
    with marking_wrong_labels():
        marked = functions.binary_crossentropy
        assert marked is not plain
        with marking_wrong_labels():
            assert functions.binary_crossentropy is marked
        assert functions.binary_crossentropy is marked
    assert functions.binary_crossentropy is plain


class Own(Trainer):
    def train_step(self, x, y=None, sample_weight=None):
        return self.model.compute_loss(x, y, self.model(x, training=True), sample_weight)


class OwnStep(keras.Sequential):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


def build(layer_class=keras.Sequential, units=3, activation="softmax"):
    return layer_class([keras.Input((2,)), keras.layers.Dense(units, activation=activation)])


WRONG = r"batch 3|label|[Tt]arget|Graph execution"


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", own])
@pytest.mark.parametrize(
    ("trainer_class", "model_class"),
    [(Trainer, keras.Sequential), (Own, keras.Sequential), (Trainer, OwnStep)],
    ids=["trainer", "own train_step", "the model's train_step"],
)
def test_nobody_trains_on_labels_that_are_none(loss, trainer_class, model_class):
    trainer = trainer_class(build(model_class), optimizer="sgd", loss=loss)
    labels = np.array([0, 1, 2, 0, 9, 1])
    with pytest.raises(Exception, match=WRONG):
        trainer.fit(np.ones((6, 2)), labels, batch_size=2, shuffle=False, verbose=0)


def test_nobody_trains_on_binary_labels_beyond_1():
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    trainer = Trainer(build(units=1, activation=None), optimizer="sgd", loss=loss)
    with pytest.raises(Exception, match=r"batch 3.*not from 0 to 1"):
        trainer.fit(
            np.ones((6, 2)), np.array([0, 1, 1, 0, 2, 1]), batch_size=2, shuffle=False, verbose=0
        )


@pytest.mark.skipif(not IS_JAX, reason="The others raise an error, on a CPU.")
def test_a_validation_and_an_evaluation_show_them():
    good, bad = np.array([0, 1]), np.array([0, 9])
    trainer = Trainer(build(), optimizer="sgd", loss=own)
    x = np.ones((2, 2))
    history = trainer.fit(x, good, validation_data=(x, bad), verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert np.isnan(history["val_loss"][0])
    assert np.isnan(trainer.evaluate(x, bad, verbose=0))
    assert np.isfinite(trainer.evaluate(x, good, verbose=0))
