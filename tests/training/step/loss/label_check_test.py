import types

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.training import Trainer
from keras_deepseek.training.step.loss.compiled_losses import check_labels, label_checks

OUTPUTS = np.zeros((2, 3), "float32")


def mark(spec, y, y_pred=OUTPUTS, output_names=("first", "second"), weights=None):
    model = types.SimpleNamespace(loss=spec, output_names=list(output_names))
    y_pred = keras.tree.map_structure(ops.convert_to_tensor, y_pred)
    loss = check_labels(model, ops.convert_to_tensor(1.0), y, y_pred, weights)
    return float(ops.convert_to_numpy(loss))


@pytest.mark.parametrize(
    "spec",
    [
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.SparseCategoricalCrossentropy(),
        ["sparse_categorical_crossentropy"],
    ],
)
@pytest.mark.parametrize(("label", "expected"), [(0, 1.0), (2, 1.0), (3, np.nan), (-1, np.nan)])
def test_a_label_outside_the_classes_makes_the_loss_nan(spec, label, expected):
    np.testing.assert_equal(mark(spec, np.array([1, label])), expected)
    np.testing.assert_equal(mark(spec, np.array([[1.0], [label]])), expected)


def test_a_nan_label_makes_the_loss_nan():
    loss = mark("sparse_categorical_crossentropy", np.array([1.0, np.nan], "float32"))
    np.testing.assert_equal(loss, np.nan)


def test_ignore_class_is_a_valid_label():
    assert mark(keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), np.array([1, -1])) == 1


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        ("sparse_categorical_crossentropy", np.array([0, -1])),
        (keras.losses.BinaryCrossentropy(from_logits=True), np.array([[0, 1, 1], [1, -1, 2]])),
    ],
)
def test_labels_with_weight_zero_are_not_checked(loss, labels):
    for weights in ([1.0, 0.0], [[1.0], [0.0]]):
        assert mark(loss, labels, weights=np.array(weights)) == 1.0
        assert np.isnan(mark(loss, labels, weights=np.array(weights)[::-1]))
    assert np.isnan(mark(loss, labels))
    if labels.ndim == 2:
        assert mark(loss, labels, weights=(labels >= 0) & (labels < 2)) == 1.0


@pytest.mark.parametrize("loss", ["binary_crossentropy", keras.losses.BinaryCrossentropy()])
def test_binary_labels_may_be_smoothed_or_noisy(loss):
    assert mark(loss, np.array([[0.05, 1.05, 0.5], [0, 1, -0.05]])) == 1.0
    for label in (2, -1):
        assert np.isnan(mark(loss, np.array([[0, 1, 1], [0, label, 1]])))


def test_each_output_has_weights_of_its_own():
    spec = {"second": "sparse_categorical_crossentropy", "first": "mse"}
    y, y_pred = [np.array([0, 3])] * 2, [OUTPUTS] * 2
    off, on = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    assert mark(spec, y, y_pred, weights={"second": off}) == 1.0
    assert mark(spec, y, y_pred, weights=[on, off]) == 1.0
    assert np.isnan(mark(spec, y, y_pred, weights=[off, on]))


def test_masked_labels_are_not_checked():
    inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(5, 4, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    trainer = Trainer(model, optimizer="sgd", loss="binary_crossentropy")
    labels = np.array([[[0, 1], [1, 0], [-1, -1]]] * 4)
    x = np.array([[1, 2, 0]] * 4)
    if keras.backend.backend() != "torch":  # Which refuses them itself.
        assert np.isfinite(trainer.fit(x, labels, verbose=0).history["loss"][0])
    with pytest.raises(Exception, match=r"Look at the inputs|between 0 and 1"):
        trainer.fit(x[:, ::-1], labels, verbose=0)


def test_labels_of_other_losses_are_not_checked():
    assert mark("mse", np.array([7, 7])) == 1.0
    assert mark(None, None) == 1.0


@pytest.mark.parametrize("as_dict", [False, True])
def test_each_output_is_checked(as_dict):
    spec = {"second": "sparse_categorical_crossentropy", "first": "mse"}
    good, bad = np.array([0, 2]), np.array([0, 3])
    y_pred = {"first": OUTPUTS, "second": OUTPUTS} if as_dict else [OUTPUTS, OUTPUTS]

    def labels(of_first, of_second):
        return {"first": of_first, "second": of_second} if as_dict else [of_first, of_second]

    assert mark(spec, labels(bad, good), y_pred) == 1.0
    assert np.isnan(mark(spec, labels(good, bad), y_pred))


def test_label_checks_wraps_compute_loss():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    model.compile(loss="sparse_categorical_crossentropy")
    y_pred = ops.full((2, 3), 1 / 3)
    with label_checks(model):
        loss = model.compute_loss(None, np.array([0, 2]), y_pred)
        assert float(ops.convert_to_numpy(loss)) == pytest.approx(np.log(3))
        if keras.backend.backend() == "jax":  # The others raise an error, on a CPU.
            loss = model.compute_loss(y=np.array([0, 3]), y_pred=y_pred)
            np.testing.assert_equal(float(loss), np.nan)
    assert "compute_loss" not in vars(model)


class Own(Trainer):
    def train_step(self, x, y=None, sample_weight=None):
        return self.model.compute_loss(x, y, self.model(x, training=True), sample_weight)


def test_an_overridden_train_step_checks_labels():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
    trainer = Own(model, optimizer="sgd", loss="sparse_categorical_crossentropy")
    labels = np.array([0, 1, 2, 0, 9, 1])
    with pytest.raises(Exception, match=r"batch 3|label|[Tt]arget|Graph execution"):
        trainer.fit(np.ones((6, 2)), labels, batch_size=2, shuffle=False, verbose=0)


def test_label_checks_restores_compute_loss():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    x, y = np.ones((4, 2)), np.array([[2.0]] * 4)
    trainer = Trainer(model, optimizer="sgd", loss=keras.losses.BinaryCrossentropy(True))
    with pytest.raises(Exception, match="Look at the inputs"):
        trainer.fit(x, y, verbose=0)
    trainer = Trainer(model, optimizer="sgd", loss=keras.losses.BinaryCrossentropy(True))
    model.set_weights([np.ones((2, 1)), np.zeros(1)])
    trainer.fit(x, y / 2, validation_data=(x, y / 2), verbose=0)
    assert np.isfinite(model.evaluate(x, y, verbose=0))
