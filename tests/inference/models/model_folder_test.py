import logging
import os
import shutil
import threading
from pathlib import Path

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.models.model_folder import ModelFolder, find_versions
from keras_deepseek.inference.models.model_options import ModelOptions

pytest.importorskip("onnxruntime")

OPTIONS = ModelOptions(warm_up=False)


@pytest.fixture
def bundle(bundle_of):
    return bundle_of("onnx").path


@pytest.fixture
def folder(tmp_path, bundle):
    path = tmp_path / "digits"
    shutil.copytree(bundle, path / "1")
    return path


@pytest.fixture
def engine(folder):
    with ServingEngine(folder, name="digits", warm_up=False) as engine:
        engine.folders[0].stop()  # Else it would look as well, where a test takes a second.
        yield engine


def states(engine):
    return {number: version.state for number, version in engine.models["digits"].states.items()}


def follower(engine, folder, **options):
    model_folder = ModelFolder(engine.repository, folder, "digits", OPTIONS, **options)
    model_folder.look()
    return model_folder


def spoil(path):
    (path / "model.onnx").write_bytes(b"nothing")


def test_only_models_with_a_number_are_versions(folder, bundle):
    (folder / "2").mkdir()
    (folder / "3").write_text("no folder")
    shutil.copytree(bundle, folder / "latest")
    shutil.copytree(bundle, folder / "10")
    assert list(find_versions(folder)) == [1, 10]
    assert find_versions(folder / "nowhere") == {}


def test_an_engine_takes_the_newest_version_of_a_folder(folder, bundle):
    shutil.copytree(bundle, folder / "12")
    with ServingEngine(folder, name="digits", warm_up=False) as engine:
        assert states(engine) == {12: "AVAILABLE"}
        assert engine.predict([[1, 2]]).tolist() == [[2, 4]]


def test_a_version_that_comes_takes_over_and_the_old_one_is_closed(engine, folder, bundle):
    model_folder = follower(engine, folder)
    old = engine.find()
    shutil.copytree(bundle, folder / "2")
    model_folder.look()
    assert states(engine) == {2: "AVAILABLE"}
    assert old.state == "END"


def test_one_that_fails_is_logged_once_and_the_old_one_goes_on(engine, folder, bundle, caplog):
    model_folder = follower(engine, folder)
    shutil.copytree(bundle, folder / "2")
    spoil(folder / "2")
    model_folder.look()
    model_folder.look()
    assert states(engine) == {1: "AVAILABLE", 2: "END"}
    assert caplog.text.count("Version 2 of the model 'digits' failed") == 1
    shutil.rmtree(folder / "2")
    shutil.copytree(bundle, folder / "2")
    os.utime(folder / "2" / "bundle.json", ns=(1, 1))
    model_folder.look()
    assert states(engine) == {1: "AVAILABLE", 2: "END"}  # More of it may come.
    model_folder.look()
    assert states(engine) == {2: "AVAILABLE"}


@pytest.mark.parametrize("part", [None, b"the first ha"])
def test_a_bundle_whose_manifest_comes_first_is_loaded_when_its_model_has_come(
    engine, folder, bundle, part
):
    model_folder = follower(engine, folder)
    shutil.copytree(bundle, folder / "2", ignore=lambda *_: ["model.onnx"])
    if part is not None:
        (folder / "2/model.onnx").write_bytes(part)
    model_folder.look()
    assert states(engine) == {1: "AVAILABLE", 2: "END"}
    shutil.copy(bundle / "model.onnx", folder / "2/model.onnx")
    for _ in range(2):
        model_folder.look()
    assert states(engine) == {2: "AVAILABLE"}


def test_one_that_failed_and_has_gone_is_told_of_no_more(engine, folder, bundle):
    model_folder = follower(engine, folder)
    shutil.copytree(bundle, folder / "2")
    spoil(folder / "2")
    model_folder.look()
    shutil.rmtree(folder / "2")
    model_folder.look()
    assert states(engine) == {1: "AVAILABLE"}


