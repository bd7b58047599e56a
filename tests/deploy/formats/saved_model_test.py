import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.deploy.formats.saved_model import SavedModelFormat

IN_TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.mark.skipif(not IN_TENSORFLOW, reason="only TensorFlow writes a SavedModel")
def test_what_is_written_runs_at_any_batch_size(digits, tmp_path):
    export_format = SavedModelFormat()
    export_format.write(NamedModel(digits), tmp_path)
    batches = [{"image": np.ones((size, 8, 8, 1), "float32")} for size in (1, 6)]
    for batch, outputs in zip(batches, export_format.run(tmp_path, batches), strict=True):
        np.testing.assert_allclose(
            outputs["probabilities"], digits.predict(batch["image"], verbose=0), atol=1e-6
        )


@pytest.mark.skipif(not IN_TENSORFLOW, reason="only TensorFlow reads examples")
@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, "SavedModel with serving_default"),
        ({"classify": True}, "SavedModel with serving_default, serving_classify"),
    ],
)
def test_signatures_and_warmup_requests_are_as_asked(digits, tmp_path, options, how):
    import tensorflow as tf

    assert SavedModelFormat(**options).write(NamedModel(digits), tmp_path) == how
    assert (tmp_path / "assets.extra" / "tf_serving_warmup_requests").is_file()
    signatures = tf.saved_model.load(str(tmp_path)).signatures
    assert set(signatures) == set(how.removeprefix("SavedModel with ").split(", "))


@pytest.mark.skipif(not IN_TENSORFLOW, reason="only TensorFlow writes a SavedModel here")
def test_there_need_be_no_warmup_request(digits, tmp_path):
    SavedModelFormat(warmup=False).write(NamedModel(digits), tmp_path)
    assert not (tmp_path / "assets.extra").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"classify": "cat"}, "`classify` must be a boolean, or a list"),
        ({"classify": []}, "`classify` must be a boolean, or a list"),
        ({"classify": ["cat", "dog", "cat"]}, "names a class twice"),
        ({"classify": [1, 2]}, "`classify` must be a boolean, or a list"),
        ({"regress": "yes"}, "`regress` must be"),
        ({"warmup": 3}, "`warmup` must be"),
    ],
)
def test_arguments_that_say_nothing_are_refused(options, match):
    with pytest.raises(InvalidInputError, match=match):
        SavedModelFormat(**options)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the others write it")
def test_pytorch_passes_it_on(digits, tmp_path):
    with pytest.raises(NotSupportedError):
        SavedModelFormat().write(NamedModel(digits), tmp_path)
