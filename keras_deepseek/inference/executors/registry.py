"""The table of executor classes, by the bundle format that they run.

Other packages add theirs by an entry point of the group `keras_deepseek.executors`, named after the
format.
"""

from importlib.metadata import EntryPoint, entry_points

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.inference.executors.executor import Executor

ENTRY_POINT_GROUP = "keras_deepseek.executors"

_ROOM = "keras_deepseek.inference.executors"

BUILT_IN = {
    "keras": f"{_ROOM}.keras_model:KerasModel",
    "onnx": f"{_ROOM}.onnx_runtime:OnnxRuntime",
    "openvino": f"{_ROOM}.openvino_model:OpenVINOModel",
    "savedmodel": f"{_ROOM}.saved_model:SavedModel",
    "tensorrt": f"{_ROOM}.tensorrt_engine:TensorRTEngine",
}
"""`module:class` by format. A module is imported when a model of its format is opened."""


def find_executor_class(name: str) -> type[Executor]:
    """Returns the executor class of a format. A built-in format can't be replaced."""
    if name in BUILT_IN:
        built_in: type[Executor] = EntryPoint(name, BUILT_IN[name], ENTRY_POINT_GROUP).load()
        return built_in
    points = {point.value: point for point in entry_points(group=ENTRY_POINT_GROUP, name=name)}
    if not points:
        installed = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
        raise NotSupportedError(
            f"No executor is registered for the format {name!r}. Export the model as "
            f"{', '.join(sorted({*BUILT_IN, *installed}))}, or install a package that registers an "
            f"executor for {name!r} under the entry point group {ENTRY_POINT_GROUP!r}."
        )
    if len(points) > 1:
        raise InvalidInputError(
            f"Several executors are registered for the format {name!r}: {sorted(points)}. "
            "Uninstall all but one of their packages."
        )
    return _load(*points.values())


def _load(point: EntryPoint) -> type[Executor]:
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise NotSupportedError(
            f"The executor {point.value!r} of the format {point.name!r} can't be imported: {error}."
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Executor)):
        raise InvalidInputError(
            f"The entry point {point.value!r} of the format {point.name!r} is no subclass of "
            f"keras_deepseek.inference.Executor: {loaded!r:.100}."
        )
    return loaded
