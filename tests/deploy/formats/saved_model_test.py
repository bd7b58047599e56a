import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.errors import NotSupportedError
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


@pytest.mark.skipif(IN_TENSORFLOW, reason="TensorFlow writes it")
def test_other_backends_pass_it_on(digits, tmp_path):
    with pytest.raises(NotSupportedError):
        SavedModelFormat().write(NamedModel(digits), tmp_path)
