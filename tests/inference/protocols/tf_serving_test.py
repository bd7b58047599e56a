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


def encode(outputs, is_row_form):
    return json.loads(tf_serving.encode_outputs(outputs, is_row_form))


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
    single = {"y": np.array([[1.5], [2.5]], "float32")}
    double = {**single, "z": np.array([True, False])}
    assert encode(single, is_row_form=True) == {"predictions": [[1.5], [2.5]]}
    assert encode(single, is_row_form=False) == {"outputs": [[1.5], [2.5]]}
    assert encode(double, is_row_form=True) == {
        "predictions": [{"y": [1.5], "z": True}, {"y": [2.5], "z": False}]
    }
    assert encode(double, is_row_form=False) == {
        "outputs": {"y": [[1.5], [2.5]], "z": [True, False]}
    }


def test_numbers_that_json_lacks_are_written_bare():
    body = tf_serving.encode_outputs({"y": np.array([np.nan, np.inf, -np.inf])}, is_row_form=True)
    assert body == b'{"predictions":[NaN,Infinity,-Infinity]}'


def test_a_label_that_no_version_has_is_named():
    message = tf_serving.unknown_label_message("canary")
    assert message == "Unrecognized servable version label: canary"


def test_status_and_metadata_are_worded_as_tf_serving_does():
    assert tf_serving.format_versions([tf_serving.VersionStatus(1, "AVAILABLE")]) == {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    metadata = tf_serving.format_metadata("double", TWO, "1")
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


TEXT = Signature((TensorSpec("s", (None,), "object"),), (TensorSpec("y", (None,), "float32"),))


@pytest.mark.parametrize(
    "content",
    [
        {"instances": ["cat", {"b64": "/w=="}]},
        {"instances": [{"s": "cat"}, {"s": {"b64": "/w=="}}]},
        {"inputs": ["cat", {"b64": "/w=="}]},
        {"inputs": {"s": ["cat", {"b64": "/w=="}]}},
    ],
)
def test_bytes_are_text_or_base64_in_rows_and_columns(content):
    bound = TEXT.bind(parse(content, TEXT).inputs)
    assert bound["s"].tolist() == [b"cat", b"\xff"]
    assert bound["s"].dtype == object


def test_one_base64_object_is_a_column_and_no_names():
    signature = Signature((TensorSpec("s", (), "object"),), ())
    assert parse({"inputs": {"b64": "/w=="}}, signature).inputs["s"].tolist() == b"\xff"
    # With another key beside it, it is an object of inputs by name.
    with pytest.raises(InvalidInputError, match="Missing named input"):
        parse({"inputs": {"b64": "/w==", "other": 1}}, signature)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"instances": [{"b64": "!"}]}, "not valid base64"),
        ({"instances": [1.5]}, "expected a string"),
        ({"instances": [["a"], ["b", "c"]]}, "unequal length"),
    ],
)
def test_what_is_no_string_is_refused_where_strings_are_taken(content, message):
    with pytest.raises(InvalidInputError, match=message):
        parse(content, TEXT)


@pytest.mark.parametrize(
    "content", [{"instances": [{"b64": "AA=="}]}, {"inputs": {"x": [{"b64": "AA=="}, "a"]}}]
)
def test_bytes_are_refused_where_numbers_are_taken(content):
    with pytest.raises(InvalidInputError, match=r"Input 'x': received"):
        ONE.bind(parse(content).inputs)


@pytest.mark.parametrize("rows", [[[1, 2], {"x": [1, 2]}], [{"x": [1, 2]}, [1, 2], [1, 2]]])
def test_rows_are_all_named_or_none_is(rows):
    with pytest.raises(InvalidInputError, match="Number 0 and number 1 differ"):
        parse({"instances": rows})


def test_columns_need_every_input_and_may_have_more():
    columns = {"a": [[1, 2]], "b": [[5]], "more": 3}
    assert parse({"inputs": columns}, TWO).inputs == {"a": [[1, 2]], "b": [[5]]}
    with pytest.raises(InvalidInputError, match=r"Missing named input: \['b'\].*received \['a'\]"):
        parse({"inputs": {"a": [[1, 2]]}}, TWO)
    with pytest.raises(InvalidInputError, match="Did you mean 'b' instead of 'bb'"):
        parse({"inputs": {"a": [[1, 2]], "bb": 1}}, TWO)


def test_what_stands_beside_the_question_is_passed_over():
    assert parse({"instances": [[1, 2]], "parameters": {}, "x": 1}).inputs == {"x": [[1, 2]]}


@pytest.mark.parametrize("name", ["three", 3, None, ["two"]])
def test_another_signature_is_refused(name):
    with pytest.raises(InvalidInputError, match=r"not found .* Expected 'serving_default'"):
        parse({"inputs": [[1, 2]], "signature_name": name})


def test_outputs_of_strings_are_text_or_base64():
    outputs = {
        "label": np.array([b"cat", b"\xff"], object),
        "raw_bytes": np.array([b"a", b"b"], object),
    }
    rows = [
        {"label": "cat", "raw_bytes": {"b64": "YQ=="}},
        {"label": {"b64": "/w=="}, "raw_bytes": {"b64": "Yg=="}},
    ]
    assert encode(outputs, is_row_form=True) == {"predictions": rows}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "uint64", "bool"])
@pytest.mark.parametrize("is_row_form", [True, False])
@pytest.mark.parametrize("names", [["y"], ["y", "z"]])
def test_numbers_of_every_dtype_read_back_as_they_were(dtype, is_row_form, names):
    pytest.importorskip("ml_dtypes")
    array = np.array([[0.1, 1.0], [0.2, 0.0]]).astype(dtype)
    content = encode(dict.fromkeys(names, array), is_row_form)
    values = content["predictions" if is_row_form else "outputs"]
    for name in names:
        if len(names) == 1:
            rows = values
        else:
            rows = [row[name] for row in values] if is_row_form else values[name]
        assert np.array(rows).astype(dtype).tolist() == array.tolist()


def test_every_version_has_its_state_the_newest_first():
    states = tf_serving.format_versions(
        [
            tf_serving.VersionStatus(1, "UNLOADING"),
            tf_serving.VersionStatus(12, "END", "INTERNAL", "no memory"),
            tf_serving.VersionStatus(2, "AVAILABLE"),
        ]
    )["model_version_status"]
    assert [state["version"] for state in states] == ["12", "2", "1"]
    assert states[0]["status"] == {"error_code": "INTERNAL", "error_message": "no memory"}


def test_metadata_has_the_version_that_was_asked_for():
    metadata = tf_serving.format_metadata("m", TEXT, "7")
    assert metadata["model_spec"]["version"] == "7"
    definitions = metadata["metadata"]["signature_def"]["signature_def"]
    assert definitions["serving_default"]["inputs"]["s"]["dtype"] == "DT_STRING"


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
