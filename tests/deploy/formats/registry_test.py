import json
from pathlib import Path

import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.deploy import Exporter, register_exporter
from keras_deepseek.deploy.formats import registry
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
    assert registry.create_format("text", {}) is text
    assert registry.format_for_suffix(Path("folder.x/model.txt")) is text


def test_an_unknown_suffix_says_how_to_register_one():
    with pytest.raises(InvalidInputError, match="register_exporter"):
        registry.format_for_suffix(Path("model.txt"))


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(InvalidInputError, match="did you mean 'onnx'"):
        registry.create_format("onxx", {})


def test_a_path_without_a_suffix_names_no_format():
    text, folder = TextFormat(), TextFormat()
    folder.name, folder.suffix = "folder", ""
    register_exporter(text)
    register_exporter(folder)
    for name in ("model", "model.bin"):
        with pytest.raises(
            InvalidInputError,
            match=rf"none writes '{name}'.*text.*Of no suffix is folder:",
        ):
            registry.format_for_suffix(Path(name))


def test_an_unknown_option_is_named_with_those_that_there_are():
    with pytest.raises(InvalidInputError, match=r"no option \['opsett'\]; it has \['opset', "):
        registry.create_format("onnx", {"opsett": 1})


def test_options_of_an_engine_and_of_its_onnx_are_told_apart(plain_tensorrt):
    engine, of_onnx = registry.create_engine_format(
        SIGNATURE, None, {"opset": 17, "profiles": {"batch": (1, 1, 1)}, "flavor": "tensorrt"}
    )
    assert of_onnx == {"opset": 17, "rolled": True}
    assert engine.flavor.name == "tensorrt"
    assert str(engine.profiles[0]) == "batch 1/1/1"


def test_an_unknown_option_of_an_engine_is_named_with_those_of_both(plain_tensorrt):
    with pytest.raises(InvalidInputError, match=r"\['opsett'\]; it has \['flavor', .*'opset', "):
        registry.create_engine_format(SIGNATURE, None, {"opsett": 1})


@pytest.mark.parametrize("name", ["onnx", "savedmodel", "tensorrt", "custom"])
def test_a_built_in_name_is_not_taken(name):
    export_format = TextFormat()
    export_format.name = name
    with pytest.raises(InvalidInputError, match="built-in"):
        register_exporter(export_format)


def test_a_class_in_place_of_an_instance_is_refused():
    with pytest.raises(InvalidInputError, match="lacks an instance"):
        register_exporter(TextFormat)


def test_what_is_no_format_says_what_it_lacks():
    with pytest.raises(InvalidInputError, match="lacks name, suffix, entry, write, run"):
        register_exporter(object())


def test_a_registered_format_takes_its_options_itself(digits, text_format):
    with pytest.raises(InvalidInputError, match=r"register_exporter\(MyFormat\(opset=...\)\)"):
        Exporter(digits, "text", opset=18)


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
