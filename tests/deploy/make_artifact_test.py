import errno
import importlib.util
import os
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy import make_artifact as module
from keras_deepseek.deploy.make_artifact import make_artifact
from keras_deepseek.deploy.routes import route
from keras_deepseek.deploy.routes.route import InProcess
from keras_deepseek.deploy.samples.random_batches import ROUND_LENGTHS, make_samples
from keras_deepseek.errors import ExportError, InvalidInputError, NotSupportedError


def test_an_artifact_that_computes_the_same_is_verified(tmp_path, weights_format, job_of):
    made = make_artifact(job_of(weights_format()), tmp_path, print)
    assert made.verification.state == "verified"
    assert made.verification.num_samples == 3
    assert made.route == "NumPy"


def test_an_artifact_that_differs_fails_and_is_removed(tmp_path, weights_format, job_of):
    reason = rf"through the {keras.backend.backend()} backend: .*differs by"
    with pytest.raises(ExportError, match=reason):
        make_artifact(job_of(weights_format(spoil=0.01)), tmp_path, print)
    assert not any(tmp_path.iterdir())


def test_a_model_that_gives_nan_alone_is_unverified(tmp_path, weights_format, job_of, dense):
    dense.set_weights([np.full((4, 3), np.nan), np.zeros(3)])
    made = make_artifact(job_of(weights_format(), dense), tmp_path, print)
    assert made.verification.state == "unverified"
    assert "no finite value" in made.verification.reason


def test_what_can_not_be_run_here_is_unverified_with_its_reason(tmp_path, weights_format, job_of):
    export_format = weights_format(fail=NotSupportedError("it needs a GPU"))
    made = make_artifact(job_of(export_format), tmp_path, print)
    assert made.verification.state == "unverified"
    assert made.verification.reason == "it needs a GPU"


def test_an_artifact_that_breaks_fails_with_its_reason(tmp_path, weights_format, job_of):
    with pytest.raises(ExportError, match="segment missing"):
        make_artifact(job_of(weights_format(fail=OSError("segment missing"))), tmp_path, print)
    assert not any(tmp_path.iterdir())


def test_a_format_whose_run_returns_nothing_fails(tmp_path, weights_format, job_of):
    class Forgetful(weights_format):
        def run(self, folder, samples):
            super().run(folder, samples)

    with pytest.raises(ExportError, match="returned NoneType; expected a list"):
        make_artifact(job_of(Forgetful()), tmp_path, print)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it computes them so itself")
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
    made = make_artifact(job_of(export_format), tmp_path, print)
    assert made.verification.state == "verified"
    (reason,) = made.passed_over
    assert f"keras_deepseek[{missing}]" in reason
    export_format.backends = (missing,)
    enough = rf"want of `{missing}`: pip install 'keras_deepseek\[{missing}\]' is enough\.$"
    with pytest.raises(ExportError, match=enough):
        make_artifact(job_of(export_format), tmp_path, stages.append)
    assert not [stage for stage in stages if "starting" in stage]


def test_of_several_packages_that_are_missing_the_extras_of_the_running_backend_are_enough(
    tmp_path, monkeypatch, weights_format, job_of
):
    known, running = importlib.util.find_spec("json"), keras.backend.backend()
    other = next(name for name in ("tensorflow", "jax") if name != running)
    missing = ("onnx", "jax2onnx", other)
    monkeypatch.setattr(
        route.importlib.util, "find_spec", lambda name: None if name in missing else known
    )
    export_format = weights_format()
    export_format.backends = (other, running)
    export_format.packages = {running: {"onnx": "onnx", "jax2onnx": "onnx-jax"}}
    with pytest.raises(ExportError, match=r"want of `onnx`: .*\[onnx,onnx-jax\]' is enough"):
        make_artifact(job_of(export_format), tmp_path, print)


