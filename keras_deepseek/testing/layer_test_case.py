"""A reusable test case for Keras layers, for this package and its users."""

# ruff: noqa: PT009 - `unittest` assertions work in unittest and pytest, and under `python -O`.

import inspect
import json
import re
import tempfile
import unittest
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.testing.layer_subject import (
    SEED,
    AttachMask,
    LayerSubject,
    RecordMask,
    is_float,
    to_arrays,
    to_tensors,
)
from keras_deepseek.testing.tolerances import assert_close, assert_gradients

Oracle = Callable[[keras.Layer, Any], Any]


class LayerTestCase(unittest.TestCase):
    """A test case that checks a layer for everything that Keras expects of layers.

    Use it as a base class with `unittest`, or call `LayerTestCase().run_layer_test(...)` from a
    test function of pytest. `run_layer_test` runs the checks below for one set of arguments and one
    input shape. Call it once for each combination that matters.

    | check | fails if |
    |---|---|
    | config | `get_config` lacks an argument, or the layer made from it differs |
    | saving | a model with the layer returns other outputs after saving and loading |
    | execution | symbolic, eager and compiled outputs, or those of the oracle, differ |
    | small inputs | an empty batch, or a sequence of one, fails or has outputs of another shape |
    | training | one step of a compiled `fit` leaves a loss or a weight that is not finite |
    | half precision | outputs have another dtype, are not finite, or far from those in float32 |
    | masking | the mask is not passed on, or hidden tokens change visible ones |
    | gradients | automatic gradients differ from finite differences |

    Each test adds random noise to the trainable weights, because zeros and ones hide mistakes.

    Example:

    >>> from keras_deepseek.layers import SwiGLU
    >>> from keras_deepseek.testing import LayerTestCase
    >>> case = LayerTestCase()
    >>> case.check_config(case.make_subject(SwiGLU, {"intermediate_dim": 4}, (2, 3, 5)))
    """

    def run_layer_test(
        self,
        layer_class: type[keras.Layer],
        init_kwargs: Mapping[str, Any],
        input_shape: Any,
        input_dtype: Any = "float32",
        *,
        oracle: Oracle | None = None,
        supports_masking: bool = True,
    ) -> None:
        """Runs every check on one layer, with random noise added to its trainable weights.

        Args:
            layer_class: `keras.Layer` class that is registered as serializable.
            init_kwargs: dict. The arguments of the class.
            input_shape: tuple of integers, including the batch; a list of tuples for a layer that
                takes a list; or a dict of tuples by the names of `call`'s arguments.
            input_dtype: string, or a list or dict of strings in the form of `input_shape`. Integers
                are 0 or 1. Defaults to `"float32"`.
            oracle: function or `None`. Takes the built layer and the NumPy inputs, and returns the
                expected outputs, in float64. The weights have noise: read them from the layer.
                Defaults to `None`.
            supports_masking: boolean. If true, the layer must pass on a mask of the first input.
                Defaults to `True`.

        Raises:
            AssertionError: A check failed. The message says which.
        """
        subject = self.make_subject(layer_class, init_kwargs, input_shape, input_dtype)
        self.check_config(subject)
        self.check_saving(subject)
        self.check_execution(subject, oracle)
        self.check_small_inputs(subject)
        self.check_training(subject)
        self.check_half_precision(subject)
        if supports_masking:
            self.check_masking(subject)
        self.check_gradients(subject)

    def make_subject(
        self,
        layer_class: type[keras.Layer],
        init_kwargs: Mapping[str, Any],
        input_shape: Any,
        input_dtype: Any = "float32",
    ) -> LayerSubject:
        """Returns the argument of the checks, from the arguments of `run_layer_test`."""
        return LayerSubject.from_shapes(layer_class, init_kwargs, input_shape, input_dtype)

    def check_config(self, subject: LayerSubject) -> None:
        """Checks that the config holds every argument, is JSON, and recreates the same weights."""
        layer = subject.make_layer()
        config = _as_json(layer.get_config())
        arguments = _named_arguments(subject.layer_class) | set(subject.init_kwargs)
        self.assertEqual(sorted(arguments - set(config)), [], "get_config: forgotten arguments")
        revived = subject.layer_class.from_config(_as_json(config))
        self.assertEqual(
            _as_json(revived.get_config()), config, "get_config: differs after from_config"
        )
        subject.call(revived, subject.symbolic_inputs())
        self.assertEqual(
            _describe_weights(revived), _describe_weights(layer), "from_config: other weights"
        )

    def check_saving(self, subject: LayerSubject) -> None:
        """Checks that a model with the layer returns equal outputs after saving and loading."""
        model = subject.make_model(subject.make_layer())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            revived = keras.saving.load_model(path)
        inputs = to_tensors(subject.inputs)
        self._assert_all_close(
            to_arrays(revived(inputs)), to_arrays(model(inputs)), "Output after load_model"
        )

    def check_execution(self, subject: LayerSubject, oracle: Oracle | None = None) -> None:
        """Checks that symbolic, eager and compiled calls agree, also with the oracle."""
        layer = subject.make_layer()
        eager = subject.call(layer, to_tensors(subject.inputs))
        symbolic = subject.call(layer, subject.symbolic_inputs())
        keras.tree.map_structure(self._assert_spec, symbolic, eager)
        if oracle is not None:
            expected = keras.tree.flatten(oracle(layer, subject.inputs))
            self._assert_all_close(to_arrays(eager), expected, "Output against the oracle")
        first = keras.tree.map_structure(lambda array: array[:1], subject.inputs)
        compiled, of_first = subject.compile(layer), subject.call_once(layer, first)
        # Two batch sizes: neither may be hard-coded.
        for inputs, expected in ((subject.inputs, eager), (first, of_first)):
            self._assert_all_close(
                compiled(inputs), to_arrays(expected), "Compiled output against the eager one"
            )

    def check_small_inputs(self, subject: LayerSubject) -> None:
        """Checks the output shapes of an empty batch and of a sequence of length one."""
        layer = subject.make_layer()
        for what, inputs in subject.small_inputs(layer).items():
            specs = keras.tree.map_structure(
                lambda array: keras.KerasTensor(array.shape, array.dtype.name), inputs
            )
            try:
                with warnings.catch_warnings():
                    # Keras's own attention warns about a softmax over a single key.
                    warnings.filterwarnings("ignore", "You are using a softmax over axis")
                    symbolic = subject.call(layer, specs)
                    eager = subject.call_once(layer, inputs)
            except Exception as error:
                raise AssertionError(f"The layer fails on {what}: {error}") from error
            keras.tree.map_structure(
                lambda spec, tensor, what=what: self._assert_spec(spec, tensor, f", of {what}"),
                symbolic,
                eager,
            )

    def check_training(self, subject: LayerSubject) -> None:
        """Checks that one step of a compiled `fit` leaves the loss and all weights finite."""
        layer = subject.make_layer()
        model = subject.make_model(layer)
        if not model.trainable_weights:
            return  # Keras warns if a model has nothing to train.
        targets = [np.zeros_like(array) for array in to_arrays(model(to_tensors(subject.inputs)))]
        model.compile(optimizer="sgd", loss=["mse"] * len(targets))
        history = model.fit(subject.inputs, targets, epochs=1, verbose=0)
        self.assertTrue(np.isfinite(history.history["loss"][-1]), "fit: the loss is not finite")
        for weight in model.weights:
            finite = bool(keras.ops.all(keras.ops.isfinite(weight)))
            self.assertTrue(finite, f"fit: {weight.path} is not finite")

    def check_half_precision(self, subject: LayerSubject) -> None:
        """Checks that outputs under mixed policies have the half dtype and are close to float32."""
        full = subject.make_layer(dtype="float32")
        expected = to_arrays(subject.call(full, to_tensors(subject.inputs)))
        for dtype in ("bfloat16", "float16"):
            layer = subject.make_layer(dtype=f"mixed_{dtype}")
            layer.set_weights(full.get_weights())
            outputs = keras.tree.flatten(subject.call_once(layer, subject.inputs))
            for output, array in zip(outputs, expected, strict=True):
                if is_float(array):
                    received = keras.backend.standardize_dtype(output.dtype)
                    advice = "give each sub-layer `dtype=self.dtype_policy`"
                    self.assertEqual(received, dtype, f"Output dtype under mixed_{dtype}: {advice}")
                full_output = keras.ops.convert_to_numpy(keras.ops.cast(output, "float32"))
                assert_close(full_output, array, dtype, f"Output under mixed_{dtype}")

    def check_masking(self, subject: LayerSubject) -> None:
        """Checks that the first mask is passed on, and that masked tokens have no effect.

        The effect is measured on the outputs at visible tokens.
        """
        layer = subject.make_layer()
        if not layer.supports_masking:
            self.fail(
                "Masking: `supports_masking` is False. Set `self.supports_masking = True` in the "
                "layer, or pass `supports_masking=False` to `run_layer_test`."
            )
        first = subject.first_input
        rng = np.random.default_rng(SEED)
        # Two tokens of three are visible, among them the first, and the last is hidden.
        mask = rng.integers(0, 3, first.shape[:-1] if is_float(first) else first.shape) > 0
        mask[..., -1], mask[..., 0] = False, True
        hidden = ~mask[..., None] if is_float(first) else ~mask
        disturbed = np.where(hidden, first + 1, first).astype(first.dtype)
        results = []
        for array in (first, disturbed):
            masked = AttachMask(mask)(keras.ops.convert_to_tensor(array))
            outputs = subject.call(layer, subject.replace_first_input(masked))
            recorder = RecordMask()
            output = recorder(keras.tree.flatten(outputs)[0])
            self.assertIsNotNone(recorder.mask, "Masking: the mask was dropped")
            np.testing.assert_array_equal(recorder.mask, mask, "Masking: the mask was changed")
            results.append(keras.ops.convert_to_numpy(output)[mask])
        assert_close(results[1], results[0], "float32", "Masking: output, the hidden changed")

    def check_gradients(self, subject: LayerSubject) -> None:
        """Checks the gradients by float inputs and trainable weights against finite differences."""
        layer = subject.make_layer()
        variables = list(layer.trainable_variables)
        derived = subject.make_objective(
            layer, lambda inputs: subject.call(layer, to_tensors(inputs))
        )
        # Compiled: one evaluation for each step along each weight would be slow in eager mode.
        measured = subject.make_objective(layer, subject.compile(layer))

        def total(*arrays: Any) -> Any:
            return sum(keras.ops.sum(terms) for terms in derived(arrays))

        def terms(arrays: Sequence[Array]) -> Array:
            """Returns the terms of `total`, at the inputs and weights in `arrays`."""
            for variable, array in zip(variables, arrays[len(inputs) :], strict=True):
                variable.assign(array)
            parts = to_arrays(measured(arrays[: len(inputs)]))
            return np.concatenate([part.ravel().astype("float64") for part in parts])

        inputs = [array for array in keras.tree.flatten(subject.inputs) if is_float(array)]
        by_input, by_variable = backend.current().compute.compute_gradients(
            total, inputs, variables
        )
        assert_gradients(
            terms,
            [*inputs, *to_arrays(variables)],
            [*by_input, *by_variable],
            [f"input {index}" for index in range(len(inputs))] + [v.path for v in variables],
        )

    def _assert_spec(self, spec: Any, tensor: Any, what: str = "") -> None:
        """Fails unless a tensor has the shape, with `None` for any size, and dtype of a spec."""
        received, expected = tuple(tensor.shape), tuple(spec.shape)
        fits = len(received) == len(expected) and all(
            size is None or size == real for size, real in zip(expected, received, strict=True)
        )
        self.assertTrue(fits, f"Symbolic shape {expected}, eager shape {received}{what}")
        self.assertEqual(
            spec.dtype, keras.backend.standardize_dtype(tensor.dtype), "Symbolic and eager dtype"
        )

    def _assert_all_close(
        self, actual: Sequence[Array], expected: Sequence[Array], what: str
    ) -> None:
        self.assertEqual(len(actual), len(expected), f"{what}: number of arrays")
        for actual_array, expected_array in zip(actual, expected, strict=True):
            assert_close(actual_array, expected_array, "float32", what)


def _named_arguments(layer_class: type[keras.Layer]) -> set[str]:
    parameters = inspect.signature(layer_class.__init__).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in kinds} - {"self"}


def _describe_weights(layer: keras.Layer) -> list[tuple[str, tuple[int, ...]]]:
    """Returns path and shape of each weight, without numbers that Keras counts in the process."""
    automatic_number = r"_\d+(?=/)|(?<=variable)_\d+$"
    return [
        (re.sub(automatic_number, "", weight.path), tuple(weight.shape)) for weight in layer.weights
    ]


def _as_json(config: Mapping[str, Any]) -> Any:
    """Returns a config after saving to and loading from JSON, which turns tuples into lists."""
    return json.loads(json.dumps(config))
