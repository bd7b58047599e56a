import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype("float32")
KIND, SIZE = RNG.integers(0, 3, 12), RNG.integers(0, 2, 12)
WEIGHTS = {"kind": {0: 2.0, 2: 0.5}}


def build():
    inputs = keras.Input((3,))
    kind = keras.layers.Dense(3, "softmax", name="kind")(inputs)
    size = keras.layers.Dense(2, "softmax", name="size")(inputs)
    return keras.Model(inputs, {"kind": kind, "size": size})


def make(model=None):
    loss = "sparse_categorical_crossentropy"
    optimizer = keras.optimizers.SGD(0.0)
    return Trainer(model or build(), optimizer=optimizer, loss={"kind": loss, "size": loss})


@pytest.mark.parametrize("in_list", [False, True])
def test_the_loss_is_weighted_by_the_classes_of_each_output(in_list):
    trainer = make()
    y = [KIND, SIZE[:, None]] if in_list else {"kind": KIND, "size": SIZE[:, None]}
    if in_list:
        model = trainer.model
        trainer = make(keras.Model(model.input, [model.output["kind"], model.output["size"]]))
    history = trainer.fit(X, y, class_weight=WEIGHTS, verbose=0).history
    outputs = trainer.predict(X, verbose=0)
    kind, size = outputs if in_list else (outputs["kind"], outputs["size"])
    rows = np.arange(12)
    weights = np.array([2.0, 1.0, 0.5])[KIND]
    expected = np.mean(-weights * np.log(kind[rows, KIND])) - np.mean(np.log(size[rows, SIZE]))
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-5)


@pytest.mark.torch_alone
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weight": {0: 2.0}}, r"pass class_weight={'kind': {0: 2.0}}, or .*sample_weight={"),
        ({"class_weight": {"knid": {0: 2.0}}}, "did you mean 'kind'"),
        ({"class_weight": {"kind": {0: 1.0}, "size": 2.0}}, "of output 'size' must be a dict"),
        (
            {"class_weight": WEIGHTS, "sample_weight": {"kind": KIND}},
            "multiply them, and",
        ),
        ({"class_weight": WEIGHTS, "validation_split": 0.5}, r"pass validation_data=\(x, y\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_write(options, message):
    with pytest.raises(InvalidInputError, match=message):
        make().fit(X, {"kind": KIND, "size": SIZE}, verbose=0, **options)


@pytest.mark.torch_alone
def test_data_in_batches_are_told_to_yield_the_weights():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return X, {"kind": KIND, "size": SIZE}

    with pytest.raises(InvalidInputError, match=r"let the data yield \(x, y, sample_weight\)"):
        make().fit(Batches(), class_weight=WEIGHTS, verbose=0)
