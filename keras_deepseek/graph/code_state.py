"""The state of reading code: the values of names, the lookups, and the current line."""

from typing import Any

import keras

from keras_deepseek.graph.code_objects import ObjectReader, is_container
from keras_deepseek.graph.code_values import Arguments, Fixed, Frame, Fresh, Kind, Values
from keras_deepseek.graph.function_source import UnreadableCodeError
from keras_deepseek.graph.watched_names import Watch

_MOST_NODES = 300_000
_DEEPEST = 12


class ReadingState:
    """The state of reading the code of one layer.

    Args:
        layer: The layer. Functions may call its methods, and layers that it tracks.
        tracked: The ids of these layers.
    """

    def __init__(self, layer: Any, tracked: set[int]) -> None:
        self.layer = layer
        self.tracked = tracked
        self.watch = Watch()
        self.objects = ObjectReader(layer, self.watch)
        self.reads_sizes = False
        """True if the code computes with sizes in ways that may differ at sizes never tried."""
        self.changes = 0
        """The number of times that a name or a container got another value."""
        self.line = 0
        self.depth = 0
        self._nodes = 0

    def count_node(self, line: int | None) -> None:
        """Counts a syntax node, and remembers its line."""
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise UnreadableCodeError("is too long")
        self.line = line or self.line

    def enter_function(self) -> None:
        """Counts a function in a function."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise UnreadableCodeError("calls itself, or through too many functions")

    def bind(self, frame: Frame, name: str, values: Values) -> None:
        self.grow(frame.variables.setdefault(name, set()), values)

    def grow(self, target: Values, values: Values) -> None:
        if not values <= target:
            target |= values
            self.changes += 1

    def change(self, container: Fresh, values: Values) -> None:
        """Adds values to a container at any position."""
        container.positions, container.has_changed = None, True
        self.grow(container.elements, values)

    def fresh(self, node: Any, frame: Frame, elements: Values) -> Fresh:
        """Returns the container that a syntax node makes, with these elements added."""
        fresh = frame.made_by.get(node)
        if fresh is None:
            fresh = frame.made_by[node] = Fresh()
            self.changes += 1
        self.grow(fresh.elements, elements)
        return fresh

    def positions(self, node: Any, frame: Frame, positions: list[Values]) -> Fresh:
        """Returns the tuple that a syntax node makes of these elements."""
        fresh = self.fresh(node, frame, set().union(*positions))
        if fresh.positions is None and not fresh.has_changed:
            fresh.positions = [set() for _ in positions]
        if fresh.positions is not None and len(fresh.positions) == len(positions):
            for target, values in zip(fresh.positions, positions, strict=True):
                self.grow(target, values)
        return fresh

    def iterate(self, values: Values, of_dict: str = "keys") -> Values:
        """Returns the elements that a loop over values has."""
        result: Values = set()
        for value in values:
            if value is Kind.SHAPE:
                result.add(Kind.SIZE)
            elif value in (Kind.DATA, Kind.PLAIN, Kind.SIZE):
                result.add(value)
            elif is_variable(value):
                result.add(Kind.DATA)
            elif isinstance(value, Fresh):
                result |= value.elements
            elif isinstance(value, Fixed) and is_container(value.value):
                elements = self.objects.elements(value.value, "an element")
                is_keys = isinstance(value.value, dict) and of_dict == "keys"
                result |= {Kind.PLAIN} if is_keys else elements
            else:
                raise UnreadableCodeError("loops over an object that is no list")
        return result

    def numbers(self, value: Any) -> Values:
        is_list = isinstance(value, Fresh) or (
            isinstance(value, Fixed) and is_container(value.value)
        )
        return self.iterate({value}) if is_list or value is Kind.SHAPE else {value}

    def check_tensors(self, arguments: Arguments, name: str, is_exact: bool = True) -> None:
        """Raises an error if there is anything but tensors and constants in the arguments."""
        values = arguments.all()
        self.reads_sizes |= is_exact and self.has_sizes(values)
        waiting, entered = list(values), set()
        while waiting:
            value = waiting.pop()
            if value in entered:
                continue
            entered.add(value)
            if isinstance(value, Fresh):
                waiting += value.elements
            elif isinstance(value, Fixed) and is_container(value.value):
                waiting += self.objects.elements(value.value, name)
            elif not (isinstance(value, Kind) or is_variable(value) or is_generator(value)):
                raise UnreadableCodeError(f"passes a function or an object to {name}")
            elif value in (Kind.ASSIGN, Kind.PLAIN_METHOD):
                raise UnreadableCodeError(f"passes a method to {name}")

    def has_sizes(self, values: Values) -> bool:
        waiting, entered = list(values), set()
        while waiting:
            value = waiting.pop()
            if value in (Kind.SIZE, Kind.SHAPE):
                return True
            if isinstance(value, Fresh) and value not in entered:
                entered.add(value)
                waiting += value.elements
        return False


def is_variable(value: Any) -> bool:
    """Returns True for a variable of Keras."""
    return isinstance(value, Fixed) and isinstance(value.value, keras.Variable)


def is_generator(value: Any) -> bool:
    """Returns True for a seed generator of Keras."""
    return isinstance(value, Fixed) and isinstance(value.value, keras.random.SeedGenerator)


def function_frame(frame: Frame) -> Frame:
    """Returns the frame of the function around a comprehension."""
    while frame.node is None and frame.outer is not None:
        frame = frame.outer
    return frame
