import importlib.util
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.runtimes.openvino_model import import_openvino, shared_core
from keras_deepseek.deploy import Exporter, register_exporter
from keras_deepseek.deploy.formats import registry
from keras_deepseek.deploy.formats.openvino import OpenVINOFormat
from keras_deepseek.errors import ExportError, MissingExtraError


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    register_exporter(OpenVINOFormat())


def require_openvino():
    """Imports it as the format does: `importorskip` would import its telemetry, which forks."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    return import_openvino("to test it")


@pytest.mark.parametrize("model", ["digits", "text"], indirect=True)
def test_a_registered_format_is_verified_by_its_own_runtime(model, tmp_path, tensorflow_installed):
    openvino = require_openvino()
    report = Exporter(model, "openvino", verbose=False).export(tmp_path / "out")
    assert report.verified
    bundle = Bundle.open(tmp_path / "out")
    assert (bundle.manifest.format, bundle.manifest.entry) == ("openvino", "model.xml")
    compiled = shared_core(openvino).compile_model(bundle.entry, "CPU")
    expected = {spec.name for spec in bundle.manifest.signature.outputs}
    assert {output.get_any_name() for output in compiled.outputs} == expected
    assert Exporter(model, "openvino", verbose=False).check(tmp_path / "out").verified


def test_an_output_that_is_computed_from_keeps_its_name(tmp_path, tensorflow_installed):
    """Compiled, the output has the name of a view of it as well."""
    pytest.importorskip("openvino")
    keys = keras.Input((4, 6), name="keys")
    further = keras.ops.concatenate([keys[:, :2], keys[:, 2:] * 2], axis=1)
    scores = keras.ops.sum(keras.ops.expand_dims(further, 1) ** 2, axis=-1)
    model = keras.Model(keys, {"further": further, "scores": scores})
    assert Exporter(model, "openvino", verbose=False).export(tmp_path / "out").verified


class FirstPlaces(keras.layers.Layer):
    """The places of the largest, plain, in a loop or in a branch."""

    def __init__(self, inside, **options):
        super().__init__(**options)
        self.inside = inside

    def get_config(self):
        return {**super().get_config(), "inside": self.inside}

    def call(self, inputs):
        ops = keras.ops

        def indices(x):
            return ops.cast(ops.top_k(x, 3)[1], "float32")

        if self.inside == "loop":
            return ops.map(indices, inputs)
        if self.inside == "branch":
            return ops.cond(
                ops.sum(inputs) > 0.0, lambda: indices(inputs), lambda: indices(-inputs)
            )
        return indices(inputs)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch takes any of them, too")
@pytest.mark.parametrize("inside", [None, "loop", "branch"])
def test_of_equals_the_first_are_taken(inside, tmp_path, tensorflow_installed):
    """OpenVINO takes any of them by itself."""
    require_openvino()
    inputs = keras.Input((9, 33), name="x")
    model = keras.Model(inputs, FirstPlaces(inside)(inputs))
    random = np.random.default_rng(0)
    batches = [
        {"x": random.integers(low, low + 3, (size, 9, 33)).astype("float32")}
        for size, low in ((1, 0), (2, 1), (3, -4))
    ]
    exporter = Exporter(
        model, "openvino", samples=batches, custom_objects_from=[__file__], verbose=False
    )
    assert exporter.export(tmp_path / "out").verified
    # By chance they may be the first even so: it is not by chance in loops and branches either.
    graph = (tmp_path / "out" / "model.xml").read_text(encoding="utf-8")
    assert graph.count('stable="true"') == graph.count('type="TopK"') == 1 + (inside == "branch")


def test_half_precision_goes_along(digits, tmp_path, tensorflow_installed):
    require_openvino()
    sizes = {}
    for precision in (None, "float16"):
        exporter = Exporter(digits, "openvino", precision=precision, verbose=False)
        assert exporter.export(tmp_path / str(precision)).verified
        sizes[precision] = (tmp_path / str(precision) / "model.bin").stat().st_size
    assert sizes["float16"] < sizes[None]


def test_one_that_has_changed_is_found(digits, tmp_path, tensorflow_installed):
    require_openvino()
    Exporter(digits, "openvino", verbose=False).export(tmp_path / "out")
    digits.layers[-1].bias.assign(np.arange(10.0))
    with pytest.raises(ExportError, match="differs by"):
        Exporter(digits, "openvino", verbose=False).check(tmp_path / "out")


def test_without_openvino_the_extra_is_named(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"to export.*keras_deepseek\[openvino\]"):
        OpenVINOFormat().write(NamedModel(digits), tmp_path)
