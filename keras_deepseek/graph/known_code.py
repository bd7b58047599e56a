"""The rule for layers whose code a program may replace.

A trace sees the operations of a layer, but not its Python: counters, branches by shape, questions
such as `isinstance(x, keras.KerasTensor)`, gradients of its own. So only the code of Keras,
KerasHub and this package is traced, and other code that a trace is seen to record wholly
(`code_reader.py`). A layer with any other code is kept whole.
"""

import contextlib
import copy
import dataclasses
import functools
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.known_packages import is_known, package_of
from keras_deepseek.graph.code_reader import CodeReader
from keras_deepseek.graph.code_rewriter import UnreadableCodeError
from keras_deepseek.graph.code_values import is_container
from keras_deepseek.graph.watched_names import Watch

_BASE_PACKAGES = {"tensorflow", "jax", "flax", "torch", "builtins", "abc", "typing", "functools"}
"""The packages whose classes are bases of Keras's."""

_NOT_IN_CALL = {
    *("__init__", "__new__", "__repr__", "__reduce__", "__getstate__", "__setstate__"),
    *("build", "build_from_config", "get_build_config", "get_config", "from_config", "quantize"),
    "_symbolic_build",
    *("compile", "compile_from_config", "get_compile_config", "compute_loss", "compute_metrics"),
    *("compute_output_shape", "compute_output_spec", "metrics", "reset_metrics"),
    *("fit", "evaluate", "predict", "export", "summary", "save", "save_weights", "load_weights"),
    *("train_step", "test_step", "predict_step", "train_function", "make_train_function"),
    *("save_own_variables", "load_own_variables", "save_assets", "load_assets"),
}
"""Methods that no `call` of a known layer runs."""

_AROUND_CALL = ("__call__", "compute_mask")
"""The methods that Keras runs around a layer's `call`, besides properties."""

_NOT_IN_CALL_SUFFIXES = ("_initializer", "_regularizer", "_constraint")
_MOST_DEPTH = 4
"""The depth to which what functions hold is looked at."""
_WRAPPERS = tuple(
    getattr(keras.layers, name)
    for name in ("TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer")
)
"""Keras's layers that run code of other libraries."""
_SHARED = (type, types.ModuleType, types.FunctionType, types.MethodType, inspect.Signature)
"""The classes of attributes that are not copied."""


class CannotOpenError(Exception):
    """The reason why a layer is kept whole."""


@dataclasses.dataclass
class Reading:
    """The result of reading the code of a layer.

    Args:
        reason: The foreign code and the reason why a trace would not see all of it, or `None`.
        outer_reason: The same for code that Keras runs around a layer's `call`, even if the layer
            is kept whole.
        reads_sizes: True if the code computes with sizes. Where they are unknown, it is kept whole.
        watch: The names that the code reads. The result holds while they are unchanged.
    """

    reason: str | None = None
    outer_reason: str | None = None
    reads_sizes: bool = False
    watch: Watch = dataclasses.field(default_factory=Watch)
    code: tuple[Any, ...] = ()
    """The foreign methods and functions that were read."""

    def is_current(self) -> bool:
        """Returns True while the names that the code reads are unchanged."""
        return self.watch.is_current()

    def __deepcopy__(self, _memo: Any) -> "Reading":
        return Reading()

    def __reduce__(self) -> tuple[Any, ...]:
        return Reading, ()


def find_foreign_code(layer: Any, methods: dict[type, Any] | None = None) -> str | None:
    """Returns the name of code in a layer or operation that is not known, or `None`.

    Such code is a method of the layer's class, a method that overrides one of a known class, or a
    function that the layer holds, such as an activation. The reason why it can't be traced follows
    the name. `methods` keeps what was found of classes, while nobody changes them.
    """
    if isinstance(layer, keras.Layer):
        return read_layer(layer, methods).reason
    code = _find_code(layer, methods)
    return code[0][0] if code else None


def read_layer(layer: keras.Layer, methods: dict[type, Any] | None = None) -> Reading:
    """Returns the result of reading a layer's code that is not of a known package."""
    code = tuple(_find_code(layer, methods))
    if not code:
        return Reading()
    reading: Reading | None = vars(layer).get("_code_reading")
    if reading is None or reading.code != code or not reading.is_current():
        reading = _read(layer, code)
        object.__setattr__(layer, "_code_reading", reading)
    return reading


