import keras
import numpy as np
import pytest

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.random_batch import draw_batch
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.samples import (
    choose_data,
    hold_out,
    make_accepted_samples,
    make_extreme_samples,
    make_optional_samples,
    make_samples,
)
from keras_deepseek.errors import InvalidInputError


def samples_of(model):
    signature = NamedModel(model).signature
    return signature, make_samples(model, signature)


def test_samples_fit_the_model(model):
    signature, samples = samples_of(model)
    for sample in samples:
        signature.bind(sample)
        model.predict({**sample} if len(sample) > 1 else next(iter(sample.values())), verbose=0)


def test_batch_sizes_and_lengths_differ(model):
    signature, samples = samples_of(model)
    samples += [choices[0] for choices in make_optional_samples(model, signature)]
    shapes = {next(iter(sample.values())).shape for sample in samples}
    assert len({shape[0] for shape in shapes}) == len(samples) >= 3
    if model.name == "text":
        assert len({shape[1] for shape in shapes}) == len(samples)


def test_lengths_of_two_inputs_differ_where_both_are_free():
    from keras import Input, Model, layers

    source, target = Input((None, 4), name="source"), Input((None, 4), name="target")
    model = Model([source, target], layers.Attention()([target, source]))
    lists = make_optional_samples(model, NamedModel(model).signature)
    samples = [sample for choices in lists for sample in choices]
    assert all(sample["source"].shape[0] == sample["target"].shape[0] for sample in samples)
    differ = [sample["source"].shape[1] != sample["target"].shape[1] for sample in samples]
    assert sum(differ) == 1


def test_further_batches_are_small_and_large_and_of_large_numbers():
    from keras import Input, Model, layers

    x = Input((None, 4), name="x")
    model = Model(x, layers.Dense(2)(x))
    (shortest, small), (large, other) = make_optional_samples(model, NamedModel(model).signature)
    (wide,) = make_extreme_samples(model, NamedModel(model).signature)
    assert (small["x"].shape, large["x"].shape) == ((1, 5, 4), (20, 40, 4))
    assert (shortest["x"].shape, other["x"].shape) == ((1, 1, 4), (3, 9, 4))
    assert np.abs(wide["x"][0]).max() > 20
    assert wide["x"][1].min() > 20
    one_row = Input(batch_shape=(1, 4), name="x")
    model = Model(one_row, layers.Dense(2)(one_row))
    rows = make_samples(model, NamedModel(model).signature)
    assert len({row["x"].tobytes() for row in rows}) == len(rows)
    (wide,) = make_extreme_samples(model, NamedModel(model).signature)
    assert wide["x"].shape == (1, 4)
    tokens = Input((None,), dtype="int32", name="tokens")
    model = Model(tokens, layers.Embedding(9, 2)(tokens))
    assert make_extreme_samples(model, NamedModel(model).signature) == []


def test_first_row_ends_in_padding_of_masking():
    from keras import Input, Model, layers

    x = Input((12, 4), name="x")
    model = Model(x, layers.LSTM(2)(layers.Masking(mask_value=-1.0)(x)))
    for sample in make_samples(model, NamedModel(model).signature):
        assert (sample["x"][0, 8:] == -1.0).all()
        assert (sample["x"][:, :8] != -1.0).all()


@pytest.mark.parametrize(("factor", "lengths"), [(1, [13]), (4, [64, 96]), (17, [])])
def test_batches_are_drawn_that_the_model_takes(halving, factor, lengths):
    samples = make_accepted_samples(NamedModel(halving(factor)))
    assert [sample["image"].shape[1] for sample in samples] == lengths


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


def test_a_batch_of_given_shapes_is_one_that_the_model_takes(model):
    signature = NamedModel(model).signature
    shapes = {
        spec.name: tuple(7 if size is None else size for size in spec.shape)
        for spec in signature.inputs
    }
    batch = draw_batch(model, signature, shapes)
    assert {name: array.shape for name, array in batch.items()} == shapes
    assert signature.bind(batch).keys() == shapes.keys()
    again = draw_batch(model, signature, shapes)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_a_sequence_of_one_token_is_no_padding_alone(model):
    if model.name != "text":
        pytest.skip("Tokens alone are padded.")
    (tokens,) = draw_batch(model, NamedModel(model).signature, {"tokens": (2, 1)}).values()
    assert (tokens > 0).all()


