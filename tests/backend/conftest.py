"""Models of each kind that a backend must take."""

import keras
import pytest


def build_convolutional() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


def build_recurrent() -> keras.Model:
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    features = keras.layers.Embedding(11, 6, mask_zero=True)(tokens)
    return keras.Model(tokens, keras.layers.LSTM(5, name="state")(features))


def build_two_inputs_and_a_dict() -> keras.Model:
    left_input = keras.Input((4,), name="left")
    right_input = keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([left_input, right_input])
    return keras.Model(
        {"left": left_input, "right": right_input},
        {"sum": keras.layers.Dense(2)(both), "product": keras.layers.Dense(5)(both)},
    )


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.drop = keras.layers.Dropout(0.5)

    def call(self, inputs, training=False):
        return self.drop(self.dense(inputs), training=training)


def build_subclassed() -> keras.Model:
    model = Subclassed()
    model(keras.ops.zeros((1, 4)))
    return model


BUILDERS = {
    "convolutional": build_convolutional,
    "recurrent": build_recurrent,
    "two inputs, a dict out": build_two_inputs_and_a_dict,
    "subclassed": build_subclassed,
}


@pytest.fixture(params=BUILDERS)
def model(request):
    return BUILDERS[request.param]()


@pytest.fixture
def convolutional():
    return build_convolutional()


class Applied(keras.layers.Layer):
    def __init__(self, function, dtype):
        super().__init__(dtype=dtype)
        self.function = function

    def call(self, *inputs):
        return self.function(*inputs)


@pytest.fixture
def run_both(tmp_path):
    """Runs a function of tensors as a model, and as the ONNX file that TensorFlow writes."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    from keras_deepseek.backend import current
    from keras_deepseek.backend.export.named_model import NamedModel

    def run(function, *arrays):
        """Returns what the model gives, and its ONNX file; and the operators in that."""
        inputs = [
            keras.Input(array.shape[1:], dtype=str(array.dtype), name=f"x{index}")
            for index, array in enumerate(arrays)
        ]
        # Floats of the model's inputs are cast to its layers' type.
        dtype = "float64" if any(array.dtype == "float64" for array in arrays) else None
        outputs = Applied(function, dtype)(*inputs)
        model = NamedModel(keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs))
        path = str(tmp_path / "model.onnx")
        current().export.write_onnx(model, path, 18)
        session = onnxruntime.InferenceSession(path)
        names = [value.name for value in session.get_inputs()]
        assert sorted(names) == [value.name for value in inputs]
        batch = {f"x{index}": array for index, array in enumerate(arrays)}
        received = session.run(None, batch)
        expected = [keras.ops.convert_to_numpy(output) for output in model(batch).values()]
        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert all(map(onnx.defs.has, operators))
        if len(received) == 1:
            return expected[0], received[0], operators
        return expected, received, operators

    return run
