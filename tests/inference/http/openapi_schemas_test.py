import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.http import openapi_schemas
from keras_deepseek.inference.http.openapi_schemas import array_schema, example_of, value_schema

SEVERAL = Signature(
    (TensorSpec("a", (None, 2), "int64"), TensorSpec("b", (None, None), "object")),
    (TensorSpec("y", (None, 1), "float32"), TensorSpec("z", (None,), "bool")),
)
ONE = Signature(SEVERAL.inputs[:1], SEVERAL.outputs[:1])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_bounds_of_a_float_are_where_the_server_refuses_it(dtype):
    limit = value_schema(dtype)["exclusiveMaximum"]
    spec = TensorSpec("x", (None,), dtype)
    assert np.isfinite(spec.check([np.nextafter(limit, 0), -np.nextafter(limit, 0)])).all()
    for value in (limit, -limit):
        with pytest.raises(InvalidInputError):
            spec.check([value])


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint64"])
def test_the_bounds_of_an_integer_are_where_the_server_refuses_it(dtype):
    schema, spec = value_schema(dtype), TensorSpec("x", (None,), dtype)
    assert spec.check([schema["maximum"]]) == schema["maximum"]
    assert spec.check([schema["minimum"]]) == schema["minimum"]
    for value in (schema["maximum"] + 1, schema["minimum"] - 1):
        with pytest.raises(InvalidInputError):
            spec.check([value])


def test_lists_have_the_lengths_of_their_axes():
    value = {"type": "number"}
    inner = {"type": "array", "items": value, "minItems": 3, "maxItems": 3}
    assert array_schema(value, (None, 3)) == {"type": "array", "items": inner}
    assert array_schema(value, ()) is value


def test_an_example_fits_the_input_unless_it_would_be_long():
    for spec in SEVERAL.inputs:
        shape = np.shape(example_of(spec, rows=2))
        assert [shape[0], len(shape)] == [2, len(spec.shape)]
    assert example_of(SEVERAL.inputs[0]) == [0, 0]
    assert example_of(TensorSpec("x", (None, 224, 224, 3), "float32")) is None


def test_a_model_of_one_input_may_be_asked_without_its_name():
    rows, columns = openapi_schemas.predict_request(ONE)["oneOf"]
    assert len(rows["properties"]["instances"]["anyOf"]) == 2
    assert len(columns["properties"]["inputs"]["anyOf"]) == 2
    rows, columns = openapi_schemas.predict_request(SEVERAL)["oneOf"]
    assert rows["properties"]["instances"]["items"]["required"] == ["a", "b"]
    assert columns["properties"]["inputs"]["required"] == ["a", "b"]


def test_the_examples_are_what_the_protocols_read():
    from keras_deepseek.inference.protocols.open_inference import parse_infer
    from keras_deepseek.inference.protocols.tf_serving import parse_predict, to_json

    for signature in (ONE, SEVERAL):
        (example,) = openapi_schemas.predict_request(signature)["examples"]
        assert signature.bind(parse_predict(to_json(example), signature).inputs)
        (example,) = openapi_schemas.infer_request(signature)["examples"]
        assert signature.bind(parse_infer(to_json(example)).inputs)


def test_features_are_flat():
    features = openapi_schemas.examples_request(SEVERAL)["properties"]["examples"]["items"]
    assert features["properties"]["a"]["minItems"] == 2
    assert "minItems" not in features["properties"]["b"]
    assert features["required"] == ["a", "b"]


def test_answers_have_the_names_of_the_outputs():
    rows, columns = openapi_schemas.predict_answer(SEVERAL)["oneOf"]
    assert rows["properties"]["predictions"]["items"]["required"] == ["y", "z"]
    assert columns["properties"]["outputs"]["required"] == ["y", "z"]
    tensors = openapi_schemas.infer_answer(SEVERAL)["properties"]["outputs"]["items"]["anyOf"]
    assert [tensor["properties"]["datatype"]["const"] for tensor in tensors] == ["FP32", "BOOL"]
