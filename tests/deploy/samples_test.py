import numpy as np

from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.deploy.samples import make_samples


def samples_of(model):
    signature = NamedModel(model).signature
    return signature, make_samples(model, signature)


def test_samples_fit_the_model(model):
    signature, samples = samples_of(model)
    for sample in samples:
        signature.bind(sample)
        model.predict({**sample} if len(sample) > 1 else next(iter(sample.values())), verbose=0)


def test_batch_sizes_and_lengths_differ(model):
    _, samples = samples_of(model)
    shapes = {next(iter(sample.values())).shape for sample in samples}
    assert len({shape[0] for shape in shapes}) == len(samples) >= 3
    if model.name == "text":
        assert len({shape[1] for shape in shapes}) == len(samples)


def test_integers_are_of_the_vocabulary_and_end_in_padding():
    from keras import Input, Model, layers

    tokens = Input((None,), dtype="int32")
    _, samples = samples_of(Model(tokens, layers.Embedding(4, 2, mask_zero=True)(tokens)))
    for sample in samples:
        (array,) = sample.values()
        assert array.dtype == np.int32
        assert array.max() < 4
        assert not array[0, -1]
        assert array[:, 0].all()


def test_samples_are_the_same_each_time(digits):
    for first, second in zip(samples_of(digits)[1], samples_of(digits)[1], strict=True):
        np.testing.assert_array_equal(first["image"], second["image"])
