import logging

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek import layers
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config, enable_lora
from keras_deepseek.training import Muon, Trainer
from tests.oracles.interruption import EndAt, KilledError

RATE, DECAY, NUM_STEPS = 0.02, 0.1, 4


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def train(optimizer, values, gradients):
    """Returns variables that an optimizer has updated by some gradients, as arrays."""
    variables = [keras.Variable(value, name=f"weight{index}") for index, value in enumerate(values)]
    optimizer = optimizer([variable.path for variable in variables])
    for step_gradients in gradients:
        optimizer.apply([ops.convert_to_tensor(array) for array in step_gradients], variables)
    return [ops.convert_to_numpy(variable) for variable in variables]


def train_stack(shape, axes):
    """Returns a weight before and after the updates, and the gradients of all steps."""
    value, gradients = draw(*shape), draw(NUM_STEPS, *shape, seed=1)
    (updated,) = train(
        lambda paths: Muon(dict.fromkeys(paths, axes), RATE, DECAY), [value], gradients[:, None]
    )
    return value, gradients, updated


def train_by_keras(matrices, gradients):
    """Returns matrices of two axes that Keras's Muon has updated, each by itself."""
    return train(
        lambda _: keras.optimizers.Muon(RATE, weight_decay=DECAY, adam_weight_decay=DECAY),
        matrices,
        gradients,
    )


@pytest.mark.parametrize("shape", [(64, 16, 24), (64, 24, 16)], ids=["wide", "tall"])
@pytest.mark.torch_alone
def test_a_stack_of_64_experts_is_updated_as_64_single_matrices(shape):
    value, gradients, updated = train_stack(shape, "src")
    singles = train_by_keras(list(value), [list(step) for step in gradients])
    np.testing.assert_allclose(updated, singles, atol=1e-6)
    assert np.abs(updated - value).min(axis=(1, 2)).max() > 0


MATRICES_OF = {
    "heads": ((12, 4, 6), "rsc", lambda x: [x[:, head] for head in range(4)]),
    "joint heads": ((12, 4, 6), "rcc", lambda x: [x.reshape(12, 24)]),
    "behind heads": ((4, 6, 12), "rrc", lambda x: [x.reshape(24, 12)]),
    "convolution": ((3, 3, 4, 8), "rrrc", lambda x: [x.reshape(36, 8)]),
    "transposed": ((3, 3, 4, 8), "cccr", lambda x: [x.reshape(36, 8).T]),
}


@pytest.mark.parametrize("kind", MATRICES_OF)
def test_the_matrices_of_a_kernel_are_updated_as_if_they_were_alone(kind):
    shape, axes, split = MATRICES_OF[kind]
    value, gradients, updated = train_stack(shape, axes)
    singles = train_by_keras(split(value), [split(step) for step in gradients])
    for matrix, single in zip(split(updated), singles, strict=True):
        np.testing.assert_allclose(matrix, single, atol=1e-6)


@pytest.mark.each_backend
def test_the_other_weights_are_updated_as_by_adamw():
    values, gradients = [draw(5), draw(7, 3)], [[draw(5), draw(7, 3)] for _ in range(NUM_STEPS)]
    options = {"weight_decay": DECAY, "epsilon": 1e-12}
    updated = train(
        lambda paths: Muon(dict.fromkeys(paths, "adamw"), RATE, **options), values, gradients
    )
    expected = train(
        lambda _: keras.optimizers.AdamW(RATE, beta_2=0.95, **options), values, gradients
    )
    for value, by_keras in zip(updated, expected, strict=True):
        np.testing.assert_allclose(value, by_keras, atol=1e-6)


def test_an_update_of_any_shape_has_the_size_that_rms_rate_says():
    for shape in [(32, 32), (4, 64), (64, 4)]:
        muon = lambda paths: Muon(dict.fromkeys(paths, "rc"), 1.0, None, rms_rate=0.2)  # noqa: E731
        (updated,) = train(muon, [np.zeros(shape, "float32")], [[draw(*shape)]])
        assert np.sqrt(np.mean(updated**2)) == pytest.approx(0.2, rel=0.25)


def axes_of(model, **options):
    return Muon.for_model(model, **options).matrices


def make_language_model(**options):
    return DeepSeekV3CausalLM(DeepSeekV3Config.from_preset("tiny", **options))


def test_all_kernels_of_a_deepseek_are_matrices_and_its_embeddings_norms_and_head_are_not():
    matrices = axes_of(make_language_model(tie_word_embeddings=False, num_prediction_layers=1))
    by_adamw = {path.rpartition("/")[2] for path, axes in matrices.items() if axes == "adamw"}
    assert by_adamw == {"embeddings", "reverse_embeddings", "scale"}
    expected = {
        "transformer_layer_1/attention/query_up/kernel": "rsc",
        "transformer_layer_1/attention/key_value_down/kernel": "rc",
        "transformer_layer_1/attention/output/kernel": "rrc",
        "transformer_layer_1/feed_forward/expert_down/kernel": "src",
        "transformer_layer_1/feed_forward/router/kernel": "rc",
        "transformer_layer_1/feed_forward/shared_experts/gate/kernel": "rc",
    }
    assert {path: matrices[path] for path in expected} == expected


