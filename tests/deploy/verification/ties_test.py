from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.deploy import ExportFormat
from keras_deepseek.deploy.make_artifact import make_artifact
from keras_deepseek.errors import ExportError

BELOW = float(np.nextafter(np.float32(2), np.float32(0)))
"""Of this, the model makes 1, and of the next larger number 2."""


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


def test_what_differs_beside_a_tie_fails(job, tmp_path):
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
