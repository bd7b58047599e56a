"""Functions of users, rewritten to ask before all that they do.

This is the list of the syntax that code may use. Control flow and local names stay Python's own.
Names from outside, attributes, calls, operators, conditions and elements become calls of checks. So
the function can run on stand-ins for tensors, and raises an error where it does anything else.
"""

import ast
import copy
import functools
import linecache
import types
from typing import Any, NoReturn

REWRITTEN = "<read> "
"""The start of the file name of rewritten code, before that of the code itself."""
_PREFIX = "_keras_deepseek_"
_AS_IT_IS = (
    *(ast.Constant, ast.List, ast.Tuple, ast.JoinedStr, ast.NamedExpr, ast.ListComp, ast.Lambda),
    *(ast.GeneratorExp, ast.Return, ast.Expr, ast.Pass, ast.Break, ast.Continue, ast.arguments),
    *(ast.arg, ast.Load, ast.Store),
)
"""The syntax that stays, with checks of what is in it."""
_WORDS = {"trystar": "try", "importfrom": "import", "yieldfrom": "yield from"}


class UnreadableCodeError(Exception):
    """The reason why code can't be read, or must not be recorded, and the line if it is known."""

    line = 0


def refuse(reason: str, line: int = 0) -> NoReturn:
    """Raises an error with the reason."""
    error = UnreadableCodeError(reason)
    error.line = line
    raise error


def rewrite(function: types.FunctionType, checks: dict[str, Any]) -> types.FunctionType:
    """Returns a function that does the same by calls of `checks`; its defaults are `None`."""
    scope = {"__builtins__": {}, **{_PREFIX + name: check for name, check in checks.items()}}
    exec(_compile(_find_node(function), function.__code__), scope)
    result: types.FunctionType = scope[_PREFIX]
    return result


