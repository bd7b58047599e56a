"""A reader of functions that says whether a trace sees all that they do.

It runs a function, rewritten to check all that it does (`code_rewriter.py`), on the layer's own
settings, with stand-ins for tensors and sizes (`code_values.py`). What a trace does not see raises
an `UnreadableCodeError` with the reason. Where a branch depends on what a caller chooses, as on
`training`, the function runs once for each choice.
"""

import contextlib
import inspect
import linecache
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_deepseek.backend.known_packages import is_known
from keras_deepseek.graph.code_calls import Operations
from keras_deepseek.graph.code_rewriter import REWRITTEN, UnreadableCodeError, refuse, rewrite
from keras_deepseek.graph.code_values import (
    CHOICE,
    CONTAINERS,
    SHAPE,
    SIZE,
    Data,
    Kind,
    ObjectReader,
    is_container,
    is_plain,
    is_tensor,
)
from keras_deepseek.graph.watched_names import MISSING, Watch, is_constant

_MOST_CHECKS = 20_000


class _RaisedError(Exception):
    """An error that the code raises, as the model then does too."""


class CodeReader:
    """Reads functions that a layer runs.

    Args:
        layer: The layer. Functions may call its methods, and layers that it tracks.
        tracked: The ids of these layers.
    """

    def __init__(self, layer: Any, tracked: set[int]) -> None:
        self.watch = Watch()
        self._operations = Operations(layer, tracked, self.watch, self._run)
        self._objects = ObjectReader(layer, self.watch, self._run)
        self._checks: dict[str, Callable[..., Any]] = {  # By the names in rewritten code.
            "attribute": self._objects.attribute,
            "call": self._call,
            "change": self._operations.change,
            "constant": self._operations.constant,
            "elements": self._elements,
            "fit": self._operations.fit,
            "item": self._operations.item,
            "keep": self._operations.keep,
            "logic": self._logic,
            "operator": self._operator,
            "raises": self._raises,
            "set_item": self._operations.set_item,
            "share": self._operations.share,
            "slice": slice,
            "truth": self._truth,
        }
        self._rewritten: dict[Any, Any] = {}
        self._path: list[int] = []
        self._waiting: list[list[int]] = []
        self._position = self._num_checks = 0

    @property
    def reads_sizes(self) -> bool:
        """True if the code computes with sizes in ways that may differ at sizes never tried."""
        return self._operations.reads_sizes

    def read(self, function: Any, owner: Any = None) -> None:
        """Reads a function, called with tensors; as a method, if it has an owner.

        Raises:
            UnreadableCodeError: A trace would not see all that it does.
        """
        self._waiting, self._num_checks = [[]], 0
        try:
            while self._waiting:
                self._path, self._position = self._waiting.pop(), 0
                with contextlib.suppress(_RaisedError):
                    self._enter(function, [] if owner is None else [owner])
        except Exception as error:  # noqa: BLE001 - what is wrong in a run may raise anything
            is_reason = isinstance(error, UnreadableCodeError)
            what = "" if is_reason else f"raises a {type(error).__name__} when it is read: "
            raise UnreadableCodeError(f"{what}{error}{_find_line(error)}") from None

    def _choose(self, options: Sequence[Any]) -> Any:
        """Returns one of the options. The code runs again for each of the others."""
        if self._position == len(self._path):
            self._waiting += [[*self._path, index] for index in range(1, len(options))]
            self._path.append(0)
        self._position += 1
        return options[self._path[self._position - 1]]

    def _enter(self, function: types.FunctionType, args: list[Any]) -> None:
        """Runs a function with stand-ins for its arguments."""
        if not isinstance(function, types.FunctionType) or is_known(function):
            refuse(f"is an object of the class {type(function).__name__}")
        if "__signature__" in vars(function):
            refuse("has a signature of its own")
        kwargs: dict[str, Any] = {}
        parameters = inspect.signature(function, follow_wrapped=False).parameters
        for parameter in list(parameters.values())[len(args) :]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                refuse(f"takes any arguments, by `{parameter}`")
            value: Any = Data()
            if parameter.name == "training":
                value = self._choose([True, False, None])
            elif type(parameter.default) in (bool, int, str):
                value = CHOICE
            if parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        self._run(function, args, kwargs)

    def _run(self, function: types.FunctionType, args: Any, kwargs: dict[str, Any]) -> Any:
        """Returns the result of a function of a user, rewritten."""
        if function not in self._rewritten:
            self._rewritten[function] = self._rewrite(function)
        return self._rewritten[function](*args, **kwargs)

    def _rewrite(self, function: types.FunctionType) -> types.FunctionType:
        self.watch.get_attribute(function, "__code__")
        defaults = self.watch.get_attribute(function, "__defaults__") or ()
        keyword_defaults = self.watch.get_attribute(function, "__kwdefaults__") or {}
        self.watch.get_elements(keyword_defaults)
        for value in (*defaults, *keyword_defaults.values()):
            if isinstance(value, list | dict | set):
                refuse("has a list, dict or set as a default, which may change")

        def outside(name: str) -> Any:
            return self._look_up(function, name)

        def call_super(owner: Any) -> Any:
            if outside("super") is not super or "__class__" not in function.__code__.co_freevars:
                refuse("calls super() outside of a method")
            return super(outside("__class__"), owner)

        result = rewrite(function, {**self._checks, "outside": outside, "super": call_super})
        wrap = self._objects.wrap
        result.__defaults__ = tuple(wrap(value, "a default") for value in defaults)
        result.__kwdefaults__ = {k: wrap(v, "a default") for k, v in keyword_defaults.items()}
        return result

    def _look_up(self, function: Any, name: str) -> Any:
        """Returns the value of a name from outside of a function."""
        if name.startswith("__") and not name.endswith("__"):
            refuse(f"reads `{name}`, which has another name within a class")
        names, cells = function.__code__.co_freevars, function.__closure__ or ()
        if name in names:
            value = self.watch.get_attribute(cells[names.index(name)], "cell_contents")
        else:
            value = self.watch.look_up(function.__globals__, name)
            if value is MISSING:
                value = self.watch.look_up(function.__builtins__, name)
        result = self._objects.wrap(value, name)
        is_list = is_container(value) and not (type(value) is tuple and is_plain(value))
        if value is MISSING or isinstance(value, keras.Variable | keras.Layer) or is_list:
            refuse(f"reads `{name}` from outside, which may change")
        return result

    def _count(self) -> None:
        self._num_checks += 1
        if self._num_checks > _MOST_CHECKS:
            refuse("is too long, or has too many branches")

    def _call(self, text: str, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._count()
        return self._operations.call(text, function, args, kwargs)

    def _elements(self, value: Any, pattern: Any = None) -> Iterator[Any]:
        for element in self._operations.elements(value):
            self._count()
            yield self._operations.fit(element, pattern)

    def _truth(self, value: Any) -> bool:
        """Returns the truth of a condition, which must be known or up to a caller."""
        self._count()
        if value is CHOICE:
            return bool(self._choose([True, False]))
        if is_tensor(value) or isinstance(value, Kind):
            kind = "a size" if value is SIZE or value is SHAPE else "a tensor or an argument"
            refuse(f"branches by {kind}")
        if is_constant(value) or type(value) in CONTAINERS:
            return bool(value)
        if any(hasattr(type(value), name) for name in ("__bool__", "__len__")):
            refuse("asks whether an object is true")
        return True

    def _raises(self, what: str, value: Any) -> None:
        """Checks a condition that only raises an error: it may depend on sizes."""
        self._operations.reads_sizes |= value is SIZE
        is_known = value is not SIZE and value is not CHOICE
        if is_known and self._truth(value) is (what == "error"):
            raise _RaisedError

    def _logic(self, is_and: bool, value: Any, *operands: Callable[[], Any]) -> Any:
        """Returns the result of `and` or `or`."""
        for operand in operands:
            if self._truth(value) != is_and:
                break
            value = operand()
        return value

    def _operator(self, name: str, run: Callable[..., Any], *values: Any) -> Any:
        """Returns the result of an operator; `run` computes it from constants."""
        first, second = values[0], values[-1]
        if name == "Not":
            return not self._truth(first)
        if name in ("In", "NotIn"):
            elements = list(second) if type(second) in (dict, types.MappingProxyType) else second
            return (
                run(first, elements) if is_plain([first, elements]) else refuse("asks what is in")
            )
        if name not in ("Is", "IsNot"):
            return self._operations.operator(name, run, *values)
        if (first is SIZE or first is CHOICE) and is_constant(second):
            self._operations.reads_sizes |= first is SIZE
            return CHOICE
        if isinstance(first, Data) and second is None:
            if first.is_none is None:
                first.is_none = self._choose([False, True])
            return first.is_none is (name == "Is")
        are_objects = not any(
            isinstance(value, Data | Kind) or type(value) in CONTAINERS for value in values
        )
        return run(*values) if second is None or are_objects else refuse("asks which object it is")


def _find_line(error: Exception) -> str:
    """Returns the line of the code that is read in which an error was raised."""
    line, text, traceback = getattr(error, "line", 0), "", error.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if name.startswith(REWRITTEN) and not getattr(error, "line", 0):
            line = traceback.tb_lineno
            text = linecache.getline(name.removeprefix(REWRITTEN), line).strip()
        traceback = traceback.tb_next
    return (f" in line {line}" if line else "") + (f": `{text}`" if text else "")
