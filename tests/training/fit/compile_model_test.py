import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.fit.compile_model import build_model, compile_model, set_seed


def build():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def test_a_model_is_taken_as_it_is_and_a_function_is_called():
    model = build()
    assert build_model(model) is model
    assert isinstance(build_model(build), keras.Model)
    for other in ("model", lambda: "model", None):
        with pytest.raises(InvalidInputError, match=r"a keras\.Model, or a function that builds"):
            build_model(other)


def test_a_function_that_wants_arguments_is_refused():
    with pytest.raises(InvalidInputError, match=r"without arguments, but it takes \(units\)"):
        build_model(lambda units: units)


def test_a_seed_is_set_unless_there_is_none():
    assert set_seed(None) is None
    first = set_seed(3), keras.random.uniform((2,))
    again = set_seed(3), keras.random.uniform((2,))
    assert keras.ops.convert_to_numpy(first[1]).tolist() == (
        keras.ops.convert_to_numpy(again[1]).tolist()
    )
    for seed in (-1, 2**32, 1.5, "1"):
        with pytest.raises(InvalidInputError, match="`seed` must be an integer from 0 to"):
            set_seed(seed)


def test_arguments_override_the_compiled_ones():
    model = build()
    compile_model(model, "adam", "mse", None, None)
    optimizer = model.optimizer
    compile_model(model, None, "mae", None, None)
    assert model.optimizer is optimizer
    assert model.loss == "mae"
    compile_model(model, None, None, None, keras.DTypePolicy("mixed_float16"))
    assert model.optimizer.inner_optimizer is optimizer


@pytest.mark.parametrize(
    ("optimizer", "loss", "message"),
    [
        ("adm", "mse", "Unknown optimizer 'adm'"),
        ("adam", "msse", "Unknown loss 'msse'"),
        (None, "mse", "was not compiled with an optimizer"),
        (keras.optimizers.Adam, "mse", r"is the class Adam: pass an object of it, as in Adam\(\)"),
        (3, "mse", "`optimizer` must be a Keras optimizer, or its name, .*; received int: 3"),
        ("adam", 3, "`loss` must be a Keras loss, a function, or its name, .*; received int"),
        ("adam", ["mse", keras.losses.MeanSquaredError], "is the class MeanSquaredError"),
    ],
)
def test_unknown_or_missing_arguments_are_named(optimizer, loss, message):
    with pytest.raises(InvalidInputError, match=message):
        compile_model(build(), optimizer, loss, None, None)


def test_an_invalid_metric_is_named():
    with pytest.raises(InvalidInputError, match="`metrics` must be a Keras metric"):
        compile_model(build(), "sgd", "mse", ["mae", 0.5], None)
    for metric in ("mae", keras.metrics.MeanAbsoluteError(name="mae")):
        model = build()
        compile_model(model, "sgd", "mse", metric, None)
        assert set(model.evaluate(np.ones((2, 2)), np.ones((2, 1)), 2, 0, return_dict=True)) == {
            *("loss", "mae")
        }


def test_a_dict_of_losses_must_name_outputs():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")])
    compile_model(model, "sgd", {"a": "mse"}, None, None)
    with pytest.raises(InvalidInputError, match="Unknown output of the model 'aa': did you mean"):
        compile_model(model, "sgd", {"aa": "mse"}, None, None)
    with pytest.raises(InvalidInputError, match="whose output has no name: pass its loss"):
        compile_model(build(), "sgd", {"a": "mse"}, None, None)
    config = keras.saving.serialize_keras_object(keras.losses.MeanSquaredError())
    compile_model(build(), "sgd", config, None, None)


def build_two_outputs():
    inputs = keras.Input((2,))
    return keras.Model(inputs, {name: keras.layers.Dense(1, name=name)(inputs) for name in "ab"})


