import errno
import os

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.failure_reason import failure_place, failure_reason, whole_tracebacks
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


def test_notices_of_pytorch_are_left_out():
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


class Refusing(keras.layers.Layer):
    """A layer that runs, and that no exporter gets through."""

    is_traced = False

    def call(self, inputs):
        if Refusing.is_traced:
            raise KeyError("refused")
        return inputs * 2


@pytest.fixture
def nested():
    inner = keras.Sequential([keras.Input((4,)), Refusing(name="refusing")], name="inner")
    x = keras.Input((4,), name="x")
    return keras.Model(x, keras.layers.Dense(2)(inner(x)))


def test_an_error_from_elsewhere_has_no_place():
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    assert failure_place(caught.value) == ""


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX writes none")
def test_the_layer_that_an_exporter_was_at_is_found(nested, tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxscript")
    infer = backend.current().inference.plain_inference(NamedModel(nested))
    assert infer  # It runs where nothing is refused.
    monkeypatch.setattr(Refusing, "is_traced", True)
    with whole_tracebacks(), pytest.raises(Exception, match="refused") as caught:
        backend.current().export.write_onnx(NamedModel(nested), str(tmp_path / "model.onnx"), 18)
    error: BaseException = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert failure_place(error).startswith("in 'refusing'")


@pytest.mark.parametrize("was_filtered", [True, False])
def test_tracebacks_are_as_before_afterwards(was_filtered):
    was_enabled = keras.config.is_traceback_filtering_enabled()
    set_to = {
        True: keras.config.enable_traceback_filtering,
        False: keras.config.disable_traceback_filtering,
    }
    try:
        set_to[was_filtered]()
        with whole_tracebacks():
            assert not keras.config.is_traceback_filtering_enabled()
        assert keras.config.is_traceback_filtering_enabled() == was_filtered
    finally:
        set_to[was_enabled]()
