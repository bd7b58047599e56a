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
