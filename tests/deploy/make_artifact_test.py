import errno
import importlib.util
import os
import sys
import traceback
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_deepseek.deploy import make_artifact as module
from keras_deepseek.deploy.formats.registry import ChosenFormat
from keras_deepseek.deploy.formats.tensorrt import TensorRTFormat
from keras_deepseek.deploy.make_artifact import fit_samples, make_artifact
from keras_deepseek.deploy.routes import route
from keras_deepseek.deploy.routes.route import InProcess
from keras_deepseek.errors import ExportError, NotSupportedError

HERE = keras.backend.backend()
ELSEWHERE = "jax" if HERE == "torch" else "torch"


def test_an_artifact_that_computes_the_same_is_verified(tmp_path, weights_format, job_of):
    artifact = make_artifact(job_of(weights_format()), tmp_path, print)
    assert artifact.verification.state == "verified"
    assert artifact.verification.num_samples == 2
    assert artifact.route == "NumPy"


def test_an_artifact_that_differs_fails_and_is_removed(tmp_path, weights_format, job_of):
    reason = rf"through the {keras.backend.backend()} backend: .*differs by"
    with pytest.raises(ExportError, match=reason):
        make_artifact(job_of(weights_format(spoil=0.01)), tmp_path, print)
    assert not any(tmp_path.iterdir())


def test_a_model_that_gives_nan_alone_is_unverified(tmp_path, weights_format, job_of, dense):
    dense.set_weights([np.full((4, 3), np.nan), np.zeros(3)])
    artifact = make_artifact(job_of(weights_format(), dense), tmp_path, print)
    assert artifact.verification.state == "unverified"
    assert "no finite value" in artifact.verification.reason


def test_what_can_not_be_run_here_is_unverified_with_its_reason(tmp_path, weights_format, job_of):
    export_format = weights_format(fail=NotSupportedError("it needs a GPU"))
    artifact = make_artifact(job_of(export_format), tmp_path, print)
    assert artifact.verification.state == "unverified"
    assert artifact.verification.reason == "it needs a GPU"


def test_an_artifact_that_breaks_fails_with_its_reason(tmp_path, weights_format, job_of):
    with pytest.raises(ExportError, match="segment missing"):
        make_artifact(job_of(weights_format(fail=OSError("segment missing"))), tmp_path, print)
    assert not any(tmp_path.iterdir())


def test_the_error_of_a_users_format_is_the_cause(tmp_path, weights_format, job_of):
    class Broken(weights_format):
        def write(self, model, folder):
            raise KeyError("mine")

    with pytest.raises(ExportError, match="KeyError: 'mine'") as caught:
        make_artifact(job_of(Broken()), tmp_path, print)
    frames = traceback.extract_tb(caught.value.__cause__.__traceback__)
    assert (frames[-1].filename, frames[-1].name) == (__file__, "write")


def test_a_format_whose_run_returns_nothing_fails(tmp_path, weights_format, job_of):
    class Forgetful(weights_format):
        def run(self, folder, samples):
            super().run(folder, samples)

    with pytest.raises(ExportError, match="returned NoneType; expected a list"):
        make_artifact(job_of(Forgetful()), tmp_path, print)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it computes them so itself")
@pytest.mark.usefixtures("tensorflow_installed")
def test_tensorflow_is_passed_over_for_products_of_integers(tmp_path, weights_format, job_of):
    class OfTensorFlow(weights_format):
        backends = ("tensorflow",)

    x = keras.Input((4,), dtype="int32")
    model = keras.Model(x, keras.ops.einsum("bi,bi->b", x, x))
    with pytest.raises(ExportError, match=r"computes the integers of Einsum .* in float32"):
        make_artifact(job_of(OfTensorFlow(), model), tmp_path, print)


@pytest.mark.parametrize("entry", ["other.npz", "empty", "."])
def test_a_format_that_writes_no_entry_fails(tmp_path, weights_format, job_of, entry):
    class Elsewhere(weights_format):
        def write(self, model, folder):
            (folder / "empty").mkdir()
            if entry == ".":
                (folder / "empty").rmdir()
            return "NumPy"

        def run(self, folder, samples):
            raise NotSupportedError("it is not run")

    export_format = Elsewhere()
    export_format.entry = entry
    with pytest.raises(ExportError, match=rf"format 'weights' wrote nothing .*{entry!r}"):
        make_artifact(job_of(export_format), tmp_path, print)
    assert not any(tmp_path.iterdir())