def _read(layer: keras.Layer, code: tuple[Any, ...]) -> Reading:
    reader = CodeReader(layer, {id(inner) for inner in flatten_layers(layer)})
    for name, value in vars(layer).items():  # Of a known `call`, such as the arguments of `Lambda`.
        if is_container(value) and not name.startswith("_"):
            _watch_elements(reader.watch, value)
    reader.watch.get_attribute(layer, "__class__")
    reason = outer_reason = None
    for name, member in code:
        try:
            if "." in name:
                reader.watch.get_attribute(type(layer), name.rpartition(".")[2])
            if isinstance(member, types.FunctionType) and "." in name:
                reader.read(member, layer)
            elif isinstance(member, property) and isinstance(member.fget, types.FunctionType):
                reader.read(member.fget, layer)
            elif isinstance(member, types.FunctionType | functools.partial):
                reader.read(member)
            else:
                kind = type(member).__name__
                raise UnreadableCodeError(f"is an object of the class {kind}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - a question to an object may raise anything
            text = f"{name}, which {error}"
            reason = reason or text
            if isinstance(member, property) or name.rpartition(".")[2] in _AROUND_CALL:
                outer_reason = outer_reason or text
    return Reading(reason, outer_reason, reader.reads_sizes, reader.watch, code)


def _watch_elements(watch: Watch, container: Any) -> None:
    for element in watch.get_elements(container):
        if is_container(element):
            _watch_elements(watch, element)


class CodeState:
    """The state of the names that code of users reads in some layers."""

    def __init__(self, layers: Sequence[keras.Layer]) -> None:
        self._layers = layers
        # The number of each token. Its watch holds the objects whose ids are in it.
        self._numbers: dict[Any, tuple[int, Watch]] = {}
        self._read()

    def number(self) -> int:
        """Returns a number that is another one if a name is bound to something else."""
        if not self._watch.is_current():
            self._read()
        return self._number

    def _read(self) -> None:
        self._watch = Watch()
        self._watch.add(read_layer(layer).watch for layer in self._layers)
        state = len(self._numbers), self._watch
        self._number, _ = self._numbers.setdefault(self._watch.token(), state)


def _find_code(layer: Any, methods: dict[type, Any] | None = None) -> list[tuple[str, Any]]:
    """Returns the foreign methods and functions of a layer or operation, and their names."""
    kind: Any = type(layer)
    if isinstance(layer, _WRAPPERS):
        return [("what it wraps", layer)]
    methods = {} if methods is None else methods
    if kind not in methods:
        # Anybody may replace a method of a class later.
        fingerprint = hash(
            tuple(id(member) for owner in kind.__mro__ for member in vars(owner).values())
        )
        methods[kind] = _find_foreign_methods(kind, fingerprint)
    code = list(methods[kind])
    is_model = isinstance(layer, keras.Model)
    for name, value in vars(layer).items():
        if name in _NOT_IN_CALL or name.endswith(_NOT_IN_CALL_SUFFIXES):
            continue
        if is_model and not hasattr(kind, name):
            continue  # A model holds functions of its training, such as the compiled loss.
        members = value if isinstance(value, list | tuple) else [value]
        text = f"the {name!r} of {kind.__name__}"
        functions = filter(callable, members)
        code += [(text, member) for member in functions if not _is_known(member, type(member))]
    return code


@functools.lru_cache(maxsize=1024)
def _find_foreign_methods(kind: Any, _fingerprint: int) -> tuple[tuple[str, Any], ...]:
    """Returns the foreign methods that a known one may call, and their names.

    A class that only adds methods, or overrides those of training and saving, has none.
    """
    methods = []
    bases = list(filter(is_known, kind.__mro__))
    for owner in kind.__mro__:
        for name, member in vars(owner).items():
            if name in _NOT_IN_CALL or not _is_code(member) or _is_known(member, owner):
                continue
            # An attribute of instances, such as `activation`, is no attribute of the class.
            is_attribute = not callable(member) and not isinstance(member, classmethod)
            if is_attribute or any(hasattr(base, name) for base in bases):
                methods.append((f"{owner.__name__}.{name}", member))
    return tuple(methods)


def _is_code(member: Any) -> bool:
    return not isinstance(member, type) and (callable(member) or hasattr(member, "__get__"))


def _is_known(member: Any, owner: type, depth: int = _MOST_DEPTH) -> bool:
    """Returns True for code of known packages, if all functions that it holds are known too.

    `owner` is the class of the object, whose module counts for anything but a function.
    """
    if isinstance(member, type):
        return True
    if depth == 0:  # Nobody has looked at what it holds.
        return False
    if isinstance(member, keras.Layer):  # One that Keras tracks is asked by itself.
        return depth == _MOST_DEPTH or all(
            is_known(type(inner)) for inner in flatten_layers(member)
        )
    if isinstance(member, keras.Operation):
        return find_foreign_code(member) is None
    if isinstance(member, types.MethodType | classmethod | staticmethod | property):
        function = member.fget if isinstance(member, property) else member.__func__
        return _is_known(function, owner, depth)
    source: Any = owner
    functions: list[Any] = []
    if isinstance(member, types.FunctionType):
        source = member
        functions = [cell.cell_contents for cell in member.__closure__ or () if cell != _EMPTY_CELL]
    elif isinstance(member, functools.partial):
        source = functools.partial
        functions = [member.func, *member.args, *member.keywords.values()]
    else:  # As by `ops.custom_gradient` on PyTorch and `keras.remat` on TensorFlow.
        values = getattr(member, "__dict__", {}).values()
        functions = [value for value in values if not isinstance(value, keras.Layer)]
    return is_known(source, *_BASE_PACKAGES) and all(
        _is_known(function, type(function), depth - 1) for function in filter(callable, functions)
    )


_EMPTY_CELL = types.CellType()


def find_unrecordable_layer(model: keras.Model) -> str | None:
    """Returns a reason why the layers of a model can't be recorded, or `None`."""
    for layer in flatten_layers(model):
        if code := find_foreign_code(layer):
            return f"layer {layer.name!r} has code that is not known, {code}"
    return None


@contextlib.contextmanager
def protected_attributes(model: keras.Model) -> Iterator[None]:
    """Context manager in which foreign code writes to copies of its layers' attributes.

    At the end the layers get their own back, such as counters, lists and running means.
    """
    methods: dict[type, Any] = {}
    owners = [
        inner
        for layer in flatten_layers(model)
        for owner in (layer, *getattr(layer, "operations", ()))
        if find_foreign_code(owner, methods)
        for inner in (flatten_layers(owner) if isinstance(owner, keras.Layer) else [owner])
    ]
    saved = [(vars(owner), dict(vars(owner))) for owner in {id(o): o for o in owners}.values()]
    try:
        for attributes, old_attributes in saved:
            attributes.update(_copies(old_attributes))
        yield
    finally:
        for attributes, old_attributes in saved:
            for name in attributes.keys() - old_attributes.keys():
                del attributes[name]
            attributes.update(old_attributes)


def _copies(attributes: dict[str, Any]) -> dict[str, Any]:
    """Returns copies of the attributes that foreign code may change in place.

    Objects of Keras in them, such as layers and variables, are shared. So are tensors of a graph of
    gradients, which PyTorch does not copy, and TensorFlow's references to layers.

    Raises:
        CannotOpenError: An attribute can't be copied, as a lock or a generator.
    """
    copies = {}
    for name, value in attributes.items():
        if name in _NOT_IN_CALL or isinstance(value, _SHARED) or _is_shared(value):
            continue
        memo = {id(shared): shared for shared in _find_shared(value)}
        tracker = getattr(value, "tracker", None)  # Of Keras's lists: it holds the layer's state.
        try:
            copies[name] = copy.deepcopy(value, {**memo, id(tracker): tracker})
        except Exception as error:
            raise CannotOpenError(f"holds {name!r}, which can't be copied: {error}") from error
    return copies


def _is_shared(value: Any) -> bool:
    if isinstance(value, dict | list | tuple | set):
        return False
    kind = type(value)
    is_reference = package_of(kind) == "tensorflow"  # As to a layer inside.
    is_of_graph = getattr(value, "grad_fn", None) is not None
    return is_reference or is_of_graph or any(map(is_known, kind.__mro__))


def _find_shared(value: Any) -> Iterator[Any]:
    """Yields the objects in nested containers that are not copied."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        for element in value:
            yield from _find_shared(element)
    elif _is_shared(value):
        yield value
