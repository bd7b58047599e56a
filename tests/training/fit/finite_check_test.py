import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.errors import TrainingDivergedError
from keras_deepseek.training import Trainer

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")
BAD = X.copy()
BAD[21] = np.nan  # In the sixth batch of four rows.


def make(**arguments):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trainer(model, optimizer="sgd", loss=loss, **arguments)


def fit(trainer, x=X, y=Y, **arguments):
    return trainer.fit(x, y, batch_size=4, shuffle=False, verbose=0, **arguments)


def test_a_nan_loss_ends_the_training_and_names_the_batch():
    with pytest.raises(TrainingDivergedError, match=r"The loss is nan from batch 6 of epoch 1 on"):
        fit(make(), BAD, epochs=3)


@pytest.mark.parametrize(
    ("precision", "state"),
    [
        ("float32", "are not finite"),
        ("float16", "are still finite"),
    ],  # Which scales its loss.
)
def test_the_error_says_if_the_weights_are_finite(precision, state):
    with pytest.raises(TrainingDivergedError, match=f"The weights {state}"):
        fit(make(precision=precision), BAD)


def test_no_checkpoint_is_taken_of_weights_that_are_not_finite(tmp_path):
    trainer = make(checkpoint_dir=tmp_path, checkpoint_every=1, keep_last=9)
    with pytest.raises(TrainingDivergedError, match="batch 6 of epoch 1"):
        fit(trainer, BAD)
    assert CheckpointFolder(tmp_path, keep_last=9).steps() == [1, 2, 3, 4, 5]


def test_a_later_training_starts_without_the_error():
    trainer = make()
    with pytest.raises(TrainingDivergedError):
        fit(trainer, BAD)
    trainer.model.set_weights([np.ones((4, 2)), np.zeros(2)])
    assert np.isfinite(fit(trainer).history["loss"]).all()


def test_labels_outside_the_classes_end_a_training_on_every_backend():
    """TensorFlow and PyTorch find them themselves, on a CPU."""
    wrong = Y.copy()
    wrong[9] = 7
    with pytest.raises(Exception, match=r".+") as caught:
        fit(make(), y=wrong)
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "batch 3 of" in text


class Spoiling(Trainer):
    """Its loss is 0, and its gradients are not."""

    def train_step(self, x, y=None, sample_weight=None):
        kernel = self.model.trainable_variables[0]
        return ops.mean(ops.sqrt(0.0 * ops.square(kernel)))


@pytest.mark.parametrize("every", [None, 1])
def test_weights_that_are_not_finite_with_a_finite_loss_are_found(tmp_path, every):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="only")])
    options = {"checkpoint_dir": tmp_path, "checkpoint_every": every} if every else {}
    trainer = Spoiling(model, optimizer="sgd", loss="mse", **options)
    with pytest.raises(TrainingDivergedError, match=r"are not finite, such as '.*kernel'"):
        fit(trainer, X[:4], Y[:4], epochs=3)  # A batch an epoch: the next loss would be NaN.
    assert not every or CheckpointFolder(tmp_path).steps() == []


def test_nan_in_the_data_leaves_the_last_checkpoint_whole_behind_any_activation(tmp_path):
    """On TensorFlow relu(NaN) is 0, and the loss stays finite."""
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"optimizer": "sgd", "loss": loss, "checkpoint_dir": tmp_path}

    def train(x, **more):
        model = keras.Sequential([keras.Input((4,)), *layers])
        trainer = Trainer(model, checkpoint_every=1, keep_last=9, seed=1, **options, **more)
        return fit(trainer, x, resume=True)

    with pytest.raises(TrainingDivergedError):
        train(BAD)
    assert CheckpointFolder(tmp_path, keep_last=9).steps() == [1, 2, 3, 4, 5]
    # And the advice of the error can be followed.
    assert train(BAD, guard="skip").history["skipped_steps"] == [1.0]


def test_a_val_loss_of_nan_logs_a_warning(caplog):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    x, y = np.ones((4, 2)), np.ones((4, 1))
    trainer.fit(x, y, validation_data=(x, y * np.nan), verbose=0)
    assert "val_loss is nan after epoch 1: look for NaN in the validation data" in caplog.text
