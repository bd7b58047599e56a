import sys
import threading
import types

import keras
import pytest

from keras_deepseek.deploy.routes import custom_objects
from keras_deepseek.deploy.routes.custom_objects import (
    find_custom_objects,
    load_objects,
    save_objects,
)
from keras_deepseek.errors import ExportError, InvalidInputError

OF_SCRIPT = type("Notebook", (keras.layers.Identity,), {"__module__": "__main__"})


def model_of(layer):
    return keras.Sequential([keras.Input((4,)), layer])


def test_a_class_is_found_by_its_module():
    layer_class = type("Elsewhere", (keras.layers.Identity,), {"__module__": "elsewhere.layers"})
    custom_objects = find_custom_objects(model_of(layer_class()), "", ["mine.layers"])
    assert custom_objects.sources == ("elsewhere.layers", "mine.layers")
    assert custom_objects.of_script == {}


def test_a_module_that_is_no_file_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ghost", types.ModuleType("ghost"))
    layer_class = type("OfNoFile", (keras.layers.Identity,), {"__module__": "ghost"})
    with pytest.raises(ExportError, match=r"'ghost' can't be found .* custom_objects_from="):
        find_custom_objects(model_of(layer_class()), "", [])


def test_kerass_own_classes_need_nothing():
    custom_objects = find_custom_objects(model_of(keras.layers.Dense(2)), "", [])
    assert (custom_objects.sources, custom_objects.of_script) == ((), {})


@pytest.mark.parametrize(
    ("text", "is_sent"),
    [
        ("class Notebook: ...", False),
        ("if True:\n    class Notebook: ...", False),
        ("from layers import Books as Notebook", False),
        ("from layers import *", False),
        ("class Notebook(:", False),
        ("class Other: ...", True),
        ("from layers import Notebook as Other", True),
    ],
)
def test_a_class_of_the_script_is_sent_unless_a_file_has_it(tmp_path, text, is_sent):
    assert find_custom_objects(model_of(OF_SCRIPT()), "", []).of_script == {"Notebook": OF_SCRIPT}
    source = tmp_path / "mine.py"
    source.write_text(text)
    custom_objects = find_custom_objects(model_of(OF_SCRIPT()), "", [source])
    assert custom_objects.sources == (str(source),)
    assert custom_objects.of_script == ({"Notebook": OF_SCRIPT} if is_sent else {})


@pytest.mark.parametrize(
    ("module", "is_sent"), [("my_books", False), ("my_other", True), ("no.such.module", False)]
)
def test_a_class_of_the_script_is_sent_unless_a_module_has_it(
    tmp_path, monkeypatch, module, is_sent
):
    (tmp_path / "my_books.py").write_text("class Notebook: ...")
    (tmp_path / "my_other.py").write_text("raise SystemError('it is not run')")
    monkeypatch.syspath_prepend(tmp_path)
    custom_objects = find_custom_objects(model_of(OF_SCRIPT()), "", [module])
    assert bool(custom_objects.of_script) == is_sent


def test_what_was_sent_is_known_to_keras(tmp_path):
    pytest.importorskip("cloudpickle")
    save_objects(tmp_path, {"Custom>Notebook": OF_SCRIPT})
    registered = keras.saving.get_custom_objects()
    try:
        load_objects(tmp_path)
        received = registered["Custom>Notebook"]
        assert received.__name__ == "Notebook"
        assert registered["Notebook"] is received
        assert issubclass(received, keras.layers.Identity)
    finally:
        for name in ("Custom>Notebook", "Notebook"):
            registered.pop(name, None)


def test_nothing_is_sent_where_there_is_nothing(tmp_path):
    save_objects(tmp_path, {})
    assert not any(tmp_path.iterdir())
    load_objects(tmp_path)


def test_without_cloudpickle_it_is_said_what_to_do(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(custom_objects.importlib, "import_module", missing)
    with pytest.raises(
        InvalidInputError, match=r"Notebook: .*pip install cloudpickle.*objects_from"
    ):
        save_objects(tmp_path, {"Notebook": OF_SCRIPT})


def test_what_can_not_be_sent_says_so(tmp_path):
    pytest.importorskip("cloudpickle")
    holder = type("Holder", (), {"__module__": "__main__", "lock": threading.Lock()})
    with pytest.raises(InvalidInputError, match=r"Holder: .*can't be sent there"):
        save_objects(tmp_path, {"Holder": holder})
