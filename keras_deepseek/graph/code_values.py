"""The kinds of values that code computes with, as far as reading it tells."""

import ast
import dataclasses
import enum
import types
from typing import Any


class Kind(enum.Enum):
    """Values that are not known before the code runs."""

    DATA = "a tensor, `None`, or a structure of them"
    PLAIN = "a constant, or computed from constants alone"
    SIZE = "a number that depends on the shape of a tensor"
    SHAPE = "the shape of a tensor"
    DTYPE = "the dtype of a tensor, which frameworks write in other ways"
    PLAIN_METHOD = "a method of a constant"
    ASSIGN = "the method of a variable that assigns it"


DATA, PLAIN, SIZE, SHAPE, DTYPE = Kind.DATA, Kind.PLAIN, Kind.SIZE, Kind.SHAPE, Kind.DTYPE


@dataclasses.dataclass(frozen=True)
class Fixed:
    """An object that exists already, such as a layer, a function or a module."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclasses.dataclass(frozen=True)
class Bound:
    """A method of an object, or a property. `is_super` says that it is one of a base class."""

    function: types.FunctionType
    owner: Any
    is_super: bool = False
    is_property: bool = False

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Bound)
            and self.function is other.function
            and self.owner is other.owner
        )

    def __hash__(self) -> int:
        return hash((id(self.function), id(self.owner)))


@dataclasses.dataclass(frozen=True, eq=False)
class Super:
    """The result of `super()`: the methods of an object that come after a class."""

    owner: Any
    after: type


class Fresh:
    """A list, tuple, dict, set or generator that the code makes itself.

    `positions` has the elements of a tuple, or of a list that the code does not change; `rest` has
    those after them.
    """

    def __init__(self) -> None:
        self.elements: Values = set()
        self.positions: list[Values] | None = None
        self.rest: Values = set()
        self.has_changed = False


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A method of a container that returns elements of it, or adds some."""

    container: "Fresh | Fixed | Kind"
    name: str


class Frame:
    """The names and results of one call of a function, or of a comprehension in it.

    Args:
        function: The function around it that has the closure and the globals.
        outer: The frame in which the function or comprehension was defined.
        node: The function; `None` for a comprehension.
    """

    def __init__(
        self,
        function: types.FunctionType,
        names: set[str],
        outer: "Frame | None" = None,
        node: "ast.FunctionDef | ast.Lambda | None" = None,
    ) -> None:
        self.function = function
        self.names = names
        self.outer = outer
        self.node = node
        self.variables: dict[str, Values] = {}
        self.result: Values = set()
        self.made_by: dict[Any, Any] = {}
        """Containers, functions and frames by the syntax node that makes them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Local:
    """A function that is defined in the code."""

    node: ast.FunctionDef | ast.Lambda
    frame: Frame


Value = Kind | Fixed | Bound | Super | Fresh | Reader | Local
Values = set[Value]


@dataclasses.dataclass
class Arguments:
    """The arguments of a call. `starred` has the elements of those written with a star."""

    positional: list[Values]
    keywords: dict[str, Values]
    starred: Values

    def all(self) -> Values:
        """Returns the values of all arguments."""
        return set().union(*self.positional, *self.keywords.values(), self.starred)
