from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.runtimes.tensorrt_engine.engine_runner import EngineRunner
from keras_deepseek.deploy.formats.tensorrt_engine.build_engine import (
    build_engine,
    resolve_profiles,
)
from keras_deepseek.errors import ExportError, NotSupportedError
from tests.oracles.tensorrt_stand_in import Context

SIGNATURE = Signature(inputs=(TensorSpec("input_0", (None, 4), "float32"),), outputs=())
TWO = [{"batch": (1, 1, 1)}, {"batch": (4, 4, 8)}]
KERNEL, BIAS = np.arange(12.0, dtype="float32").reshape(4, 3), np.ones(3, "float32")


def run_engine(tensorrt, engine, samples):
    runner = EngineRunner(tensorrt, engine)
    return [runner.run(sample) for sample in samples]


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
    with pytest.raises(
        NotSupportedError, match=r"no profile for .*\(2, 4\).*export it with such profiles="
    ):
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
def test_an_error_of_tensorrt_is_raised(plain_tensorrt, engine, step, match):
    plain_tensorrt.failing = {step}
    with pytest.raises(ExportError, match=match):
        run_engine(plain_tensorrt, engine, [batch(1)])


def test_memory_that_can_not_be_had_is_an_error(plain_tensorrt, engine, cuda):
    cuda.failing = {"cudaMalloc"}
    with pytest.raises(ExportError, match="cudaMalloc failed"):
        run_engine(plain_tensorrt, engine, [batch(1)])


def test_bytes_of_another_dtype_are_not_handed_over(plain_tensorrt, engine):
    with pytest.raises(
        NotSupportedError, match=r"expects float32 for input .input_0.; the model has float64"
    ):
        run_engine(plain_tensorrt, engine, [batch(1, "float64")])
    plain_tensorrt.input_dtype = plain_tensorrt.DataType.FP8
    with pytest.raises(NotSupportedError, match="'input_0' has dtype FP8"):
        run_engine(plain_tensorrt, engine, [batch(1)])


def test_an_output_whose_size_only_the_data_tell_is_named(plain_tensorrt, engine):
    plain_tensorrt.output_size_is_known = False
    with pytest.raises(NotSupportedError, match="size of output 'output_0' depends on the data"):
        run_engine(plain_tensorrt, engine, [batch(1)])


def test_room_for_the_largest_batch_is_reserved_once(plain_tensorrt, engine, cuda):
    runner = EngineRunner(plain_tensorrt, engine)
    assert sorted(map(len, cuda.memory.values())) == [8 * 3 * 4, 8 * 4 * 4]
    num_reserved = cuda.num_reserved
    for size in (1, 8, 4, 1, 8):
        runner.run(batch(size))
    assert cuda.num_reserved == num_reserved


def test_memory_that_does_not_fit_is_reserved_on_demand(plain_tensorrt, engine, cuda):
    cuda.capacity = 5 * 7 * 4
    runner = EngineRunner(plain_tensorrt, engine)
    for size in (1, 4, 5):
        expected = batch(size)["input_0"] @ KERNEL + BIAS
        np.testing.assert_allclose(runner.run(batch(size))["output_0"], expected, rtol=1e-6)
    with pytest.raises(ExportError, match="cudaMalloc failed"):
        runner.run(batch(8))
    runner.run(batch(1))


def test_a_profile_is_chosen_when_it_changes(plain_tensorrt, engine, monkeypatch):
    chosen = []
    set_profile = Context.set_optimization_profile_async
    monkeypatch.setattr(
        Context,
        "set_optimization_profile_async",
        lambda self, index, stream: chosen.append(index) or set_profile(self, index, stream),
    )
    run_engine(plain_tensorrt, engine, [batch(size) for size in (8, 4, 1, 1, 5)])
    assert chosen == [0, 1, 0, 1]


def test_all_is_given_back(plain_tensorrt, engine, cuda):
    runner = EngineRunner(plain_tensorrt, engine)
    runner.run(batch(1))
    runner.close()
    assert (cuda.memory, cuda.streams) == ({}, {})
    runner.close()


def test_outputs_of_one_batch_are_not_those_of_the_next(plain_tensorrt, engine):
    first, second = run_engine(plain_tensorrt, engine, [batch(4), batch(5)])
    np.testing.assert_allclose(first["output_0"], batch(4)["input_0"] @ KERNEL + BIAS, rtol=1e-6)
    assert not np.shares_memory(first["output_0"], second["output_0"])


def test_runners_on_several_threads_do_not_meet(plain_tensorrt, engine):
    """Each works its batches off while the other is amid its own."""
    runners = [EngineRunner(plain_tensorrt, engine) for _ in range(2)]

    def work(runner, sizes):
        return [runner.run(batch(size))["output_0"] for size in sizes]

    sizes = [(4, 5, 6, 7, 8) * 20, (8, 1, 1, 4) * 25]
    with ThreadPoolExecutor(2) as pool:
        received = list(pool.map(work, runners, sizes))
    for these, outputs in zip(sizes, received, strict=True):
        for size, output in zip(these, outputs, strict=True):
            np.testing.assert_allclose(output, batch(size)["input_0"] @ KERNEL + BIAS, rtol=1e-6)
