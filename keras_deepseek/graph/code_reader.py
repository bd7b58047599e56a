"""A reader of functions that says whether a trace sees all that they do.

It evaluates the syntax tree of a function on kinds of values (`code_values.py`): both sides of each
branch, and the functions that it calls. It has a list of what a trace sees; anything else raises an
`UnreadableCodeError` with the reason. A name stands for the union of all values that it ever gets.
"""

import ast
import types
from collections.abc import Iterable
from typing import Any

import keras

from keras_deepseek.graph.code_calls import CallReader
from keras_deepseek.graph.code_expressions import KEYWORDS, ExpressionReader
from keras_deepseek.graph.code_state import ReadingState, function_frame
from keras_deepseek.graph.code_values import (
    DATA,
    PLAIN,
    Arguments,
    Fixed,
    Frame,
    Fresh,
    Local,
    Values,
)
from keras_deepseek.graph.function_source import (
    UnreadableCodeError,
    bound_names,
    find_node,
)
from keras_deepseek.graph.watched_names import Watch

_MOST_ROUNDS = 30
_A_CALL = ast.Call(ast.Name("the function"), [], [])
_CALLER = types.FunctionType(compile("", "", "exec"), {})
"""They stand for a call from outside of the code, and for the function around it."""


class CodeReader:
    """Reads functions that a layer runs.

    Args:
        layer: The layer. Functions may call its methods, and layers that it tracks.
        tracked: The ids of these layers.
    """

    def __init__(self, layer: Any, tracked: set[int]) -> None:
        self._state = ReadingState(layer, tracked)
        self._calls = CallReader(self._state, self._run)
        self._expressions = ExpressionReader(self._state, self._calls)

    @property
    def watch(self) -> Watch:
        """The names that the code reads."""
        return self._state.watch

    @property
    def reads_sizes(self) -> bool:
        """True if the code computes with sizes in ways that may differ at sizes never tried."""
        return self._state.reads_sizes

    def read(self, function: Any, owner: Any = None) -> None:
        """Reads a function, called with tensors; as a method, if it has an owner.

        Raises:
            UnreadableCodeError: A trace would not see all that it does.
        """
        frame = Frame(_CALLER, set())
        frames: dict[Any, Frame] = {}
        call = Arguments([], {}, {DATA})
        try:
            for _ in range(_MOST_ROUNDS):
                changes = self._state.changes
                if owner is None:
                    self._calls.call(Fixed(function), call, _A_CALL, frame, frames)
                else:
                    self._run(function, self._entry_arguments(function, owner), frames)
                if changes == self._state.changes:  # No name gets another value.
                    return
            raise UnreadableCodeError("is too long")  # noqa: TRY301
        except UnreadableCodeError as error:
            line = f" in line {self._state.line}" if self._state.line else ""
            raise UnreadableCodeError(f"{error}{line}") from None

    def _entry_arguments(self, function: types.FunctionType, owner: Any) -> Arguments:
        """Returns tensors for the arguments of a method; settings, where the default is one."""
        code = function.__code__
        names = code.co_varnames[1 : code.co_argcount]
        defaults = dict(zip(reversed(names), reversed(function.__defaults__ or ()), strict=False))
        defaults |= function.__kwdefaults__ or {}
        keywords: dict[str, Values] = {}
        for name in (*names, *code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]):
            default = defaults.get(name)
            if name == "training" or isinstance(default, bool | int | str):
                keywords[name] = {PLAIN}
            elif default is None:
                keywords[name] = {DATA}
            else:
                keywords[name] = {DATA} | self._state.objects.wrap(
                    default, f"the default of {name}"
                )
        return Arguments([{Fixed(owner)}], keywords, {DATA})

    def _run(self, function: Any, arguments: Arguments, frames: dict[Any, Any]) -> Values:
        """Reads the body of a function; returns the values that it returns.

        `frames` has the frames of the calls that are made at the same position of the code.
        """
        if isinstance(function, Local):
            node, outer, around = function.node, function.frame, function.frame.function
            defaults = outer.made_by[node, "defaults"]
        else:
            node, outer, around = find_node(function), None, function
            defaults = self._defaults(function)
        frame = frames.get(function)
        if frame is None:
            frame = frames[function] = Frame(around, bound_names(node), outer, node)
            self._state.changes += 1
        self._bind(node.args, arguments, defaults, frame)
        line, self._state.line = self._state.line, node.lineno
        self._state.enter_function()
        if isinstance(node, ast.Lambda):
            self._state.grow(frame.result, self._expressions.value(node.body, frame))
        else:
            self._statements(node.body, frame)
        self._state.line = line
        self._state.depth -= 1
        return frame.result

    def _defaults(self, function: types.FunctionType) -> tuple[list[Values], dict[str, Values]]:
        """Returns the defaults of a function's arguments: of the last ones, and by keyword."""
        self._state.watch.get_attribute(function, "__code__")
        positional = self._state.watch.get_attribute(function, "__defaults__") or ()
        keywords = self._state.watch.get_attribute(function, "__kwdefaults__") or {}
        self._state.watch.get_elements(keywords)
        for value in (*positional, *keywords.values()):
            if isinstance(value, list | dict | set):
                raise UnreadableCodeError(f"has the default {value!r}, which may change")
        return (
            [self._state.objects.wrap(value, "a default") for value in positional],
            {
                name: self._state.objects.wrap(value, "a default")
                for name, value in keywords.items()
            },
        )

    def _bind(
        self, signature: ast.arguments, arguments: Arguments, defaults: Any, frame: Frame
    ) -> None:
        names = [argument.arg for argument in (*signature.posonlyargs, *signature.args)]
        positional_defaults, keyword_defaults = defaults
        by_name = dict(zip(reversed(names), reversed(positional_defaults), strict=False))
        by_name |= keyword_defaults
        extra = arguments.positional[len(names) :]
        keywords = dict(arguments.keywords)
        for index, name in enumerate(names):
            values = arguments.positional[index] if index < len(arguments.positional) else set()
            if index >= len(arguments.positional):
                values = keywords.pop(name, set()) or by_name.get(name, set()) | arguments.starred
            self._state.bind(frame, name, values)
        for argument in signature.kwonlyargs:
            values = keywords.pop(argument.arg, set())
            self._state.bind(
                frame, argument.arg, values or by_name.get(argument.arg, set()) | arguments.starred
            )
        if signature.vararg:
            tail = self._state.positions(signature.vararg, frame, extra)
            self._state.grow(tail.elements, arguments.starred)
            self._state.grow(tail.rest, arguments.starred)
            self._state.bind(frame, signature.vararg.arg, {tail})
        if signature.kwarg:
            values = set().union(arguments.starred, *keywords.values())
            self._state.bind(
                frame, signature.kwarg.arg, {self._state.fresh(signature.kwarg, frame, values)}
            )

    def _statements(self, nodes: Iterable[ast.stmt], frame: Frame) -> None:
        for node in nodes:
            self._state.line = node.lineno
            name = type(node).__name__.lower()
            method = getattr(self, f"_do_{name}", None)
            if method is None:
                raise UnreadableCodeError(f"uses `{KEYWORDS.get(name, name)}`")
            method(node, frame)

    def _do_expr(self, node: ast.Expr, frame: Frame) -> None:
        self._expressions.value(node.value, frame)

    def _do_assign(self, node: ast.Assign, frame: Frame) -> None:
        values = self._expressions.value(node.value, frame)
        for target in node.targets:
            self._expressions.assign(target, values, frame)

    def _do_annassign(self, node: ast.AnnAssign, frame: Frame) -> None:
        if node.value is not None:
            self._expressions.assign(node.target, self._expressions.value(node.value, frame), frame)

    def _do_augassign(self, node: ast.AugAssign, frame: Frame) -> None:
        target = node.target
        if not isinstance(target, ast.Name):
            raise UnreadableCodeError(f"writes {ast.unparse(target)}")
        values = self._expressions.value(ast.Name(target.id, ast.Load(), lineno=node.lineno), frame)
        added = self._expressions.value(node.value, frame)
        for value in values:
            if isinstance(value, Fixed) or (
                value is DATA and _writes_in_place() and not _is_alone(frame, target.id)
            ):
                raise UnreadableCodeError(
                    f"changes {target.id} in place, which others may hold (`{ast.unparse(node)}`)"
                )
            if isinstance(value, Fresh):
                self._state.change(value, self._state.iterate(added))
        self._state.bind(frame, target.id, self._calls.combine(node.op, values, added, node, frame))

    def _do_return(self, node: ast.Return, frame: Frame) -> None:
        values: Values = {PLAIN}
        if node.value is not None:
            values = self._expressions.value(node.value, frame)
        self._state.grow(function_frame(frame).result, values)

    def _do_if(self, node: ast.If, frame: Frame) -> None:
        is_check = all(isinstance(inner, ast.Raise) for inner in node.body) and not node.orelse
        self._expressions.condition(node.test, frame, is_check)
        self._statements((*node.body, *node.orelse), frame)

    def _do_while(self, node: ast.While, frame: Frame) -> None:
        self._expressions.condition(node.test, frame)
        self._statements((*node.body, *node.orelse), frame)

    def _do_for(self, node: ast.For, frame: Frame) -> None:
        self._expressions.assign(
            node.target, self._state.iterate(self._expressions.value(node.iter, frame)), frame
        )
        self._statements((*node.body, *node.orelse), frame)

    def _do_assert(self, node: ast.Assert, frame: Frame) -> None:
        self._expressions.condition(node.test, frame, is_check=True)

    def _do_raise(self, node: ast.Raise, frame: Frame) -> None:
        """Reads nothing: the model raises the error too."""

    def _do_pass(self, node: ast.Pass, frame: Frame) -> None:
        """Does nothing."""

    _do_break = _do_continue = _do_pass

    def _do_delete(self, node: ast.Delete, frame: Frame) -> None:
        for target in node.targets:
            if not isinstance(target, ast.Name):
                raise UnreadableCodeError(f"deletes {ast.unparse(target)}")

    def _do_functiondef(self, node: ast.FunctionDef, frame: Frame) -> None:
        if node.decorator_list:
            raise UnreadableCodeError(f"decorates {node.name}")
        self._state.bind(frame, node.name, self._expressions.define(node, frame))


