"""The routine passes sound layers, and fails each of the broken ones for the right reason."""

import unittest

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.testing import LayerTestCase

register = keras.saving.register_keras_serializable("layer_test_case_test")


@register
class Scale(keras.Layer):
    """A sound layer: each feature times its weight times a factor."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.supports_masking = True

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1],), name="kernel")

    def call(self, inputs):
        return inputs * ops.cast(self.kernel, inputs.dtype) * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def run(layer_class, **kwargs):
    LayerTestCase().run_layer_test(layer_class, {"factor": 2.0}, (3, 4, 5), **kwargs)


def test_a_sound_layer_passes():
    def oracle(layer, inputs):
        return inputs.astype("float64") * ops.convert_to_numpy(layer.kernel) * 2.0

    run(Scale, oracle=oracle)


@pytest.mark.parametrize(
    ("layer_class", "init_kwargs", "input_shape", "input_dtype"),
    [
        (keras.layers.Dense, {"units": 4}, (2, 3, 5), "float32"),
        (keras.layers.LayerNormalization, {}, (2, 3, 5), "float32"),
        (keras.layers.Embedding, {"input_dim": 3, "output_dim": 2}, (2, 4), "int32"),
        (keras.layers.Add, {}, [(2, 3), (2, 3)], "float32"),
        (keras.layers.Dropout, {"rate": 0.5}, (2, 3, 4), "float32"),
    ],
)  # fmt: skip
def test_layers_of_keras_pass(layer_class, init_kwargs, input_shape, input_dtype):
    class Routine(LayerTestCase):
        def check_config(self, subject):
            """Some of Keras's own layers leave arguments out of their config."""

        def check_small_inputs(self, subject):
            """On TensorFlow, Keras takes a summand of no rows for a bias, and fails."""
            if layer_class is not keras.layers.Add:
                super().check_small_inputs(subject)

    has_mask = layer_class not in (keras.layers.Embedding, keras.layers.Add)
    Routine().run_layer_test(
        layer_class, init_kwargs, input_shape, input_dtype, supports_masking=has_mask
    )


@register
class ScaleWithoutNames(Scale):
    """A sound layer whose weight has the name that Keras counts up."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1],))


def test_a_layer_that_names_no_weight_passes():
    run(ScaleWithoutNames)


@register
class HasSubLayer(Scale):
    """A sound layer with a sub-layer that has the name that Keras counts up."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(factor, **kwargs)
        self.dense = keras.layers.Dense(2, dtype=self.dtype_policy)

    def build(self, input_shape):
        super().build(input_shape)
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(super().call(inputs))


def test_a_layer_that_names_no_sub_layer_passes():
    case = LayerTestCase()
    case.check_config(case.make_subject(HasSubLayer, {"factor": 2.0}, (3, 4, 5)))


@register
class Pair(Scale):
    """A sound layer of two arguments."""

    def build(self, left_shape, right_shape):
        super().build(left_shape)

    def call(self, left, right):
        return super().call(left) + right


def test_a_layer_of_two_arguments_passes():
    shapes = {"left": (3, 4, 5), "right": (3, 1, 5)}
    LayerTestCase().run_layer_test(Pair, {"factor": 2.0}, shapes, supports_masking=False)


def test_it_works_as_a_case_of_unittest():
    class ScaleTest(LayerTestCase):
        def test_scale(self):
            self.run_layer_test(Scale, {"factor": 2.0}, (2, 3))

        def test_broken(self):
            self.run_layer_test(ForgetsArgument, {"factor": 2.0}, (2, 3))

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(ScaleTest).run(result)
    assert result.testsRun == 2
    assert [case.id().rpartition(".")[2] for case, _ in result.failures] == ["test_broken"]
    assert not result.errors


@register
class ForgetsArgument(Scale):
    def get_config(self):
        config = super().get_config()
        del config["factor"]
        return config


