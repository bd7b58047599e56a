import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers import MaskedPositionHead
from keras_deepseek.training import Trainer, pack_sequences


def unpack(packed):
    """Returns the documents that stand in the rows."""
    documents = []
    for tokens, segments in zip(packed["token_ids"], packed["segment_ids"], strict=True):
        documents += [tokens[segments == n].tolist() for n in range(1, segments.max() + 1)]
    return documents


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    length=st.integers(12, 30),
    seed=st.none() | st.integers(0, 3),
)
def test_every_document_stands_in_one_row_whole(lengths, length, seed):
    documents = [[100 * i + j for j in range(n)] for i, n in enumerate(lengths)]
    packed = pack_sequences({"token_ids": documents}, length, seed=seed)
    assert sorted(unpack(packed)) == sorted(filter(None, documents))
    for tokens, segments, positions in zip(
        packed["token_ids"], packed["segment_ids"], packed["positions"], strict=True
    ):
        assert (np.diff((segments > 0).astype(int)) <= 0).all()  # Padding stands at the end.
        assert (positions == np.where(segments, tokens % 100, 0)).all()


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=40))
def test_no_two_rows_could_be_one(lengths):
    packed = pack_sequences({"token_ids": [[1] * n for n in lengths]}, 16)
    filled = np.sort((packed["segment_ids"] > 0).sum(axis=1))
    assert filled.sum() == sum(lengths)
    assert len(filled) == 1 or filled[0] + filled[1] > 16


def test_long_documents_are_refused_split_or_cut():
    features = {"token_ids": [list(range(7)), [9]]}
    with pytest.raises(InvalidInputError, match="Document 0 has 7 tokens, but a row has 3"):
        pack_sequences(features, 3)
    assert sorted(unpack(pack_sequences(features, 3, when_longer="split"))) == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
        [9],
    ]
    assert sorted(unpack(pack_sequences(features, 3, when_longer="truncate"))) == [[0, 1, 2], [9]]


def test_features_keep_their_dtypes_shapes_and_padding():
    features = {
        "token_ids": [np.array([1, 2], "int16"), np.array([3], "int16")],
        "vectors": [np.ones((2, 4), "float32"), np.ones((1, 4), "float32")],
        "targets": [[5, 6], [7]],
    }
    packed = pack_sequences(features, 4, padding={"targets": -100})
    assert packed["token_ids"].dtype == "int16"
    assert packed["vectors"].shape == (1, 4, 4)
    assert packed["targets"].tolist() == [[5, 6, 7, -100]]
    assert packed["segment_ids"].dtype == packed["positions"].dtype == "int32"


def test_a_seed_gives_one_order_of_rows():
    features = {"token_ids": [[n] * n for n in range(1, 9)]}
    first, again = (pack_sequences(features, 8, seed=3)["token_ids"] for _ in range(2))
    plain = pack_sequences(features, 8)["token_ids"]
    assert (first == again).all()
    assert not (first == plain).all()
    assert sorted(first.tolist()) == sorted(plain.tolist())


