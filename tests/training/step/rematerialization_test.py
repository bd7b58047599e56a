import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.step import training_step
from keras_deepseek.training.step.rematerialization import (
    check_remat,
    find_blocks,
    find_normalizations,
)

RNG = np.random.default_rng(0)
X = RNG.integers(0, 9, (12, 5))
Y = RNG.normal(size=(12, 5, 6)).astype("float32")


class Block(keras.layers.Layer):
    """Has all that a second computation may spoil: a mask, dropout, statistics, a loss."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.attention = keras.layers.MultiHeadAttention(2, 3, dropout=0.3, seed=1)
        self.norm = keras.layers.BatchNormalization()
        self.dense = keras.layers.Dense(6, kernel_regularizer="l2")
        self.dropout = keras.layers.Dropout(0.4, seed=2)

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)
        self.norm.build(input_shape)
        self.dense.build(input_shape)
        self.scale = self.add_weight(shape=(6,), initializer="ones")

    def call(self, inputs):
        hidden = self.norm(inputs + self.attention(inputs, inputs))
        self.add_loss(0.1 * ops.mean(ops.square(ops.cast(hidden, "float32"))))
        return inputs + self.dropout(self.dense(hidden)) * self.scale


def build():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,), dtype="int32")
    hidden = keras.layers.Embedding(9, 6, mask_zero=True)(inputs)
    for index in range(2):
        hidden = Block(name=f"block_{index}")(hidden)
    return keras.Model(inputs, hidden)


def fit(remat, **arguments):
    model = build()
    trainer = Trainer(
        model, optimizer=keras.optimizers.SGD(0.1), loss="mse", remat=remat, **arguments
    )
    history = trainer.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0).history
    return history, [ops.convert_to_numpy(variable.value) for variable in model.variables]


@pytest.mark.parametrize("arguments", [{}, {"precision": "bfloat16"}, {"micro_batches": 2}])
def test_rematerialization_trains_to_the_same_numbers(arguments):
    """Also the seeds of dropout and the moving statistics, which move on once a step."""
    expected, received = fit(False, **arguments), fit(["block_*"], **arguments)
    rtol = 3e-2 if "precision" in arguments else 2e-5
    assert received[0].keys() == expected[0].keys()
    np.testing.assert_allclose(received[0]["loss"], expected[0]["loss"], rtol=rtol)
    for received_weight, expected_weight in zip(received[1], expected[1], strict=True):
        np.testing.assert_allclose(received_weight, expected_weight, rtol=rtol, atol=rtol)


@pytest.mark.torch_alone
@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers_repeat_their_dropout(name):
    """Keras keeps their dropout masks during a call, and the last batch has fewer rows."""
    weights = []
    for remat in (False, ["recurrent"]):
        keras.utils.set_random_seed(0)
        layer = getattr(keras.layers, name)(3, dropout=0.5, recurrent_dropout=0.25)
        model = keras.Sequential(
            [
                keras.Input((4, 2)),
                keras.layers.Bidirectional(layer, name="recurrent"),
                keras.layers.Dense(1),
            ]
        )
        trainer = Trainer(model, optimizer="sgd", loss="mse", remat=remat)
        trainer.fit(np.ones((5, 4, 2)), np.ones((5, 1)), batch_size=2, verbose=0)
        weights.append(model.get_weights())
    for plain_weight, remat_weight in zip(*weights, strict=True):
        np.testing.assert_allclose(plain_weight, remat_weight, rtol=1e-5, atol=1e-6)


def test_less_is_kept_for_the_backward_pass():
    torch = pytest.importorskip("torch")
    if keras.backend.backend() != "torch":
        pytest.skip("What is kept can be counted on PyTorch.")
    kept_bytes = {}
    for remat in (False, True):
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            fit(remat)
        kept_bytes[remat] = sum(sizes.values())
    assert kept_bytes[True] < 0.6 * kept_bytes[False]


def test_blocks_inside_other_blocks_are_left_out():
    model = build()
    blocks = [layer for layer in model.layers if isinstance(layer, Block)]
    assert find_blocks(model, True) == blocks
    assert find_blocks(model, ["block_*", "dense*"]) == blocks
    assert find_blocks(model, ["block_1"]) == blocks[1:]
    assert [layer.name for layer in find_blocks(model, ["*attention*"])] == [
        block.attention.name for block in blocks
    ]
    assert find_blocks(model, False) == find_blocks(model, []) == []


def test_a_name_of_no_layer_and_a_model_without_blocks_are_refused():
    with pytest.raises(InvalidInputError, match=r"remat='blok_\*' names no layer of .* block_0"):
        find_blocks(build(), ["blok_*"])
    with pytest.raises(InvalidInputError, match="means layers that hold layers"):
        find_blocks(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), True)


@pytest.mark.parametrize("remat", ["block_*", None, [1], 1])
def test_invalid_remat_is_refused(remat):
    with pytest.raises(InvalidInputError, match="`remat` must be True, False or a list of lay"):
        check_remat(remat)


def test_blocks_are_restored_after_a_training():
    model = build()
    Trainer(model, optimizer="sgd", loss="mse", remat=True).fit(X, Y, verbose=0)
    assert "call" not in vars(model.get_layer("block_0"))


def normalized(normalization, precision="bfloat16"):
    keras.utils.set_random_seed(1)
    layers = [keras.Input((5, 6)), keras.layers.Dense(6), normalization(), keras.layers.Dense(6)]
    model = keras.Sequential(layers)
    return Trainer(model, optimizer=keras.optimizers.SGD(0.1), loss="mse", precision=precision)


@pytest.mark.parametrize(
    "normalization",
    [
        keras.layers.LayerNormalization,
        keras.layers.RMSNormalization,
        lambda: keras.layers.GroupNormalization(groups=3),
    ],
)
def test_normalizations_are_rematerialized_in_half_precision(normalization, monkeypatch):
    runs = []
    for finds_none in (False, True):
        if finds_none:
            monkeypatch.setattr(training_step, "find_normalizations", lambda *arguments: [])
        trainer = normalized(normalization)
        activations = trainer.measure_memory(Y, Y, 12).activations
        losses = trainer.fit(Y, Y, epochs=3, shuffle=False, verbose=0).history["loss"]
        runs.append((activations, losses))
    (thrifty, losses), (usual, expected) = runs
    assert thrifty < usual
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_normalizations_outside_of_half_precision_and_inside_of_blocks_are_left_alone():
    for precision, expected in (("float32", 0), ("mixed_bfloat16", 1)):
        keras.config.set_dtype_policy(precision)
        model = keras.Sequential([keras.Input((6,)), keras.layers.LayerNormalization()])
        assert len(find_normalizations(model, [])) == expected
        assert not find_normalizations(model, model.layers)