def test_a_version_that_can_not_be_read_is_tried_again_when_it_can(
    engine, folder, bundle, caplog, monkeypatch
):
    model_folder = follower(engine, folder)
    shutil.copytree(bundle, folder / "2")
    iterdir, stat = Path.iterdir, Path.stat

    def refuse(path, real, **options):
        # Tests may run as a user whom permissions don't stop.
        if "digits/2" in path.as_posix() and (real is iterdir or path.name != "2"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda path: refuse(path, iterdir))
        patch.setattr(Path, "stat", lambda path, **options: refuse(path, stat, **options))
        assert list(find_versions(folder)) == [1, 2]
        for _ in range(3):
            model_folder.look()
        assert states(engine) == {1: "AVAILABLE", 2: "END"}
        assert engine.models["digits"].failed[2].kind == "PermissionError"
        assert caplog.text.count("Version 2 of the model 'digits' failed") == 1
    for _ in range(2):
        model_folder.look()
    assert states(engine) == {2: "AVAILABLE"}


def test_whatever_a_look_raises_is_logged_once_and_the_next_one_goes_on(engine, folder, caplog):
    model_folder = ModelFolder(engine.repository, folder, "digits", OPTIONS, poll_seconds=0.001)
    errors = [OSError("away"), OSError("away"), None, OSError("away"), ValueError("else"), None]
    looked = threading.Event()

    def look():
        error = errors.pop(0) if errors else looked.set()
        if error is not None:
            raise error

    model_folder.look = look
    model_folder.start()
    assert looked.wait(60)
    model_folder.stop()
    messages = [str(record.exc_info[1]) for record in caplog.records]
    assert messages == ["away", "away", "else"]


def test_a_bundle_that_was_exported_anew_is_loaded_again(engine, folder):
    model_folder = follower(engine, folder)
    old_version = engine.find()
    os.utime(folder / "1" / "bundle.json", ns=(1, 1))
    model_folder.look()
    assert engine.find() is not old_version
    assert states(engine) == {1: "AVAILABLE"}


def test_the_last_version_stays_though_its_folder_has_gone(engine, folder):
    model_folder = follower(engine, folder)
    shutil.rmtree(folder)
    model_folder.look()
    assert states(engine) == {1: "AVAILABLE"}


@pytest.mark.parametrize(
    ("policy", "expected"), [(2, [2, 3]), ("all", [1, 2, 3]), ([1, 3, 9], [1, 3])]
)
def test_which_versions_are_served_is_said(engine, folder, bundle, policy, expected):
    for number in ("2", "3"):
        shutil.copytree(bundle, folder / number)
    model_folder = follower(engine, folder, versions=policy)
    assert list(model_folder.find_versions_to_serve()) == expected
    assert set(expected) <= set(states(engine))


@pytest.mark.parametrize("policy", [0, "newest", [], [0], 1.5])
def test_a_policy_that_is_none_is_refused(engine, folder, policy):
    with pytest.raises(InvalidInputError, match="versions"):
        ModelFolder(engine.repository, folder, "digits", OPTIONS, versions=policy)


def test_a_version_0_is_refused_by_its_folder_s_name(tmp_path, bundle, engine, folder, caplog):
    shutil.copytree(bundle, tmp_path / "zero/0")
    with pytest.raises(InvalidInputError, match=r"version 0 for '.*zero/0'.*Rename the folder"):
        ServingEngine(tmp_path / "zero", name="digits", warm_up=False)
    shutil.copytree(bundle, folder / "0")
    follower(engine, folder, versions="all")
    assert "Rename the folder" in caplog.text
    assert states(engine) == {1: "AVAILABLE"}


def test_it_looks_by_itself_until_it_is_stopped(engine, folder, bundle):
    model_folder = ModelFolder(engine.repository, folder, "digits", OPTIONS, poll_seconds=0.001)
    looked, look = threading.Event(), model_folder.look
    model_folder.look = lambda: (look(), looked.set())
    model_folder.start()
    assert looked.wait(60)
    model_folder.stop()
    assert not model_folder._poller._thread.is_alive()


