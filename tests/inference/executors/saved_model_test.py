import json
import os
import shutil
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import numpy as np
import pytest

from keras_deepseek.artifacts import (
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
    Signature,
    TensorSpec,
)
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.executors.runtimes import SavedModel

WITHOUT = find_spec("tensorflow") is None
needs_tensorflow = pytest.mark.skipif(WITHOUT, reason="TensorFlow is not installed")

IN_TENSORFLOW_1 = """
import sys, tensorflow as tf
v1 = tf.compat.v1
with tf.Graph().as_default(), v1.Session() as session:
    x = v1.placeholder(tf.float32, None if sys.argv[2] == "any" else [None, 2], name="in")
    weights = v1.get_variable("w", [2, 3], initializer=v1.constant_initializer(2.0))
    y = x * 2 if sys.argv[2] == "any" else tf.matmul(x, weights)
    session.run(v1.global_variables_initializer())
    v1.saved_model.simple_save(session, sys.argv[1], {"x": x}, {"y": y})
"""

SERVE_WITHOUT_KERAS = """
import sys
sys.modules["keras"] = None  # Whoever imports it now gets an ImportError.
from keras_deepseek.inference import ServingEngine
with ServingEngine(sys.argv[1]) as engine:
    print(engine.predict([[1, 2, 3]]).shape)
"""


def save(path, functions, name="serving_default", **other_signatures):
    """Saves functions of tensors, each with the specs of what it takes."""
    import tensorflow as tf

    module = tf.Module()
    module.factor = tf.Variable(2.0)
    names = {name: functions, **other_signatures}
    module.functions = {
        key: tf.function(function, input_signature=specs)
        for key, (function, specs) in names.items()
    }
    tf.saved_model.save(module, str(path), signatures=module.functions)
    return path


def spec(shape, dtype, name="x"):
    import tensorflow as tf

    return tf.TensorSpec(shape, getattr(tf, dtype), name=name)


def save_doubler(path, name="serving_default", dtype="float32", shape=(None, 2)):
    return save(path, (lambda x: {"y": x + x}, [spec(shape, dtype)]), name)


def save_mixed(path):
    """One of several inputs and outputs, of numbers, booleans and strings."""
    import tensorflow as tf

    def mix(text, flags, length):
        upper = tf.strings.upper(text)
        size = tf.strings.length(upper) + tf.cast(length, tf.int32)
        return {"upper": upper, "size": size, "other": tf.logical_not(flags)}

    specs = [
        spec([None], "string", "text"),
        spec([None, None], "bool", "flags"),
        spec([None], "int64", "length"),
    ]
    return save(path, (mix, specs))


def test_a_bundle_is_run_with_the_signature_of_its_manifest(bundle_of, rows):
    pytest.importorskip("tensorflow")
    bundle = bundle_of("savedmodel")
    executor = SavedModel(bundle.entry, bundle.manifest.signature)
    assert executor.signature == bundle.manifest.signature
    assert executor.run(rows(1, 2, 3))["y"][:, 0].tolist() == [2, 4, 6]


@needs_tensorflow
def test_one_of_a_module_is_served_by_its_path(tmp_path):
    path = save_doubler(tmp_path / "model")
    with ServingEngine(str(path), max_batch_size=4) as engine:
        assert engine.signature == Signature(
            (TensorSpec("x", (None, 2), "float32"),), (TensorSpec("y", (None, 2), "float32"),)
        )
        assert engine.predict([[1, 2], [3, 4], [5, 6]]).tolist() == [[2, 4], [6, 8], [10, 12]]