def test_a_forgotten_argument_fails():
    with pytest.raises(AssertionError, match="forgotten arguments"):
        run(ForgetsArgument)


@register
class ForgetsDefaultArgument(ForgetsArgument):
    """Forgets an argument that the test does not even give."""


def test_an_argument_is_missed_though_it_was_left_at_its_default():
    with pytest.raises(AssertionError, match="forgotten arguments"):
        LayerTestCase().run_layer_test(ForgetsDefaultArgument, {}, (3, 4, 5))


@register
class WritesOtherArgument(Scale):
    def get_config(self):
        return {**super().get_config(), "factor": 3.0}


def test_an_argument_that_comes_back_as_another_fails():
    with pytest.raises(AssertionError, match="Output after load_model"):
        run(WritesOtherArgument)


@register
class ChangesArgument(Scale):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(factor * 2, **kwargs)


def test_a_config_that_grows_at_each_round_trip_fails():
    with pytest.raises(AssertionError, match="differs after from_config"):
        run(ChangesArgument)


@register
class SavesNothing(Scale):
    def save_own_variables(self, store):
        store["0"] = np.zeros(5)


def test_weights_that_are_not_saved_fail():
    with pytest.raises(AssertionError, match="Output after load_model"):
        run(SavesNothing)


@register
class SymbolicShapeDiffers(Scale):
    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 1)


def test_a_wrong_symbolic_shape_fails():
    with pytest.raises(AssertionError, match=r"[Ss]hape"):
        run(SymbolicShapeDiffers)


@register
class SymbolicDtypeDiffers(Scale):
    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, "float16")


def test_a_wrong_symbolic_dtype_fails():
    with pytest.raises(AssertionError, match="Symbolic and eager dtype"):
        run(SymbolicDtypeDiffers)


@register
class CompiledDiffers(Scale):
    """Counts its calls in Python, where no compiled function sees it."""

    def call(self, inputs):
        self.num_calls = getattr(self, "num_calls", 0) + 1
        return super().call(inputs) * self.num_calls


def test_a_compiled_output_that_differs_fails():
    case = LayerTestCase()
    with pytest.raises(AssertionError, match="Compiled output against the eager one"):
        case.check_execution(case.make_subject(CompiledDiffers, {"factor": 2.0}, (3, 4, 5)))


def test_a_wrong_formula_fails_against_the_oracle():
    with pytest.raises(AssertionError, match="Output against the oracle"):
        run(Scale, oracle=lambda layer, inputs: 2.001 * inputs * ops.convert_to_numpy(layer.kernel))


@register
class RefusesEmptyBatch(Scale):
    def call(self, inputs):
        if inputs.shape[0] == 0:
            raise ValueError("Nothing to take the mean of.")
        return super().call(inputs)


@register
class RefusesLengthOne(Scale):
    def call(self, inputs):
        if inputs.shape[1] == 1:
            raise ValueError("Nothing to compare with.")
        return super().call(inputs)


@register
class DropsLengthOne(Scale):
    """As a `squeeze` without an axis would."""

    def call(self, inputs):
        outputs = super().call(inputs)
        return outputs[:, 0] if inputs.shape[1] == 1 else outputs

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize(
    ("layer_class", "message"),
    [
        (RefusesEmptyBatch, "fails on an empty batch: .*Nothing"),
        (RefusesLengthOne, "fails on a sequence of one: .*Nothing"),
        (DropsLengthOne, r"Symbolic shape \(3, 1, 5\), eager shape \(3, 5\), of a sequence of one"),
    ],
)
def test_a_layer_that_fails_on_small_inputs_fails(layer_class, message):
    case = LayerTestCase()
    subject = case.make_subject(layer_class, {"factor": 2.0}, (3, 4, 5))
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        case.check_small_inputs(subject)


@register
class DropsMask(Scale):
    def compute_mask(self, inputs, previous_mask):
        return None