def test_what_differs_is_kept_where_it_is_asked_for(tmp_path, weights_format, job_of):
    folder = tmp_path / "artifact"
    folder.mkdir()
    job = job_of(weights_format(spoil=0.01), takes_differing=True)
    made = make_artifact(job, folder, print)
    assert made.verification.state == "failed"
    assert "differs by" in made.verification.reason
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

    monkeypatch.setattr(module, "find_routes", lambda _: [InProcess("jax"), Second("jax")])
    folder = tmp_path / "artifact"
    folder.mkdir()
    made = make_artifact(job_of(weights_format(spoil=0.01), takes_differing=True), folder, print)
    assert made.verification.state == "verified"
    (reason,) = made.passed_over
    assert "differs by" in reason


def test_further_samples_count_if_the_model_takes_them(tmp_path, weights_format, job_of):
    further = [{"input_0": np.ones((2, 4), "float32")}, {"input_0": np.ones((2, 5), "float32")}]
    made = make_artifact(job_of(weights_format(), further_samples=further), tmp_path, print)
    assert made.verification.num_samples == 4


def test_where_there_is_no_batch_nothing_is_verified(tmp_path, weights_format, job_of):
    job = replace(job_of(weights_format(), precision="float16"), samples=[])
    job.export_format.write(job.model, tmp_path)
    found = module.check_artifact(job, tmp_path)
    assert (found.state, found.reason) == ("unverified", "there is no batch to compare on")


def test_less_precision_is_measured(tmp_path, weights_format, job_of):
    made = make_artifact(job_of(weights_format(spoil=0.001), precision="float16"), tmp_path, print)
    assert made.verification.state == "verified"
    assert 0 < made.verification.agreement["output_0"]["relative_error"] < 0.01
    with pytest.raises(ExportError, match="differs by"):
        make_artifact(job_of(weights_format(spoil=0.1), precision="float16"), tmp_path, print)


class AsTheModel:
    """A format that keeps nothing in its artifact, and computes by the model itself."""

    name, suffix, entry = "as the model", ".none", "none"

    def write(self, model, folder):
        self.infer = backend.current().inference.plain_inference(model)
        (folder / self.entry).touch()
        return "nothing"

    def run(self, folder, samples):
        return [self.infer(sample) for sample in samples]


class Spoiled(AsTheModel):
    """One that is off by a share in one output."""

    def __init__(self, output, share):
        self.output, self.share = output, share

    def run(self, folder, samples):
        outputs = super().run(folder, samples)
        for each in outputs:
            each[self.output] = each[self.output] * (1 + self.share)
        return outputs


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("output", ["full", "half"])
def test_a_layer_in_half_precision_counts_for_the_outputs_behind_it(
    tmp_path, job_of, output, dtype
):
    x = keras.Input((4,), name="x")
    half = keras.layers.Dense(3, dtype=f"mixed_{dtype}")(x)
    outputs = {
        "full": keras.layers.Dense(3, name="full")(x),
        "half": keras.layers.Dense(3, name="half")(half),
    }
    job = job_of(Spoiled(output, 3e-3), keras.Model(x, outputs))
    if output == "half":
        assert make_artifact(job, tmp_path, print).verification.state == "verified"
        return
    with pytest.raises(ExportError, match="Output 'full' of batch 0: differs by"):
        make_artifact(job, tmp_path, print)


def test_a_model_that_takes_no_odd_length_is_verified_at_round_ones(tmp_path, job_of, halving):
    model = halving(4)
    round_ones = make_samples(model, NamedModel(model).signature, ROUND_LENGTHS)
    job = job_of(AsTheModel(), model, other_samples=[round_ones])
    assert make_artifact(job, tmp_path, print).verification.num_samples == 3


def test_a_model_that_takes_none_of_the_batches_asks_for_some(tmp_path, job_of, halving):
    with pytest.raises(InvalidInputError, match=r"itself fails on a batch.*Pass samples="):
        make_artifact(job_of(AsTheModel(), halving(17)), tmp_path, print)


@pytest.mark.parametrize("free", [0, 10**9])
def test_a_full_disk_ends_the_search(tmp_path, weights_format, job_of, monkeypatch, free):
    """A runtime may say so in words of its own, or the system in its."""
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(module, "find_routes", lambda _: [InProcess("jax"), InProcess("torch")])
    words = "iostream error" if free == 0 else os.strerror(errno.ENOSPC)
    stages: list[str] = []
    folder = tmp_path / "work" / "artifact"
    folder.mkdir(parents=True)
    with pytest.raises(ExportError, match=rf"The disk of '{tmp_path}'.* is full: .*{words}"):
        make_artifact(job_of(weights_format(fail=OSError(words))), folder, stages.append)
    assert not any("torch" in stage for stage in stages)


