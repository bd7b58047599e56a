import keras
import numpy as np
import pytest

from keras_deepseek.backend import current
from keras_deepseek.backend.tensor_values import multiply_gradients
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.training.step.gradient_clip import (
    check_gradient_clip,
    check_single_clip,
    clip_gradients,
)

RNG = np.random.default_rng(0)
GRADIENTS = [RNG.normal(size=shape).astype("float32") for shape in ((3, 4), (4,), (2, 3, 5), ())]
WEIGHTS = [RNG.normal(size=array.shape).astype("float32") for array in GRADIENTS]


def clip(kind, bound, gradients=GRADIENTS, weights=WEIGHTS):
    tensors = [keras.ops.convert_to_tensor(array) for array in gradients]
    norm = current().step.global_norm(tensors)
    clipped, factor = clip_gradients((kind, bound), tensors, weights, norm)
    assert (factor is None) == (kind != "global_norm")
    clipped = multiply_gradients(clipped, factor)
    return [keras.ops.convert_to_numpy(tensor) for tensor in clipped]


def shrink(array, norm, most):
    return array * np.where(norm > most, most / norm, 1.0)


def assert_close(gradients, expected):
    for received, reference in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(received, reference, rtol=1e-6, atol=1e-7)


def test_clip_by_value():
    assert_close(clip("value", 0.5), [np.clip(array, -0.5, 0.5) for array in GRADIENTS])


def test_clip_by_norm():
    expected = [shrink(array, np.sqrt((array**2).sum()), 1.0) for array in GRADIENTS]
    assert_close(clip("norm", 1.0), expected)


def test_clip_by_global_norm():
    norm = np.sqrt(sum((array**2).sum() for array in GRADIENTS))
    assert_close(clip("global_norm", 1.0), [shrink(array, norm, 1.0) for array in GRADIENTS])


def test_gradients_within_the_bound_are_unchanged():
    for kind in ("value", "norm", "global_norm"):
        assert_close(clip(kind, 100.0), GRADIENTS)


def test_adaptive_clip_by_the_norm_of_weights():
    axes = [(0,), (0,), (0, 1), None]
    expected = [
        shrink(
            gradient,
            np.sqrt((gradient**2).sum(axis=axis, keepdims=True)),
            0.1 * np.sqrt((weight**2).sum(axis=axis, keepdims=True)),
        )
        for gradient, weight, axis in zip(GRADIENTS, WEIGHTS, axes, strict=True)
    ]
    assert_close(clip("adaptive", 0.1), expected)


def test_adaptive_clip_changes_weights_of_zero():
    (clipped,) = clip("adaptive", 0.1, [np.ones((3, 2), "float32")], [np.zeros((3, 2), "float32")])
    np.testing.assert_allclose(clipped, np.full((3, 2), 1e-4 / np.sqrt(3)), rtol=1e-5)


def test_gradients_of_zero_stay():
    zeros = [np.zeros_like(array) for array in GRADIENTS]
    for kind in ("value", "norm", "global_norm", "adaptive"):
        assert_close(clip(kind, 1.0, zeros), zeros)


@pytest.mark.parametrize(
    ("gradient_clip", "message"),
    [
        (1.0, r"a kind .* and a finite bound .*, as in \('global_norm', 1\.0\); received 1\.0"),
        (("global_norm",), "received"),
        (("globalnorm", 1.0), r"'global_norm' or .*; received \('globalnorm', 1.0\)"),
        (("norm", 0.0), r"bound above 0.*; received \('norm', 0\.0\)"),
        (("norm", float("nan")), r"received \('norm', nan\)"),
    ],
)
def test_invalid_clips_are_refused(gradient_clip, message):
    with pytest.raises(InvalidInputError, match=message):
        check_gradient_clip(gradient_clip)


@pytest.mark.parametrize("name", ["clipvalue", "clipnorm", "global_clipnorm"])
@pytest.mark.parametrize("scales", [False, True])
def test_clips_of_trainer_and_optimizer_are_refused(name, scales):
    optimizer = keras.optimizers.SGD(**{name: 2.0})
    if scales:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    check_single_clip(None, optimizer)
    with pytest.raises(InvalidInputError, match=rf"clips by {name}=2\.0 and the trainer by"):
        check_single_clip(("norm", 1.0), optimizer)


@pytest.mark.parametrize("clips_in_workers", [True, False])
def test_gradients_that_are_accumulated_apart_are_not_clipped(clips_in_workers):
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    check_single_clip(("norm", 1.0), optimizer)
    if not clips_in_workers:
        apart = keras.optimizers.OptimizerMap(default_optimizer=optimizer)
        optimizer = keras.optimizers.MultiOptimizer(apart)
    check_single_clip(None, optimizer, clips_in_workers=clips_in_workers)
    with pytest.raises(NotSupportedError, match="MultiOptimizer accumulate them apart"):
        check_single_clip(("norm", 1.0), optimizer, clips_in_workers=clips_in_workers)