@register
class InvertsMask(Scale):
    def compute_mask(self, inputs, previous_mask):
        return None if previous_mask is None else ops.logical_not(previous_mask)


@register
class IgnoresMask(Scale):
    """Passes the mask on and lets what it hides reach every step."""

    def call(self, inputs):
        return super().call(inputs - ops.mean(inputs, axis=1, keepdims=True))


@register
class KnowsNoMask(Scale):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(factor, **kwargs)
        self.supports_masking = False


@pytest.mark.parametrize(
    ("layer_class", "message"),
    [
        (DropsMask, "the mask was dropped"),
        (InvertsMask, "the mask was changed"),
        (IgnoresMask, "the hidden changed"),
        (KnowsNoMask, "Set `self.supports_masking = True` .* or pass `supports_masking=False`"),
    ],
)
def test_a_mishandled_mask_fails(layer_class, message):
    with pytest.raises(AssertionError, match=message):
        run(layer_class)


def test_a_layer_without_masking_passes_where_none_is_asked_for():
    run(KnowsNoMask, supports_masking=False)


@register
class StopsInputGradient(Scale):
    def call(self, inputs):
        return super().call(ops.stop_gradient(inputs))


@register
class StopsWeightGradient(Scale):
    def call(self, inputs):
        return inputs * ops.stop_gradient(ops.cast(self.kernel, inputs.dtype)) * self.factor


@register
class HalvesGradient(Scale):
    """The right output with half of its gradient."""

    def call(self, inputs):
        outputs = super().call(inputs)
        return (outputs + ops.stop_gradient(outputs)) / 2


@pytest.mark.parametrize(
    ("layer_class", "name"),
    [
        (StopsInputGradient, "input 0"),
        (StopsWeightGradient, r"stops_weight_gradient\S*/kernel"),
        (HalvesGradient, "input 0"),
    ],
)
def test_a_wrong_gradient_fails_and_is_named(layer_class, name):
    case = LayerTestCase()
    with pytest.raises(AssertionError, match=f"Gradient by {name} against finite differences"):
        case.check_gradients(case.make_subject(layer_class, {"factor": 2.0}, (3, 4, 5)))


@register
class StaysInFullPrecision(Scale):
    def call(self, inputs):
        return super().call(ops.cast(inputs, "float32"))


@register
class SubLayerInFullPrecision(HasSubLayer):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(factor, **kwargs)
        self.dense = keras.layers.Dense(2, dtype="float32")


@register
class Overflows(Scale):
    """Right in float32; the intermediate value exceeds what float16 holds."""

    def call(self, inputs):
        return super().call(inputs * 1e5) / 1e5


@register
class Cancels(Scale):
    """Right in float32; half precision loses the digits that remain."""

    def call(self, inputs):
        return super().call((inputs + 100.0) - 100.0)


@pytest.mark.parametrize(
    ("layer_class", "message"),
    [
        (StaysInFullPrecision, "Output dtype under mixed_bfloat16"),
        (SubLayerInFullPrecision, "give each sub-layer `dtype=self.dtype_policy`"),
        (Overflows, "Output under mixed_float16"),
        (Cancels, "Output under mixed_bfloat16"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_layer_that_breaks_in_half_precision_fails(layer_class, message):
    case = LayerTestCase()
    with pytest.raises(AssertionError, match=message):
        case.check_half_precision(case.make_subject(layer_class, {"factor": 2.0}, (3, 4, 5)))


@register
class Explodes(Scale):
    """Finite outputs, and a gradient that is not."""

    def call(self, inputs):
        return super().call(inputs) + ops.sqrt(
            ops.abs(self.kernel - ops.stop_gradient(self.kernel))
        )


def test_a_fit_that_ruins_the_weights_fails():
    case = LayerTestCase()
    with pytest.raises(AssertionError, match="is not finite"):
        case.check_training(case.make_subject(Explodes, {"factor": 2.0}, (3, 4, 5)))
