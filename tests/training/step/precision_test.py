import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.training import Trainer
from keras_deepseek.training.step.compiled_step import CompiledStep
from keras_deepseek.training.step.precision import (
    step_in_precision,
    training_policy,
    with_loss_scaling,
)


def training_step_in(model, policy):
    return CompiledStep(model, step_in_precision(model, policy, model.train_step)).use()


@pytest.mark.parametrize(
    ("device", "policy"),
    [("gpu", "mixed_float16"), ("tpu", "mixed_bfloat16"), ("cpu", "mixed_bfloat16")],
)
def test_fp16_enabled_depends_on_the_device(device, policy):
    assert training_policy(None, True, device).name == policy


def test_the_default_is_the_models_own_policy():
    assert training_policy(None, False, "gpu") is None


def test_precision_is_that_of_layers_and_weights_stay_float32():
    for precision in ("bfloat16", "float16", "float32"):
        policy = training_policy(precision, False, "cpu")
        assert (policy.compute_dtype, policy.variable_dtype) == (precision, "float32")
    policy = keras.DTypePolicy("mixed_float16")
    assert training_policy(policy, False, "cpu") is policy
    with pytest.raises(InvalidInputError, match="Unknown precision 'fp8'"):
        training_policy("fp8", False, "cpu")
    with pytest.raises(InvalidInputError, match=r"mixed_float16.*Use precision='float16'"):
        training_policy("mixed_float16", False, "cpu")


def test_float16_gets_loss_scaling_once():
    adam = keras.optimizers.Adam()
    half = keras.DTypePolicy("mixed_float16")
    scaled = with_loss_scaling(adam, half)
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)
    assert with_loss_scaling(scaled, half) is scaled
    assert with_loss_scaling(adam, keras.DTypePolicy("mixed_bfloat16")) is adam
    assert with_loss_scaling(adam, None) is adam


