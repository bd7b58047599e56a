import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.protocols import tf_serving

ONE = Signature((TensorSpec("x", (None, 2), "float32"),), (TensorSpec("y", (None,), "int64"),))
TWO = Signature(
    (TensorSpec("a", (None, 2), "float32"), TensorSpec("b", (None, None), "int32")),
    (TensorSpec("y", (None,), "bfloat16"),),
)


def parse(content, signature=ONE):
    return tf_serving.parse_predict(json.dumps(content).encode(), signature)


@pytest.mark.parametrize(
    "content",
    [
        {"instances": [[1, 2], [3, 4]]},
        {"instances": [{"x": [1, 2]}, {"x": [3, 4]}]},
        {"inputs": [[1, 2], [3, 4]]},
        {"inputs": {"x": [[1, 2], [3, 4]]}},
        {"inputs": [[1, 2], [3, 4]], "signature_name": "serving_default"},
        {"inputs": [[1, 2], [3, 4]], "signature_name": ""},
    ],
)
def test_one_input_may_be_named_or_not_in_rows_and_columns(content):
    call = parse(content)
    assert call.inputs == {"x": [[1, 2], [3, 4]]}
    assert call.is_row_form == ("instances" in content)


@pytest.mark.parametrize(
    "content",
    [
        {"instances": [{"a": [1, 2], "b": [5]}, {"a": [3, 4], "b": [6]}]},
        {"inputs": {"a": [[1, 2], [3, 4]], "b": [[5], [6]]}},
    ],
)
def test_several_inputs_go_by_name(content):
    assert parse(content, TWO).inputs == {"a": [[1, 2], [3, 4]], "b": [[5], [6]]}


@pytest.mark.parametrize("content", [{"instances": []}, {"inputs": []}, {"inputs": {"x": []}}])
def test_no_rows_have_the_shape_of_the_signature(content):
    assert ONE.bind(parse(content).inputs)["x"].shape == (0, 2)


def test_no_rows_of_several_inputs_fit_too():
    bound = TWO.bind(parse({"instances": []}, TWO).inputs)
    assert [len(array) for array in bound.values()] == [0, 0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "either 'instances' or 'inputs'"),
        (b"{}", "either 'instances' or 'inputs'"),
        (b'{"instances": [], "inputs": []}', "either 'instances' or 'inputs'"),
        (b'{"instances": 3}', "must be a list"),
        (b'{"instances": [{"x": 1}, {"z": 1}]}', "the same names"),
        (
            b'{"instances": [[1, 2]], "signature_name": "train"}',
            'signature name: "train" not found',
        ),
        (b'{"instances": [[1, 2]], "signature_name": []}', "not found"),
    ],
)
def test_a_bad_body_is_refused_with_what_is_wrong(body, message):
    with pytest.raises(InvalidInputError, match=message):
        tf_serving.parse_predict(body, ONE)


@pytest.mark.parametrize("content", [{"instances": [[1, 2]]}, {"inputs": [[1, 2]]}])
def test_several_inputs_without_names_are_refused(content):
    with pytest.raises(InvalidInputError, match=r"several inputs.*\['a', 'b'\]"):
        parse(content, TWO)


def test_outputs_have_the_form_of_the_question():
    one = {"y": np.array([[1.5], [2.5]], "float32")}
    two = {**one, "z": np.array([True, False])}
    assert tf_serving.format_outputs(one, is_row_form=True) == {"predictions": [[1.5], [2.5]]}
    assert tf_serving.format_outputs(one, is_row_form=False) == {"outputs": [[1.5], [2.5]]}
    assert tf_serving.format_outputs(two, is_row_form=True) == {
        "predictions": [{"y": [1.5], "z": True}, {"y": [2.5], "z": False}]
    }
    assert tf_serving.format_outputs(two, is_row_form=False) == {
        "outputs": {"y": [[1.5], [2.5]], "z": [True, False]}
    }


def test_numbers_that_json_lacks_are_written_bare():
    outputs = tf_serving.format_outputs(
        {"y": np.array([np.nan, np.inf, -np.inf])}, is_row_form=True
    )
    assert tf_serving.to_json(outputs) == b'{"predictions":[NaN,Infinity,-Infinity]}'


def test_status_and_metadata_are_worded_as_tf_serving_does():
    assert tf_serving.format_status(is_ready=True) == {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    assert tf_serving.format_status(is_ready=False)["model_version_status"][0]["state"] == "LOADING"
    metadata = tf_serving.format_metadata("double", TWO)
    assert metadata["model_spec"] == {"name": "double", "signature_name": "", "version": "1"}
    definition = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert definition["method_name"] == "tensorflow/serving/predict"
    assert definition["outputs"]["y"]["dtype"] == "DT_BFLOAT16"
    assert definition["inputs"]["b"] == {
        "dtype": "DT_INT32",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "-1", "name": ""}],
            "unknown_rank": False,
        },
        "name": "b:0",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children)
    ),
    max_leaves=8,
)


@given(value=json_values, key=st.sampled_from(["instances", "inputs"]))
def test_whatever_json_holds_is_bound_or_refused_as_a_bad_input(value, key):
    with np.errstate(over="ignore"):
        try:
            bound = ONE.bind(parse({key: value}).inputs)
        except InvalidInputError:
            return
    assert bound["x"].shape[1:] == (2,)