def test_floats_are_what_the_first_layer_makes_standard_ones_of():
    from keras import Input, Model, layers

    inputs = Input((3,), name="x")
    model = Model(inputs, layers.Normalization(mean=[1e5, 0, 5], variance=[1e8, 1, 1e-6])(inputs))
    _, samples = samples_of(model)
    whole = np.concatenate([sample["x"] for sample in samples])
    assert whole.dtype == np.float32
    assert (np.abs(whole - [1e5, 0, 5]) < [6e4, 6, 6e-3]).all()
    assert whole[:, 0].std() > 1e3


def test_each_fifth_row_is_held_out_of_enough():
    rows = {"x": np.arange(23), "y": np.arange(23) * 2}
    remaining, held_out = hold_out(rows)
    assert held_out["x"].tolist() == [4, 9, 14, 19]
    assert sorted([*remaining["x"], *held_out["x"]]) == list(range(23))
    assert remaining["y"].tolist() == (2 * remaining["x"]).tolist()


def test_few_rows_serve_for_both():
    rows = {"x": np.arange(19)}
    assert hold_out(rows) == (rows, rows)


def drawn_by(layer, dtype):
    from keras import Input, Model

    inputs = Input((9,), dtype=dtype, name="x")
    _, samples = samples_of(Model(inputs, layer(inputs)))
    return samples


@pytest.mark.parametrize("dtype", ["int64", "int16", "float32"])
def test_lookup_samples_are_of_the_vocabulary_with_a_few_unknown(dtype):
    from keras import layers

    pytest.importorskip("tensorflow")
    layer = layers.IntegerLookup(vocabulary=[700, 500, 900, 2**40], mask_token=3)
    samples = drawn_by(layer, dtype)
    drawn = np.concatenate([sample["x"] for sample in samples])
    vocabulary = {700, 500, 900} if dtype == "int16" else {700, 500, 900, 2**40}
    assert drawn.dtype == dtype
    assert vocabulary <= set(drawn[:, :6].ravel().tolist())
    if dtype == "int64":
        assert set(drawn.ravel().tolist()) - vocabulary - {3}
    assert all((sample["x"][0, 6:] == 3).all() for sample in samples)
    assert (drawn[:, :6] != 3).all()


