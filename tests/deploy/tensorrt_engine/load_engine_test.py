import numpy as np
import pytest

from keras_deepseek.artifacts.errors import ExportError, NotSupportedError
from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.deploy.tensorrt_engine.build_engine import build_engine
from keras_deepseek.deploy.tensorrt_engine.load_engine import load_engine
from keras_deepseek.deploy.tensorrt_engine.profiles import resolve_profiles

SIGNATURE = Signature(inputs=(TensorSpec("input_0", (None, 4), "float32"),), outputs=())
TWO = [{"batch": (1, 1, 1)}, {"batch": (4, 4, 8)}]
KERNEL, BIAS = np.arange(12.0, dtype="float32").reshape(4, 3), np.ones(3, "float32")


def run_engine(tensorrt, engine, samples):
    infer = load_engine(tensorrt, engine)
    return [infer(sample) for sample in samples]


def batch(size, dtype="float32"):
    return {"input_0": np.random.default_rng(size).normal(size=(size, 4)).astype(dtype)}


@pytest.fixture
def engine(plain_tensorrt, tmp_path):
    np.savez(tmp_path / "model.npz", kernel=KERNEL, bias=BIAS)
    profiles = resolve_profiles(SIGNATURE, TWO)
    return build_engine(plain_tensorrt, tmp_path / "model.npz", profiles, ())


def test_each_batch_is_run_in_the_profile_that_has_room_for_it(plain_tensorrt, engine):
    samples = [batch(8), batch(1), {"input_0": batch(4)["input_0"][:, ::-1]}]
    received = run_engine(plain_tensorrt, engine, samples)
    for sample, outputs in zip(samples, received, strict=True):
        expected = sample["input_0"] @ KERNEL + BIAS
        np.testing.assert_allclose(outputs["output_0"], expected, rtol=1e-6)


def test_a_batch_without_a_profile_is_named(plain_tensorrt, engine):
    with pytest.raises(NotSupportedError, match=r"no profile for .*\(2, 4\).*pass the profiles="):
        run_engine(plain_tensorrt, engine, [batch(1), batch(2)])


def test_an_engine_of_another_gpu_is_not_loaded(plain_tensorrt, engine):
    plain_tensorrt.failing = {"load"}
    with pytest.raises(NotSupportedError, match=r"can't load the engine on this GPU: .*no luck"):
        run_engine(plain_tensorrt, engine, [batch(1)])


@pytest.mark.parametrize(
    ("step", "match"),
    [
        ("execute", "failed to run"),
        ("profile", "refused optimisation profile 0"),
        ("shape", r"refused shape \(1, 4\) of input 'input_0'"),
    ],
)
def test_what_tensorrt_refuses_is_an_error(plain_tensorrt, engine, step, match):
    plain_tensorrt.failing = {step}
    with pytest.raises(ExportError, match=match):
        run_engine(plain_tensorrt, engine, [batch(1)])


def test_memory_that_can_not_be_had_is_an_error(plain_tensorrt, engine, cuda):
    cuda.failing = {"cudaMalloc"}
    with pytest.raises(ExportError, match="cudaMalloc failed"):
        run_engine(plain_tensorrt, engine, [batch(1)])


def test_bytes_of_another_dtype_are_not_handed_over(plain_tensorrt, engine):
    with pytest.raises(
        NotSupportedError, match=r"takes float32 for input 'input_0', and .* float64"
    ):
        run_engine(plain_tensorrt, engine, [batch(1, "float64")])
    plain_tensorrt.input_dtype = plain_tensorrt.DataType.FP8
    with pytest.raises(NotSupportedError, match="'input_0' is of FP8"):
        run_engine(plain_tensorrt, engine, [batch(1)])


def test_an_output_whose_size_only_the_data_tell_is_named(plain_tensorrt, engine):
    plain_tensorrt.output_size_is_known = False
    with pytest.raises(NotSupportedError, match="size of output 'output_0' depends on the data"):
        run_engine(plain_tensorrt, engine, [batch(1)])
