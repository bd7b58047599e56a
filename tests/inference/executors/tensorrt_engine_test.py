import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from keras_deepseek.artifacts import (
    Bundle,
    InvalidInputError,
    Manifest,
    MissingExtraError,
    NotSupportedError,
    Signature,
    TensorSpec,
    Verification,
)
from keras_deepseek.artifacts.bundle import publish_bundle
from keras_deepseek.artifacts.staging_folder import staging_folder
from keras_deepseek.backend.runtimes.tensorrt_engine import libraries
from keras_deepseek.deploy.formats.tensorrt_engine.build_engine import (
    build_engine,
    resolve_profiles,
)
from keras_deepseek.errors import ExportError
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.executors import open_executor
from keras_deepseek.inference.executors.runtimes import TensorRTEngine

SIGNATURE = Signature(
    inputs=(TensorSpec("input_0", (None, 4), "float32"),),
    outputs=(TensorSpec("output_0", (None, 3), "float32"),),
)
MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
KERNEL = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
X = np.random.default_rng(1).normal(size=(40, 4)).astype("float32")


@pytest.fixture
def engine_of(plain_tensorrt, tmp_path):
    """Writes a bundle with an engine of one Dense layer."""

    def write(name="engine", flavor="tensorrt", bias=0.0, profiles=None, signature=SIGNATURE):
        np.savez(tmp_path / "weights.npz", kernel=KERNEL, bias=np.full(3, bias, "float32"))
        sizes = resolve_profiles(SIGNATURE, profiles or {"batch": (1, 4, 8)})
        with staging_folder(tmp_path / name) as folder:
            engine = build_engine(plain_tensorrt, tmp_path / "weights.npz", sizes, ())
            (folder / "model.trt").write_bytes(engine)
            manifest = Manifest(
                name="dense",
                format="tensorrt",
                entry="model.trt",
                signature=signature,
                precision="float32",
                route=f"a test (flavor {flavor}) for this GPU",
                versions={},
                created="2026-01-01T00:00:00Z",
                verification=Verification("unverified", "a test"),
            )
            return publish_bundle(folder, tmp_path / name, manifest)

    return write


@pytest.mark.parametrize("flavor", MODULES)
def test_an_engine_is_run_by_the_library_that_built_it(
    engine_of, plain_tensorrt, monkeypatch, flavor
):
    bundle = engine_of(flavor=flavor)
    for name in MODULES.values():
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"to serve an engine.*keras_deepseek\[tensorrt"):
        open_executor(bundle.path)
    monkeypatch.setitem(sys.modules, MODULES[flavor], plain_tensorrt)
    executor = open_executor(bundle.path)
    assert executor.signature == SIGNATURE
    for rows in (1, 8, 3):
        outputs = executor.run({"input_0": X[:rows]})
        np.testing.assert_allclose(outputs["output_0"], X[:rows] @ KERNEL, rtol=1e-6)


def test_a_served_batch_is_bit_equal_to_the_executor_called_at_that_size(engine_of):
    bundle = engine_of()
    direct = TensorRTEngine(bundle)
    with ServingEngine(bundle.path, max_batch_size=8) as engine:
        for rows, size in ((8, 8), (4, 4), (3, 4), (1, 1)):
            filled = np.concatenate([X[:rows], X[rows - 1 : rows].repeat(size - rows, axis=0)])
            expected = direct.run({"input_0": filled})["output_0"][:rows]
            np.testing.assert_array_equal(engine.predict(X[:rows]), expected)


def test_replicas_have_a_stream_and_memory_each_and_run_at_one_time(
    engine_of, cuda, plain_tensorrt, monkeypatch
):
    bundle = engine_of()
    both = threading.Barrier(2)
    with ServingEngine(bundle.path, replicas=2, max_batch_size=4) as engine:
        assert len(cuda.streams) == 2
        assert len(cuda.memory) == 4
        synchronize = cuda.cudaStreamSynchronize
        meetings = []

        def meet(stream):
            # Each of the first two batches waits here, amid its run, until the other has come.
            if len(meetings) < 2:
                meetings.append(threading.get_ident())
                both.wait(60)
            return synchronize(stream)

        monkeypatch.setattr(cuda, "cudaStreamSynchronize", meet)
        answers = [engine.submit(X[index : index + 4]) for index in range(0, 40, 4)]
        for index, answer in zip(range(0, 40, 4), answers, strict=True):
            expected = X[index : index + 4] @ KERNEL
            np.testing.assert_allclose(answer.result()["output_0"], expected, rtol=1e-6)
        assert len(set(meetings)) == 2
    assert (cuda.memory, cuda.streams) == ({}, {})


