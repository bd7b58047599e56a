import errno
import os

import keras
import numpy as np
import pytest

from keras_deepseek.deploy.failure_place import whole_tracebacks
from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.errors import ExportError


def raised(error, cause=None):
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


def test_the_first_lines_of_the_cause_are_told_without_colours():
    text = "\n\x1b[96mIn Layer.call():\x1b[0m\n scan is not supported.\nNext steps: ..."
    cause = raised(ValueError(text))
    error = raised(RuntimeError("Failed to export. Next steps: ..."), cause)
    assert failure_reason(error) == "ValueError: In Layer.call(): scan is not supported"


def test_our_own_error_is_its_own_cause():
    error = raised(ExportError("Output 'y' differs.\nExport it again."), ValueError("inner"))
    assert failure_reason(error) == "Output 'y' differs.\nExport it again."


def test_an_error_without_words_has_its_name():
    assert failure_reason(TypeError()) == "TypeError"


def test_a_long_line_is_cut():
    assert len(failure_reason(ValueError("x" * 10_000))) < 400


@pytest.mark.parametrize("length", [250, 290, 500])
def test_a_full_disk_is_told_however_late_it_is_said(length):
    full = os.strerror(errno.ENOSPC)
    assert full in failure_reason(OSError(f"{'p' * length}; {full} [Op:SaveV2]"))


def test_what_pytorch_says_of_itself_is_left_out():
    message = "The error above occurred when calling torch.export.export.\n\nCould not guard on u0"
    assert failure_reason(ValueError(message)) == "ValueError: Could not guard on u0"


def test_the_place_in_the_model_is_told():
    class Failing(keras.layers.Layer):
        def call(self, inputs):
            raise ValueError("no such thing")

    layer = Failing(name="culprit")
    with whole_tracebacks(), pytest.raises(ValueError, match="no such thing") as caught:
        layer(np.ones((2, 3), "float32"))
    assert failure_reason(caught.value) == "ValueError: no such thing (in 'culprit')"