def test_layers_without_unknown_values_get_none():
    from keras import layers

    pytest.importorskip("tensorflow")
    lookup = layers.IntegerLookup(vocabulary=[7, 5], num_oov_indices=0)
    for layer, numbers in ((lookup, {5, 7}), (layers.CategoryEncoding(3, "multi_hot"), {0, 1, 2})):
        drawn = np.concatenate([sample["x"] for sample in drawn_by(layer, "int64")])
        assert set(drawn.ravel().tolist()) == numbers


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_each_bin_is_drawn_from(dtype):
    from keras import layers

    samples = drawn_by(layers.Discretization([100.0, 200.0, 300.0]), dtype)
    drawn = np.concatenate([sample["x"] for sample in samples])
    assert set(np.digitize(drawn, [100, 200, 300]).ravel().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("num_positions", [10, 14])
def test_no_batch_is_longer_than_a_table_of_positions(num_positions):
    from keras import Input, Model, layers, ops

    class TokensAndPositions(layers.Layer):
        def __init__(self):
            super().__init__()
            self.tokens = layers.Embedding(50, 4)
            self.positions = layers.Embedding(num_positions, 4)

        def call(self, inputs):
            return self.tokens(inputs) + self.positions(ops.arange(ops.shape(inputs)[1]))

    tokens = Input((None,), dtype="int32")
    model = Model(tokens, TokensAndPositions()(tokens))
    signature = NamedModel(model).signature
    lists = [make_samples(model, signature), *make_optional_samples(model, signature)]
    batches = [batch for choices in lists for batch in choices]
    lengths = [next(iter(batch.values())).shape[1] for batch in batches]
    assert max(lengths) == num_positions
    assert len(set(lengths)) >= 3


@pytest.mark.usefixtures("tensorflow_installed")
def test_a_batch_that_is_shorter_than_a_convolution_is_not_verified_on(tmp_path):
    from keras import Input, Model, layers

    from keras_deepseek.deploy import Exporter

    x = Input((None, 3))
    hidden = layers.Conv1D(4, 7, strides=3)(layers.Conv1D(4, 7, strides=3)(x))
    model = Model(x, layers.Dense(1, activation="sigmoid")(layers.GlobalMaxPooling1D()(hidden)))
    report = Exporter(model, "onnx", verbose=False).export(tmp_path / "bundle")
    assert report.verification.state == "verified"


def test_own_samples_are_what_it_is_verified_on(digits, tmp_path, tensorflow_installed):
    images = np.zeros((2, 8, 8, 1))
    exporter = Exporter(digits, "onnx", samples=[images, images[:1]], verbose=False)
    assert exporter.export(tmp_path / "digits").verification.num_samples == 2


@pytest.mark.parametrize("samples", [[], [np.zeros((2, 7, 8, 1))], [np.zeros((0, 8, 8, 1))]])
def test_samples_that_do_not_fit_are_refused(digits, samples):
    with pytest.raises(InvalidInputError):
        Exporter(digits, "savedmodel", samples=samples)


def test_int8_is_made_for_data_and_verified_on_others(digits, tmp_path, tensorflow_installed):
    import onnx

    images = np.random.default_rng(0).random((40, 8, 8, 1))
    report = Exporter(digits, "onnx", precision="int8", calibration=images, verbose=False).export(
        tmp_path / "small.onnx"
    )
    assert report.verification.num_samples == 3  # Of 1, 3 and 4 rows, a fifth of what was given.
    assert report.verification.agreement["probabilities"]["relative_error"] < 0.05
    assert "% off" in str(report)
    assert "int8 for the ranges of 32 rows of image" in report.route
    nodes = onnx.load(tmp_path / "small.onnx").graph.node
    assert any(node.op_type == "QuantizeLinear" for node in nodes)


def test_samples_that_move_no_output_verify_nothing(tmp_path, tensorflow_installed):
    inputs = keras.Input((3,), name="features")
    saturated = keras.layers.Dense(
        2, activation="sigmoid", kernel_initializer="ones", bias_initializer="ones", name="share"
    )(inputs * 1e4 + 1e6)
    exporter = Exporter(keras.Model(inputs, saturated), "onnx", verbose=False)
    report = exporter.export(tmp_path / "saturated.onnx")
    assert report.verification.state == "unverified"
    assert "output 'share' hardly changes" in report.verification.reason
    rows = np.linspace(-110.0, -90.0, 6, dtype="float32")[:, None] * np.ones(3, "float32")
    exporter = Exporter(keras.Model(inputs, saturated), "onnx", samples=[rows], verbose=False)
    assert exporter.check(tmp_path / "saturated.onnx").verified


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (np.zeros((0, 8, 8, 1), "float32"), "has no rows"),
        (np.full((3, 8, 8, 1), np.nan, "float32"), "NaN or infinity in input 'image'"),
    ],
)
def test_rows_that_give_no_ranges_are_refused(digits, rows, match):
    with pytest.raises(InvalidInputError, match=match):
        Exporter(digits, "onnx", precision="int8", calibration=rows)


def count_rows(batches):
    return sum(len(batch["input_0"]) for batch in batches)


def test_a_fifth_of_the_rows_is_verified_on_where_there_are_no_samples(dense):
    named, rows = NamedModel(dense), np.ones((40, 4), "float32")
    data = choose_data(named, None, rows)
    assert (count_rows(data.calibration), count_rows(data.samples)) == (32, 8)
    data = choose_data(named, [rows[:3]], rows)
    assert (count_rows(data.calibration), count_rows(data.samples)) == (40, 3)
    assert not data.has_random_samples


def test_without_data_all_is_drawn(dense):
    data = choose_data(NamedModel(dense), None, None)
    assert data.has_random_samples
    assert data.calibration is None
    assert all(
        (data.samples, data.alternative_samples, data.optional_samples, data.extreme_samples)
    )


def test_inputs_with_unequal_rows_are_refused_by_the_argument():
    left_input, right_input = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    model = keras.Model([left_input, right_input], keras.layers.Add()([left_input, right_input]))
    rows = {"left": np.ones((5, 4)), "right": np.ones((6, 4))}
    with pytest.raises(InvalidInputError, match=r"^`calibration`: Inputs differ in batch size"):
        Exporter(model, "onnx", precision="int8", calibration=rows)
    with pytest.raises(InvalidInputError, match=r"^`samples\[0\]`: Inputs differ in batch size"):
        Exporter(model, "onnx", samples=[rows])