def _writes_in_place() -> bool:
    """Returns True if `+=` changes a tensor of the framework, and not only the name."""
    return hasattr(type(keras.ops.zeros(())), "__iadd__")


def _is_alone(frame: Frame, name: str) -> bool:
    """Returns True if a tensor of this name has no other reference when `+=` changes it.

    The name is bound to results of operators and to constants alone. It is only read as an operand,
    or where the function returns.
    """
    waiting: list[tuple[ast.AST, bool]] = [(frame.node or _A_CALL, False)]
    while waiting:
        node, may_read = waiting.pop()
        if isinstance(node, ast.Name) and node.id == name and not may_read:
            return False
        if isinstance(node, ast.arg) and node.arg == name:
            return False
        is_inner = isinstance(node, ast.FunctionDef) and node is not frame.node
        if is_inner and any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node)):
            return False
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            is_new = isinstance(node, ast.AugAssign) or isinstance(
                node.value, ast.BinOp | ast.Constant
            )
            waiting.append((node.value, False))
            waiting += [
                (target, is_new and isinstance(target, ast.Name) and len(targets) == 1)
                for target in targets
            ]
        elif not isinstance(node, ast.Return):
            is_operand = isinstance(node, ast.BinOp)
            waiting += [
                (inner, is_operand and isinstance(inner, ast.Name))
                for inner in ast.iter_child_nodes(node)
            ]
    return True
