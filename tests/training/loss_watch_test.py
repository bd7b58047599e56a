import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.artifacts.errors import TrainingDivergedError
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


def test_a_loss_that_is_no_number_ends_the_training_and_names_the_batch():
    with pytest.raises(TrainingDivergedError, match=r"The loss is nan from batch 6 of epoch 1 on"):
        fit(make(), BAD, epochs=3)


def test_no_checkpoint_is_taken_of_weights_that_are_spoilt(tmp_path):
    trainer = make(checkpoint_dir=tmp_path, checkpoint_every=1, keep_last=9)
    with pytest.raises(TrainingDivergedError, match="batch 6 of epoch 1"):
        fit(trainer, BAD)
    assert CheckpointFolder(tmp_path, keep_last=9).steps() == [1, 2, 3, 4, 5]


def test_a_training_after_it_begins_anew():
    trainer = make()
    with pytest.raises(TrainingDivergedError):
        fit(trainer, BAD)
    trainer.model.set_weights([np.ones((4, 2)), np.zeros(2)])
    assert np.isfinite(fit(trainer).history["loss"]).all()


def test_labels_that_are_no_class_end_a_training_on_every_backend():
    """TensorFlow and PyTorch find them themselves, on a CPU."""
    wrong = Y.copy()
    wrong[9] = 7
    with pytest.raises(Exception, match=r".+") as caught:
        fit(make(), y=wrong)
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "batch 3 of" in text
