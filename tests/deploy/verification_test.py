import re
from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy import Exporter, ExportFormat
from keras_deepseek.deploy import make_artifact as module
from keras_deepseek.deploy.make_artifact import make_artifact
from keras_deepseek.deploy.samples import ROUND_LENGTHS, make_samples
from keras_deepseek.errors import ExportError, InvalidInputError

BELOW = float(np.nextafter(np.float32(2), np.float32(0)))
"""Of this, the model makes 1, and of the next larger number 2."""


def test_further_samples_count_if_the_model_takes_them(tmp_path, weights_format, job_of):
    further = [{"input_0": np.ones((2, 4), "float32")}, {"input_0": np.ones((2, 5), "float32")}]
    artifact = make_artifact(job_of(weights_format(), optional_samples=[further]), tmp_path, print)
    assert artifact.verification.num_samples == 3


def test_where_there_is_no_batch_nothing_is_verified(tmp_path, weights_format, job_of):
    job = replace(job_of(weights_format(), precision="float16"), samples=[])
    job.export_format.write(job.model, tmp_path)
    verification = module.check_artifact(job, tmp_path)
    assert (verification.state, verification.reason) == (
        "unverified",
        "there is no batch to compare on",
    )


def test_less_precision_is_measured(tmp_path, weights_format, job_of):
    artifact = make_artifact(
        job_of(weights_format(spoil=0.001), precision="float16"), tmp_path, print
    )
    assert artifact.verification.state == "verified"
    assert 0 < artifact.verification.agreement["output_0"]["relative_error"] < 0.01
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
        for batch in outputs:
            batch[self.output] = batch[self.output] * (1 + self.share)
        return outputs


class WithoutNan(AsTheModel):
    """One that turns NaN and infinities into numbers, or fails on them."""

    def __init__(self, fails):
        self.fails = fails

    def run(self, folder, samples):
        if self.fails and not all(np.isfinite(sample["input_0"]).all() for sample in samples):
            raise ValueError("no NaN, please")
        return [
            {name: np.nan_to_num(array) for name, array in outputs.items()}
            for outputs in super().run(folder, samples)
        ]


@pytest.mark.parametrize(
    ("artifact", "is_random", "expected"),
    [
        (AsTheModel(), True, "^alike$"),
        (AsTheModel(), False, "^$"),
        (
            WithoutNan(fails=False),
            True,
            "^for NaN in its inputs, output 'output_0' gives 0 where the model gives nan .*; for",
        ),
        (
            WithoutNan(fails=True),
            True,
            "^for NaN or infinity in its inputs, it fails: .*please$",
        ),
    ],
)
def test_a_difference_on_nan_is_reported(tmp_path, job_of, artifact, is_random, expected):
    job = job_of(artifact, has_random_samples=is_random)
    verification = make_artifact(job, tmp_path, print).verification
    assert verification.state == "verified"
    assert re.search(expected, verification.nonfinite)


class HalvedUntilSmall(keras.layers.Layer):
    """It goes on for ever if there is an infinity."""

    def call(self, inputs):
        return keras.ops.while_loop(
            lambda x: keras.ops.sum(keras.ops.abs(x)) > 1.0, lambda x: 0.5 * x, 3.0 * inputs
        )


@pytest.mark.parametrize("in_layer", [True, False])
def test_a_model_that_loops_on_data_gets_no_infinity(tmp_path, job_of, in_layer):
    x = keras.Input((4,), name="input_0")
    halve = HalvedUntilSmall() if in_layer else HalvedUntilSmall().call
    model = keras.Model(x, {"output_0": keras.layers.Dense(3)(halve(x))})
    job = job_of(AsTheModel(), model, has_random_samples=True)
    verification = make_artifact(job, tmp_path, print).verification
    assert (verification.state, verification.nonfinite) == ("verified", "")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (keras.layers.Discretization([-1.0, 1.0]), "^alike$"),
        (keras.layers.LSTM(3), "^for infinity in .*; known of LSTM$"),
        (keras.layers.GlobalMaxPooling1D(), "^alike$"),
    ],
)
def test_the_report_names_operators_that_lose_nan(layer, expected, tmp_path, tensorflow_installed):
    model = keras.Sequential([keras.Input((7, 4), name="x"), layer])
    exporter = Exporter(model, "onnx", verbose=False)
    report = exporter.export(tmp_path / "model")
    assert report.verified
    assert re.search(expected, report.verification.nonfinite)
    assert (report.verification.nonfinite in str(report)) == (expected != "^alike$")
    assert Bundle.open(tmp_path / "model").manifest.verification == report.verification
    assert exporter.check(tmp_path / "model").verification == report.verification


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
    job = job_of(AsTheModel(), model, alternative_samples=[round_ones])
    assert make_artifact(job, tmp_path, print).verification.num_samples == 2


