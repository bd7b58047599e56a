from pathlib import Path

import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.deploy import register_exporter, registry


class TextFormat:
    name, suffix, entry = "text", ".txt", "model.txt"

    def write(self, model, folder):
        return "by hand"

    def run(self, folder, samples):
        return []


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


def test_an_unknown_option_is_named_with_those_that_there_are():
    with pytest.raises(InvalidInputError, match=r"no option \['opsett'\]; it has \['opset', "):
        registry.create_format("onnx", {"opsett": 1})


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