@pytest.mark.torch_alone
def test_the_layers_of_keras_are_read():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.Conv2D(4, 3, groups=2, name="grouped")(x)
    x = keras.layers.SeparableConv2D(6, 3, name="separable")(x)
    x = keras.layers.Conv2DTranspose(5, 2, name="transposed")(x)
    x = keras.layers.Reshape((-1, 5))(x)
    x = x + keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = keras.layers.GroupQueryAttention(3, 4, 2, name="grouped_query")(x, x)
    x = keras.layers.LSTM(4, name="lstm")(x)
    x = keras.layers.Dense(7, name="hidden")(x)
    outputs = keras.layers.Softmax()(keras.layers.Dense(2, name="classes")(x))
    matrices = axes_of(keras.Model(inputs, outputs))
    kernels = {path: axes for path, axes in matrices.items() if axes != "adamw"}
    assert kernels == {
        "conv/kernel": "rrrc",
        "separable/pointwise_kernel": "rrrc",
        "transposed/kernel": "cccr",
        "attention/query/kernel": "rsc",
        "attention/key/kernel": "rsc",
        "attention/value/kernel": "rsc",
        "attention/attention_output/kernel": "rrc",
        "grouped_query/query/kernel": "rsc",
        "grouped_query/key/kernel": "rsc",
        "grouped_query/value/kernel": "rsc",
        "grouped_query/attention_output/kernel": "rrc",
        "hidden/kernel": "rc",
    }


def test_heads_may_stay_in_one_matrix_and_groups_never_do():
    inputs = keras.Input((5, 12))
    x = keras.layers.EinsumDense("btd,dgi->btgi", (None, 4, 6), name="heads")(inputs)
    x = keras.layers.EinsumDense("btgi,gir->btgr", (None, 4, 3), name="groups")(x)
    model = keras.Model(inputs, keras.layers.Flatten()(x) + 0.0)
    for split_heads, axes in [(True, "rsc"), (False, "rcc")]:
        matrices = axes_of(model, split_heads=split_heads, matrices={"groups/kernel": "src"})
        assert matrices == {"heads/kernel": axes, "groups/kernel": "src"}


def make_classifier():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="tanh", name="hidden_1"),
            keras.layers.Dense(8, activation="tanh", name="hidden_2"),
            keras.layers.Dense(2, name="classes"),
        ],
        name="model",
    )


def test_describe_says_which_weight_went_where():
    optimizer = Muon.for_model(make_classifier())
    assert optimizer.describe().splitlines() == [
        "weight                   shape   updated by",
        "model/hidden_*/kernel    (4, 8)  Muon, 1 matrix of 4 x 8",
        "2 x model/hidden_*/bias  (8,)    AdamW",
        "model/hidden_*/kernel    (8, 8)  Muon, 1 matrix of 8 x 8",
        "model/classes/kernel     (8, 2)  AdamW",
        "model/classes/bias       (2,)    AdamW",
        "Muon updates 73.8% of 130 weights.",
    ]


@keras.saving.register_keras_serializable("tests")
class ExpertBank(keras.Layer):
    """A layer of a user, whose kernel is a stack."""

    def build(self, input_shape):
        self.bank = self.add_weight(name="bank", shape=(3, input_shape[-1], input_shape[-1]))

    def call(self, x):
        return ops.mean(ops.einsum("bd,edf->ebf", x, self.bank), axis=0)


def test_a_weight_that_no_rule_knows_is_logged_and_may_be_named(caplog):
    own = [keras.Input((4,)), ExpertBank(name="own"), *make_classifier().layers]
    model = keras.Sequential(own, name="model")
    with caplog.at_level(logging.WARNING):
        assert axes_of(model)["model/own/bank"] == "adamw"
    assert "model/own/bank (3, 4, 4)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        matrices = axes_of(model, matrices={"*/own/*": "src", "*/hidden_*/kernel": "adamw"})
    assert (matrices["model/own/bank"], matrices["model/hidden_1/kernel"]) == ("src", "adamw")
    assert not caplog.text


def test_a_vocabulary_head_and_shared_embeddings_are_left_to_adamw():
    tokens = keras.Input((5,), dtype="int32")
    embedding = keras.layers.Embedding(20, 8, name="tokens")
    x = keras.layers.Dense(8, name="hidden")(embedding(tokens))
    head = layers.ChunkedCrossEntropy(20, name="head")
    model = keras.Model([tokens, targets := keras.Input((5,), dtype="int32")], head(x, targets))
    matrices = axes_of(model)
    assert {path for path, axes in matrices.items() if axes != "adamw"} == {"hidden/kernel"}