def test_a_hot_reload_fails_no_request_and_gives_the_old_engine_s_memory_back(engine_of, cuda):
    first, second = engine_of("1"), engine_of("2", bias=5.0)
    with ServingEngine(first.path, replicas=2, max_batch_size=8) as engine:
        done = threading.Event()

        def ask():
            answers = []
            while not done.is_set():
                answers.append(engine.predict(X[:1]))
            return answers

        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(ask) for _ in range(2)]
            engine.load(second.path)
            done.set()
            answers = [answer for future in futures for answer in future.result()]
        for answer in answers:
            assert np.allclose(answer, X[:1] @ KERNEL) or np.allclose(answer, X[:1] @ KERNEL + 5)
        np.testing.assert_allclose(engine.predict(X[:1]), X[:1] @ KERNEL + 5, rtol=1e-6)
        assert len(cuda.streams) == 2


def test_an_engine_that_fails_its_warm_up_leaves_the_old_one_and_no_memory(
    engine_of, cuda, plain_tensorrt
):
    first, second = engine_of("1"), engine_of("2", profiles={"batch": (1, 1, 2)})
    with ServingEngine(first.path, max_batch_size=8) as engine:
        with pytest.raises(NotSupportedError, match=r"no profile for .*\(4, 4\).* from \(1, 4\)"):
            engine.load(second.path)
        assert len(cuda.streams) == 1
        np.testing.assert_allclose(engine.predict(X[:1]), X[:1] @ KERNEL, rtol=1e-6)


def test_without_a_gpu_it_says_so_in_a_sentence(engine_of, num_gpus):
    bundle = engine_of()
    num_gpus(0)
    with pytest.raises(NotSupportedError) as caught:
        ServingEngine(bundle.path)
    assert str(caught.value) == (
        f"The bundle at {str(bundle.path)!r} holds a TensorRT engine, which runs on an NVIDIA GPU, "
        "and none is visible here."
    )


def test_names_that_differ_from_the_manifest_are_refused(engine_of, cuda):
    other = replace(SIGNATURE, inputs=(TensorSpec("x", (None, 4), "float32"),))
    with pytest.raises(InvalidInputError, match=r"inputs \['input_0'\].*manifest says \['x'\]"):
        open_executor(engine_of(signature=other).path)
    assert (cuda.memory, cuda.streams) == ({}, {})


def test_a_manifest_that_names_no_library_is_refused(engine_of):
    with pytest.raises(InvalidInputError, match="does not say which of TensorRT, TensorRT-RTX"):
        TensorRTEngine(engine_of(flavor="unknown"))


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaStreamSynchronize", "cudaMemcpyAsync"])
def test_what_cuda_refuses_fails_the_batch_and_not_the_server(engine_of, cuda, call):
    with ServingEngine(engine_of().path, max_batch_size=4, warm_up=False) as engine:
        engine.find()._executors[0]._runner._memory.free()  # As where the GPU was full.
        cuda.failing = {call}
        with pytest.raises(ExportError, match=f"CUDA's {call} failed"):
            engine.predict(X[:2])
        cuda.failing = set()
        np.testing.assert_allclose(engine.predict(X[:2]), X[:2] @ KERNEL, rtol=1e-6)


@pytest.mark.skipif(not libraries.count_gpus(), reason="It needs an NVIDIA GPU.")
@pytest.mark.parametrize("flavor", MODULES)
def test_a_real_engine_is_served_on_a_gpu(tmp_path, flavor):
    """Has not run yet: no machine of ours has a GPU."""
    for package in ("onnx", "tensorflow", "cuda", MODULES[flavor]):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    import keras

    from keras_deepseek.deploy import Exporter

    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")])
    Exporter(model, "tensorrt", flavor=flavor, verbose=False).export(tmp_path / "engine")
    direct = TensorRTEngine(Bundle.open(tmp_path / "engine"))
    with ServingEngine(tmp_path / "engine", replicas=2, max_batch_size=32) as engine:
        for rows in (32, 8, 1):
            served = engine.predict(X[:rows])
            np.testing.assert_array_equal(served, direct.run({"x": X[:rows]})["y"])
            np.testing.assert_allclose(served, model.predict(X[:rows], verbose=0), atol=1e-2)
