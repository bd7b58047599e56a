import json

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.protocols.json_text import (
    inputs_from_rows,
    load_object,
    rows_from_outputs,
    to_json,
)

TEXT = Signature((TensorSpec("s", (None,), "object"),), ())
TWO = Signature((TensorSpec("a", (None,), "int32"), TensorSpec("b", (None, 2), "float32")), ())


def test_rows_become_inputs_by_name():
    rows = [{"a": 1, "b": [2, 3]}, {"a": 4, "b": [5, 6]}]
    assert inputs_from_rows(rows, TWO, "rows") == {"a": [1, 4], "b": [[2, 3], [5, 6]]}
    assert inputs_from_rows(["x", {"b64": "/w=="}], TEXT, "rows")["s"].tolist() == [b"x", b"\xff"]
    assert inputs_from_rows([], TWO, "rows")["b"].shape == (0, 2)


@pytest.mark.parametrize("rows", [3, [1], [{"a": 1}, 2], [{"a": 1}, {"b": [1, 2]}]])
def test_an_error_names_the_field_of_the_request(rows):
    with pytest.raises(InvalidInputError, match="'lines'"):
        inputs_from_rows(rows, TWO, "lines")


@pytest.mark.parametrize(
    ("outputs", "rows"),
    [
        ({"y": np.array([[1, 2], [3, 4]])}, [[1, 2], [3, 4]]),
        ({"y": np.array([1]), "s": np.array(["a"], object)}, [{"y": 1, "s": "a"}]),
        ({"s": np.array([b"\xff"], object)}, [{"b64": "/w=="}]),
    ],
)
def test_outputs_become_rows(outputs, rows):
    assert json.loads(to_json(rows_from_outputs(outputs))) == rows


def test_a_body_that_is_no_object_is_refused_in_the_words_of_the_protocol():
    assert load_object(b'{"rows": []}', "with 'rows'") == {"rows": []}
    with pytest.raises(InvalidInputError, match="Expected a JSON object with 'rows'; received "):
        load_object(b"[]", "with 'rows'")
