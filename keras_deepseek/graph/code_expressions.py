"""The expressions in code that is read."""

import ast
import builtins
from typing import Any

import keras

from keras_deepseek.graph import allowed_calls
from keras_deepseek.graph.code_calls import CallReader
from keras_deepseek.graph.code_objects import is_container
from keras_deepseek.graph.code_state import ReadingState, function_frame, is_variable
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
from keras_deepseek.graph.watched_names import MISSING, PLAIN_TYPES

_DATA_ATTRIBUTES = {"shape": SHAPE, "dtype": DTYPE, "ndim": PLAIN}
KEYWORDS = {
    "try": "try",
    "trystar": "try",
    "functiondef": "def",
    "importfrom": "import",
    "asyncfor": "async for",
    "asyncwith": "async with",
    "classdef": "class",
    "yieldfrom": "yield from",
}
"""The words of Python for syntax nodes that have another name."""


class ExpressionReader:
    """Reads expressions: it returns the kinds of values that they may have."""

    def __init__(self, state: ReadingState, calls: CallReader) -> None:
        self._state = state
        self._calls = calls

    def _read_name(self, node: ast.Name, frame: Frame) -> Values:
        name = node.id
        scope: Frame | None = frame
        while scope is not None:
            if name in scope.names:
                return set(scope.variables.get(name, ()))
            scope = scope.outer
        function = frame.function
        code = function.__code__
        if name in code.co_freevars:
            cell = (function.__closure__ or ())[code.co_freevars.index(name)]
            value = self._state.watch.get_attribute(cell, "cell_contents")
            if value is MISSING:
                raise UnreadableCodeError(f"reads {name!r}, which is not set")
        else:
            value = self._state.watch.look_up(function.__globals__, name)
            if value is MISSING:
                value = self._state.watch.look_up(vars(builtins), name)
            if value is MISSING:
                return set()  # Running it raises an error.
        if isinstance(value, keras.Variable | keras.Layer) or (
            is_container(value) and not _is_plain_tuple(value)
        ):
            raise UnreadableCodeError(f"reads `{name}` from outside, which may change")
        return self._state.objects.wrap(value, name)

    def value(self, node: ast.expr, frame: Frame) -> Values:
        self._state.count_node(getattr(node, "lineno", None))
        name = type(node).__name__.lower()
        method = getattr(self, f"_read_{name}", None)
        if method is None:
            raise UnreadableCodeError(f"uses `{KEYWORDS.get(name, name)}`")
        values: Values = method(node, frame)
        return values

    def assign(self, target: ast.AST, values: Values, frame: Frame) -> None:
        if isinstance(target, ast.Name):
            self._state.bind(frame, target.id, values)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, {self._state.fresh(target, frame, values)}, frame)
        elif isinstance(target, ast.Tuple | ast.List):
            is_plain = not any(isinstance(inner, ast.Starred) for inner in target.elts)
            for index, inner in enumerate(target.elts):
                elements: Values = set()
                for value in values:
                    positions = value.positions if isinstance(value, Fresh) else None
                    has_rest = isinstance(value, Fresh) and bool(value.rest)
                    is_whole = is_plain and not has_rest
                    if positions and is_whole and len(positions) == len(target.elts):
                        elements |= positions[index]
                    else:
                        elements |= self._state.iterate({value})
                self.assign(inner, elements, frame)
        elif isinstance(target, ast.Subscript):
            for value in self.value(target.value, frame):
                if not isinstance(value, Fresh):
                    raise UnreadableCodeError(f"writes {ast.unparse(target)}")
                self._state.grow(value.elements, values | self.index(target.slice, frame))
        else:
            raise UnreadableCodeError(f"writes {ast.unparse(target)}")

    def condition(self, node: ast.expr, frame: Frame, is_check: bool = False) -> None:
        """Reads a condition. One that only raises an error may depend on sizes."""
        for value in self.value(node, frame):
            if value is SIZE and is_check:
                self._state.reads_sizes = True
            elif value in (SIZE, SHAPE):
                raise UnreadableCodeError(f"branches by a size (`{ast.unparse(node)}`)")
            elif value in (DATA, DTYPE) or is_variable(value):
                raise UnreadableCodeError(
                    f"branches by a tensor or argument (`{ast.unparse(node)}`)"
                )
            elif isinstance(value, Fixed) and not _has_plain_truth(value.value):
                raise UnreadableCodeError(f"asks whether {ast.unparse(node)} is true")

    def _read_constant(self, node: ast.Constant, frame: Frame) -> Values:
        return {PLAIN}

    def _read_list(self, node: Any, frame: Frame) -> Values:
        positions = []
        for inner in node.elts:
            if isinstance(inner, ast.Starred):
                positions.append(self._state.iterate(self.value(inner.value, frame)))
            else:
                positions.append(self.value(inner, frame))
        if any(isinstance(inner, ast.Starred) for inner in node.elts) or not positions:
            return {self._state.fresh(node, frame, set().union(*positions))}
        return {self._state.positions(node, frame, positions)}

    _read_tuple = _read_set = _read_list

    def _read_dict(self, node: ast.Dict, frame: Frame) -> Values:
        elements: Values = set()
        for key, value in zip(node.keys, node.values, strict=True):
            values = self.value(value, frame)
            elements |= self._state.iterate(values) if key is None else values
            if key is not None and not self.value(key, frame) <= {PLAIN}:
                raise UnreadableCodeError(f"has a key that is no constant (`{ast.unparse(key)}`)")
        return {self._state.fresh(node, frame, elements)}

    def _read_joinedstr(self, node: ast.JoinedStr, frame: Frame) -> Values:
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                values = self.value(part.value, frame)
                if not values <= {PLAIN}:
                    raise UnreadableCodeError(f"writes {ast.unparse(part.value)} in a text")
        return {PLAIN}

    def _read_namedexpr(self, node: ast.NamedExpr, frame: Frame) -> Values:
        values = self.value(node.value, frame)
        self._state.bind(function_frame(frame), node.target.id, values)
        return values

    def define(self, node: Any, frame: Frame) -> Values:
        defaults = [self.value(default, frame) for default in node.args.defaults]
        names = [argument.arg for argument in node.args.kwonlyargs]
        pairs = zip(names, node.args.kw_defaults, strict=True)
        keywords = {name: self.value(value, frame) for name, value in pairs if value is not None}
        frame.made_by[node, "defaults"] = defaults, keywords
        function = frame.made_by.setdefault(node, Local(node, frame))
        return {function}

    _read_lambda = define

    def _read_listcomp(self, node: Any, frame: Frame) -> Values:
        scope = frame.made_by.get((node, "scope"))
        if scope is None:
            targets = [ast.walk(generator.target) for generator in node.generators]
            names = {n.id for names in targets for n in names if isinstance(n, ast.Name)}
            scope = frame.made_by[node, "scope"] = Frame(frame.function, names, frame)
        for generator in node.generators:
            elements = self._state.iterate(self.value(generator.iter, scope))
            self.assign(generator.target, elements, scope)
            for condition in generator.ifs:
                self.condition(condition, scope)
        is_dict = isinstance(node, ast.DictComp)
        if is_dict and not self.value(node.key, scope) <= {PLAIN}:
            raise UnreadableCodeError("has keys that are no constants")
        values = self.value(node.value if is_dict else node.elt, scope)
        return {self._state.fresh(node, frame, values)}

    _read_setcomp = _read_dictcomp = _read_generatorexp = _read_listcomp

    def _read_ifexp(self, node: ast.IfExp, frame: Frame) -> Values:
        self.condition(node.test, frame)
        return self.value(node.body, frame) | self.value(node.orelse, frame)

    def _read_boolop(self, node: ast.BoolOp, frame: Frame) -> Values:
        values = set().union(*(self.value(value, frame) for value in node.values))
        self._state.reads_sizes |= SIZE in values
        if not values <= {PLAIN, SIZE}:
            for inner in node.values[:-1]:
                self.condition(inner, frame)
        return values

    def _read_unaryop(self, node: ast.UnaryOp, frame: Frame) -> Values:
        if isinstance(node.op, ast.Not):
            values = self.value(node.operand, frame)
            if values <= {PLAIN, SIZE}:
                return values
            self.condition(node.operand, frame)
            return {PLAIN}
        return self._calls.combine(node.op, self.value(node.operand, frame), {PLAIN}, node, frame)

    def _read_binop(self, node: ast.BinOp, frame: Frame) -> Values:
        left, right = self.value(node.left, frame), self.value(node.right, frame)
        return self._calls.combine(node.op, left, right, node, frame)

    def _read_compare(self, node: ast.Compare, frame: Frame) -> Values:
        operands = [self.value(inner, frame) for inner in (node.left, *node.comparators)]
        values = set().union(*operands)
        text = ast.unparse(node)
        if values & {SIZE, SHAPE}:
            self._state.reads_sizes = True
        if all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            is_none = all(isinstance(right, ast.Constant) for right in node.comparators)
            if not is_none and not all(isinstance(v, Fixed) or v is PLAIN for v in values):
                raise UnreadableCodeError(f"asks which object it is (`{text}`)")
            return {PLAIN}
        if any(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
            inside = self._state.iterate(set().union(*operands[1:]))
            if not operands[0] | inside <= {PLAIN}:
                raise UnreadableCodeError(f"asks what is in a structure (`{text}`)")
            return {PLAIN}
        if DTYPE in values:
            raise UnreadableCodeError(f"asks for a dtype (`{text}`)")
        if DATA in values or any(map(is_variable, values)):
            if len(node.ops) > 1:
                raise UnreadableCodeError(f"compares twice (`{text}`)")
            return {DATA}
        if values & {SIZE, SHAPE}:
            return {SIZE}
        if not all(value is PLAIN or isinstance(value, Fresh) for value in values):
            raise UnreadableCodeError(f"compares objects (`{text}`)")
        return {PLAIN}

    def _read_attribute(self, node: ast.Attribute, frame: Frame) -> Values:
        text = ast.unparse(node)
        result: Values = set()
        for value in self.value(node.value, frame):
            attributes = self._attribute_of(value, node.attr, text)
            for attribute in attributes:
                if isinstance(attribute, Bound) and attribute.is_property:
                    arguments = Arguments([{Fixed(attribute.owner)}], {}, set())
                    frames = frame.made_by.setdefault((node, "property"), {})
                    result |= self._calls.run(attribute.function, arguments, frames)
                else:
                    result.add(attribute)
        return result

    def _attribute_of(self, value: Any, name: str, text: str) -> Values:
        if isinstance(value, Fixed):
            return self._state.objects.attribute(value.value, name, text)
        if isinstance(value, Super):
            return self._state.objects.attribute_of_super(value, name, text)
        if value is DATA and name in _DATA_ATTRIBUTES:
            return {_DATA_ATTRIBUTES[name]}
        if value is DATA and name in ("items", "keys", "values", "get"):
            return {Reader(DATA, name)}
        if value is PLAIN:  # If no constant has it, running it raises an error.
            return (
                {Kind.PLAIN_METHOD} if any(hasattr(kind, name) for kind in PLAIN_TYPES) else set()
            )
        methods = allowed_calls.MUTABLE_METHODS | allowed_calls.READING_METHODS
        if isinstance(value, Fresh) and name in methods:
            return {Reader(value, name)}
        raise UnreadableCodeError(f"uses {text}, which is no operation of Keras")

    def _read_subscript(self, node: ast.Subscript, frame: Frame) -> Values:
        index = self.index(node.slice, frame)
        is_slice = isinstance(node.slice, ast.Slice)
        constant = node.slice.value if isinstance(node.slice, ast.Constant) else None
        result: Values = set()
        for value in self.value(node.value, frame):
            if SIZE in index and not is_variable(value):
                self._state.reads_sizes = True
            if value is SHAPE:
                result.add(SHAPE if is_slice else SIZE)
            elif value in (DATA, PLAIN, SIZE):
                result.add(value)
            elif is_variable(value):
                result.add(DATA)
            elif isinstance(value, Fresh) and value.positions and isinstance(constant, int):
                result |= (*value.positions, value.rest)[min(constant, len(value.positions))]
            else:
                elements = self._state.iterate({value}, of_dict="values")
                result |= {self._state.fresh(node, frame, elements)} if is_slice else elements
        return result

    def index(self, node: ast.expr, frame: Frame) -> Values:
        """Returns the kinds in an index, which must be constants or sizes."""
        if isinstance(node, ast.Tuple):
            return set().union(*(self.index(inner, frame) for inner in node.elts))
        if isinstance(node, ast.Slice):
            bounds = [part for part in (node.lower, node.upper, node.step) if part is not None]
            return set().union({PLAIN}, *(self.index(part, frame) for part in bounds))
        values = self.value(node, frame)
        if not values <= {PLAIN, SIZE}:
            raise UnreadableCodeError(
                f"takes a list or a tensor as an index (`{ast.unparse(node)}`)"
            )
        return values

    def _read_call(self, node: ast.Call, frame: Frame) -> Values:
        functions = self.value(node.func, frame)
        arguments = Arguments([], {}, set())
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                values = self.value(argument.value, frame)
                (value, *alternatives) = values or {PLAIN}
                is_first = not alternatives and not arguments.starred
                if isinstance(value, Fresh) and value.positions is not None and is_first:
                    arguments.positional += value.positions
                    arguments.starred |= value.rest
                else:
                    arguments.starred |= self._state.iterate(values)
            elif arguments.starred:
                arguments.starred |= self.value(argument, frame)
            else:
                arguments.positional.append(self.value(argument, frame))
        for keyword in node.keywords:
            values = self.value(keyword.value, frame)
            if keyword.arg is None:
                arguments.starred |= self._state.iterate(values, of_dict="values")
            else:
                arguments.keywords[keyword.arg] = values
        frames = frame.made_by.setdefault((node, "frames"), {})
        result: Values = set()
        for function in functions:
            self._state.line = node.lineno
            result |= self._calls.call(function, arguments, node, frame, frames)
        return result


def _is_plain_tuple(value: Any) -> bool:
    return type(value) is tuple and all(isinstance(element, PLAIN_TYPES) for element in value)


def _has_plain_truth(value: Any) -> bool:
    """Returns True for objects that are true as all objects are, and for lists and dicts."""
    kind = type(value)
    return is_container(value) or not (hasattr(kind, "__bool__") or hasattr(kind, "__len__"))
