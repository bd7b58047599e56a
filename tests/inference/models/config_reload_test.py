import logging

import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.errors import LoadFailedError
from keras_deepseek.inference.models.model_config import ConfigReload
from keras_deepseek.inference.models.model_folder import ModelFolder
from keras_deepseek.inference.models.served_model import ServedModel


class Version:
    """A version that notes what is done to it; number 9 does not warm up."""

    def __init__(self, path, name, number, options):
        self.name, self.number, self.state = name, number, "LOADING"

    def accept_names_of(self, version):
        pass

    def start(self):
        if self.number == 9:
            raise ArithmeticError("it does not warm up")
        self.state = "AVAILABLE"

    def close(self):
        self.state = "END"


@pytest.fixture
def folder_of(doubler, tmp_path, monkeypatch):
    """Makes folders that say of themselves what they hold."""
    engine = ServingEngine(doubler)

    def make(name, *numbers, path="a"):
        repository, options = engine.repository, engine.options
        folder = ModelFolder(repository, tmp_path / path, name, options, versions="all")
        monkeypatch.setattr(
            folder, "find_versions_to_serve", lambda: dict.fromkeys(numbers, tmp_path)
        )
        return folder

    return make


def served_of(name, *numbers):
    served = ServedModel(name)
    for number in numbers:
        version = Version(None, name, number, None)
        version.start()
        served.add(version)
    return served


def test_what_is_followed_in_the_same_way_stays_and_the_rest_is_exchanged(folder_of):
    models = {"one": served_of("one", 1), "two": served_of("two", 1), "mine": served_of("mine", 1)}
    old_folders = [folder_of("one", 1), folder_of("two", 1)]
    new_folders = [folder_of("one", 1), folder_of("two", 1, 2, path="b")]
    reload = ConfigReload(models, old_folders, new_folders, {"one": {"x": 1}, "two": {"x": 2}})
    assert reload.folders == [old_folders[0], new_folders[1]]
    assert (reload.changed, reload.dropped) == ([new_folders[1]], [old_folders[1]])
    reload.load(Version)
    assert models["two"].find().state == "AVAILABLE"
    assert dict(models["one"].labels) == {}
    reload.finish()
    assert list(reload.models) == ["one", "two"]
    assert reload.models["one"] is models["one"]
    assert dict(models["one"].labels) == {"x": 1}
    assert reload.models["two"].find(label="x").number == 2
    states = [models[name].versions[1].state for name in ("one", "two", "mine")]
    assert states == ["AVAILABLE", "END", "END"]


def test_one_that_fails_closes_what_was_loaded_and_touches_nothing(folder_of, caplog):
    models, opened = {"one": served_of("one", 1)}, []
    new_folders = [folder_of("two", 1), folder_of("three", 1, 9)]
    reload = ConfigReload(models, [folder_of("one", 1)], new_folders, {"two": {}, "three": {}})

    def open_version(*arguments):
        opened.append(Version(*arguments))
        return opened[-1]

    with caplog.at_level(logging.ERROR), pytest.raises(LoadFailedError, match="'three'"):
        reload.load(open_version)
    assert "it does not warm up" in caplog.text
    assert [version.state for version in opened] == ["END", "END", "END"]
    assert models["one"].find().state == "AVAILABLE"


def test_a_label_of_a_version_that_is_not_served_yet_loads_the_folder_anew(folder_of):
    models, old_folders = {"one": served_of("one", 1)}, [folder_of("one", 1, 2)]
    reload = ConfigReload(models, old_folders, [folder_of("one", 1, 2)], {"one": {"new": 2}})
    assert reload.dropped == old_folders
    reload.load(Version)
    reload.finish()
    assert reload.models["one"].find(label="new").number == 2
