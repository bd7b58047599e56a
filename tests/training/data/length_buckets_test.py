import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import LengthBuckets, Trainer


def make_texts(lengths):
    """Returns sequences whose first token is their length, and which hold no 0."""
    return [np.full(n, n) for n in lengths]


def read(data):
    return [data[i] for i in range(len(data))]


def test_each_sequence_comes_once_an_epoch_in_its_bucket():
    lengths = np.random.default_rng(0).integers(1, 100, 200)
    data = LengthBuckets({"x": make_texts(lengths)}, lengths, batch_size=8, padding={"x": -1})
    for _ in range(2):
        read_lengths, short = [], []
        for batch, targets in read(data):
            x = batch["x"]
            assert x.shape[1] in (16, 32, 64, 128)
            assert len(x) <= 8
            assert ((x != -1).sum(axis=1) == targets).all()
            short.append(int((2 * targets <= x.shape[1]).sum()) if x.shape[1] > 16 else 0)
            read_lengths += targets.tolist()
        assert sorted(read_lengths) == sorted(lengths.tolist())
        # Those that did not fill a batch of their own bucket, in one of the next.
        assert 0 < sum(short) <= 7 * 3
        assert sum(map(bool, short)) <= 3
        data.on_epoch_end()


def test_all_batches_but_the_last_have_as_many_sequences():
    for lengths in ([3, 3, 20, 40, 40], [3, 3, 3, 3, 3], [40, 3, 3], range(1, 60)):
        data = LengthBuckets(make_texts(lengths), batch_size=2, shuffle=False)
        sizes = [len(x) for (x,) in read(data)]
        assert sizes == [2] * (len(lengths) // 2) + [1] * (len(lengths) % 2)


def test_the_last_batch_is_no_longer_than_it_has_to_be():
    data = LengthBuckets(make_texts([40, 3, 41]), batch_size=2, shuffle=False)
    assert [x.shape for (x,) in read(data)] == [(2, 64), (1, 64)]
    data = LengthBuckets(make_texts([40, 41, 3]), batch_size=3, boundaries=[8, 64, 256])
    assert [x.shape for (x,) in read(data)] == [(3, 64)]
    data = LengthBuckets(make_texts([5, 6, 7]), batch_size=2, boundaries=[8, 256], shuffle=False)
    assert [x.shape for (x,) in read(data)] == [(2, 8), (1, 8)]


def test_a_batch_has_so_many_tokens():
    data = LengthBuckets(
        {"x": make_texts(range(1, 65))}, tokens_per_batch=128, boundaries=[8, 32, 64]
    )
    sizes = {}
    for (batch,) in read(data):
        sizes.setdefault(batch["x"].shape[1], []).append(len(batch["x"]))
    assert {length: max(counts) for length, counts in sizes.items()} == {8: 8, 32: 4, 64: 2}


def test_targets_of_tokens_are_padded_too():
    texts = make_texts([2, 3])
    data = LengthBuckets(
        {"x": texts}, texts, batch_size=2, shuffle=False, boundaries=[4], padding={"targets": -100}
    )
    assert data[0][1].tolist() == [[2, 2, -100, -100], [3, 3, 3, -100]]


def test_an_epoch_is_drawn_by_seed_and_number():
    def order(seed, epochs, **kwargs):
        data = LengthBuckets(
            {"x": make_texts(range(1, 65))}, list(range(64)), batch_size=4, seed=seed, **kwargs
        )
        for _ in range(epochs):
            data.on_epoch_end()
        return [targets.tolist() for _, targets in read(data)]

    assert order(0, 1) == order(0, 1)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0, shuffle=False) == order(1, 3, shuffle=False)


@pytest.mark.parametrize("is_named", [False, True])
def test_a_model_trains_on_it(is_named):
    lengths = np.random.default_rng(0).integers(1, 30, 40)
    texts = make_texts(lengths)
    data = LengthBuckets({"tokens": texts} if is_named else texts, lengths % 2, batch_size=8)
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(30, 4, mask_zero=True)(tokens)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model({"tokens": tokens} if is_named else tokens, keras.layers.Dense(2)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = Trainer(model, optimizer=keras.optimizers.Adam(0.1), loss=loss)
    losses = trainer.fit(data, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either `batch_size` or `tokens_per_batch`"),
        ({"batch_size": 2, "tokens_per_batch": 64}, "either `batch_size` or `tokens_per_batch`"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"tokens_per_batch": 20}, "at least 32, the largest boundary"),
        ({"batch_size": 2, "boundaries": [16]}, "end at 20 or more"),
        ({"batch_size": 2, "boundaries": [16, 8, 32]}, "ascend"),
        ({"batch_size": 2, "boundaries": [16.0, 32]}, r"`boundaries\[0\]` must be a positive"),
        ({"batch_size": 2, "seed": -1}, "`seed` must be an integer of at least 0"),
        ({"batch_size": 2, "targets": [1]}, "one entry for each of the 2 sequences; received 1"),
        ({"batch_size": 2, "padding": {"y": 1}}, r"has values for \['y'\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        LengthBuckets({"x": make_texts([3, 20])}, **arguments)


def test_a_model_trains_on_batches_whose_lengths_differ_late():
    texts = make_texts([3, 4, 5, 6, 30, 31])
    data = LengthBuckets(texts, [0, 1, 0, 1, 0, 1], batch_size=2, shuffle=False)
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(32, 4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1),
        ]
    )
    Trainer(model, optimizer="sgd", loss="mse").fit(data, epochs=2, verbose=0)
    assert [x.shape for x, _ in read(data)] == [(2, 16), (2, 32), (2, 16)]


@pytest.mark.parametrize("seed", range(3))
def test_batches_of_any_length_are_trained_on_with_checkpoints(seed, tmp_path):
    """There the order is drawn anew, and the first two batches may be of one length."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 40)
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(61, 2, mask_zero=True),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1),
        ]
    )
    data = LengthBuckets(make_texts(lengths), lengths[:, None] / 60, batch_size=8)
    trainer = Trainer(
        model, optimizer="sgd", loss="mse", checkpoint_dir=tmp_path / "checkpoints", seed=seed
    )
    history = trainer.fit(data, epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2