class SeenDtypes(keras.layers.Layer):
    """Passes its inputs on and notes their dtype, once a trace or an eager call."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, inputs):
        self.seen.append(keras.backend.standardize_dtype(inputs.dtype))
        return inputs


def build(inner=None, activation="softmax"):
    probe = SeenDtypes()
    layers = [keras.Input((4,)), keras.layers.Dense(5), probe, *([inner] if inner else [])]
    model = keras.Sequential([*layers, keras.layers.Dense(3, activation=activation)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model, probe


X, Y = np.ones((8, 4), "float32"), np.zeros(8)


def test_only_the_step_computes_in_half_precision():
    model, probe = build()
    x, y = X, Y
    model.evaluate(x, y, verbose=0)
    probe.seen.clear()
    with training_step_in(model, keras.DTypePolicy("mixed_bfloat16")):
        model.fit(x, y, verbose=0)
        assert "bfloat16" in probe.seen
        probe.seen.clear()
        model.predict(x, verbose=0)
        assert set(probe.seen) <= {"float32"}
    probe.seen.clear()
    model.fit(x, y, verbose=0)
    assert set(probe.seen) == {"float32"}
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}


def test_validation_and_callbacks_see_the_models_own_policy(tmp_path):
    class Policies(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def on_train_batch_end(self, batch, logs=None):
            self.seen |= {layer.dtype_policy.name for layer in self.model.layers}
            self.model.save(tmp_path / "model.keras")

    model, _ = build()
    callback = Policies()
    with training_step_in(model, keras.DTypePolicy("mixed_bfloat16")):
        model.fit(X, Y, verbose=0, callbacks=[callback])
    assert callback.seen == {"float32"}


def test_an_error_in_the_step_puts_everything_back():
    model, _ = build()
    own_step = type(model).train_step
    with (
        pytest.raises(Exception, match=r".+"),
        training_step_in(model, keras.DTypePolicy("mixed_bfloat16")),
    ):
        model.fit(np.ones((8, 7)), Y, verbose=0)
    assert "train_step" not in vars(model)
    assert type(model).train_step is own_step
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}


def test_weights_stay_float32_and_small_updates_survive():
    """0.001 added to 1 is lost in bfloat16: only float32 master weights move."""
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.001), loss=lambda _, y_pred: keras.ops.mean(y_pred))
    with training_step_in(model, keras.DTypePolicy("mixed_bfloat16")):
        model.fit(np.ones((5, 1)), np.ones((5, 1)), batch_size=1, verbose=0)
    (kernel,) = model.get_weights()
    np.testing.assert_allclose(kernel, 0.995, rtol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_layer_of_probabilities_stays_float32(activation):
    model, _ = build(activation=activation)
    dtypes = []
    model.compile(
        "sgd", lambda y_true, y_pred: (dtypes.append(str(y_pred.dtype)), keras.ops.mean(y_pred))[1]
    )
    with training_step_in(model, keras.DTypePolicy("mixed_bfloat16")):
        model.fit(X, Y, verbose=0)
    assert all("float32" in dtype for dtype in dtypes)


class Classifier(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(5)
        self.classes = keras.layers.Dense(3, activation="softmax")

    def call(self, inputs):
        return self.classes(self.hidden(inputs))


def nested():
    head = keras.Sequential([keras.layers.Dense(3, activation="softmax")])
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), head])


@pytest.mark.parametrize("build_model", [nested, Classifier])
def test_probabilities_of_nested_and_subclassed_models_stay_float32(build_model):
    model, dtypes = build_model(), []
    model.compile(
        "sgd", lambda y_true, y_pred: (dtypes.append(str(y_pred.dtype)), keras.ops.mean(y_pred))[1]
    )
    with training_step_in(model, keras.DTypePolicy("mixed_bfloat16")):
        model.fit(X, Y, verbose=0)
    assert dtypes
    assert all("float32" in dtype for dtype in dtypes)


@pytest.mark.parametrize(
    ("mode", "half"), [("int8", "bfloat16"), ("int4", "float16"), ("float8", "bfloat16")]
)
def test_a_quantized_layer_computes_in_the_precision_of_the_others(mode, half):
    inner, probe = keras.layers.Dense(5), SeenDtypes()
    head = keras.layers.Dense(3, activation="softmax")
    model = keras.Sequential([keras.Input((4,)), inner, probe, head])
    model.compile("sgd", "sparse_categorical_crossentropy")
    inner.quantize(mode)
    old_policy = inner.dtype_policy
    probe.seen.clear()
    with training_step_in(model, keras.DTypePolicy(f"mixed_{half}")):
        model.fit(X, Y, verbose=0)
    assert inner.dtype_policy is old_policy
    assert half in probe.seen


def test_layers_in_int8_are_not_trained_in_float16():
    inner = keras.layers.Dense(5)
    model, _ = build(inner)
    inner.quantize("int8")
    with (
        pytest.raises(NotSupportedError, match=r"is quantized in int8.*'bfloat16'"),
        training_step_in(model, keras.DTypePolicy("mixed_float16")),
    ):
        model.fit(X, Y, verbose=0)


def test_half_precision_weights_are_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="float16")])
    model.compile("sgd", "mse")
    with (
        pytest.raises(InvalidInputError, match="has float16 weights"),
        training_step_in(model, keras.DTypePolicy("mixed_bfloat16")),
    ):
        model.fit(X, np.zeros((8, 3)), verbose=0)


def test_layers_inside_layers_are_switched_and_put_back():
    inputs = keras.Input((6, 4))
    attention = keras.layers.MultiHeadAttention(2, 3)
    recurrent = keras.layers.LSTM(3)
    model = keras.Model(inputs, recurrent(attention(inputs, inputs)))
    model.compile("sgd", "mse")
    with training_step_in(model, keras.DTypePolicy("mixed_bfloat16")):
        model.fit(np.ones((4, 6, 4)), np.ones((4, 3)), verbose=0)
    assert recurrent.cell.dtype_policy.name == "float32"
    assert model.predict(np.ones((1, 6, 4)), verbose=0).dtype == np.float32


class Adding(keras.layers.Layer):
    """Adds to the loss in the precision that it computes in."""

    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


class OwnLoss(keras.Model):
    """Compares its float32 inputs with its outputs."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(x[:, :1] - y_pred))


def build_regularized():
    hidden = keras.layers.Dense(3, activity_regularizer="l2", kernel_regularizer="l2")
    return keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1)])


def build_adding():
    return keras.Sequential([keras.Input((4,)), Adding(), keras.layers.Dense(1)])


@pytest.mark.parametrize("build", [build_regularized, build_adding, OwnLoss])
def test_losses_are_summed_and_compared_in_float32(build):
    """TensorFlow adds no numbers of two dtypes, and subtracts none."""
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    losses = [
        Trainer(build, optimizer="sgd", loss="mse", precision=precision, seed=1)
        .fit(x, x[:, :1], verbose=0)
        .history["loss"]
        for precision in ("bfloat16", "float32")
    ]
    np.testing.assert_allclose(*losses, rtol=0.02)


LARGE_IDS = np.random.default_rng(0).integers(900, 1000, (8, 6))


