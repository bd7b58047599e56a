import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek.backend.export.named_model import ModelWrapper, NamedModel
from keras_deepseek.errors import InvalidInputError, NotSupportedError


def names(specs):
    return [spec.name for spec in specs]


def dense_model(input_name=None, output_name=None):
    inputs = keras.Input((4,), name=input_name)
    return keras.Model(inputs, keras.layers.Dense(2, name=output_name)(inputs))


def test_names_that_the_user_gave_are_kept():
    signature = NamedModel(dense_model("features", "score")).signature
    assert names(signature.inputs) == ["features"]
    assert names(signature.outputs) == ["score"]


def test_names_that_keras_counted_up_become_positions():
    dense_model()
    signature = NamedModel(dense_model()).signature
    assert names(signature.inputs) == ["input_0"]
    assert names(signature.outputs) == ["output_0"]


@pytest.mark.parametrize("layer_names", [(None, None), ("features", "score")])
@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_a_reloaded_model_has_the_same_signature(tmp_path, layer_names, kind):
    model = dense_model(*layer_names)
    if kind == "sequential":
        model = keras.Sequential(
            [keras.Input((4,), name=layer_names[0]), keras.layers.Dense(2, name=layer_names[1])]
        )
    model.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    assert NamedModel(reloaded).signature == NamedModel(model).signature


def test_keys_of_dicts_are_the_names():
    left_input, right_input = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    model = keras.Model(
        {"right": right_input, "left": left_input},
        {"b": left_input + right_input, "a": keras.layers.Dense(3)(left_input)},
    )
    named = NamedModel(model)
    assert sorted(names(named.signature.inputs)) == ["left", "right"]
    sizes = {spec.name: spec.shape for spec in named.signature.outputs}
    assert sizes == {"a": (None, 3), "b": (None, 4)}
    outputs = named({"left": np.ones((2, 4)), "right": np.ones((2, 4))})
    np.testing.assert_allclose(keras.ops.convert_to_numpy(outputs["b"]), 2.0)


def test_a_list_of_inputs_is_packed_in_its_order():
    first, second = keras.Input((2,), name="z"), keras.Input((2,), name="a")
    named = NamedModel(keras.Model([first, second], first - 2 * second))
    outputs = named({"a": np.ones((1, 2)), "z": np.zeros((1, 2))})
    np.testing.assert_allclose(keras.ops.convert_to_numpy(outputs["output_0"]), -2.0)


def test_one_layer_that_gives_two_outputs_gives_two_names():
    inputs = keras.Input((4, 3))
    sequence, state = keras.layers.GRU(
        2, return_sequences=True, return_state=True, name="gru_cell"
    )(inputs)
    signature = NamedModel(keras.Model(inputs, [sequence, state])).signature
    assert names(signature.outputs) == ["output_0", "output_1"]


def test_free_axes_and_dtypes_are_in_the_signature():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    signature = NamedModel(keras.Model(tokens, keras.layers.Embedding(5, 3)(tokens))).signature
    assert str(signature.inputs[0]) == "tokens: int32 (any, any) from 0 to 4"
    assert str(signature.outputs[0]) == "output_0: float32 (any, any, 3)"


def test_every_kind_of_model_computes_what_it_computes_itself(model):
    named = NamedModel(model)
    generator = np.random.default_rng(0)
    inputs = {
        spec.name: generator.integers(0, 5, [2 if d is None else d for d in spec.shape]).astype(
            spec.dtype
        )
        for spec in named.signature.inputs
    }
    expected = keras.tree.flatten(model(named.pack_inputs(inputs), training=False))
    received = named(inputs)
    for spec, array in zip(named.signature.outputs, expected, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(received[spec.name]), keras.ops.convert_to_numpy(array)
        )


@pytest.mark.parametrize("build", [lambda: keras.Sequential([keras.layers.Dense(2)])])
def test_an_unbuilt_model_says_what_to_do(build):
    with pytest.raises(InvalidInputError, match="Give a Sequential model an `Input`"):
        NamedModel(build())


class TwoArguments(keras.Model):
    def call(self, first, second):
        return first + second


class SumOfDict(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs):
        return {"sum": self.dense(inputs["a"]) + self.dense(inputs["b"])}


def test_a_call_with_two_arguments_says_what_to_do():
    model = TwoArguments()
    model(keras.ops.ones((1, 2)), keras.ops.ones((1, 2)))
    with pytest.raises(InvalidInputError, match="more than one argument"):
        NamedModel(model)


def test_a_subclassed_model_takes_a_dict_by_its_keys():
    model = SumOfDict()
    model({"a": keras.ops.ones((1, 3)), "b": keras.ops.ones((1, 3))})
    signature = NamedModel(model).signature
    assert [str(spec) for spec in signature.inputs] == [
        "a: float32 (any, 3)",
        "b: float32 (any, 3)",
    ]
    assert names(signature.outputs) == ["sum"]


def test_a_lookup_backwards_gives_strings_which_are_refused():
    pytest.importorskip("tensorflow")
    lookup = keras.layers.StringLookup(vocabulary=["cat", "dog"], invert=True, name="answer")
    numbers = keras.Input((1,), dtype="int64")
    for model in (keras.Model(numbers, lookup(numbers)), keras.Sequential([numbers, lookup])):
        with pytest.raises(NotSupportedError, match=r"Strings can't be exported .*'answer'"):
            NamedModel(model)


def test_strings_are_refused_with_a_way_out():
    text = keras.Input((1,), dtype="string", name="text")
    with pytest.raises(NotSupportedError, match=r"Strings can't be .*\['text'"):
        NamedModel(keras.Model(text, keras.layers.Identity()(text)))


def test_an_object_that_is_no_model_is_refused():
    with pytest.raises(InvalidInputError, match=r"Expected a keras\.Model, received str"):
        NamedModel("model.keras")


def test_an_input_that_is_handed_on_gives_the_output_no_name():
    image = keras.Input((4,), name="image")
    model = keras.Model(image, [image, keras.layers.Dense(2, name="head")(image)])
    signature = NamedModel(model).signature
    assert [spec.name for spec in signature.outputs] == ["output_0", "head"]


class Doubled(ModelWrapper):
    def __init__(self, original):
        super().__init__(name=original.name)
        self.original = original
        self.built = True

    def call(self, inputs):
        return self.original(inputs)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return {"score": self.dense(inputs)}


def functional():
    inputs = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(10, 4)(inputs)
    return keras.Model([inputs], [layers.Dense(2)(x), layers.Dense(1, name="score")(x)])


def sequential():
    return keras.Sequential([keras.Input((None,), dtype="int32"), layers.Embedding(10, 4)])


def subclassed():
    model = Subclassed()
    model(np.ones((2, 3), "float32"))
    return model


@pytest.mark.parametrize("build", [functional, sequential, subclassed])
def test_a_wrapper_has_the_signature_of_its_original(build):
    original = build()
    assert NamedModel(Doubled(original)).signature == NamedModel(original).signature
