import shutil

import pytest

from keras_deepseek.artifacts import BundleError, InvalidInputError
from keras_deepseek.inference import ServingEngine, read_model_config
from keras_deepseek.inference.models.model_config import ModelConfigFile

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

OF_TF_SERVING = """
# As its own documentation writes such a file.
model_config_list {
  config {
    name: 'first'
    base_path: '%(folder)s/first'
    model_platform: 'tensorflow'
    model_version_policy { specific { versions: 1 versions: 3 } }
    version_labels { key: 'stable' value: 1 }
    version_labels { key: 'canary' value: 3 }
  }
  config { name: "second" base_path: "%(folder)s/second" }
}
"""


@pytest.fixture
def config_of(bundle_of, tmp_path):
    """Writes a file of models, and folders of versions for it."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    bundle = bundle_of("onnx").path
    for version_path in ("first/1", "first/2", "first/3", "second/4"):
        shutil.copytree(bundle, tmp_path / version_path)

    def write(text=OF_TF_SERVING):
        path = tmp_path / "models.config"
        path.write_text(text % {"folder": tmp_path}, encoding="utf-8")
        return path

    return write


def test_an_engine_serves_the_models_of_a_file(config_of):
    models = read_model_config(config_of())
    with ServingEngine(models, max_batch_size=1) as engine:
        assert {name: list(model.versions) for name, model in engine.models.items()} == {
            "first": [1, 3],
            "second": [4],
        }
        assert engine.name == "first"
        assert engine.find("first", label="stable").number == 1
        assert engine.find("first", label="canary").number == 3
        assert engine.predict([[1, 2]], model="second").tolist() == [[2, 4]]
        assert [folder.name for folder in engine.folders] == ["first", "second"]


def test_a_model_that_can_t_be_loaded_ends_those_before_it(config_of, monkeypatch, tmp_path):
    closed = []
    monkeypatch.setattr(
        "keras_deepseek.inference.models.model_version.ModelVersion.close",
        lambda version, seconds: closed.append((version.name, version.number)),
    )
    models = read_model_config(config_of())
    (tmp_path / "second/4/model.onnx").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="bytes where"):
        ServingEngine(models)
    assert closed == [("first", 1), ("first", 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("'first'", "'a/b'"), "part of the URL"),
        (
            ("value: 1", "value: 2"),
            r"label 'stable' of the model 'first' .* version 2\. .*\[1, 3\]",
        ),
        (("%(folder)s/second", "%(folder)s/third"), "third' holds none of the versions to serve"),
    ],
)
def test_a_config_that_can_t_be_served_is_refused(config_of, change, message):
    models = read_model_config(config_of(OF_TF_SERVING.replace(*change)))
    with pytest.raises(InvalidInputError, match=message):
        ServingEngine(models)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list { config { nam: 'a' } }", "1:30 : .*no field named .nam"),
        ("model_config_list {}", "lists no model"),
        ("", "Expected a ModelServerConfig with a model_config_list"),
        ("custom_model_config {}", "Expected a ModelServerConfig with a model_config_list"),
        ("model_config_list { config { name: 'a' } }", "a base_path for each"),
        ("\N{SNOWMAN}", "not a valid tensorflow.serving.ModelServerConfig"),
    ],
)
def test_a_file_that_holds_no_models_is_refused(tmp_path, text, message):
    path = tmp_path / "models.config"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_model_config(path)
    assert str(path) in str(caught.value)


def test_a_file_that_can_t_be_read_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="No such file"):
        read_model_config(tmp_path / "nothing")
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(InvalidInputError, match="decode"):
        read_model_config(tmp_path / "latin")


def test_a_logging_config_is_refused_with_what_there_is_instead(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(
        "model_config_list { config { name: 'a' base_path: '/a' logging_config { "
        "log_collector_config { type: 'x' filename_prefix: '/logs' } "
        "sampling_config { sampling_rate: 0.1 } } } }"
    )
    with pytest.raises(
        InvalidInputError, match=r"'a' has a logging_config, .* --log-requests FILE"
    ):
        read_model_config(path)


def test_a_changed_file_is_served_and_loads_only_what_changed(config_of, caplog):
    path = config_of()
    models = read_model_config(path)
    with ServingEngine(models, max_batch_size=1) as engine:
        file = ModelConfigFile(path, models, engine.repository.replace_models)
        versions = dict(engine.models["first"].versions)
        second = engine.find("second")
        file.look()
        assert engine.models["first"].versions == versions
        config_of(OF_TF_SERVING.replace("specific { versions: 1 versions: 3 }", "all {}"))
        file.look()
        assert list(engine.models["first"].versions) == [1, 2, 3]
        assert all(engine.find("first", number) is versions[number] for number in versions)
        assert engine.find("second") is second
        for broken in ("model_config_list {", OF_TF_SERVING.replace("second", "third")):
            config_of(broken)
            with pytest.raises(InvalidInputError):
                file.look()
            assert set(engine.models) == {"first", "second"}
        config_of(OF_TF_SERVING.replace("{ versions: 1 versions: 3 }", "{ versions: 3 }"))
        with pytest.raises(InvalidInputError, match="label 'stable'"):
            file.look()
        config_of("model_config_list { config { name: 'first' base_path: '%(folder)s/first' } }")
        file.look()
        assert list(engine.models) == ["first"]
        assert engine.find("first", 3) is versions[3]
        assert (versions[3].state, second.state) == ("AVAILABLE", "END")
        assert engine.predict([[1, 2]]).tolist() == [[2, 4]]
