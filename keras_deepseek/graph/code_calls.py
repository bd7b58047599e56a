"""The calls in code that is read."""

import ast
import functools
import types
from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.graph import allowed_calls
from keras_deepseek.graph.code_objects import is_container, is_of_known_package
from keras_deepseek.graph.code_state import ReadingState, function_frame, is_generator, is_variable
from keras_deepseek.graph.code_values import (
    DATA,
    DTYPE,
    PLAIN,
    SHAPE,
    SIZE,
    Arguments,
    Bound,
    Fixed,
    Frame,
    Fresh,
    Kind,
    Local,
    Reader,
    Super,
    Values,
)
from keras_deepseek.graph.function_source import UnreadableCodeError


class CallReader:
    """Reads calls: of operations of Keras, layers, methods, lists, and functions of users.

    Args:
        run: Reads the body of a function of a user, and returns the values that it returns.
    """

    def __init__(
        self, state: ReadingState, run: Callable[[Any, Arguments, dict[Any, Any]], Values]
    ) -> None:
        self._state = state
        self.run = run

    def call(  # noqa: PLR0911 - one line a kind of function
        self, function: Any, arguments: Arguments, node: ast.Call, frame: Frame, frames: Any
    ) -> Values:
        """Returns the results of a call, or raises an error if a trace would not see all of it."""
        name = ast.unparse(node.func)
        if isinstance(function, Local):
            return self.run(function, arguments, frames)
        if isinstance(function, Bound):
            return self._call_method(function, arguments, name, frame, frames)
        if isinstance(function, Reader):
            return self._call_reader(function, arguments, node, frame)
        if function is PLAIN:
            return set()  # Running it raises an error.
        if function is Kind.PLAIN_METHOD:
            if not arguments.all() <= {PLAIN}:
                raise UnreadableCodeError(f"calls {name} with a tensor or a size")
            return {PLAIN}
        if function is Kind.ASSIGN:
            self._state.check_tensors(arguments, name)
            return {DATA}
        if not isinstance(function, Fixed):
            raise UnreadableCodeError(f"calls {name}, which is no operation of Keras")
        value = function.value
        if isinstance(value, keras.Layer):
            if id(value) not in self._state.tracked:
                raise UnreadableCodeError(f"calls {name}, a layer that Keras does not track")
            self._state.check_tensors(arguments, name)
            return {DATA}
        if isinstance(value, functools.partial):
            starred = arguments.starred
            parts = [self._state.objects.wrap(part, name) for part in value.args]
            keywords = {
                key: self._state.objects.wrap(part, name) for key, part in value.keywords.items()
            }
            arguments = Arguments(
                [*parts, *arguments.positional], {**keywords, **arguments.keywords}, starred
            )
            return self.call(Fixed(value.func), arguments, node, frame, frames)
        return self._call_function(value, arguments, node, frame, frames)

    def combine(self, op: ast.AST, left: Values, right: Values, node: Any, frame: Frame) -> Values:
        """Returns the kinds of the result of an operator."""
        values = left | right
        for value in values:
            is_tensor = is_variable(value)
            if value is DTYPE or not (is_tensor or isinstance(value, Kind | Fresh | Fixed)):
                raise UnreadableCodeError(
                    f"computes with what is no number (`{ast.unparse(node)}`)"
                )
            if isinstance(value, Fixed) and not is_tensor and not is_container(value.value):
                kind = type(value.value).__name__
                raise UnreadableCodeError(f"computes with an object of the class {kind}")
        if values & {Kind.ASSIGN, Kind.PLAIN_METHOD}:
            raise UnreadableCodeError(f"computes with a method (`{ast.unparse(node)}`)")
        result: Values = set()
        if SHAPE in values:
            result.add(SHAPE)
        if containers := {v for v in values if isinstance(v, Fresh | Fixed) and not is_variable(v)}:
            elements = set().union(*(self._state.iterate({container}) for container in containers))
            self._state.reads_sizes |= SIZE in values
            result.add(self._state.fresh(node, frame, elements))
        has_tensor = DATA in values or any(map(is_variable, values))
        if SIZE in values:
            is_sum = isinstance(op, ast.Add | ast.Sub | ast.USub | ast.UAdd)
            is_multiple = isinstance(op, ast.Mult) and not (SIZE in left and SIZE in right)
            if has_tensor or not (is_sum or is_multiple):
                self._state.reads_sizes = True
            result.add(SIZE)
        if has_tensor:
            result.add(DATA)
        if PLAIN in left and PLAIN in right:
            result.add(PLAIN)
        return result

    def _call_function(  # noqa: PLR0911 - one line a kind of function
        self, function: Any, arguments: Arguments, node: ast.Call, frame: Frame, frames: Any
    ) -> Values:
        name = ast.unparse(node.func)
        if function is super and not node.args:
            return {self._super(frame)}
        if id(function) in allowed_calls.BUILTINS:
            return self._call_builtin(function, arguments, node, frame)
        is_foreign = isinstance(function, types.FunctionType) and not is_of_known_package(function)
        if is_foreign and not allowed_calls.is_outside(function):
            return self.run(function, arguments, frames)
        if function is allowed_calls.SHAPE:
            return {SHAPE}
        if function in allowed_calls.SETTING_FUNCTIONS:
            self._state.watch.get_attribute(allowed_calls.SETTINGS, function.__name__)
            return {PLAIN}
        if function in allowed_calls.DTYPES:
            return {PLAIN}
        values = arguments.all()
        if id(function) in allowed_calls.DRAWS:
            if not any(is_generator(value) for value in values):
                raise UnreadableCodeError("draws random numbers without a seed generator")
        elif id(function) not in allowed_calls.OPERATIONS:
            raise UnreadableCodeError(f"calls {name}")
        allowed_calls.check_arguments(function, arguments)
        self._state.check_tensors(arguments, name, function is not keras.ops.reshape)
        return {DATA}

    def _call_method(
        self, method: Bound, arguments: Arguments, name: str, frame: Frame, frames: Any
    ) -> Values:
        function = method.function
        if not is_of_known_package(function):
            if isinstance(method.owner, keras.Layer) and method.owner is not self._state.layer:
                raise UnreadableCodeError(f"calls {name}, a method of another layer")
            positional: list[Values] = [{Fixed(method.owner)}, *arguments.positional]
            arguments = Arguments(positional, arguments.keywords, arguments.starred)
            return self.run(function, arguments, frames)
        is_helper = function.__name__.startswith("_") and not hasattr(
            keras.Layer, function.__name__
        )
        is_same = method.is_super and function.__name__ == frame.function.__name__
        if method.owner is not self._state.layer or not (is_helper or is_same):
            raise UnreadableCodeError(f"calls {name}")
        self._state.check_tensors(arguments, name)
        return {DATA}

    def _call_reader(
        self, reader: Reader, arguments: Arguments, node: ast.Call, frame: Frame
    ) -> Values:
        container = reader.container
        adds = reader.name in ("append", "extend", "update", "copy")
        if not adds and DATA in set().union(*arguments.positional[:1]):
            raise UnreadableCodeError(f"looks up a tensor (`{ast.unparse(node)}`)")
        self._state.reads_sizes |= not adds and self._state.has_sizes(arguments.all())
        if isinstance(container, Fresh) and reader.name in allowed_calls.MUTABLE_METHODS:
            values = arguments.all()
            if reader.name in ("extend", "update"):
                values = self._state.iterate(values, of_dict="values")
            self._state.change(container, values)
            return {container} if reader.name == "copy" else {PLAIN, *container.elements}
        elements = self._state.iterate({container}, of_dict="values")
        if reader.name == "get":
            return elements | set().union(*arguments.positional[1:]) | {PLAIN}
        if reader.name in ("index", "count"):
            if not elements | arguments.all() <= {PLAIN}:
                raise UnreadableCodeError(f"compares objects (`{ast.unparse(node)}`)")
            return {PLAIN}
        pair: Values = {PLAIN} if reader.name == "keys" else elements
        if reader.name == "items":
            pair = {self._state.positions((node, "item"), frame, [{PLAIN}, elements])}
        return {self._state.fresh(node, frame, pair)}

    def _call_builtin(
        self, function: Any, arguments: Arguments, node: ast.Call, frame: Frame
    ) -> Values:
        values = arguments.all()
        if function is len:
            if values & {DATA, SIZE}:
                self._state.reads_sizes = True
            return {SIZE if value in (DATA, SIZE) else PLAIN for value in values}
        if function in (zip, enumerate, reversed, list, tuple, dict):
            parts = [self._state.iterate(argument) for argument in arguments.positional]
            if function is enumerate:
                parts = [{PLAIN}, *parts[:1]]
            if function in (zip, enumerate) and not arguments.starred:
                return {
                    self._state.fresh(
                        node, frame, {self._state.positions((node, "item"), frame, parts)}
                    )
                }
            elements = set().union(arguments.starred, *parts, *arguments.keywords.values())
            if function is zip:
                elements = {self._state.fresh((node, "item"), frame, self._state.iterate(elements))}
            return {self._state.fresh(node, frame, elements)}
        if function is sum or function is abs:
            elements = self._state.iterate(values) if function is sum else values
            return self.combine(ast.Add(), elements, {PLAIN}, node, frame)
        # The functions of numbers.
        elements = {inner for value in values for inner in self._state.numbers(value)}
        if not elements <= {PLAIN, SIZE}:
            raise UnreadableCodeError(f"reads a number (`{ast.unparse(node)}`)")
        self._state.reads_sizes |= SIZE in elements
        return elements or {PLAIN}

    def _super(self, frame: Frame) -> Super:
        function = frame.function
        names = function.__code__.co_freevars
        first = function.__code__.co_varnames[:1]
        if "__class__" not in names or not first:
            raise UnreadableCodeError("calls super() outside of a method")
        after = (function.__closure__ or ())[names.index("__class__")].cell_contents
        owners = [
            v.value
            for v in function_frame(frame).variables.get(first[0], ())
            if isinstance(v, Fixed)
        ]
        if len(owners) != 1 or after not in type(owners[0]).__mro__:
            raise UnreadableCodeError("calls super() in a way that can't be followed")
        return Super(owners[0], after)