@pytest.mark.torch_alone
def test_a_document_computes_the_same_alone_and_packed():
    rng = np.random.default_rng(0)
    documents = [rng.normal(size=(n, 6)).astype("float32") for n in (5, 3, 7, 1)]
    packed = pack_sequences({"x": documents}, 8)
    keras.utils.set_random_seed(0)
    layer = keras.layers.MultiHeadAttention(2, 3)
    segments = packed["segment_ids"]
    mask = segments[:, :, None] == segments[:, None, :]
    together = keras.ops.convert_to_numpy(
        layer(packed["x"], packed["x"], attention_mask=mask, use_causal_mask=True)
    )
    for row, numbers in enumerate(segments):
        for number in range(1, numbers.max() + 1):
            here = numbers == number
            alone = layer(
                packed["x"][None, row, here], packed["x"][None, row, here], use_causal_mask=True
            )
            np.testing.assert_allclose(
                keras.ops.convert_to_numpy(alone)[0], together[row, here], atol=1e-5
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "`length` must be a positive integer"),
        ({"seed": True}, "`seed` must be an integer of at least 0"),
        ({"features": {"positions": [[1]]}}, "a feature named 'positions'"),
        ({"when_longer": "drop"}, "'refuse', 'split' or 'truncate'"),
        ({"padding": {"y": 1}}, r"has values for \['y'\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        pack_sequences(**{"features": {"token_ids": [[1, 2]]}, "length": 4, **arguments})


VOCABULARY_SIZE, DIM, LONGEST = 40, 8, 12


def build_encoder(*, has_masked_head):
    """Returns an encoder with a head over the vocabulary: at masked positions, or at all."""
    layers = keras.layers
    names = ["token_ids", "segment_ids", "positions"]
    names += ["mask_positions"] if has_masked_head else []
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    hidden = layers.Embedding(VOCABULARY_SIZE, DIM)(inputs["token_ids"])
    hidden = hidden + layers.Embedding(LONGEST, DIM)(inputs["positions"])
    segments = inputs["segment_ids"]
    sees = ops.equal(segments[:, :, None], segments[:, None, :])
    hidden = hidden + layers.MultiHeadAttention(2, 4)(hidden, hidden, attention_mask=sees)
    hidden = layers.LayerNormalization()(hidden)
    if has_masked_head:
        head = MaskedPositionHead(VOCABULARY_SIZE, intermediate_activation="gelu", name="head")
        return keras.Model(inputs, head(hidden, inputs["mask_positions"]))
    hidden = layers.Dense(DIM, "gelu", name="dense")(hidden)
    hidden = layers.LayerNormalization(epsilon=1e-5, name="norm")(hidden)
    return keras.Model(inputs, layers.Dense(VOCABULARY_SIZE, name="logits")(hidden))


def copy_weights(full, masked):
    before_head = len(full.layers) - 3
    for full_layer, masked_layer in zip(
        full.layers[:before_head], masked.layers[:before_head], strict=True
    ):
        masked_layer.set_weights(full_layer.get_weights())
    head = masked.get_layer("head")
    head.intermediate_dense.set_weights(full.get_layer("dense").get_weights())
    head.intermediate_layer_norm.set_weights(full.get_layer("norm").get_weights())
    kernel, bias = full.get_layer("logits").get_weights()
    head.kernel.assign(kernel)
    head.bias.assign(bias)


@pytest.mark.torch_alone
def test_packed_with_a_masked_head_trains_as_padded_with_a_full_one():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, VOCABULARY_SIZE, n) for n in (12, 3, 7, 4, 9, 5, 8)]
    targets = [np.where(rng.random(len(ids)) < 0.3, ids, -100) for ids in documents]
    shape = (len(documents), LONGEST)
    padded = {name: np.zeros(shape, "int32") for name in ("token_ids", "segment_ids")}
    padded["positions"] = np.tile(np.arange(LONGEST), (len(documents), 1))
    at_all = np.full(shape, -100)
    for row, (ids, of_one) in enumerate(zip(documents, targets, strict=True)):
        padded["token_ids"][row, : len(ids)], at_all[row, : len(ids)] = ids, of_one
        padded["segment_ids"][row, : len(ids)] = 1
    packed = pack_sequences(
        {"token_ids": documents, "targets": targets}, 24, padding={"targets": -100}
    )
    in_rows = packed.pop("targets")
    most = (in_rows != -100).sum(axis=1).max()
    at = np.argsort(in_rows == -100, axis=1, kind="stable")[:, :most]
    masked_targets = np.take_along_axis(in_rows, at, axis=1)
    packed["mask_positions"] = np.where(masked_targets == -100, -1, at)
    assert len(in_rows) < len(documents)

    full, masked = build_encoder(has_masked_head=False), build_encoder(has_masked_head=True)
    copy_weights(full, masked)
    losses = []
    for model, x, y in ((full, padded, at_all), (masked, packed, masked_targets)):
        trainer = Trainer(
            model,
            optimizer=keras.optimizers.Adam(0.01),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100),
            gradient_clip=("global_norm", 1.0),
        )
        history = trainer.fit(x, y, batch_size=len(y), epochs=8, verbose=0).history
        losses.append(history["loss"])
    np.testing.assert_allclose(*losses, rtol=0, atol=5e-5)
    assert losses[0][-1] < losses[0][0] - 0.3
