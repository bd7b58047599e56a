import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.batching.padding import Padder, Padding

TOKENS = TensorSpec("tokens", (None, None), "int32")
MASK = TensorSpec("mask", (None, None), "bool")
SCORE = TensorSpec("score", (None, 2), "float32")
STATES = TensorSpec("states", (None, None, 3), "float32")
OTHER = TensorSpec("other", (None, None), "float32")


def padding_of(**options):
    return Padding(**{"lengths": (4, 8), "values": {"tokens": 0}, "masks": "by_value"} | options)


def tokens_of(*sizes):
    return {"tokens": np.ones(sizes, "int32")}


@pytest.mark.parametrize("lengths", [(), (0, 4), (8, 4), (4, 4), (4.0,), "48", (True,)])
def test_lengths_that_do_not_rise_are_refused(lengths):
    with pytest.raises(InvalidInputError, match="rising integers"):
        padding_of(lengths=lengths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": 16}, "`lengths` must be a list of rising integers"),
        ({"masks": "byvalue"}, "`masks` must be 'by_value', or map"),
        ({"masks": None}, "`masks` must be 'by_value', or map"),
        ({"values": 0}, "`values` must map each input"),
        ({"outputs": ["y"]}, "`outputs` must map an output"),
    ],
)
def test_an_argument_of_another_type_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        padding_of(**options)


@pytest.mark.parametrize(("length", "filled"), [(1, 4), (4, 4), (5, 8), (8, 8), (0, 4)])
def test_axes_are_filled_up_to_the_next_length(length, filled):
    padder = Padder(padding_of(values={"tokens": 7}), Signature((TOKENS,), (SCORE,)))
    tokens = padder.fill(tokens_of(2, length))["tokens"]
    assert tokens.shape == (2, filled)
    assert tokens.dtype == "int32"
    assert (tokens[:, :length] == 1).all()
    assert (tokens[:, length:] == 7).all()


def test_what_is_too_long_is_refused():
    padder = Padder(padding_of(), Signature((TOKENS,), (SCORE,)))
    with pytest.raises(InvalidInputError, match=r"'tokens' has a length of 9\. Expected at most 8"):
        padder.fill(tokens_of(1, 9))


def test_a_mask_is_made_and_no_matter_of_clients():
    padder = Padder(padding_of(masks={"mask": "tokens"}), Signature((TOKENS, MASK), (SCORE,)))
    assert [spec.name for spec in padder.signature.inputs] == ["tokens"]
    mask = padder.fill(tokens_of(2, 3))["mask"]
    assert mask.dtype == bool
    assert mask.tolist() == [[True, True, True, False]] * 2


def test_outputs_of_each_place_are_cut_and_others_are_whole():
    padder = Padder(padding_of(), Signature((TOKENS,), (SCORE, STATES)))
    outputs = {"score": np.ones((2, 2)), "states": np.ones((2, 8, 3))}
    cut = padder.cut(outputs, tokens_of(2, 5))
    assert {name: array.shape for name, array in cut.items()} == {
        "score": (2, 2),
        "states": (2, 5, 3),
    }


def test_of_two_inputs_it_is_said_whose_length_an_output_has():
    signature = Signature((TOKENS, OTHER), (STATES,))
    values = {"tokens": 0, "other": 0.0}
    with pytest.raises(InvalidInputError, match="map 'states' to one of"):
        Padder(padding_of(values=values), signature)
    padder = Padder(padding_of(values=values, outputs={"states": "other"}), signature)
    inputs = {**tokens_of(1, 3), "other": np.ones((1, 6), "float32")}
    filled = padder.fill(inputs)
    assert (filled["tokens"].shape, filled["other"].shape) == ((1, 4), (1, 8))
    assert padder.cut({"states": np.ones((1, 8, 3))}, inputs)["states"].shape == (1, 6, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": {}, "masks": {"mask": "tokens"}}, r"the inputs \['tokens'\] are missing"),
        ({"values": {"tokens": 0, "toknes": 0}}, "did you mean 'tokens'"),
        ({"masks": {"maks": "tokens"}}, "masks"),
        ({"masks": {"mask": "token"}}, "masks"),
        ({"outputs": {"sore": "tokens"}}, "outputs"),
        ({"masks": {"mask": "fixed"}}, r"\['fixed'\] have no free axis"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options, message):
    fixed = TensorSpec("fixed", (None, 3), "float32")
    with pytest.raises(InvalidInputError, match=message):
        Padder(padding_of(**options), Signature((TOKENS, MASK, fixed), (SCORE,)))
