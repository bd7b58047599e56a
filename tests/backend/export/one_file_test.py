import keras

from keras_deepseek.backend.export import one_file
from keras_deepseek.backend.export.one_file import fits_one_file


def test_the_weights_of_a_model_are_counted(monkeypatch):
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(25, dtype="float16")])
    assert fits_one_file(model)
    monkeypatch.setattr(one_file, "LARGEST_FILE", 50_050)
    assert fits_one_file(model)
    monkeypatch.setattr(one_file, "LARGEST_FILE", 50_049)
    assert not fits_one_file(model)
