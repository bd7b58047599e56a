import textwrap

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError
from keras_deepseek.inference import Executor, ServingEngine
from keras_deepseek.inference.executors.open_executor import BUILT_IN, find_executor_class

MODULE = """
from keras_deepseek.inference import Executor


class Tripler(Executor):
    def __init__(self, bundle):
        self._signature = bundle.manifest.signature

    @classmethod
    def from_bundle(cls, bundle, custom_objects_from=(), threads=None):
        return cls(bundle)

    @property
    def signature(self):
        return self._signature

    def run(self, inputs):
        return {"y": 3 * inputs["x"]}


class NoExecutor:
    pass
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution on `sys.path` that registers executors by entry points."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(name, **entries):
        (site / f"{name}_module.py").write_text(MODULE)
        folder = site / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{form} = {target}" for form, target in entries.items()]
        text = "\n".join(["[keras_deepseek.executors]", *lines])
        (folder / "entry_points.txt").write_text(textwrap.dedent(text))

    return install


@pytest.mark.parametrize("isolated", [False, True])
def test_an_executor_of_another_package_serves_its_format(install, bundle_of, isolated):
    install("tripler", tripled="tripler_module:Tripler")
    path = bundle_of("tripled").path
    with ServingEngine(path, isolated=isolated, max_batch_size=2) as engine:
        answer = engine.predict(np.ones((2, 2), "float32"))
    assert answer.tolist() == [[3, 3], [3, 3]]


def test_a_format_without_an_executor_is_refused_and_the_known_ones_are_named(install):
    install("tripler", tripled="tripler_module:Tripler")
    formats = "keras, litert, onnx, openvino, savedmodel, tensorrt, tripled"
    with pytest.raises(NotSupportedError, match=rf"for the format 'other'.*{formats}"):
        find_executor_class("other")


def test_what_can_not_be_used_is_refused(install):
    install(
        "broken", gone="no_such_module:A", lost="broken_module:A", bad="broken_module:NoExecutor"
    )
    for form in ("gone", "lost"):
        with pytest.raises(NotSupportedError, match=f"of the format '{form}' can't be imported"):
            find_executor_class(form)
    with pytest.raises(InvalidInputError, match="'bad' is no subclass of"):
        find_executor_class("bad")


def test_two_packages_can_not_register_the_same_format(install):
    install("first", tripled="first_module:Tripler")
    install("second", tripled="second_module:Tripler")
    with pytest.raises(InvalidInputError, match=r"Several executors.*first_module.*second_module"):
        find_executor_class("tripled")


def test_a_built_in_format_can_not_be_replaced(install):
    pytest.importorskip("onnxruntime")
    install("tripler", onnx="tripler_module:Tripler")
    assert find_executor_class("onnx").__name__ == "OnnxRuntime"


@pytest.mark.parametrize("form", sorted(set(BUILT_IN) - {"keras"}))
def test_every_built_in_executor_is_an_executor_that_opens_bundles(form):
    executor_class = find_executor_class(form)
    assert issubclass(executor_class, Executor)
    assert executor_class.from_bundle.__func__ is not Executor.from_bundle.__func__