def test_loss_weights_and_weighted_metrics_are_those_of_compile():
    """The weighted sum of losses and the weighted metrics, in float64."""
    x, y, weight = np.eye(2, dtype="float32"), np.array([[1.0], [3.0]]), np.array([1.0, 3.0])
    model = build_two_outputs()
    trainer = Trainer(
        model,
        optimizer=keras.optimizers.SGD(0.0),
        loss={"a": "mse", "b": "mae"},
        loss_weights={"a": 0.25, "b": 2},
        weighted_metrics={"a": "mae"},
    )
    targets, weights = {"a": y, "b": y}, {"a": weight, "b": weight}
    logs = trainer.fit(x, targets, sample_weight=weights, verbose=0).history
    outputs = {name: value.astype("float64") for name, value in model.predict(x, 2, 0).items()}
    errors = {name: np.abs(outputs[name] - y)[:, 0] for name in "ab"}
    expected = 0.25 * np.mean(weight * errors["a"] ** 2) + 2 * np.mean(weight * errors["b"])
    np.testing.assert_allclose(logs["loss"], [expected], rtol=1e-5)
    mae = np.sum(weight * errors["a"]) / np.sum(weight)
    np.testing.assert_allclose(logs["a_mae"], [mae], rtol=1e-5)


@pytest.mark.torch_alone
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"steps_per_execution": 2}, r"compile the model first, as in model\.compile\(steps_per"),
        ({"run_eagerly": True}, "compile the model first"),
        ({"jit_compile": True}, "compile the model first"),
        ({"auto_scale_loss": False}, "precision='float16' scales the loss"),
        (
            {"loss_wieghts": [1.0, 1.0]},
            "Unknown Trainer.*did you mean 'loss_weights'",
        ),
        ({"loss_weights": {"c": 1.0}}, "Unknown output of the model 'c'"),
        ({"loss_weights": [1.0]}, r"a number for each loss; received \[1.0\] for 2"),
        ({"loss_weights": ["a", 1.0]}, "`loss_weights` must be a number for each loss"),
        ({"weighted_metrics": ["mea"]}, "Unknown metric 'mea'"),
    ],
)
def test_arguments_of_compile_that_do_not_fit_are_refused(argument, message):
    with pytest.raises(InvalidInputError, match=message):
        Trainer(build_two_outputs(), optimizer="sgd", loss={"a": "mse", "b": "mse"}, **argument)


def test_a_layer_is_refused_as_model():
    with pytest.raises(InvalidInputError, match=r"must be a keras\.Model"):
        build_model(keras.layers.Dense(3))


class OwnCompile(keras.Model):
    """A GAN's way to be given what it trains by."""

    def __init__(self):
        super().__init__()
        self.scores = keras.layers.Dense(1)

    def call(self, inputs):
        return self.scores(inputs)


class Extended(OwnCompile):
    def compile(self, maker_optimizer=None, **options):
        super().compile(**options)
        self.maker_optimizer = maker_optimizer


class Replaced(OwnCompile):
    def compile(self, maker_optimizer, loss_fn):
        super().compile(optimizer="sgd")
        self.parts = (maker_optimizer, loss_fn)


class Forgetful(OwnCompile):
    def compile(self, maker_optimizer=None, **options):
        super().compile(**options)
        self.parts = maker_optimizer


def test_an_overridden_compile_gets_its_own_arguments_again():
    model, optimizer = Extended(), keras.optimizers.Adam()
    model.compile(maker_optimizer=optimizer, optimizer="sgd", loss="mse")
    Trainer(model, metrics=["mae"])
    assert model.maker_optimizer is optimizer
    assert model.compiled


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (Replaced, "takes no optimizer, loss, metrics:"),
        (Forgetful, "would lose its maker_optimizer"),
    ],
)
def test_an_overridden_compile_that_would_lose_arguments_is_refused(make, match):
    model = make()
    model.compile("adam", loss_fn="mse") if make is Replaced else model.compile("adam", loss="mse")
    Trainer(model)
    with pytest.raises(InvalidInputError, match=match):
        Trainer(model, metrics=["mae"])
