import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError
from keras_deepseek.layers import ChunkedCrossEntropy
from keras_deepseek.training import Trainer
from tests.oracles.training import train

RNG = np.random.default_rng(0)
X = RNG.normal(size=(26, 6)).astype("float32")
Y = RNG.integers(0, 3, 26)
WEIGHT = RNG.uniform(0, 2, 26).astype("float32")


def build(seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(3)]
    )


def crossentropy(**arguments):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def fit(model, x=X, y=Y, sample_weight=None, loss=None, optimizer=None, epochs=2, **arguments):
    trainer = Trainer(
        model,
        optimizer=optimizer or keras.optimizers.SGD(0.1, momentum=0.9),
        loss=loss or crossentropy(),
        metrics=["accuracy"],
        **arguments,
    )
    history = trainer.fit(
        x, y, sample_weight=sample_weight, batch_size=16, epochs=epochs, shuffle=False, verbose=0
    )
    return history.history, model.get_weights()


def assert_same(received, expected, rtol=2e-5):
    for name in expected[0]:
        np.testing.assert_allclose(received[0][name], expected[0][name], rtol=rtol, err_msg=name)
    for received_weight, expected_weight in zip(received[1], expected[1], strict=True):
        np.testing.assert_allclose(received_weight, expected_weight, rtol=rtol, atol=2e-6)


OPTIMIZERS = [
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb", "Lion"),
    *("Muon", "Nadam", "RMSprop", "SGD"),
]


@pytest.mark.torch_alone
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_keras_trains_as_in_keras(name):
    if not hasattr(keras.optimizers, name):
        pytest.skip(f"Keras {keras.version()} has no {name}.")
    make = getattr(keras.optimizers, name)
    plain = build()
    plain.compile(make(0.01), crossentropy(), metrics=["accuracy"])
    history = plain.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    assert_same(fit(build(), optimizer=make(0.01)), (history, plain.get_weights()))


@pytest.mark.torch_alone
@pytest.mark.parametrize("number", [3, 100])
def test_micro_batches_make_the_step_of_the_whole_batch(number):
    """Batches are of 16 and 10 rows, so that there are micro-batches of two sizes."""
    assert_same(fit(build(), micro_batches=number), fit(build()))


@pytest.mark.torch_alone
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum"])
def test_micro_batches_weigh_samples_as_the_whole_batch(reduction):
    results = [
        fit(
            build(),
            sample_weight=WEIGHT,
            loss=crossentropy(reduction=reduction),
            optimizer=keras.optimizers.SGD(0.01),
            micro_batches=number,
        )
        for number in (1, 3)
    ]
    for name in ("loss", "accuracy"):  # The mean over batches of Keras is by rows.
        np.testing.assert_allclose(results[1][0][name], results[0][0][name], rtol=2e-5)
    assert_same(results[1], results[0])


def build_masked(seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((5,)), keras.layers.Embedding(7, 6, mask_zero=True), keras.layers.Dense(3)]
    )


TOKENS = np.where(np.arange(5) < RNG.integers(1, 6, (26, 1)), RNG.integers(1, 7, (26, 5)), 0)
CLASSES = RNG.integers(0, 3, (26, 5))


@pytest.mark.parametrize(
    "loss",
    [
        crossentropy(),
        crossentropy(reduction="mean_with_sample_weight"),
        crossentropy(ignore_class=2),
    ],
)
def test_micro_batches_weigh_tokens_as_the_whole_batch(loss):
    """The means of micro-batches with few tokens count little, or the gradient is another."""
    results = [
        fit(build_masked(), TOKENS, CLASSES, loss=loss, micro_batches=number) for number in (1, 4)
    ]
    assert_same(results[1], results[0])


def build_chunked():
    """Its only loss of the data is one that its last layer adds; there are regularizers too."""
    keras.utils.set_random_seed(1)
    tokens, targets = keras.Input((5,), dtype="int32"), keras.Input((5,), dtype="int32")
    hidden = keras.layers.Embedding(7, 6, embeddings_regularizer="l2")(tokens)
    head = ChunkedCrossEntropy(3, ignore_class=2, name="chunked")
    return keras.Model([tokens, targets], head(hidden, targets))


def update(build_model, number, x, y=None, loss=None, **arguments):
    """Returns what one step adds to the weights, and its logs."""
    model = build_model()
    trainer = Trainer(
        model, optimizer=keras.optimizers.SGD(1.0), loss=loss, micro_batches=number, **arguments
    )
    old_weights = [np.array(weight) for weight in model.get_weights()]
    logs = trainer.fit(x, y, batch_size=26, shuffle=False, verbose=0).history
    pairs = zip(model.get_weights(), old_weights, strict=True)
    return np.concatenate(
        [(new_weight - old_weight).ravel() for new_weight, old_weight in pairs]
    ), logs


