import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.training import pack_sequences


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
    with pytest.raises(InvalidInputError, match="Document 0 has 7 tokens, a row 3"):
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
        ({"features": {"positions": [[1]]}}, "can't be named 'positions'"),
        ({"when_longer": "drop"}, "'refuse', 'split' or 'truncate'"),
        ({"padding": {"y": 1}}, r"given for \['y'\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        pack_sequences(**{"features": {"token_ids": [[1, 2]]}, "length": 4, **arguments})
