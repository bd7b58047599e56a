"""Variables: their tensors, their values in stateless scopes, and Keras's global seed."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras


def raw_value(variable: keras.Variable) -> Any:
    """Returns the tensor inside a variable, or `None` while Keras on JAX holds it elsewhere.

    Unlike `variable.value` it ignores stateless scopes and casts nothing.
    """
    return variable._value


def stored_dtype(variable: keras.Variable) -> str:
    """Returns the dtype in which a variable is stored, whatever it is cast to when it is read."""
    return str(keras.backend.standardize_dtype(variable._dtype))


def set_raw_value(variable: keras.Variable, value: Any) -> None:
    """Replaces the tensor inside a variable, which an assignment would copy."""
    variable._value = value


def place_by_layout(variable: keras.Variable) -> None:
    """Moves a variable to the devices of the active distribution, unless it has a layout."""
    if variable._layout is None:
        variable._initialize_layout()
        variable._direct_assign(variable.value)


def give_layout(variable: keras.Variable, layout: Any) -> None:
    """Gives a variable a layout of Keras's distributions, and moves it to its devices."""
    variable._layout = layout
    variable._direct_assign(variable.value)


def layout_axes(variable: keras.Variable) -> list[str | None]:
    """Returns the axis of the mesh for each dimension of a variable, `None` if it is whole."""
    axes = [] if variable._layout is None else list(variable._layout.axes)
    return axes + [None] * (len(variable.shape) - len(axes))


def layout_paths(distribution: keras.distribution.ModelParallel) -> list[str]:
    """Returns the paths, or patterns of paths, for which a distribution has a layout."""
    return list(distribution._layout_map)


def keras_torch_device() -> str:
    """Returns Keras's current PyTorch device, which is `"meta"` while Keras infers shapes."""
    return str(keras.src.backend.torch.core.get_device())


def in_stateless_scope() -> bool:
    """Returns True in a `keras.StatelessScope`."""
    return bool(keras.src.backend.common.stateless_scope.in_stateless_scope())


class NestedScope(keras.StatelessScope):
    """A stateless scope that inherits the values of variables from the scope around it.

    `read` is a function of a variable and its value, cast as a layer reads it, that returns the
    value to compute with. Scopes inside inherit it.
    """

    def __init__(
        self,
        mapping: Iterable[tuple[keras.Variable, Any]] = (),
        read: Callable[[keras.Variable, Any], Any] | None = None,
    ) -> None:
        super().__init__(list(mapping), collect_losses=True)
        self.state_mapping: dict[int, Any]
        around = keras.src.backend.common.stateless_scope.get_stateless_scope()
        self._read = read or getattr(around, "_read", None)
        if around is not None:
            self.state_mapping = {**around.state_mapping, **self.state_mapping}
        self.assigned: dict[int, keras.Variable] = {}
        """The variables that were assigned in the scope, by `id`."""

    def get_current_value(self, variable: keras.Variable) -> Any:
        """Returns the value of a variable in the scope; Keras calls it for each read."""
        value = self.state_mapping.get(id(variable))
        if value is None or self._read is None:
            return value
        return self._read(variable, variable._maybe_autocast(value))

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Records a variable's new value; Keras calls it for each assignment."""
        variable, _ = update
        self.assigned[id(variable)] = variable
        super().add_update(update)


def scoped_values(variables: Iterable[keras.Variable]) -> list[tuple[keras.Variable, Any]]:
    """Returns the variables that have a value in the current stateless scope, with this value."""
    around = keras.src.backend.common.stateless_scope.get_stateless_scope()
    if around is None:
        return []
    values = [(variable, around.get_current_value(variable)) for variable in variables]
    return [(variable, value) for variable, value in values if value is not None]


def global_seed_state() -> keras.Variable:
    """Returns the variable of Keras's global seed generator.

    If there is none yet it is created, with a seed from Python's generator.
    """
    return keras.src.random.seed_generator.global_seed_generator().state


def has_global_seed() -> bool:
    """Returns True if Keras has created its global seed generator."""
    name = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    return keras.src.backend.common.global_state.get_global_attribute(name) is not None


def forget_global_seed() -> None:
    """Makes Keras create its global seed generator again when it is next needed."""
    name = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    keras.src.backend.common.global_state.set_global_attribute(name, None)


@contextlib.contextmanager
def kept_global_seed() -> Iterator[None]:
    """Context manager that forgets a global seed generator which was created in it.

    A stateless scope would leave it without a value.
    """
    had_one = has_global_seed()
    try:
        yield
    finally:
        if not had_one:
            forget_global_seed()


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Context manager in which new variables have paths and shapes, but no values and no memory.

    A model that is built in it again afterwards has the same names and seeds.
    """
    state = keras.src.backend.common.global_state
    counters = ("object_name_uids", "uninitialized_variables")
    old = {name: copy.copy(state.get_global_attribute(name)) for name in counters}
    random_state = random.getstate()
    try:
        with kept_global_seed(), keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        random.setstate(random_state)
        for name, value in old.items():
            state.set_global_attribute(name, value)
