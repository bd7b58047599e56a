import sys

import keras
import numpy as np
import pytest

from keras_deepseek.deploy.formats.tensorrt import TensorRTFormat
from keras_deepseek.deploy.make_engine import engine_job, make_engine, say_left_out
from keras_deepseek.errors import ExportError


def make(job, folder, *, draws_samples=True, **options):
    (folder / "artifact").mkdir()
    engine = TensorRTFormat(job.model.signature, None, flavor="tensorrt", **options)
    made = make_engine(
        job, engine, folder / "artifact", lambda line: None, draws_samples=draws_samples
    )
    assert [path.name for path in (folder / "artifact").iterdir()] == ["model.trt"]
    return made


@pytest.fixture
def job(job_of, weights_format):
    """A job whose artifact of NumPy stands for the ONNX file."""
    return job_of(weights_format())


def test_an_engine_is_verified_on_the_sizes_of_its_profiles(job, tmp_path, plain_tensorrt):
    made = make(job, tmp_path, profiles=[{"batch": (1, 2, 9)}, {"batch": (9, 9, 9)}])
    assert made.verification.state == "verified"
    assert made.verification.num_samples == 3
    assert made.route == (
        "NumPy, TensorRT 10.16.0 (flavor tensorrt) for this GPU, "
        "profile batch 1/2/9 and batch 9/9/9"
    )


def test_given_samples_are_what_it_is_verified_on(job, tmp_path, plain_tensorrt):
    made = make(job, tmp_path, draws_samples=False, profiles={"batch": (3, 3, 4)})
    assert (made.verification.state, made.verification.num_samples) == ("verified", 2)
    assert made.route.endswith(", 1 of the 3 batches left out, which no profile has room for")
    assert say_left_out(0, 3) == ""


def test_samples_beyond_all_profiles_verify_nothing(job, tmp_path, plain_tensorrt):
    made = make(job, tmp_path, draws_samples=False, profiles={"batch": (7, 7, 7)})
    assert made.verification.state == "unverified"
    assert "no batch to compare on; the ONNX" in made.verification.reason


def test_what_is_drawn_may_be_left_out_where_the_model_does_not_take_it(
    job_of, weights_format, plain_tensorrt
):
    inputs = keras.Input((None, 3), name="x")
    outputs = keras.layers.Dense(2)(keras.layers.Conv1D(2, 5)(inputs))
    job = job_of(weights_format(), keras.Model(inputs, outputs))
    engine = TensorRTFormat(job.model.signature, None, flavor="tensorrt")
    drawn = engine_job(job, engine, draws_samples=True)
    shapes = [sample["x"].shape for sample in drawn.further_samples]
    assert (drawn.samples, shapes) == ([], [(1, 1, 3), (4, 16, 3), (32, 64, 3)])


def test_an_engine_that_computes_something_else_is_refused(job, tmp_path, plain_tensorrt):
    plain_tensorrt.spoils = 1.0
    with pytest.raises(ExportError, match=r"does not compute .*differs by 1.*ONNX.* is verified"):
        make(job, tmp_path)


def test_where_a_warning_will_do_it_is_failed(job_of, weights_format, tmp_path, plain_tensorrt):
    plain_tensorrt.spoils = 1.0
    made = make(job_of(weights_format(), takes_differing=True), tmp_path)
    assert made.verification.state == "failed"
    assert "differs by 1" in made.verification.reason


def test_of_a_wrong_onnx_an_engine_is_wrong(job_of, weights_format, tmp_path, plain_tensorrt):
    made = make(job_of(weights_format(spoil=1.0), takes_differing=True), tmp_path)
    assert made.verification.state == "failed"
    assert "the ONNX that it was built from is failed: Output" in made.verification.reason


def test_without_a_right_onnx_nothing_is_built(job_of, weights_format, tmp_path, plain_tensorrt):
    plain_tensorrt.failing = {"build"}
    with pytest.raises(ExportError, match="can't be exported as weights"):
        make(job_of(weights_format(spoil=1.0)), tmp_path)


@pytest.mark.parametrize(
    ("failing", "match"), [("load", "can't load the engine"), ("cuda", "pip install cuda-python")]
)
def test_what_can_not_be_run_is_unverified(
    job, tmp_path, plain_tensorrt, monkeypatch, failing, match
):
    plain_tensorrt.failing = {failing}
    if failing == "cuda":
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    made = make(job, tmp_path)
    assert made.verification.state == "unverified"
    assert match in made.verification.reason
    assert "the ONNX that it was built from is verified" in made.verification.reason


def test_a_gpu_that_fails_fails_the_export(job, tmp_path, plain_tensorrt):
    plain_tensorrt.failing = {"execute"}
    with pytest.raises(ExportError, match="failed to run the engine"):
        make(job, tmp_path)


def test_a_model_of_nan_verifies_nothing(job_of, weights_format, dense, tmp_path, plain_tensorrt):
    dense.set_weights([np.full((4, 3), np.nan), np.zeros(3)])
    made = make(job_of(weights_format(), dense), tmp_path)
    assert made.verification.state == "unverified"
    assert "the ONNX that it was built from is unverified" in made.verification.reason