X, Y = draw(16, 4), (draw(16) > 0).astype("int32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def weights(model):
    return [ops.convert_to_numpy(weight) for weight in model.trainable_variables]


def fit(model_or_trainer):
    model_or_trainer.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return weights(getattr(model_or_trainer, "model", model_or_trainer))


def compiled_classifier():
    keras.utils.set_random_seed(1)
    model = make_classifier()
    model.compile(Muon.for_model(model, 0.01), LOSS)
    return model


@keras.saving.register_keras_serializable("tests")
class CountedNames(keras.Model):
    """A model whose layers get new names whenever it is made."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.outer = keras.layers.Dense(8), keras.layers.Dense(2)

    def call(self, x):
        return self.outer(self.hidden(x))


@pytest.mark.each_backend
@pytest.mark.parametrize("make", [make_classifier, CountedNames], ids=["named", "counted"])
def test_a_compiled_model_is_saved_with_its_optimizer_and_goes_on(make, tmp_path):
    model = make()
    model(X)
    model.compile(Muon.for_model(model, 0.01), LOSS)
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, Muon)
    for weight, expected in zip(fit(loaded), fit(model), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-6)


def test_a_part_of_the_weights_may_be_frozen_later():
    model = make_classifier()
    optimizer = Muon.for_model(model)
    model.layers[0].trainable = False
    model.compile(optimizer, LOSS)
    fit(model)
    assert [line.split()[0] for line in optimizer.describe().splitlines()[1:-1]] == [
        "model/hidden_*/kernel",
        "model/hidden_*/bias",
        "model/classes/kernel",
        "model/classes/bias",
    ]


OPTIONS = {
    "plain": {},
    "micro-batches": {"micro_batches": 2},
    "guard": {"guard": "skip"},
    "clip": {"gradient_clip": ("global_norm", 100.0)},
    "statistics": {"layer_statistics": True},
}


@pytest.mark.each_backend
@pytest.mark.parametrize("name", OPTIONS)
def test_a_trainer_updates_as_fit_does(name):
    trainer = Trainer(compiled_classifier(), **OPTIONS[name])
    for weight, expected in zip(fit(trainer), fit(compiled_classifier()), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)


@pytest.mark.each_backend
def test_a_scaled_loss_makes_the_same_update():
    keras.utils.set_random_seed(1)
    model = make_classifier()
    optimizer = keras.optimizers.LossScaleOptimizer(Muon.for_model(model, 0.01), 1024.0)
    trainer = Trainer(model, optimizer=optimizer, loss=LOSS)
    for weight, expected in zip(fit(trainer), fit(compiled_classifier()), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)


@pytest.mark.each_backend
def test_a_killed_training_of_experts_ends_with_the_numbers_of_a_whole_one(tmp_path):
    def train_for(folder, *callbacks):
        keras.utils.set_random_seed(2)
        mixture = layers.DeepSeekMoE(layers.ExpertRouter(4, 2), 8, name="experts")
        model = keras.Sequential([keras.Input((4,)), mixture, keras.layers.Dense(2)])
        trainer = Trainer(
            model,
            optimizer=Muon.for_model(model, 0.01),
            loss=LOSS,
            checkpoint_dir=tmp_path / folder,
            checkpoint_every=1,
            seed=3,
        )
        trainer.fit(X, Y, batch_size=4, epochs=2, verbose=0, resume=True, callbacks=callbacks)
        return weights(model)

    with pytest.raises(KilledError):
        train_for("killed", EndAt(5))
    for weight, expected in zip(train_for("killed"), train_for("whole"), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_lora_is_left_to_adamw_and_a_model_without_a_matrix_is_refused():
    model = make_classifier()
    enable_lora(model, 2, target_names=["hidden_1", "hidden_2"])
    with pytest.raises(InvalidInputError, match=r"No trainable weight of .* is a matrix"):
        Muon.for_model(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "`momentum` must be"),
        ({"ns_steps": 0}, "`ns_steps` must be a positive integer"),
        ({"rms_rate": 0.0}, "`rms_rate` must be"),
        (
            {"matrices": {"*/nothing": "rc"}},
            r"names no trainable weight of .*'model/hidden_1/kernel'",
        ),
        ({"matrices": {"*/kernel": "src"}}, r"'model/hidden_1/kernel', of shape \(4, 8\), must be"),
        ({"matrices": {"*/kernel": "rr"}}, "at least one 'r' and one 'c'"),
        ({"matrices": {"*/kernel": 3}}, "received 3"),
    ],
    ids=["momentum", "steps", "rate", "pattern", "rank", "letters", "type"],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        Muon.for_model(make_classifier(), **options)


def test_what_is_no_built_model_is_refused():
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    for model in (unbuilt, keras.layers.Dense(2)):
        with pytest.raises(InvalidInputError, match="Build the model, or call it on a batch"):
            Muon.for_model(model)
    with pytest.raises(InvalidInputError, match="a dict of axes by paths"):
        Muon(make_classifier())


def test_the_weights_of_another_model_are_refused_before_the_first_step():
    optimizer = Muon.for_model(make_classifier())
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="other")
    with pytest.raises(InvalidInputError, match=r"made for other weights.*'other/dense.*/kernel'"):
        optimizer.build(other.trainable_variables)


def test_an_optimizer_that_was_not_made_for_a_model_has_nothing_to_describe():
    with pytest.raises(InvalidInputError, match="The shapes of the weights are not known yet"):
        Muon({"hidden/kernel": "rc"}).describe()