@needs_tensorflow
@pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND") != "tensorflow", reason="Keras exports it on TensorFlow"
)
def test_one_that_keras_exported_is_served_where_keras_is_not(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    model.export(tmp_path / "model", verbose=False)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    with ServingEngine(tmp_path / "model", max_batch_size=8) as engine:
        np.testing.assert_allclose(engine.predict(x), model.predict(x, verbose=0), atol=1e-6)
    command = [sys.executable, "-c", SERVE_WITHOUT_KERAS, str(tmp_path / "model")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "(1, 2)\n", result.stderr


@needs_tensorflow
@pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND") != "tensorflow", reason="Keras exports it on TensorFlow"
)
def test_one_of_strings_that_keras_exported_is_served(tmp_path):
    import keras

    words = keras.Input((1,), dtype="string", name="word")
    word_ids = keras.layers.StringLookup(vocabulary=["cat", "dog"])(words)
    model = keras.Model(words, keras.layers.Embedding(3, 2, name="vector")(word_ids))
    model.export(tmp_path / "model", verbose=False)
    with ServingEngine(tmp_path / "model", max_batch_size=4) as engine:
        assert [spec.dtype for spec in engine.signature.inputs] == ["object"]
        served = engine.predict([["dog"], ["unknown"], ["cat"]])
    np.testing.assert_array_equal(served[:, 0], model.layers[-1].get_weights()[0][[2, 0, 1]])


@needs_tensorflow
def test_several_inputs_and_outputs_of_any_dtype_come_by_name(tmp_path):
    executor = SavedModel(save_mixed(tmp_path / "model"))
    assert executor.signature == Signature(
        inputs=(
            TensorSpec("flags", (None, None), "bool"),
            TensorSpec("length", (None,), "int64"),
            TensorSpec("text", (None,), "object"),
        ),
        outputs=(
            TensorSpec("other", (None, None), "bool"),
            TensorSpec("size", (None,), "int32"),
            TensorSpec("upper", (None,), "object"),
        ),
    )
    with ServingEngine(tmp_path / "model", max_batch_size=4) as engine:
        flags = [[True, False], [False, False], [True, True]]
        inputs = {"text": ["a", "bc", ""], "flags": flags, "length": [1, 2, 3]}
        answer = engine.predict(inputs)
        assert answer["upper"].tolist() == [b"A", b"BC", b""]
        assert answer["size"].tolist() == [2, 4, 3]
        assert answer["other"].tolist() == [[not flag for flag in row] for row in flags]
        # NumPy's own arrays of strings and of bytes, and bytes that are no text.
        for text in (np.array(["a"]), np.array([b"a"]), np.array([b"a"], object)):
            single_answer = engine.predict({"text": text, "flags": [[True]], "length": [0]})
            assert single_answer["upper"].tolist() == [b"A"]
        nothing = engine.predict(
            {"text": np.array([], object), "flags": np.zeros((0, 2), bool), "length": []}
        )
        assert {name: array.shape for name, array in nothing.items()} == {
            "other": (0, 2),
            "size": (0,),
            "upper": (0,),
        }


@needs_tensorflow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8", "uint64", "bool"])
def test_each_dtype_of_numbers_is_served(tmp_path, dtype):
    path = save(tmp_path / "model", (lambda x: {"y": x[:, ::-1]}, [spec((None, 2), dtype)]))
    with ServingEngine(path, max_batch_size=2) as engine:
        answer = engine.predict([[0, 1]])
        assert (str(answer.dtype), answer.tolist()) == (dtype, [[1, 0]])


@needs_tensorflow
def test_of_several_signatures_the_default_is_served(tmp_path):
    half = (lambda x: {"y": x / 2}, [spec((None, 2), "float32")])
    path = save(
        tmp_path / "model", (lambda x: {"y": 2 * x}, [spec((None, 2), "float32")]), half=half
    )
    assert SavedModel(path).run({"x": np.ones((1, 2), "float32")})["y"].tolist() == [[2, 2]]


@needs_tensorflow
def test_the_only_signature_is_served_whatever_its_name(tmp_path):
    path = save_doubler(tmp_path / "model", "score")
    assert SavedModel(path).run({"x": np.ones((1, 2), "float32")})["y"].tolist() == [[2, 2]]


@needs_tensorflow
def test_several_of_other_names_are_refused(tmp_path):
    of = (lambda x: {"y": x}, [spec((None, 2), "float32")])
    path = save(tmp_path / "model", of, "score", other=of)
    with pytest.raises(
        InvalidInputError, match=r"\['other', 'score'\]; expected .*serving_default"
    ):
        SavedModel(path)


@needs_tensorflow
def test_one_without_a_signature_is_refused(tmp_path):
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "model"))
    with pytest.raises(InvalidInputError, match=r"has the signatures \[\]"):
        SavedModel(tmp_path / "model")


@needs_tensorflow
@pytest.mark.parametrize(
    ("shape", "match"),
    [
        (None, r"Input 'x' .* has an unknown rank"),
        ((), r"Input 'x' .* has no axis for the rows"),
        ((3, 2), r"Input 'x' .* has a first axis of 3.*tf\.TensorSpec\(\[None"),
    ],
)
def test_what_has_no_rows_first_is_refused(tmp_path, shape, match):
    with pytest.raises(NotSupportedError, match=match):
        SavedModel(save_doubler(tmp_path / "model", shape=shape))


def give_sum(x):
    import tensorflow as tf

    return {"y": tf.reduce_sum(x)}


def give_column_sums(x):
    import tensorflow as tf

    return {"y": tf.reduce_sum(x, axis=0)}


def give_complex(x):
    import tensorflow as tf

    return {"y": tf.complex(x, x)}


@needs_tensorflow
@pytest.mark.parametrize(
    ("function", "match"),
    [
        (give_sum, r"Output 'y' .* has no axis for the rows"),
        (give_column_sums, r"Output 'y' .* has a first axis of 2"),
        (give_complex, r"Output 'y' .* has the dtype complex64"),
    ],
)
def test_outputs_without_rows_are_refused(tmp_path, function, match):
    path = save(tmp_path / "model", (function, [spec((None, 2), "float32")]))
    with pytest.raises(NotSupportedError, match=match):
        SavedModel(path)