def assert_same_update(received, expected, within=1e-6):
    distance = np.linalg.norm(received[0] - expected[0]) / np.linalg.norm(expected[0])
    assert distance <= within
    np.testing.assert_allclose(received[1]["loss"], expected[1]["loss"], rtol=within)


@pytest.mark.parametrize("arguments", [{}, {"remat": ["chunked*"]}])
@pytest.mark.torch_alone
def test_losses_that_layers_add_weigh_tokens_as_the_whole_batch(arguments):
    """Of 26 rows there is a part of another size; of the classes a third is ignored."""
    data = [TOKENS, CLASSES]
    expected = update(build_chunked, 1, data)
    assert_same_update(update(build_chunked, 4, data, **arguments), expected)


@pytest.mark.parametrize("loss", ["sum", "sum_over_batch_size"])
def test_regularizers_count_as_often_as_in_the_whole_batch(loss):
    def build_regularized():
        keras.utils.set_random_seed(1)
        dense = keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(3.0))
        return keras.Sequential([keras.Input((6,)), dense])

    loss = crossentropy(reduction=loss)
    expected = update(build_regularized, 1, X, Y, loss)
    assert_same_update(update(build_regularized, 4, X, Y, loss), expected)


def test_micro_batches_of_parts_with_other_rows_are_refused():
    def batches():
        yield X[:8], Y[:8]
        yield X[:8], Y[:8]
        yield X[:8], Y[:6]

    trainer = Trainer(build(), optimizer="sgd", loss=crossentropy(), micro_batches=2)
    with pytest.raises(Exception, match=r"batch of 8 inputs has 6 targets|[Ss]hape") as caught:
        trainer.fit(batches(), shuffle=False, verbose=0)
    if keras.backend.backend() != "tensorflow":
        assert isinstance(caught.value, InvalidInputError)


def test_a_batch_without_rows_is_refused():
    def batches():
        yield X[:8], Y[:8]
        yield X[:0], Y[:0]

    trainer = Trainer(build(), optimizer="sgd", loss=crossentropy())
    with pytest.raises(KerasDeepSeekError, match=r"a batch without rows|nan from batch 2"):
        trainer.fit(batches(), shuffle=False, verbose=0)


@pytest.mark.torch_alone
@pytest.mark.parametrize("number", [1, 2])
def test_weights_of_masked_tokens_train_as_in_keras(number):
    """On PyTorch, Keras multiplies the weights by the mask in place."""
    if keras.backend.backend() == "jax":
        pytest.skip("Keras's metrics do not see the mask on JAX.")
    results = []
    for train_model in (lambda model: model, lambda model: Trainer(model, micro_batches=number)):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [keras.layers.Embedding(7, 4, mask_zero=True), keras.layers.Dense(3, "softmax")]
        )
        model.compile("sgd", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
        weights = np.arange(len(TOKENS) * 5, dtype="float32").reshape(-1, 5)
        history = train_model(model).fit(
            *(TOKENS, CLASSES), sample_weight=weights, batch_size=len(TOKENS), epochs=2, verbose=0
        )
        results.append((history.history, model.get_weights()))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.torch_alone
def test_micro_batches_of_dicts_and_several_outputs(reduction):
    def build_two():
        keras.utils.set_random_seed(1)
        inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((6,), name="b")}
        hidden = keras.layers.Dense(4, activation="tanh")(inputs["a"] - inputs["b"])
        return keras.Model(
            inputs,
            {"p": keras.layers.Dense(3, name="p")(hidden), "q": keras.layers.Dense(1)(hidden)},
        )

    results = []
    for number in (1, 3):
        model = build_two()
        mse = keras.losses.MeanSquaredError(reduction=reduction)
        trainer = Trainer(
            model,
            optimizer="adam",
            loss={"p": crossentropy(reduction=reduction), "q": mse},
            micro_batches=number,
        )
        x, y = {"a": X, "b": X[:, ::-1]}, {"p": Y, "q": X[:, :1]}
        history = trainer.fit(x, y, batch_size=16, shuffle=False, verbose=0).history
        np.testing.assert_allclose(history["p_loss"][0] + history["q_loss"][0], history["loss"])
        results.append((history, model.get_weights()))
    assert_same(results[1], results[0])