def test_an_artifact_that_can_not_be_run_is_a_failed_one(tmp_path, weights_format, job_of):
    job = job_of(weights_format(fail=ValueError("cut short")))
    found = module.check_artifact(job, tmp_path)
    assert (found.state, found.reason) == ("failed", "it can't be run: ValueError: cut short")


@pytest.mark.parametrize(("kind", "state"), [("further", "failed"), ("wide", "verified")])
def test_large_numbers_are_compared_less_strictly(tmp_path, weights_format, job_of, kind, state):
    folder = tmp_path / "work"
    folder.mkdir()
    # What the format adds to the weights shows in rows alone whose sum is not zero.
    usual = [{"input_0": np.array([[1, -1, 0, 0], [0, 2, 0, -2]], "float32")}]
    large = {f"{kind}_samples": [{"input_0": np.full((2, 4), 50.0, "float32")}]}
    job = job_of(weights_format(spoil=5e-4), takes_differing=True)
    made = make_artifact(replace(job, samples=usual, **large), folder, print)
    assert made.verification.state == state


def test_a_float32_head_on_layers_of_half_precision_is_judged_by_these(
    tmp_path, tensorflow_installed
):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), name="x")
    hidden = keras.layers.Dense(16, activation="relu", dtype="mixed_float16")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, dtype="float32", name="y")(hidden))
    report = Exporter(model, "onnx", verbose=False).export(tmp_path / "model")
    assert report.verified
    assert Exporter(model, "onnx", verbose=False).check(tmp_path / "model").verified
    model.layers[-1].bias.assign(0.1 * np.ones(4))
    with pytest.raises(ExportError, match="differs by"):
        Exporter(model, "onnx", verbose=False).check(tmp_path / "model")


def test_a_model_trained_in_half_precision_exports_in_float32(tmp_path, tensorflow_installed):
    from keras_deepseek.training import Trainer

    model = keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")], name="line"
    )
    trainer = Trainer(model, optimizer="sgd", loss="mse", fp16_enabled=True)
    trainer.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    report = Exporter(model, "onnx", verbose=False).export(tmp_path / "line")
    assert Bundle.open(report.path).manifest.precision == "float32"
    assert report.verification.largest_difference < 1e-6


@pytest.mark.parametrize(
    ("backend", "policy"),
    [
        ("onnx", "mixed_float16"),
        ("savedmodel", "mixed_float16"),
        ("savedmodel", "mixed_bfloat16"),
    ],
)
def test_a_model_of_half_precision_exports_as_it_is(
    tmp_path, backend, policy, tensorflow_installed
):
    dense = keras.layers.Dense(3, dtype=policy)
    model = keras.Sequential([keras.Input((4,)), dense], name="half")
    report = Exporter(model, backend, verbose=False).export(tmp_path / "half")
    assert report.verified
    manifest = Bundle.open(tmp_path / "half").manifest
    assert manifest.signature.outputs[0].dtype == policy.removeprefix("mixed_")


@pytest.mark.parametrize("backend", ["onnx", "savedmodel"])
def test_layers_may_compute_in_half_precision(digits, tmp_path, backend, tensorflow_installed):
    exporter = Exporter(digits, backend, precision="float16", verbose=False)
    report = exporter.export(tmp_path / "half")
    assert report.verified
    assert 0 < report.verification.largest_difference < 1e-2
    assert report.verification.agreement["probabilities"]["same_largest"] > 0.9
    manifest = Bundle.open(tmp_path / "half").manifest
    assert manifest.precision == "float16"
    assert manifest.signature.outputs[0].dtype == "float32"
    assert manifest.verification == report.verification
    assert digits.compute_dtype == "float32"
    assert exporter.check(tmp_path / "half").verified