def test_a_backend_that_is_not_installed_is_passed_over_and_its_extra_named(
    tmp_path, monkeypatch, weights_format, job_of
):
    running = keras.backend.backend()
    missing = next(name for name in ("tensorflow", "jax") if name != running)
    monkeypatch.setattr(route.importlib.util, "find_spec", lambda name: name != missing or None)
    export_format, stages = weights_format(), []
    export_format.backends = (missing, running)
    artifact = make_artifact(job_of(export_format), tmp_path, print)
    assert artifact.verification.state == "verified"
    (reason,) = artifact.passed_over
    assert f"keras_deepseek[{missing}]" in reason
    export_format.backends = (missing,)
    enough = rf"`{missing}` is not installed. Install it .*'keras_deepseek\[{missing}\]'$"
    with pytest.raises(ExportError, match=enough):
        make_artifact(job_of(export_format), tmp_path, stages.append)
    assert not [stage for stage in stages if "starting" in stage]


def test_of_several_packages_that_are_missing_the_extras_of_the_running_backend_are_enough(
    tmp_path, monkeypatch, weights_format, job_of
):
    json_spec, running = importlib.util.find_spec("json"), keras.backend.backend()
    other = next(name for name in ("tensorflow", "jax") if name != running)
    missing = ("onnx", "orjson", other)
    monkeypatch.setattr(
        route.importlib.util, "find_spec", lambda name: None if name in missing else json_spec
    )
    export_format = weights_format()
    export_format.backends = (other, running)
    export_format.packages = {running: {"onnx": "onnx", "orjson": "serving"}}
    with pytest.raises(ExportError, match=r"`onnx` is not installed. .*\[onnx,serving\]'$"):
        make_artifact(job_of(export_format), tmp_path, print)


def test_what_differs_is_kept_where_it_is_asked_for(tmp_path, weights_format, job_of):
    folder = tmp_path / "artifact"
    folder.mkdir()
    job = job_of(weights_format(spoil=0.01), allows_difference=True)
    artifact = make_artifact(job, folder, print)
    assert artifact.verification.state == "failed"
    assert "differs by" in artifact.verification.reason
    assert (folder / "weights.npz").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_right_route_is_better_than_one_that_differs(
    tmp_path, monkeypatch, weights_format, job_of
):
    """The first route computes something else, the second does not."""

    class Second(InProcess):
        def export(self, job, folder, say):
            job.export_format.spoil = 0.0
            return super().export(job, folder, say)

    monkeypatch.setattr(module, "find_routes", lambda _: [InProcess(HERE), Second(HERE)])
    folder = tmp_path / "artifact"
    folder.mkdir()
    artifact = make_artifact(
        job_of(weights_format(spoil=0.01), allows_difference=True), folder, print
    )
    assert artifact.verification.state == "verified"
    (reason,) = artifact.passed_over
    assert "differs by" in reason


@pytest.mark.parametrize("free", [0, 10**9])
def test_a_full_disk_ends_the_search(tmp_path, weights_format, job_of, monkeypatch, free):
    """A runtime may say so in words of its own, or the system in its."""
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(module, "find_routes", lambda _: [InProcess(HERE), InProcess(ELSEWHERE)])
    words = "iostream error" if free == 0 else os.strerror(errno.ENOSPC)
    stages: list[str] = []
    folder = tmp_path / "work" / "artifact"
    folder.mkdir(parents=True)
    with pytest.raises(ExportError, match=rf"The disk of '{tmp_path}'.* is full: .*{words}"):
        make_artifact(job_of(weights_format(fail=OSError(words))), folder, stages.append)
    assert not any(ELSEWHERE in stage for stage in stages)


def test_an_artifact_that_can_not_be_run_is_a_failed_one(tmp_path, weights_format, job_of):
    job = job_of(weights_format(fail=ValueError("cut short")))
    verification = module.check_artifact(job, tmp_path)
    assert (verification.state, verification.reason) == (
        "failed",
        "it can't be run: ValueError: cut short",
    )


def engine_job(job, **options):
    """Returns a job for an engine whose source is the format of `job`."""
    source = ChosenFormat(job.export_format, None)
    engine = TensorRTFormat(flavor="tensorrt", **options)
    return replace(job, export_format=engine, source=source)


def make_engine(job, folder, **options):
    """Makes an engine of a job whose artifact stands for the ONNX file."""
    (folder / "artifact").mkdir()
    artifact = make_artifact(engine_job(job, **options), folder / "artifact", lambda line: None)
    assert [path.name for path in (folder / "artifact").iterdir()] == ["model.trt"]
    return artifact


@pytest.fixture
def job(job_of, weights_format):
    """A job whose artifact of NumPy stands for the ONNX file."""
    return job_of(weights_format(), has_random_samples=True)