@needs_tensorflow
def test_outputs_that_have_not_a_row_for_each_are_refused_before_it_is_ready(tmp_path):
    import tensorflow as tf

    input_signature = [spec((None, None), "float32")]
    path = save(tmp_path / "wide", (lambda x: {"y": tf.reshape(x, [-1])}, input_signature))
    with (
        ServingEngine(path) as engine,
        pytest.raises(NotSupportedError, match=r"Output 'y' has shape \(2,\) for 1 rows"),
    ):
        engine.predict([[1, 2]])
    # Where it can be run beforehand, it is.
    path = save(
        tmp_path / "fixed",
        (lambda x: {"y": tf.reshape(x, [-1])}, [spec((None, 2), "float32")]),
    )
    with pytest.raises(NotSupportedError, match=r"Output 'y' has shape \(2,\) for 1 rows"):
        ServingEngine(path).start()


def save_in_tensorflow_1(path, shape):
    # It leaves a changed state behind, and warns.
    command = [sys.executable, "-c", IN_TENSORFLOW_1, str(path), shape]
    subprocess.run(command, check=True, capture_output=True)


@needs_tensorflow
def test_one_of_tensorflow_1_is_served(tmp_path):
    save_in_tensorflow_1(tmp_path / "model", "rows")
    with ServingEngine(tmp_path / "model", max_batch_size=4) as engine:
        assert engine.signature.inputs == (TensorSpec("x", (None, 2), "float32"),)
        assert engine.signature.outputs == (TensorSpec("y", (None, 3), "float32"),)
        assert engine.predict([[1, 2], [3, 4]]).tolist() == [[6] * 3, [14] * 3]


@needs_tensorflow
@pytest.mark.nightly
def test_one_of_tensorflow_1_of_no_known_rank_is_refused(tmp_path):
    save_in_tensorflow_1(tmp_path / "model", "any")
    with pytest.raises(NotSupportedError, match="has an unknown rank"):
        SavedModel(tmp_path / "model")


def cut_graph(path):
    graph = path / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:200])


def cut_variables(path):
    (data,) = (path / "variables").glob("*.data*")
    data.write_bytes(data.read_bytes()[:1])


def spoil_graph(path):
    (path / "saved_model.pb").write_bytes(b"nonsense")


def lose_variables(path):
    shutil.rmtree(path / "variables")


@needs_tensorflow
@pytest.mark.parametrize("damage", [cut_graph, spoil_graph, cut_variables, lose_variables])
def test_a_damaged_one_is_refused_in_one_line(tmp_path, damage):
    path = save_doubler(tmp_path / "model")
    damage(path)
    with pytest.raises(InvalidInputError, match=r"No SavedModel can be loaded") as caught:
        ServingEngine(path)
    assert "\n" not in str(caught.value)


def test_a_bundle_that_holds_no_saved_model_is_refused(bundle_of):
    pytest.importorskip("tensorflow")
    with pytest.raises(InvalidInputError, match="No SavedModel"):
        SavedModel(bundle_of("other").path)


@needs_tensorflow
def test_strings_go_to_a_process_of_their_own_and_over_http(tmp_path):
    pytest.importorskip("uvicorn")
    path = save_mixed(tmp_path / "model")
    with ServingEngine(path, isolated=True, max_batch_size=2) as engine:
        server = engine.serve(http_port=0)
        body = {"instances": [{"text": "é", "flags": [True], "length": 4}]}
        request = urllib.request.Request(
            f"{server.url}/v1/models/model:predict", json.dumps(body).encode()
        )
        with urllib.request.urlopen(request) as answer:
            (row,) = json.load(answer)["predictions"]
        assert row == {"upper": "é", "size": 6, "other": [False]}
        for page in ("/openapi.json", "/v1/models/model/metadata", "/v2/models/model", "/"):
            with urllib.request.urlopen(server.url + page) as answer:
                assert answer.status == 200


def test_the_error_names_the_extra_where_tensorflow_is_missing(bundle_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[tensorflow\]"):
        SavedModel(bundle_of("other").path)


@needs_tensorflow
def test_values_that_tensorflow_refuses_are_the_fault_of_their_request(tmp_path):
    import tensorflow as tf

    def look_up(x):
        return {"y": tf.gather(tf.constant([1.0, 2.0]), x)}

    executor = SavedModel(save(tmp_path / "model", (look_up, [spec((None,), "int32")])))
    assert executor.run({"x": np.array([1], "int32")})["y"].tolist() == [2.0]
    with pytest.raises(InvalidInputError, match=r"refuses the inputs: .* = 2 is not in \[0, 2\)"):
        executor.run({"x": np.array([2], "int32")})