class Tokens(keras.layers.Layer):
    """Reshapes ids on the way to an embedding inside it."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(1000, 4)
        self.flatten = keras.layers.Flatten()

    def call(self, inputs):
        return self.table(self.flatten(inputs))


def tokens_model(kind):
    inputs = keras.Input((6,))  # Its dtype is float32, as in many examples of keras.io.
    ids = keras.layers.Reshape((6, 1))(keras.layers.Reshape((3, 2))(inputs))
    outputs = keras.layers.Flatten()(Tokens()(ids))
    model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    if kind == "nested":
        outer = keras.Input((6,))
        return keras.Model(outer, model(outer))
    return model


@pytest.mark.parametrize("kind", ["graph", "nested"])
def test_token_ids_in_floating_point_are_not_rounded(kind):
    model = tokens_model(kind)
    (table,) = [weight for weight in model.trainable_weights if weight.shape == (1000, 4)]
    old_table = ops.convert_to_numpy(table.value).copy()
    trainer = Trainer(model, optimizer="sgd", loss="mse", precision="bfloat16")
    trainer.fit(LARGE_IDS, np.ones((8, 1)), batch_size=8, verbose=0)
    touched = np.flatnonzero(np.abs(ops.convert_to_numpy(table.value) - old_table).max(axis=1))
    np.testing.assert_array_equal(touched, np.unique(LARGE_IDS))


class Waves(SeenDtypes):
    """The mixing of an FNet, of which PyTorch has none in bfloat16."""

    def call(self, inputs):
        return ops.fft2((super().call(inputs), ops.zeros_like(inputs)))[0]


@pytest.mark.parametrize("name", ["waves*", "block"])
def test_named_layers_stay_in_float32_with_all_that_is_inside(name):
    waves, other = Waves(), SeenDtypes()
    waves.name = "waves_1"
    layers = [keras.Input((4, 3)), keras.layers.Dense(3), waves]
    block = keras.Sequential(layers, name="block")
    model = keras.Sequential([keras.Input((4, 3)), block, keras.layers.Dense(1), other])
    waves.seen.clear()
    other.seen.clear()
    trainer = Trainer(
        model, optimizer="sgd", loss="mse", precision="bfloat16", float32_layers=[name]
    )
    losses = trainer.fit(np.ones((4, 4, 3)), np.ones((4, 4, 1)), epochs=3, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0]
    assert set(waves.seen) == {"float32"}
    assert "bfloat16" in other.seen


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"float32_layers": ["probe"]}, "needs half precision: add fp16_enabled=True"),
        ({"float32_layers": "probe", "fp16_enabled": True}, "must be a list of layers' names"),
        ({"float32_layers": ["prob"], "fp16_enabled": True}, "float32_layers='prob' names no"),
    ],
)
def test_invalid_float32_layers_are_refused(arguments, match):
    with pytest.raises(InvalidInputError, match=match):
        Trainer(build()[0], **arguments)


@pytest.mark.parametrize("layer", [keras.layers.Conv1D(2, 3), keras.layers.LSTM(2)])
def test_convolutions_stay_in_float32_on_jax_cpu(layer, capsys):
    model = keras.Sequential([keras.Input((8, 3)), layer, keras.layers.Dense(1)])
    trainer = Trainer(model, optimizer="sgd", loss="mse", fp16_enabled=True)
    x, y = np.ones((4, 8, 3)), np.ones((4, *model.output_shape[1:]))
    trainer.fit(x, y, verbose=2)
    stays = keras.backend.backend() == "jax"
    assert ("the training stays in float32" in capsys.readouterr().out) is stays
    assert (trainer.policy is None) is stays
    forced = Trainer(model, optimizer="sgd", loss="mse", precision="bfloat16")
    assert forced.policy.name == "mixed_bfloat16"


def test_an_error_of_half_precision_names_float32_layers():
    class Failing(keras.layers.Layer):
        def call(self, inputs):
            if keras.backend.standardize_dtype(inputs.dtype) == "bfloat16":
                raise TypeError("'dot' has type bfloat16 that does not match float32")
            return inputs

    layers = [keras.Input((4,)), keras.layers.Dense(3), Failing(name="failing")]
    model = keras.Sequential(layers)
    arguments = {"optimizer": "sgd", "loss": "mse", "precision": "bfloat16"}
    with pytest.raises((TypeError, RuntimeError), match="bfloat16") as raised:
        Trainer(model, **arguments).fit(X, np.ones((8, 3)), verbose=0)
    assert any("float32_layers=" in note for note in raised.value.__notes__)
    trainer = Trainer(model, **arguments, float32_layers=["failing"])
    assert trainer.fit(X, np.ones((8, 3)), verbose=0).history["loss"]


def test_metrics_get_outputs_in_float32():
    """TensorFlow finds no best classes in bfloat16."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    trainer = Trainer(
        model,
        optimizer="sgd",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseTopKCategoricalAccuracy(5, name="top_5")],
        precision="bfloat16",
    )
    assert trainer.fit(X, Y, verbose=0).history["top_5"] == [1.0]


@pytest.mark.filterwarnings("ignore:jax.nn.one_hot input:DeprecationWarning")  # As without us.
def test_categories_in_floating_point_are_not_rounded():
    """4999 and 4991 are both 4992 in bfloat16."""
    inputs = keras.Input((1,))
    encoded = keras.layers.CategoryEncoding(5000, output_mode="one_hot")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="zeros")(encoded))
    trainer = Trainer(model, optimizer="sgd", loss="mse", precision="bfloat16")
    trainer.fit(np.array([[4999.0], [4991.0]]), np.ones((2, 1)), verbose=0)
    touched = np.flatnonzero(ops.convert_to_numpy(model.trainable_weights[0].value))
    np.testing.assert_array_equal(touched, [4991, 4999])
