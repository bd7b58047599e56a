import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.fit import tune_malloc as tune_malloc_module

X, Y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")


def make(**options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    return Trainer(model, optimizer="sgd", loss="mse", **options)


@pytest.mark.torch_alone
def test_the_notice_on_half_precision_is_printed_once(capsys):
    trainer = make(fp16_enabled=True)
    trainer.fit(X, Y, verbose=0)
    assert capsys.readouterr().out == ""
    for expected in (1, 0):
        trainer.fit(X, Y, verbose=2)
        assert capsys.readouterr().out.count("fp16_enabled: ") == expected


def test_arguments_are_checked_before_the_model_is_touched():
    trainer = make()
    with pytest.raises(InvalidInputError, match="`resume`"):
        trainer.fit(X, Y, verbose=0, resume="yes")
    with pytest.raises(InvalidInputError, match=r"checkpoint_dir=\.\.\."):
        trainer.fit(X, Y, verbose=0, resume=True)
    assert "train_step" not in vars(trainer.model)


@pytest.mark.parametrize("tune_malloc", [False, True])
def test_malloc_is_changed_only_with_tune_malloc(monkeypatch, tune_malloc):
    calls = []

    class Library:
        def mallopt(self, option, value):
            calls.append((option, value))

        def malloc_trim(self, pad):
            calls.append("trim")

    monkeypatch.setattr(tune_malloc_module, "_find_library", Library)
    make(tune_malloc=tune_malloc).fit(X, Y, verbose=0)
    assert bool(calls) == tune_malloc


class CountTests(keras.callbacks.Callback):
    num_batches = 0

    def on_test_batch_end(self, batch, logs=None):
        self.num_batches += 1


@pytest.mark.each_backend
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("sizes", "num_batches"),
    [
        ({"batch_size": 4}, 3),
        ({"batch_size": 4, "validation_batch_size": None}, 3),
        ({"batch_size": 4, "validation_batch_size": 2}, 5),
        ({}, 1),
    ],
    ids=str,
)
def test_a_validation_has_the_batch_size_of_the_training_unless_it_has_its_own(
    sizes, num_batches, is_streamed, tmp_path
):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    options = {"checkpoint_dir": tmp_path} if is_streamed else {}
    trainer = Trainer(model, optimizer="sgd", loss="mse", **options)
    x, y, count = np.ones((10, 2)), np.ones((10, 1)), CountTests()
    trainer.fit(x, y, **sizes, validation_data=(x, y), callbacks=[count], verbose=0)
    assert count.num_batches == num_batches