def test_an_engine_is_verified_on_the_sizes_of_its_profiles(job, tmp_path, plain_tensorrt):
    artifact = make_engine(job, tmp_path, profiles=[{"batch": (1, 2, 9)}, {"batch": (9, 9, 9)}])
    assert artifact.verification.state == "verified"
    assert artifact.verification.num_samples == 3
    assert artifact.route == (
        "NumPy, TensorRT 10.16.0 (flavor tensorrt) for this GPU, "
        "profile batch 1/2/9 and batch 9/9/9"
    )


def test_given_samples_are_what_it_is_verified_on(job, tmp_path, plain_tensorrt):
    artifact = make_engine(
        replace(job, has_random_samples=False), tmp_path, profiles={"batch": (3, 3, 3)}
    )
    assert (artifact.verification.state, artifact.verification.num_samples) == ("verified", 1)
    assert artifact.route.endswith(", 1 of the 2 batches left out, whose sizes it does not take")
    fitted, note = fit_samples(job)
    assert (len(fitted.samples), note) == (2, "")


def test_samples_beyond_all_profiles_verify_nothing(job, tmp_path, plain_tensorrt):
    artifact = make_engine(
        replace(job, has_random_samples=False), tmp_path, profiles={"batch": (7, 7, 7)}
    )
    assert artifact.verification.state == "unverified"
    assert "no batch to compare on; the weights" in artifact.verification.reason


def test_what_is_drawn_may_be_left_out_where_the_model_does_not_take_it(
    job_of, weights_format, plain_tensorrt
):
    inputs = keras.Input((None, 3), name="x")
    outputs = keras.layers.Dense(2)(keras.layers.Conv1D(2, 5)(inputs))
    job = job_of(weights_format(), keras.Model(inputs, outputs))
    drawn, _ = fit_samples(engine_job(replace(job, has_random_samples=True)))
    shapes = [sample["x"].shape for (sample,) in drawn.optional_samples]
    assert (drawn.samples, shapes) == ([], [(1, 1, 3), (4, 16, 3), (32, 64, 3)])


def test_an_engine_that_computes_something_else_is_refused(job, tmp_path, plain_tensorrt):
    plain_tensorrt.spoils = 1.0
    with pytest.raises(ExportError, match=r"does not compute .*differs by 1.*is verified"):
        make_engine(job, tmp_path)


def test_where_a_warning_will_do_it_is_failed(job_of, weights_format, tmp_path, plain_tensorrt):
    plain_tensorrt.spoils = 1.0
    artifact = make_engine(
        job_of(weights_format(), has_random_samples=True, allows_difference=True), tmp_path
    )
    assert artifact.verification.state == "failed"
    assert "differs by 1" in artifact.verification.reason


def test_of_a_wrong_onnx_an_engine_is_wrong(job_of, weights_format, tmp_path, plain_tensorrt):
    artifact = make_engine(
        job_of(weights_format(spoil=1.0), has_random_samples=True, allows_difference=True), tmp_path
    )
    assert artifact.verification.state == "failed"
    assert (
        "the weights artifact that it was built from is failed: Output"
        in artifact.verification.reason
    )


def test_without_a_right_onnx_nothing_is_built(job_of, weights_format, tmp_path, plain_tensorrt):
    plain_tensorrt.failing = {"build"}
    with pytest.raises(ExportError, match="can't be exported as weights"):
        make_engine(job_of(weights_format(spoil=1.0), has_random_samples=True), tmp_path)


@pytest.mark.parametrize(
    ("failing", "match"), [("load", "can't load the engine"), ("cuda", "pip install cuda-python")]
)
def test_what_can_not_be_run_is_unverified(
    job, tmp_path, plain_tensorrt, monkeypatch, failing, match
):
    plain_tensorrt.failing = {failing}
    if failing == "cuda":
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    artifact = make_engine(job, tmp_path)
    assert artifact.verification.state == "unverified"
    assert match in artifact.verification.reason
    assert "the weights artifact that it was built from is verified" in artifact.verification.reason


def test_a_gpu_that_fails_fails_the_export(job, tmp_path, plain_tensorrt):
    plain_tensorrt.failing = {"execute"}
    with pytest.raises(ExportError, match="failed to run the engine"):
        make_engine(job, tmp_path)


def test_a_model_of_nan_verifies_nothing(job_of, weights_format, dense, tmp_path, plain_tensorrt):
    dense.set_weights([np.full((4, 3), np.nan), np.zeros(3)])
    artifact = make_engine(job_of(weights_format(), dense, has_random_samples=True), tmp_path)
    assert artifact.verification.state == "unverified"
    assert (
        "the weights artifact that it was built from is unverified" in artifact.verification.reason
    )
