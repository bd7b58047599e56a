"""TensorFlow itself says what an operation computes; LiteRT computes what replaces it."""

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.runtimes.litert_model import LiteRTModel

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow alone has a converter", allow_module_level=True)

import tensorflow as tf

from keras_deepseek.backend.tensorflow.litert_operations import rewrite

pytestmark = pytest.mark.tensorflow_alone


def steps(tensor):
    """A loop that fills a list from a list, both with a free batch."""
    count = tf.shape(tensor)[1]
    first, second = (tf.TensorArray(tf.float32, count, element_shape=(None, 4)) for _ in range(2))
    inputs = first.unstack(tf.transpose(tensor, [1, 0, 2]))
    _, outputs = tf.while_loop(
        lambda step, _: step < count,
        lambda step, outputs: (step + 1, outputs.write(step, inputs.read(step) * 2.0)),
        (0, second),
    )
    return outputs.stack()


def mask_of(tensor):
    return tensor > 0.0


OPERATIONS = {
    "a list in a loop": ("TensorListReserve", steps),
    "a roll": ("Roll", lambda x: tf.roll(x, -3, axis=1)),
    "a roll of two steps": ("Roll", lambda x: tf.roll(x, 2, axis=2)),
    "an upper bound": (
        "UpperBound",
        lambda x: tf.searchsorted(tf.sort(x[:, 0]), x[:, -1], side="right"),
    ),
    "a lower bound": (
        "LowerBound",
        lambda x: tf.searchsorted(tf.sort(x[:, 0]), tf.sort(x[:, 0]), out_type=tf.int64),
    ),
    "new axes first": ("StridedSlice", lambda x: mask_of(x)[None, None]),
    "a new axis behind": ("StridedSlice", lambda x: mask_of(x)[..., None]),
    "new axes around": ("StridedSlice", lambda x: mask_of(x)[:, None, ..., None, :]),
    "a product over one axis": ("Einsum", lambda x: tf.einsum("abc,ab->ac", x, x[:, :, 0])),
    "an outer product": ("Einsum", lambda x: tf.einsum("abc,abd->dabc", x, x)),
    "a product over two": ("Einsum", lambda x: tf.einsum("abc,dbc->da", x, x)),
}


def save(function, folder):
    module = tf.Module()
    spec = tf.TensorSpec((None, None, 4), tf.float32, name="x")
    module.run = tf.function(lambda x: {"y": function(x)}, input_signature=[spec])
    signatures = {"serving_default": module.run.get_concrete_function()}
    tf.saved_model.save(module, str(folder / "saved"), signatures=signatures)
    return folder / "saved"


def check_litert(function, saved_model, path):
    """Converts a SavedModel, and compares what LiteRT computes with what the function gives."""
    export = backend.current().export
    path.write_bytes(export.convert_to_litert(saved_model, in_float16=False, calibration=None))
    model = LiteRTModel(path, "to test it")
    random = np.random.default_rng(0)
    for shape in ((2, 5, 4), (3, 2, 4), (1, 1, 4)):
        x = random.integers(-3, 4, shape).astype("float32")
        expected, received = function(tf.constant(x)).numpy(), model.run({"x": x})["y"]
        assert received.dtype == expected.dtype
        np.testing.assert_allclose(received, expected, atol=1e-5)


@pytest.mark.parametrize("case", OPERATIONS)
def test_an_operation_is_replaced_by_others_of_the_same_result(case, tmp_path):
    name, function = OPERATIONS[case]
    assert rewrite(save(function, tmp_path), [name], tmp_path / "rewritten")
    check_litert(function, tmp_path / "rewritten", tmp_path / "model.tflite")


def test_operations_are_replaced_that_others_hid(tmp_path):
    """The converter refuses lists before it looks for the operations of the rest."""

    def function(tensor):
        return steps(tf.roll(tensor, 1, axis=1))

    check_litert(function, save(function, tmp_path), tmp_path / "model.tflite")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, 1:],
        lambda x: tf.einsum("abc->cab", x),
        lambda x: tf.einsum("...c,...c->...", x, x),
    ],
    ids=["a part", "one tensor", "an ellipsis"],
)
def test_what_can_not_be_replaced_stays(function, tmp_path):
    saved_model = save(function, tmp_path)
    assert not rewrite(saved_model, ["Einsum", "StridedSlice"], tmp_path / "rewritten")
    assert not (tmp_path / "rewritten").exists()
