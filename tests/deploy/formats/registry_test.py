import json
from pathlib import Path

import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.deploy import Exporter, register_exporter
from keras_deepseek.deploy.formats import registry
from keras_deepseek.deploy.formats.openvino import OpenVINOFormat
from keras_deepseek.errors import InvalidInputError, NotSupportedError

SIGNATURE = Signature(inputs=(TensorSpec("x", (None, 4), "float32"),), outputs=())


class TextFormat:
    name, suffix, entry = "text", ".txt", "model.txt"

    def write(self, model, folder):
        (folder / self.entry).write_text(
            json.dumps([weight.tolist() for weight in model.model.get_weights()])
        )
        return "JSON"

    def run(self, folder, samples):
        raise NotSupportedError("text is not run")


@pytest.fixture
def text_format():
    register_exporter(TextFormat())


@pytest.fixture(autouse=True)
def _empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def test_a_registered_format_is_found_by_name_and_by_suffix():
    text = TextFormat()
    register_exporter(text)
    chosen = registry.choose_format("text", {})
    assert (chosen.export_format.entry, chosen.options) == ("model.txt", None)
    assert registry.format_for_suffix(Path("folder.x/model.txt")) is chosen.export_format


def test_an_unknown_suffix_says_how_to_register_one():
    with pytest.raises(InvalidInputError, match="register_exporter"):
        registry.format_for_suffix(Path("model.txt"))


def test_an_unknown_name_gets_the_nearest_one():
    for name in ("onxx", ["onnx"]):
        with pytest.raises(InvalidInputError, match="did you mean 'onnx'"):
            registry.choose_format(name, {})


def test_a_path_without_a_suffix_names_no_format():
    text, folder = TextFormat(), TextFormat()
    folder.name, folder.suffix = "folder", ""
    register_exporter(text)
    register_exporter(folder)
    for name in ("model", "model.bin"):
        with pytest.raises(
            InvalidInputError,
            match=rf"no registered format writes '{name}'.*text.*Without a suffix there is folder:",
        ):
            registry.format_for_suffix(Path(name))


def test_an_unknown_option_is_named_with_those_that_there_are():
    with pytest.raises(InvalidInputError, match="option of onnx 'opsett': did you mean 'opset'"):
        registry.choose_format("onnx", {"opsett": 1})


def test_options_of_an_engine_and_of_its_onnx_are_told_apart(plain_tensorrt):
    engine_options = {"profiles": {"batch": (1, 1, 1)}, "flavor": "tensorrt"}
    chosen = registry.choose_format("tensorrt", {"opset": 20, **engine_options})
    assert chosen.options == engine_options
    assert chosen.source.options == {"opset": 20, "rolled": True}
    assert chosen.export_format.sample_shapes(SIGNATURE) == [{"x": (1, 4)}]


def test_an_unknown_option_of_an_engine_is_named_with_those_of_both(plain_tensorrt):
    with pytest.raises(
        InvalidInputError, match=r"of tensorrt 'opsett': .*Known: .*flavor, .*opset"
    ):
        registry.choose_format("tensorrt", {"opsett": 1})


@pytest.mark.parametrize("name", ["onnx", "savedmodel", "openvino", "tensorrt", "litert", "custom"])
def test_a_built_in_name_is_not_taken(name):
    export_format = TextFormat()
    export_format.name = name
    with pytest.raises(InvalidInputError, match="built-in"):
        register_exporter(export_format)


def test_a_class_in_place_of_an_instance_is_refused():
    with pytest.raises(
        InvalidInputError,
        match=r"received the class TextFormat.*register_exporter\(TextFormat\(\)\)",
    ):
        register_exporter(TextFormat)


@pytest.mark.parametrize(
    ("member", "value", "match"),
    [
        ("name", "", "`name` of an export format must be a string that is not empty; received ''"),
        ("suffix", None, "`suffix` of an export format must be a string; received None"),
        ("entry", 5, "`entry` of an export format .*received 5"),
        ("backends", "jax", "`backends` .*must be a tuple of .*torch.*; received 'jax'"),
        ("backends", ("mxnet",), r"`backends` .*; received \('mxnet',\)"),
    ],
)
def test_a_wrong_member_is_named(member, value, match):
    text = TextFormat()
    setattr(text, member, value)
    with pytest.raises(InvalidInputError, match=match):
        register_exporter(text)


def test_what_is_no_format_says_what_it_lacks():
    with pytest.raises(InvalidInputError, match="has no name, no suffix, no entry, no write, no r"):
        register_exporter(object())


def test_a_registered_format_takes_its_options_itself(digits, text_format):
    with pytest.raises(InvalidInputError, match=r"register_exporter\(MyFormat\(opset=...\)\)"):
        Exporter(digits, "text", opset=18)


def test_a_format_of_this_package_may_be_registered_with_other_options():
    register_exporter(OpenVINOFormat(opset=20))
    chosen = registry.choose_format("openvino", {})
    assert isinstance(chosen.export_format, OpenVINOFormat)
    assert chosen.options is None


def test_a_registered_format_may_be_built_from_another():
    class Built(TextFormat):
        source, source_options = "onnx", {"opset": 20}

    register_exporter(Built())
    chosen = registry.choose_format("text", {})
    assert (chosen.source.export_format.name, chosen.source.options) == ("onnx", {"opset": 20})


def test_a_member_that_a_users_format_lacks_has_its_default(tmp_path):
    text = TextFormat()
    text.signatures = ("first", "second")
    adapted = registry.DuckTypedFormat(text)
    assert adapted.signatures == ("first", "second")
    assert (adapted.backends, adapted.source, adapted.further_outputs({})) == ((), "", {})
    with pytest.raises(NotSupportedError, match="has no `load`"):
        adapted.load(tmp_path)


@pytest.mark.parametrize(("backend", "path"), [("text", "bundle"), ("custom", "model.txt")])
def test_a_registered_format_is_written(digits, tmp_path, text_format, backend, path):
    report = Exporter(model=digits, backend=backend, verbose=False).export(tmp_path / path)
    assert (report.verified, report.verification.reason) == (False, "text is not run")
    if backend == "text":
        assert Bundle.open(tmp_path / path).manifest.verification.state == "unverified"
    else:
        assert json.loads((tmp_path / path).read_text())


def test_custom_without_a_registered_format_says_how(digits, tmp_path):
    with pytest.raises(InvalidInputError, match="register_exporter"):
        Exporter(model=digits, backend="custom").export(tmp_path / "model.unknown")


def test_a_path_with_the_suffix_of_another_format_is_refused():
    onnx = registry.choose_format("onnx", {}).export_format
    registry.check_suffix(Path("model.onnx"), onnx)
    registry.check_suffix(Path("model.v2"), onnx)
    with pytest.raises(InvalidInputError, match="suffix of 'litert', and the format is 'onnx'"):
        registry.check_suffix(Path("model.tflite"), onnx)