def test_a_model_that_takes_none_of_the_batches_asks_for_some(tmp_path, job_of, halving):
    with pytest.raises(InvalidInputError, match=r"itself fails on a batch.*Pass samples="):
        make_artifact(job_of(AsTheModel(), halving(17)), tmp_path, print)


@pytest.mark.parametrize(("kind", "state"), [("optional", "failed"), ("extreme", "verified")])
def test_large_numbers_are_compared_less_strictly(tmp_path, weights_format, job_of, kind, state):
    folder = tmp_path / "work"
    folder.mkdir()
    # What the format adds to the weights shows in rows alone whose sum is not zero.
    usual = [{"input_0": np.array([[1, -1, 0, 0], [0, 2, 0, -2]], "float32")}]
    batch = {"input_0": np.full((2, 4), 50.0, "float32")}
    large = {f"{kind}_samples": [[batch] if kind == "optional" else batch]}
    job = job_of(weights_format(spoil=5e-4), allows_difference=True)
    artifact = make_artifact(replace(job, samples=usual, **large), folder, print)
    assert artifact.verification.state == state


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


class RoundedUp(ExportFormat):
    """A format whose artifact is right but for the last digit of its inputs."""

    name, suffix, entry = "rounded up", ".none", "none"

    def write(self, model, folder):
        self.infer = backend.current().inference.plain_inference(model)
        (folder / self.entry).touch()
        return "nothing"

    def run(self, folder, samples):
        outputs = []
        for sample in samples:
            x = np.nextafter(sample["x"], np.float32(np.inf))
            x = np.where(sample["x"] == 0, sample["x"], x)
            outputs.append(self.spoil(sample["x"], self.infer({"x": x})["floored"]))
        return [{"floored": output.astype("float32")} for output in outputs]

    def spoil(self, inputs, floored):
        """Makes the artifact a wrong one, where a test puts another function."""
        return floored


@pytest.fixture
def job(job_of):
    x = keras.Input((2,), name="x")
    model = keras.Model(x, {"floored": keras.ops.floor(x * 4.0 / 4.0)})
    usual = [[0.3, 1.7], [-0.4, 2.2]]
    samples = [{"x": np.array(rows, "float32")} for rows in (usual, [[0.2, BELOW], *usual])]
    return replace(job_of(RoundedUp(), model, has_random_samples=True), samples=samples)


def check_fails(job, folder):
    with pytest.raises(ExportError, match="differs by"):
        make_artifact(job, folder, print)


def test_another_batch_stands_for_one_at_a_tie(job, tmp_path):
    artifact = make_artifact(job, tmp_path, print)
    assert artifact.verification.state == "verified"
    assert artifact.verification.num_samples == 2
    assert artifact.route.endswith("one batch drawn anew, at a tie of the model's")


def test_batches_that_were_given_are_not_replaced(job, tmp_path):
    check_fails(replace(job, has_random_samples=False), tmp_path)


def test_two_batches_at_a_tie_are_too_many(job, tmp_path):
    check_fails(replace(job, samples=[*job.samples, job.samples[1]]), tmp_path)


def test_difference_beside_a_tie_fails(job, tmp_path):
    """The tie is in one row, and what is wrong in another of the same batch alone."""
    job.samples[1]["x"][1] = [0.3, 40.5]
    wrong = RoundedUp()
    wrong.spoil = lambda _, floored: floored + (np.abs(floored) > 30)
    check_fails(replace(job, export_format=wrong), tmp_path)


def test_a_wrong_artifact_fails_on_the_batch_that_was_drawn_anew(job, tmp_path):
    """On the first batches nothing but the tie shows that it is wrong."""
    first_batches = {sample["x"].tobytes() for sample in job.samples}
    wrong = RoundedUp()
    wrong.spoil = lambda inputs, floored: floored + (inputs.tobytes() not in first_batches)
    check_fails(replace(job, export_format=wrong), tmp_path)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_tie_of_whole_numbers_is_no_matter_of_rounding(job, tmp_path, value):
    """An artifact that floors zero or two to something else is wrong."""
    job.samples[1]["x"][0, 1] = value
    wrong = RoundedUp()
    wrong.spoil = lambda inputs, floored: floored - (inputs == value)
    check_fails(replace(job, export_format=wrong), tmp_path)