def test_micro_batches_of_masked_outputs_that_can_not_be_weighed_are_refused():
    tokens = keras.Input((5,))
    hidden = keras.layers.Embedding(7, 6, mask_zero=True)(tokens)
    model = keras.Model(tokens, [keras.layers.Dense(3)(hidden), keras.layers.Dense(3)(hidden)])
    trainer = Trainer(model, optimizer="sgd", loss=[crossentropy()] * 2, micro_batches=2)
    with pytest.raises(InvalidInputError, match="can't weigh 2 outputs that have their own masks"):
        trainer.fit(TOKENS, [CLASSES, CLASSES], verbose=0)


def test_fifty_steps_have_the_numbers_of_a_reference_in_float64():
    """So they have the same ones on every backend."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(160, 6)).astype("float32")
    y = rng.integers(0, 3, 160)
    model = build()
    settings = {"learning_rate": 0.02, "weight_decay": 0.01, "ema_momentum": 0.9}
    expected, average = train(model.get_weights(), x, y, steps=50, clip=0.5, **settings)
    trainer = Trainer(
        model,
        optimizer=keras.optimizers.AdamW(**settings, use_ema=True),
        loss=crossentropy(),
        gradient_clip=("global_norm", 0.5),
        micro_batches=2,
    )
    losses = []

    class Losses(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.reset_metrics()

        def on_train_batch_end(self, batch, logs=None):
            losses.append(float(logs["loss"]))

    trainer.fit(x, y, batch_size=16, epochs=5, shuffle=False, verbose=0, callbacks=[Losses()])
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for received, reference in zip(model.get_weights(), average, strict=True):
        np.testing.assert_allclose(received, reference, rtol=1e-3, atol=1e-4)


class Factor(keras.layers.Layer):
    """Multiplies by a number that can be set, and that lets gradients overflow."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(), initializer="ones", trainable=False)

    def call(self, inputs):
        return inputs * self.factor


@pytest.mark.parametrize("clip", [None, ("global_norm", 1.0)])
def test_a_step_that_overflows_is_skipped_and_halves_the_scale(clip):
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, use_bias=False), Factor(dtype="float32")]
    )
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.1), initial_scale=2.0**20, dynamic_growth_steps=2
    )
    trainer = Trainer(model, optimizer=optimizer, loss="mse", gradient_clip=clip)
    x = np.ones((4, 2), "float32")

    def step():
        trainer.fit(x, x, batch_size=4, verbose=0)
        state = float(optimizer.dynamic_scale.value), int(optimizer.iterations.value)
        return state, model.layers[0].get_weights()[0]

    (first, _), (second, old_weights) = step(), step()
    assert (first, second) == ((2.0**20, 1), (2.0**21, 2))
    model.layers[1].factor.assign(5e18)  # The loss is finite, and its gradients are not.
    state, weights = step()
    assert state == (2.0**20, 2)
    np.testing.assert_array_equal(weights, old_weights)
    model.layers[1].factor.assign(1.0)
    state, weights = step()
    assert state == (2.0**20, 3)
    assert np.isfinite(weights).all()
    assert (weights != old_weights).all()


def test_gradients_are_clipped_after_they_were_unscaled():
    results = []
    for scales in (False, True):
        optimizer = keras.optimizers.SGD(0.1)
        if scales:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024.0)
        results.append(fit(build(), optimizer=optimizer, gradient_clip=("value", 0.05)))
    assert_same(results[1], results[0])


@pytest.mark.parametrize(
    ("kind", "name"), [("global_norm", "global_clipnorm"), ("norm", "clipnorm")]
)
@pytest.mark.torch_alone
def test_accumulated_gradients_are_clipped_as_in_keras(kind, name):
    results = []
    for options in ({name: 0.1}, {}):
        adam = keras.optimizers.Adam(0.01, gradient_accumulation_steps=3, **options)
        optimizer = keras.optimizers.LossScaleOptimizer(adam, initial_scale=1024.0)
        model = build()
        if options:
            model.compile(optimizer, crossentropy())
            model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        else:
            clip = {"gradient_clip": (kind, 0.1), "guard": "skip", "micro_batches": 2}
            trainer = Trainer(model, optimizer=optimizer, loss=crossentropy(), **clip)
            trainer.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        results.append(({}, model.get_weights()))
    assert_same(results[1], results[0])


