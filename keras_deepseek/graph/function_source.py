"""The syntax tree of a function, from its source."""

import ast
import functools
import linecache
import types
from collections.abc import Iterator

FunctionNode = ast.FunctionDef | ast.Lambda


class UnreadableCodeError(Exception):
    """The reason why code can't be read, or must not be recorded."""


def find_node(function: types.FunctionType) -> FunctionNode:
    """Returns the syntax tree of a function, whose source is that of the code that runs.

    Raises:
        UnreadableCodeError: There is no source, or it is not that of the function's code: the file
            was edited, or the function was replaced.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        raise UnreadableCodeError("has no source")
    try:
        nodes, codes = _parse("".join(lines))
    except (SyntaxError, ValueError):
        raise UnreadableCodeError("has a source that is no longer that of its code") from None
    key = code.co_firstlineno, code.co_name
    if len(nodes.get(key, ())) > 1:
        raise UnreadableCodeError("shares its line with another function")
    if key not in nodes or code not in codes.get(key, ()):
        raise UnreadableCodeError("has a source that is no longer that of its code")
    (node,) = nodes[key]
    if not isinstance(node, FunctionNode):
        raise UnreadableCodeError("is asynchronous")
    return node


_Key = tuple[int, str]


@functools.lru_cache(maxsize=32)
def _parse(text: str) -> tuple[dict[_Key, list[ast.AST]], dict[_Key, list[types.CodeType]]]:
    """Returns the functions of a file and their code, by first line and name."""
    tree = ast.parse(text)
    nodes: dict[_Key, list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            nodes.setdefault((node.lineno, "<lambda>"), []).append(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            nodes.setdefault((line, node.name), []).append(node)
    codes: dict[_Key, list[types.CodeType]] = {}
    for code in _walk_code(compile(text, "<source>", "exec", dont_inherit=True)):
        codes.setdefault((code.co_firstlineno, code.co_name), []).append(code)
    return nodes, codes


def _walk_code(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _walk_code(constant)


def bound_names(node: FunctionNode | ast.AST) -> set[str]:
    """Returns the local names of a function: arguments and all that its body binds.

    Functions and comprehensions inside have names of their own; `:=` binds outside of them.
    """
    names: set[str] = set()
    if isinstance(node, FunctionNode):
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        names |= {
            argument.arg for argument in (*every, arguments.vararg, arguments.kwarg) if argument
        }
    body = node.body if isinstance(node, FunctionNode) else [node]
    waiting: list[ast.AST] = [*body] if isinstance(body, list) else [body]
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, ast.FunctionDef):
            names.add(inner.name)
            waiting += inner.args.defaults
        elif isinstance(inner, ast.Lambda):
            waiting += inner.args.defaults
        elif isinstance(inner, comprehensions):
            names |= {
                walrus.target.id
                for walrus in ast.walk(inner)
                if isinstance(walrus, ast.NamedExpr) and isinstance(walrus.target, ast.Name)
            }
        else:
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del):
                names.add(inner.id)
            waiting += ast.iter_child_nodes(inner)
    return names