@functools.lru_cache(maxsize=256)
def _compile(original_node: ast.AST, code: types.CodeType) -> types.CodeType:
    """Returns the code of a module that defines a rewritten function."""
    node: Any = copy.deepcopy(original_node)
    inner_nodes = list(ast.walk(node))
    names = {n.id for n in inner_nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names |= {n.arg for n in inner_nodes if isinstance(n, ast.arg)}
    names |= {n.name for n in inner_nodes if isinstance(n, ast.FunctionDef) and n is not node}
    if any(name.startswith(_PREFIX) for name in names):
        refuse(f"has names that start with {_PREFIX}")
    node.args.defaults = [ast.Constant(None) for _ in node.args.defaults]
    node.args.kw_defaults = [default and ast.Constant(None) for default in node.args.kw_defaults]
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if isinstance(node, ast.FunctionDef):
        node.name, node.decorator_list, node.returns = _PREFIX, [], None
    tree: Any = _Rewriter(names, code.co_varnames[:1]).generic_visit(node)
    if isinstance(node, ast.Lambda):
        tree = ast.copy_location(ast.Assign([ast.Name(_PREFIX, ast.Store())], tree), node)
    module = ast.fix_missing_locations(ast.Module([tree], []))
    return compile(module, REWRITTEN + code.co_filename, "exec")


class _Rewriter(ast.NodeTransformer):
    """Puts calls of checks into a function that binds some names; `first` is its first one."""

    def __init__(self, names: set[str], first: tuple[str, ...]) -> None:
        self._names = names
        self._first = first

    def visit(self, node: ast.AST) -> Any:
        method = getattr(self, f"visit_{type(node).__name__}", None)
        if method is None and not isinstance(node, _AS_IT_IS):
            name = type(node).__name__.lower()
            refuse(f"uses `{_WORDS.get(name, name)}`", getattr(node, "lineno", 0))
        return method(node) if method else self.generic_visit(node)

    def _check(self, name: str, node: Any, *arguments: Any) -> ast.Call:
        """Returns a call of a check, at the line of a node."""
        values: Any = [a if isinstance(a, ast.AST) else ast.Constant(a) for a in arguments]
        return ast.copy_location(ast.Call(ast.Name(_PREFIX + name, ast.Load()), values, []), node)

    def _statement(self, name: str, node: ast.AST, *arguments: Any) -> ast.Expr:
        return ast.copy_location(ast.Expr(self._check(name, node, *arguments)), node)

    def _visit(self, name: str, node: Any, *arguments: Any) -> ast.Call:
        """Returns a call of a check of the value of a node."""
        return self._check(name, node, self.visit(node), *arguments)

    def visit_Name(self, node: ast.Name) -> Any:
        if isinstance(node.ctx, ast.Store):
            return node
        if node.id.startswith("__") and not node.id.endswith("__"):
            refuse(f"reads {node.id}, which has another name in a class", node.lineno)
        name, value = ("share", node) if node.id in self._names else ("outside", node.id)
        return self._check(name, node, value)

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        return self._check("attribute", node, self.visit(node.value), node.attr)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        return self._check("item", node, self.visit(node.value), self.visit(node.slice))

    def visit_Slice(self, node: ast.Slice) -> Any:
        bounds = [part and self.visit(part) for part in (node.lower, node.upper, node.step)]
        return self._check("slice", node, *bounds)

    def visit_Call(self, node: ast.Call) -> Any:
        is_super = isinstance(node.func, ast.Name) and node.func.id == "super" not in self._names
        if is_super and not node.args and self._first:
            return self._check("super", node, ast.Name(self._first[0], ast.Load()))
        result = self._check("call", node, ast.unparse(node.func), self.visit(node.func))
        argument: Any
        for argument in node.args:
            is_starred = isinstance(argument, ast.Starred)
            value = self._visit("elements", argument.value) if is_starred else self.visit(argument)
            result.args.append(ast.Starred(value, ast.Load()) if is_starred else value)
        for keyword in node.keywords:
            if keyword.arg is None:
                refuse("passes any arguments, by **", node.lineno)
            result.keywords.append(ast.keyword(keyword.arg, self.visit(keyword.value)))
        return result

    def visit_Dict(self, node: ast.Dict) -> Any:
        if None in node.keys:
            refuse("uses ** in a dict", node.lineno)
        keys: Any = [self._visit("constant", key) for key in node.keys]
        return ast.copy_location(ast.Dict(keys, list(map(self.visit, node.values))), node)

    def visit_DictComp(self, node: ast.DictComp) -> Any:
        self.generic_visit(node)
        node.key = self._check("constant", node, node.key)
        return node

    def visit_FormattedValue(self, node: ast.FormattedValue) -> Any:
        node.value = self._visit("constant", node.value)
        node.format_spec = node.format_spec and self.visit(node.format_spec)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        operands = [  # The value of a name that is an operand stays the name's alone.
            n if isinstance(n, ast.Name) and n.id in self._names else self.visit(n)
            for n in (node.left, node.right)
        ]
        return self._operator("operator", node, node.op, *operands)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        return self._operator("operator", node, node.op, self.visit(node.operand))

    def visit_Compare(self, node: ast.Compare) -> Any:
        if len(node.ops) > 1:
            refuse("compares twice", node.lineno)
        values = map(self.visit, (node.left, *node.comparators))
        return self._operator("operator", node, node.ops[0], *values)

    def _operator(self, name: str, node: ast.AST, op: Any, *operands: Any) -> ast.Call:
        """Returns a call of a check with the name of an operator, and a function that runs it."""
        first, second = ast.Name("first", ast.Load()), ast.Name("second", ast.Load())
        if isinstance(op, ast.unaryop):
            function = _function(ast.UnaryOp(op, first), "first")
        elif isinstance(op, ast.operator):
            function = _function(ast.BinOp(first, op, second), "first", "second")
        else:
            function = _function(ast.Compare(first, [op], [second]), "first", "second")
        return self._check(name, node, type(op).__name__, function, *operands)

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        first, *operands = node.values
        if any(isinstance(n, ast.NamedExpr) for value in operands for n in ast.walk(value)):
            refuse("uses `:=` after `and` or `or`", node.lineno)
        later = [_function(self.visit(value)) for value in operands]
        return self._check("logic", node, isinstance(node.op, ast.And), self.visit(first), *later)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        values = self.visit(node.body), self.visit(node.orelse)
        return ast.copy_location(ast.IfExp(self._visit("truth", node.test), *values), node)

    def visit_If(self, node: ast.If) -> Any:
        if all(isinstance(inner, ast.Raise) for inner in node.body) and not node.orelse:
            return self._statement("raises", node.test, "error", self.visit(node.test))
        return self.visit_While(node)

    def visit_While(self, node: ast.If | ast.While) -> Any:
        node.test = self._visit("truth", node.test)
        node.body, node.orelse = (list(map(self.visit, part)) for part in (node.body, node.orelse))
        return node

    def visit_Assert(self, node: ast.Assert) -> Any:
        return self._statement("raises", node, "assertion", self.visit(node.test))

    def visit_Raise(self, node: ast.Raise) -> Any:
        return self._statement("raises", node, "error", ast.Constant("always"))

    def visit_For(self, node: ast.For) -> Any:
        node.iter = self._visit("elements", node.iter, _pattern(node.target))
        node.body, node.orelse = (list(map(self.visit, part)) for part in (node.body, node.orelse))
        return node

    def visit_comprehension(self, node: ast.comprehension) -> Any:
        iterable = self._visit("elements", node.iter, _pattern(node.target))
        conditions: Any = [self._visit("truth", condition) for condition in node.ifs]
        return ast.comprehension(node.target, iterable, conditions, node.is_async)

    def visit_Assign(self, node: ast.Assign) -> Any:
        target, value = node.targets[0], self.visit(node.value)
        if isinstance(target, ast.Subscript) and len(node.targets) == 1:
            container, index = self.visit(target.value), self.visit(target.slice)
            return self._statement("set_item", node, ast.unparse(target), value, container, index)
        patterns = list(map(_pattern, node.targets))
        if patterns != [None] * len(patterns) and len(patterns) > 1:
            refuse("assigns to several names at once", node.lineno)
        if patterns[0] is not None:
            value = self._check("fit", node, value, patterns[0])
        elif isinstance(node.value, ast.BinOp) and len(patterns) == 1:
            value = self._check("keep", node, value)
        return ast.copy_location(ast.Assign(node.targets, value), node)

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        _pattern(node.target)
        values = ast.Name(ast.unparse(node.target), ast.Load()), self.visit(node.value)
        result = self._operator("change", node, node.op, *values)
        return ast.copy_location(ast.Assign([node.target], result), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        if node.decorator_list:
            refuse(f"decorates {node.name}", node.lineno)
        return self.visit_Lambda(node)

    def visit_Lambda(self, node: ast.FunctionDef | ast.Lambda) -> Any:
        first, self._first = self._first, ()  # A `super()` in it is not followed.
        self.generic_visit(node)
        self._first = first
        return node


def _function(body: ast.expr, *names: str) -> ast.Lambda:
    arguments = [ast.arg(name) for name in names]
    return ast.Lambda(ast.arguments([], arguments, None, [], [], None, []), body)


def _pattern(target: ast.expr) -> Any:
    """Returns the nesting of the names of an assignment: `None` for a name."""
    if isinstance(target, ast.Tuple | ast.List):
        return tuple(map(_pattern, target.elts))
    if not isinstance(target, ast.Name):
        refuse(f"writes {ast.unparse(target)}", target.lineno)
    return None


def _find_node(function: types.FunctionType) -> ast.FunctionDef | ast.Lambda:
    """Returns the syntax tree of a function, whose source is that of the code that runs.

    There may be no source, or it is not that of the function's code: the file was edited, or the
    function was replaced.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        refuse("has no source")
    try:
        nodes, codes = _parse("".join(lines))
    except (SyntaxError, ValueError):
        nodes, codes = {}, set()
    candidates = nodes.get((code.co_firstlineno, code.co_name), []) if code in codes else []
    if not candidates:
        refuse("has a source that is no longer that of its code")
    (node, *same_line) = candidates
    if same_line or not isinstance(node, ast.FunctionDef | ast.Lambda):
        refuse("shares its line with another function, or is asynchronous")
    return node


@functools.lru_cache(maxsize=32)
def _parse(text: str) -> tuple[dict[Any, list[ast.AST]], set[types.CodeType]]:
    """Returns the functions of a file by first line and name, and all code of it."""
    nodes: dict[Any, list[ast.AST]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Lambda):
            nodes.setdefault((node.lineno, "<lambda>"), []).append(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            nodes.setdefault((line, node.name), []).append(node)
    codes = [compile(text, "<source>", "exec", dont_inherit=True)]
    for code in codes:  # The list grows: a function's code is a constant of that around it.
        codes += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
    return nodes, set(codes)
