import shutil

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import ModelNotFoundError, ServingEngine
from keras_deepseek.inference.errors import LoadFailedError
from keras_deepseek.inference.protocols.tf_serving_model_service import ModelConfig

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture
def folder_of(bundle_of, tmp_path):
    """Makes a folder of versions, each a copy of the same bundle."""
    bundle = bundle_of("onnx").path

    def make(name, *versions):
        folder = tmp_path / name
        for version in versions:
            shutil.copytree(bundle, folder / str(version))
        return folder

    return make


@pytest.fixture
def engine(doubler):
    with ServingEngine(doubler) as engine:
        yield engine


def numbers(engine):
    return {name: list(served.versions) for name, served in engine.models.items()}


def break_bundle(folder):
    (folder / "model.onnx").write_bytes(b"nothing")


def test_the_models_are_those_of_the_config_and_no_others(engine, folder_of):
    first, second = folder_of("one", 1, 2, 3), folder_of("two", 1, 2, 3)
    engine.repository.replace_models(
        [
            ModelConfig("one", str(first)),
            ModelConfig("two", str(second), "specific", versions=(1, 2), labels={"old": 1}),
        ],
    )
    assert numbers(engine) == {"one": [3], "two": [1, 2]}
    assert engine.find("two", label="old").number == 1
    assert engine.predict([[1, 2]], model="one").tolist() == [[2, 4]]
    version = engine.find("one")
    engine.repository.replace_models(
        [ModelConfig("one", str(first)), ModelConfig("two", str(second), "latest", num_versions=2)],
    )
    assert numbers(engine) == {"one": [3], "two": [2, 3]}
    assert engine.find("one") is version  # What has not changed is not loaded again.
    engine.repository.replace_models([ModelConfig("two", str(second), "all")])
    assert numbers(engine) == {"two": [1, 2, 3]}
    assert [folder.name for folder in engine.folders] == ["two"]


def test_a_new_folder_takes_the_place_of_another_and_is_followed(engine, folder_of):
    first, second = folder_of("first", 1, 2), folder_of("second", 2)
    engine.repository.replace_models([ModelConfig("one", str(first), "all")])
    old_version = engine.find("one", 2)
    engine.repository.replace_models([ModelConfig("one", str(second), "all")])
    assert numbers(engine) == {"one": [2]}
    assert engine.find("one", 2) is not old_version
    folder_of("second", 3)
    engine.folders[0].look()
    assert numbers(engine) == {"one": [2, 3]}


@pytest.mark.parametrize("fault", ["broken", "empty", "label", "name"])
def test_an_error_leaves_all_as_it_was(engine, folder_of, fault, caplog):
    good = folder_of("good", 1, 2)
    models = [ModelConfig("one", str(good), "all", labels={"stable": 1})]
    engine.repository.replace_models(models)
    old_state = numbers(engine), list(engine.folders)
    version = engine.find("one")
    faulty = {
        "broken": ModelConfig("two", str(folder_of("two", 1, 2)), "all"),
        "empty": ModelConfig("two", str(folder_of("empty"))),
        "label": ModelConfig("two", str(folder_of("three", 1)), labels={"new": 7}),
        "name": ModelConfig("a/b", str(folder_of("four", 1))),
    }[fault]
    if fault == "broken":
        break_bundle(folder_of("two") / "2")
    changed = ModelConfig("one", str(folder_of("other", 1)), "all")
    with pytest.raises((InvalidInputError, LoadFailedError)) as caught:
        engine.repository.replace_models([changed, faulty])
    assert isinstance(caught.value, LoadFailedError) == (fault == "broken") == bool(caplog.records)
    assert (numbers(engine), list(engine.folders)) == old_state
    assert engine.find("one") is version
    assert engine.find("one", label="stable").number == 1
    assert engine.predict([[1, 2]], model="one").tolist() == [[2, 4]]
    folder_of("good", 3)
    engine.folders[0].look()  # It is followed as before.
    assert numbers(engine) == {"one": [1, 2, 3]}


def test_a_label_of_a_version_that_has_only_come_is_served(engine, folder_of):
    folder = folder_of("one", 1)
    engine.repository.replace_models([ModelConfig("one", str(folder), "all")])
    engine.folders[0].pause()  # So that it is not found by looking.
    folder_of("one", 2)
    labelled = ModelConfig("one", str(folder), "all", labels={"new": 2})
    engine.repository.replace_models([labelled])
    assert engine.find("one", label="new").number == 2
    assert numbers(engine) == {"one": [1, 2]}


def test_a_model_is_unloaded_until_it_is_loaded_again(engine, folder_of):
    folder = folder_of("one", 1)
    engine.follow(folder, name="one")
    engine.unload("one")
    folder_of("one", 2)
    engine.folders[0].look()
    assert "one" not in engine.models
    engine.repository.load_folder("one")
    assert numbers(engine)["one"] == [2]
    folder_of("one", 3)
    engine.repository.load_folder("one")
    assert numbers(engine)["one"] == [3]
    engine.repository.load_folder("model")  # It is served, though no folder has it.


def test_what_can_t_be_loaded_or_unloaded_is_refused(engine, folder_of, caplog):
    with pytest.raises(ModelNotFoundError, match="no model 'one', and no folder"):
        engine.repository.load_folder("one")
    with pytest.raises(ModelNotFoundError, match="no model 'one'"):
        engine.unload("one")
    folder = folder_of("one", 1)
    engine.follow(folder, name="one")
    engine.unload("one")
    break_bundle(folder / "1")
    with pytest.raises(LoadFailedError, match="'one' could not be loaded"):
        engine.repository.load_folder("one")
    assert caplog.records