def strip(bundle, path):
    """Copies what is in a bundle, without its manifest."""
    shutil.copytree(bundle, path, ignore=lambda *_: ["bundle.json"])


def test_versions_without_a_manifest_are_versions(tmp_path, bundle):
    strip(bundle, tmp_path / "models/3")
    (tmp_path / "models/7").mkdir()
    (tmp_path / "models/8.onnx").write_bytes(b"")
    assert list(find_versions(tmp_path / "models")) == [3]
    with ServingEngine(tmp_path / "models", name="digits", warm_up=False) as engine:
        assert states(engine) == {3: "AVAILABLE"}
        assert engine.predict([[1, 2]]).tolist() == [[2, 4]]


def test_saved_models_in_a_folder_as_tf_serving_s_users_have_it(tmp_path, bundle_of):
    pytest.importorskip("tensorflow")
    strip(bundle_of("savedmodel").path, tmp_path / "models/1")
    with ServingEngine(tmp_path / "models", name="digits", warm_up=False) as engine:
        assert engine.predict([[1, 2]]).tolist() == [[2, 4]]
        model_folder = engine.folders[0]
        model_folder.stop()  # From now on it looks when it is told to.
        shutil.copytree(tmp_path / "models/1", tmp_path / "models/2")
        model_folder.look()
        model_folder.look()
        assert states(engine) == {2: "AVAILABLE"}


def test_what_is_no_bundle_is_loaded_when_its_files_have_come(engine, folder, bundle, caplog):
    model_folder = follower(engine, folder)
    (folder / "2").mkdir()
    (folder / "2/model.onnx").write_bytes(b"the first ha")
    model_folder.look()
    assert list(states(engine)) == [1]
    shutil.copy(bundle / "model.onnx", folder / "2/model.onnx")
    model_folder.look()
    assert (list(states(engine)), caplog.text) == ([1], "")
    model_folder.look()
    assert states(engine) == {2: "AVAILABLE"}


def test_what_is_no_bundle_is_loaded_at_once_where_that_is_asked_for(engine, folder, bundle):
    model_folder = follower(engine, folder)
    strip(bundle, folder / "2")
    model_folder.look(at_once=True)
    assert states(engine) == {2: "AVAILABLE"}


def test_one_that_fails_is_tried_again_when_any_of_its_files_has_changed(
    engine, folder, bundle, caplog
):
    model_folder = follower(engine, folder)
    strip(bundle, folder / "2")
    spoil(folder / "2")
    for _ in range(3):
        model_folder.look()
    assert caplog.text.count("Version 2 of the model 'digits' failed: ONNX Runtime") == 1
    shutil.copy(bundle / "model.onnx", folder / "2/model.onnx")
    for _ in range(2):
        model_folder.look()
    assert states(engine) == {2: "AVAILABLE"}


def test_a_folder_of_tf_serving_s_may_be_followed(engine, tmp_path, bundle):
    strip(bundle, tmp_path / "cats/5")
    engine.follow(tmp_path / "cats", name="cats", poll_seconds=60)
    assert engine.predict([[1, 2]], model="cats").tolist() == [[2, 4]]


def test_a_closed_engine_is_left_alone(engine, folder, bundle, caplog):
    model_folder = follower(engine, folder)
    engine.close()
    shutil.copytree(bundle, folder / "2")
    with caplog.at_level(logging.INFO):
        model_folder.look()
    assert caplog.text == ""


def test_another_model_is_followed_beside_the_first(engine, tmp_path, bundle):
    shutil.copytree(bundle, tmp_path / "cats" / "5")
    engine.follow(tmp_path / "cats", name="cats")
    assert engine.predict([[1, 2]], model="cats", version=5).tolist() == [[2, 4]]
    with pytest.raises(InvalidInputError, match="holds none of the versions to serve"):
        engine.follow(tmp_path / "dogs", name="dogs")
