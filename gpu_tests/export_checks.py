"""Exports, run by what serves them on a GPU."""

import importlib.util
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gpu_tests.place import Place, Skipped
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import TITLES, import_library
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.formats.tensorrt_engine.flavor import TURING, known_capabilities
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.inference.executors.open_executor import open_executor
from keras_deepseek.testing import assert_close

TOLERANCE = {"float32": 2e-3, "float16": 2e-2}
"""The largest difference, as a share of the largest number.

ONNX Runtime and TensorRT may multiply in TensorFloat-32, which keeps ten bits: it is left on, as
users have it."""

CUDA = "CUDAExecutionProvider"


def _model() -> keras.Model:
    """Returns a model with convolution, attention, normalisation and a free batch size."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), name="image")
    x = keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="gelu")(image)
    x = keras.layers.Reshape((64, 32))(x)
    y = keras.layers.LayerNormalization()(x)
    x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(4, 8)(y, y)])
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(64, activation="relu")(x))
    return keras.Model(image, keras.layers.Dense(10, name="logits")(x), name="checked")


def _images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")


def _compare(target: Place, received: dict[str, Any], model: keras.Model, precision: str) -> str:
    expected, output = model.predict(_images(), verbose=0), received["logits"]
    assert_close(target.measured(output), expected, TOLERANCE[precision], "Outputs")
    return f"outputs differ by {np.abs(output - expected).max():.1g}"


def check_onnx(target: Place) -> str:
    """Exports to ONNX, and runs it as serving does: on the GPU, and nowhere else."""
    model = _model()
    with tempfile.TemporaryDirectory() as folder:
        report = Exporter(model, "onnx", verbose=False).export(Path(folder) / "bundle")
        assert report.verified, str(report)
        executor = open_executor(report.path)
        text = _compare(target, executor.run({"image": _images()}), model, "float32")
        used = executor._session.get_providers()
        import onnxruntime

        if CUDA not in onnxruntime.get_available_providers():
            raise Skipped(
                f"{text} on the CPU; the installed onnxruntime has no CUDA: onnxruntime-gpu has"
            )
        assert used[0] == CUDA, f"onnxruntime could not load CUDA's libraries, and took {used}"
        on_cuda, num_nodes = _count_nodes(report.path / "model.onnx", Path(folder))
    assert on_cuda > num_nodes / 2, f"{on_cuda} of {num_nodes} nodes ran by CUDA"
    return f"verified; {text}; {on_cuda} of {num_nodes} nodes ran by CUDA"


def _count_nodes(file: Path, folder: Path) -> tuple[int, int]:
    """Returns how many nodes of an ONNX file ran by CUDA, and how many in all."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(file, options, [CUDA, "CPUExecutionProvider"])
    session.run(None, {"image": _images()})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    providers = [
        event["args"]["provider"] for event in events if "provider" in event.get("args", {})
    ]
    return providers.count(CUDA), len(providers)


def check_tensorrt(target: Place) -> str:
    """Builds an engine by plain TensorRT, verifies it, and runs it as serving does."""
    return _check_engine(target, "tensorrt", {})


def check_tensorrt_rtx(target: Place) -> str:
    """The same by TensorRT-RTX, for this GPU alone."""
    library, capability = import_library("rtx", "to build an engine"), _capability()
    options: dict[str, Any] = {}
    if capability is not None:
        capabilities = known_capabilities(library)
        if capability not in capabilities:
            raise Skipped(
                f"TensorRT-RTX builds for {', '.join(capabilities)}; this GPU is {capability}"
            )
        options["compute_capabilities"] = (capability,)
        if capability == TURING:
            options["precision"] = "float16"
    return _check_engine(target, "rtx", options)


def _check_engine(target: Place, flavor: str, options: dict[str, Any]) -> str:
    library = import_library(flavor, "to build an engine")
    if target.is_gpu and importlib.util.find_spec("cuda") is None:
        raise Skipped("cuda-python, which runs engines, is not installed")
    model = _model()
    try:
        exporter = Exporter(model, "tensorrt", flavor=flavor, verbose=False, **options)
    except NotSupportedError as error:
        if target.is_gpu:
            raise
        raise Skipped(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        report = exporter.export(Path(folder) / "bundle")
        if not target.is_gpu:
            raise Skipped(f"built, and not run: {report.verification.reason}")
        assert report.verified, str(report)
        executor = open_executor(report.path)
        try:
            received = executor.run({"image": _images()})
        finally:
            executor.close()
        text = _compare(target, received, model, options.get("precision", "float32"))
    return f"{TITLES[flavor]} {library.__version__}, verified; {text}"


def _capability() -> str | None:
    """Returns the compute capability of the first GPU, as in `"86"`; `None` where none is."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    command += [f"--id={index}"] if index else []
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.split()[0].replace(".", "") if result.stdout.split() else None
