import json

import keras
import numpy as np
import pytest

from keras_deepseek.deploy.routes.child import load_batches, main, save_batches


def test_batches_come_back_by_name_and_order(tmp_path):
    batches = [
        {"a:b/c": np.arange(3), "x": np.ones((0, 2), "float16"), "y": np.ones(2, "bfloat16")},
        {"a:b/c": np.arange(4), "x": np.ones((1, 2), "float16"), "y": np.ones((), "bfloat16")},
    ] * 6
    save_batches(tmp_path / "batches.npz", batches)
    for expected, received in zip(batches, load_batches(tmp_path / "batches.npz"), strict=True):
        assert expected.keys() == received.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(received[name], array)
            assert received[name].dtype == array.dtype


def test_a_job_that_fails_leaves_its_error(tmp_path, digits):
    digits.save(tmp_path / "model.keras")
    job = {
        "format": "onxx",
        "options": {},
        "precision": None,
        "is_written": False,
        "folder": str(tmp_path / "artifact"),
        "custom_objects_from": [],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    main(tmp_path)
    assert "did you mean 'onnx'" in json.loads((tmp_path / "result.json").read_text())["error"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the child runs TensorFlow")
def test_a_job_leaves_the_artifact_and_its_outputs(tmp_path, digits):
    digits.save(tmp_path / "model.keras")
    folder = tmp_path / "artifact"
    folder.mkdir()
    job = {
        "format": "savedmodel",
        "options": {},
        "precision": None,
        "is_written": False,
        "folder": str(folder),
        "custom_objects_from": [],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    save_batches(tmp_path / "samples.npz", [{"image": images}])
    main(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["ran"]
    assert (folder / "saved_model.pb").is_file()
    (outputs,) = load_batches(tmp_path / "outputs.npz")
    np.testing.assert_allclose(
        outputs["probabilities"], digits.predict(images, verbose=0), atol=1e-6
    )