def test_an_overridden_step_is_the_same_on_every_backend():
    class Distillation(Trainer):
        def train_step(self, x, y=None, sample_weight=None):
            outputs = self.model(x, training=True)
            soft = ops.mean(ops.square(outputs - ops.ones_like(outputs)))
            hard = self.model.compute_loss(x, y, outputs, sample_weight)
            return {"loss": 0.5 * hard + 0.5 * soft, "soft": soft}

    logs = {}
    for number in (1, 2):
        trainer = Distillation(build(), optimizer="sgd", loss=crossentropy(), micro_batches=number)
        logs[number] = trainer.fit(X[:16], Y[:16], batch_size=16, epochs=2, verbose=0).history
    assert set(logs[1]) == {"loss", "soft"}
    for name in ("loss", "soft"):
        assert logs[1][name][1] < logs[1][name][0]
        np.testing.assert_allclose(logs[2][name], logs[1][name], rtol=2e-5)


def test_a_step_that_returns_no_loss_says_what_it_returned():
    class Odd(Trainer):
        def train_step(self, x, y=None, sample_weight=None):
            return {"cost": ops.mean(self.model(x))}

    with pytest.raises(InvalidInputError, match="a dict with 'loss'; received a dict with 'cost'"):
        Odd(build(), optimizer="sgd", loss=crossentropy()).fit(X, Y, verbose=0)


def test_an_overridden_step_needs_no_compiled_loss():
    class Contrastive(Trainer):
        def train_step(self, x, y=None, sample_weight=None):
            return ops.mean(ops.square(self.model(x, training=True) - 1.0))

    losses = Contrastive(build(), optimizer="sgd").fit(X, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]


class OwnStep(keras.Sequential):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


def test_a_model_with_a_step_of_its_own_keeps_it_and_nothing_is_ignored():
    def build_own():
        return OwnStep([keras.Input((6,)), keras.layers.Dense(3)])

    logs, _ = fit(build_own(), epochs=1)
    assert np.isfinite(logs["loss"]).all()
    with pytest.raises(InvalidInputError, match="which would ignore `micro_batches`"):
        fit(build_own(), micro_batches=2)


def test_an_error_in_a_step_is_the_one_that_is_raised():
    """With moving averages, Keras on JAX fails once more while it tidies up."""
    with pytest.raises(Exception, match=r"expected axis -1|expected shape|incompatible"):
        fit(build(), x=X[:, :4], optimizer=keras.optimizers.Adam(use_ema=True))


@pytest.mark.torch_alone
def test_layer_losses_and_states_are_those_of_the_batch():
    """Batch normalisation goes by each micro-batch, so only without them."""

    def build_regularized():
        keras.utils.set_random_seed(1)
        return keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(8, kernel_regularizer="l2", activity_regularizer="l2"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.5, seed=3),
                keras.layers.Dense(3),
            ]
        )

    plain = build_regularized()
    plain.compile(keras.optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    history = plain.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    received = fit(build_regularized(), optimizer=keras.optimizers.SGD(0.1), epochs=2)
    assert_same(received, (history, plain.get_weights()))
    logs, _ = fit(build_regularized(), epochs=2, micro_batches=2)
    assert np.isfinite(logs["loss"]).all()


@pytest.mark.parametrize(
    ("returns", "match"),
    [
        (lambda loss: ops.stack([loss, loss]), r"one floating-point number as the loss.*\(2,\)"),
        (lambda loss: 3, "it returned int32 of shape"),
        (lambda loss: {"loss": ops.zeros((1,))}, r"float32 of shape \(1,\)"),
    ],
)
def test_an_invalid_loss_is_refused_on_every_backend(returns, match):
    class Own(Trainer):
        def train_step(self, x, y=None, sample_weight=None):
            return returns(super().train_step(x, y, sample_weight))

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    trainer = Own(model, optimizer="sgd", loss="mse")
    with pytest.raises(InvalidInputError, match=match):
        trainer.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)


def test_a_loss_that_depends_on_no_weight_is_refused():
    class Own(Trainer):
        def train_step(self, x, y=None, sample_weight=None):
            return ops.mean(ops.convert_to_tensor(x))

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(InvalidInputError, match="does not depend on any trainable weight"):
        Own(model, optimizer="sgd", loss="mse").fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)


def test_repeated_tokens_count_once_in_the_norm():
    norms = []
    for micro_batches in (1, 2):
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Embedding(3, 4), keras.layers.Flatten(), keras.layers.Dense(3)]
        model = keras.Sequential([keras.Input((6,)), *layers])
        tokens = np.abs(X).astype("int32").clip(0, 2)
        arguments = {"micro_batches": micro_batches, "gradient_clip": ("global_norm", 0.1)}
        norms.append(fit(model, tokens, **arguments)[0]["gradient_norm"])
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)


class OwnMetrics(keras.Sequential):
    """A model that logs one number more, as the documentation of Keras shows."""

    def compute_metrics(self, *arguments, **options):
        return add_twice(super().compute_metrics(*arguments, **options))


def add_twice(results):
    return {**results, "twice": 2.0 * results["accuracy"]}


@pytest.mark.each_backend
@pytest.mark.parametrize("is_of_the_object", [True, False])
def test_the_results_of_a_models_own_metrics_are_logged_as_in_keras(is_of_the_object):
    histories = []
    for by_keras in (True, False):
        keras.utils.set_random_seed(1)
        kind = keras.Sequential if is_of_the_object else OwnMetrics
        model = kind([keras.Input((6,)), keras.layers.Dense(3)])
        model.compile("sgd", crossentropy(), metrics=["accuracy"])
        if is_of_the_object:
            compute = model.compute_metrics
            model.compute_metrics = lambda *arguments, compute=compute, **options: add_twice(
                compute(*arguments, **options)
            )
        train = model.fit if by_keras else Trainer(model).fit
        history = train(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        histories.append(history.history)
    assert histories[1].keys() == histories[0].keys() == {"accuracy", "loss", "twice"}
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5, err_msg=name)


@pytest.mark.torch_alone
@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"micro_batches": 2}])
def test_the_results_of_a_models_own_metrics_are_logged_with_options(options):
    keras.utils.set_random_seed(1)
    model = OwnMetrics([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", crossentropy(), metrics=["accuracy"])
    history = Trainer(model, **options).fit(X, Y, batch_size=8, verbose=0).history
    assert history.keys() >= {"accuracy", "loss", "twice"}


class Telling(Trainer):
    """Tells the metrics of each batch, or does not."""

    tells_metrics = False

    def train_step(self, x, y=None, sample_weight=None):
        outputs = self.model(x, training=True)
        if self.tells_metrics:
            self.model.compute_metrics(x, y, outputs, sample_weight)
        return self.model.compute_loss(x, y, outputs, sample_weight)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("tells_metrics", [True, False])
def test_metrics_that_a_step_does_not_update_are_not_logged(tells_metrics, micro_batches, caplog):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    trainer = Telling(
        model,
        optimizer="sgd",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        micro_batches=micro_batches,
    )
    trainer.tells_metrics = tells_metrics
    x = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    y = np.argmax(x[:, :3], axis=1)
    model.layers[0].kernel.assign(10 * np.eye(4, 3, dtype="float32"))  # It has them all right.
    history = trainer.fit(x, y, epochs=2, verbose=0, validation_data=(x, y)).history
    assert history["val_accuracy"] == [1.0, 1.0]
    assert history.get("accuracy") == ([1.0, 1.0] if tells_metrics else None)
    warned = [text for text in caplog.messages if "does not update the metrics of" in text]
    assert len(warned) == (0 if tells_metrics else 1)
    assert tells_metrics or "accuracy are not logged" in warned[0]


def test_a_log_named_like_a_metric_is_refused():
    class Own(Trainer):
        def train_step(self, x, y=None, sample_weight=None):
            return {"loss": super().train_step(x, y, sample_weight), "mae": 1.0}

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    trainer = Own(model, optimizer="sgd", loss="mse", metrics=["mae"])
    with pytest.raises(InvalidInputError, match="`train_step` returns 'mae'"):
        trainer.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)


@pytest.mark.parametrize("options", [{"guard": "skip"}, {"gradient_clip": ("global_norm", 1.0)}])
def test_a_model_without_a_trainable_weight_is_trained_as_keras_does(options):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.trainable = False
    trainer = Trainer(model, optimizer="sgd", loss="mse", **options)
    weights = model.get_weights()
    history = trainer.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0).history
    assert np.isfinite(history["loss"][0])
    for old_weight, new_weight in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old_weight, new_weight)


def test_a_loss_of_one_number_a_row_that_a_layer_adds_is_refused_in_parts():
    class Losses(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(keras.ops.mean(keras.ops.square(inputs), axis=-1))
            return inputs

    def make():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Losses()])

    assert Trainer(make(), optimizer="sgd").fit(np.ones((8, 4)), verbose=0).history["loss"]
    with pytest.raises(InvalidInputError, match=r"add_loss\(ops.mean"):
        Trainer(make(), optimizer="sgd", micro_batches=2).fit(np.ones((8, 4)), verbose=0)
