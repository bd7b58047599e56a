"""Free sizes: graphs for any batch size, and for any size of other axes where that is possible.

A layer writes sizes into operations: `ops.shape(x)[0]` of a symbol is a number. So a model is
traced at several sizes, and the traces may differ in numbers only. Each number that differs
becomes a `Size`, with an expression of the free axes: that which was recorded while the layer
computed it, else one that was fitted to some of the traces and holds in the others too.

A layer may also choose by a size. The comparisons of sizes that layers make are recorded, and the
model is traced on both sides of each. Where it computes something else there, no size is free.
"""

import bisect
import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

import keras
import numpy as np
from keras import tree

from keras_deepseek import backend
from keras_deepseek.backend.call_context import has_free_sizes, with_free_sizes
from keras_deepseek.backend.keras_private.layers import functional_graph
from keras_deepseek.backend.keras_private.replaced_functions import replaced_functions
from keras_deepseek.backend.keras_private.sample_values import longest_sequence
from keras_deepseek.graph.ir import Graph, Leaf, Shape, Spec
from keras_deepseek.graph.known_code import CannotOpenError
from keras_deepseek.graph.model_lock import lock_of
from keras_deepseek.graph.read_sizes import read_sizes
from keras_deepseek.graph.size_expressions import (
    Comparison,
    FreeAxis,
    InputAxis,
    Size,
    axes_of,
    evaluate,
    with_sizes,
)
from keras_deepseek.graph.size_fitting import SizeFinder
from keras_deepseek.graph.trace import as_symbols, trace_model
from keras_deepseek.graph.trace_merging import (
    CollisionError,
    DifferentError,
    Merger,
    check_collisions,
    check_nodes,
)
from keras_deepseek.graph.verify import computes_the_same

_LONG = 4123
"""A length that code with a special case for long sequences treats as long."""
_SHORTEST = 11
"""The least length of a first trace: windows and kernels of layers are shorter, as a rule."""
_COMMON_MULTIPLE = 24
"""A multiple of most numbers to which layers pad a size, or by which they choose."""
_LARGEST = 2**16
"""The largest size at which a branch of a model is looked for."""
_MOST_BRANCHES = 12
"""The most traces that are made for comparisons of sizes."""
_MOST_DISPUTED = 4
"""The most sizes at which a program with other operations is compared with the model."""
_SHIFTS = (0, 3, 9, 20)
"""The primes to leave out, where a free and a fixed axis get the same size."""
_LONGER = 64
"""The factor of the lengths to try next: what counts blocks of a short sequence is often 1."""
_NUM_FITTED, _NUM_CHECKS = 4, 2
"""The numbers of traces to which an expression is fitted, and at least compared with."""

_LARGEST_COMPARED = 2048
"""The largest size at which a program is compared with the model."""


class Trace(Protocol):
    """A function from inputs, a structure of `KerasTensor`s, to a new graph."""

    def __call__(self, inputs: Any, *, records_creation: bool) -> Graph:
        """Returns the graph. With `records_creation`, `ops.arange` and its like are operations."""


Agreement = Callable[[Graph, Sequence[Shape]], bool]
"""Returns True if a graph computes the same as the model, on inputs of some shapes."""


def _check_shapes(graph: Graph) -> None:
    """Raises a `DifferentError` if an axis is short in short inputs, but else of a fixed size."""
    for node in graph.nodes():
        if any(isinstance(size, Size) for spec in node.outputs for size in spec.shape):
            raise DifferentError(f"an axis of {node.kind} has a fixed size in long inputs alone")


def declared_shapes(model: keras.Model, shapes: Sequence[Shape]) -> list[Any]:
    """Returns the shapes that a model declares, else those that it gets, of any batch size."""
    graph = functional_graph(model)
    declared = [tuple(symbol.shape) for symbol in graph.inputs] if graph is not None else []
    if [len(shape) for shape in declared] != [len(shape) for shape in shapes]:
        return [(None, *shape[1:]) for shape in shapes]
    return declared


def free_program(
    model: keras.Model, example: Any, whole: Collection[str] = ()
) -> tuple[Graph, list[FreeAxis], list[str]]:
    """Traces a model in inference; returns its graph, the free axes, and why others are not free.

    Numbers that depend on the free axes are `Size`s: in attributes of operations, in arguments and
    as contents of constants. `ops.arange` and its like are nodes of the kind `Create`, and those
    that call functions, such as `ops.scan`, are nodes with inner graphs (`control_flow.py`).

    Args:
        model: The model. All its layers are opened, so compare the program with it.
        example: Example inputs, of known shapes.
        whole: The paths of layers to keep whole.
    """
    declared = declared_shapes(model, [tuple(symbol.shape) for symbol in tree.flatten(example)])

    trace = functools.partial(
        trace_model, model, whole=whole, opens_foreign=True, records_control_flow=True
    )
    outside = backend.current().compute.outside_compilation()
    with lock_of(model).exclusive(), outside, with_free_sizes():
        agrees = functools.partial(computes_the_same, model, example, training=False)
        return trace_free(trace, example, declared, agrees, longest=longest_sequence(model))


def trace_free(
    trace: Trace,
    example: Any,
    declared: Sequence[Any],
    agrees: Agreement,
    *,
    longest: int | None = None,
    as_operations: bool = False,
) -> tuple[Graph, list[FreeAxis], list[str]]:
    """Traces a model at several sizes; returns a graph, its free axes, and why others are fixed.

    The batch axis may be free, and those that the model leaves open. Axes of equal size count as
    one axis if the model can't be traced with different sizes of them.

    Args:
        trace: Traces the model.
        example: Example inputs, of known shapes.
        declared: The shapes that the model declares, with `None` for an unknown size.
        agrees: Compares a graph, whose operations read sizes, with the model. It is asked where the
            model runs other operations at some sizes, such as a padding to a multiple of 4.
        longest: The most tokens that the model takes, if that is known.
        as_operations: True for a graph whose operations read the sizes when they run.
    """
    shapes = [tuple(symbol.shape) for symbol in tree.flatten(example)]
    trace = _noting_shapes(trace)
    plain = trace(as_symbols(example), records_creation=False)
    reasons: dict[tuple[FreeAxis, ...], str] = {}

    def attempt(axes: Sequence[FreeAxis]) -> Graph | None:
        if tuple(axes) in reasons:
            return None
        try:
            traces = functools.partial(_Traces, trace, example, axes, agrees, longest)
            graph = _trace_with_free(traces, plain)
            if as_operations:
                _check_shapes(graph)
                read_sizes(graph)
        except (DifferentError, CannotOpenError) as error:
            reasons[tuple(axes)] = str(error)
            return None
        return graph

    groups = [
        (FreeAxis(input_axes), [FreeAxis((input_axis,)) for input_axis in input_axes])
        for input_axes in _group_open_axes(declared, shapes)
    ]
    options = [[[tied]] if tied.is_batch else [separate, [tied]] for tied, separate in groups]
    for number in (0, -1):
        axes = [axis for choices in options for axis in choices[number]]
        if axes and (graph := attempt(axes)) is not None:
            return graph, axes, []
    graph = plain
    free: list[FreeAxis] = []
    for choices in options if len(options) > 1 else []:
        for axes in choices:
            candidate = attempt([*free, *axes])
            if candidate is not None:
                graph, free = candidate, [*free, *axes]
                break
    return graph, free, _describe_fixed([tied for tied, _ in groups], free, reasons)


def _noting_shapes(trace: Trace) -> Trace:
    """Returns a function that traces, and tells each graph at which shapes it did so in all."""
    traced: list[list[Shape]] = []

    def trace_at(inputs: Any, *, records_creation: bool) -> Graph:
        traced.append([tuple(map(int, symbol.shape)) for symbol in tree.flatten(inputs)])
        graph = trace(inputs, records_creation=records_creation)
        graph.traced = traced
        return graph

    return trace_at


def _describe_fixed(
    tied_axes: Sequence[FreeAxis],
    free: Sequence[FreeAxis],
    reasons: dict[tuple[FreeAxis, ...], str],
) -> list[str]:
    """Returns why open axes are not free: the reasons of the last attempts with them."""
    freed = {input_axis for axis in free for input_axis in axis.input_axes}
    fixed: dict[str, list[tuple[int, int]]] = {}
    for input_axis in (pair for axis in tied_axes for pair in axis.input_axes):
        if input_axis not in freed:
            *_, reason = (
                reason
                for axes, reason in reasons.items()
                if any(input_axis in axis.input_axes for axis in axes)
            )
            fixed.setdefault(reason, []).append(input_axis)
    return [f"{FreeAxis(tuple(axes))}: {reason}" for reason, axes in fixed.items()]


def _group_open_axes(declared: Sequence[Any], shapes: Sequence[Shape]) -> list[tuple[Any, ...]]:
    """Returns the axes of the batch and those of unknown size, in groups of the same size.

    The batch axes come first. Each axis is a pair: the index of an input, and an axis of it.
    """
    groups: dict[tuple[bool, int], list[tuple[int, int]]] = {}
    for index, (spec, shape) in enumerate(zip(declared, shapes, strict=True)):
        for axis, (declared_size, size) in enumerate(zip(spec, shape, strict=True)):
            if axis == 0 or declared_size is None:
                groups.setdefault((axis != 0, size), []).append((index, axis))
    return [tuple(input_axes) for _, input_axes in sorted(groups.items())]


def _trace_with_free(make_traces: Callable[[bool], "_Traces"], plain: Graph) -> Graph:
    """Returns a graph whose sizes of axes are free; raises a `DifferentError` if there is none.

    A layer that needs the numbers of `ops.arange` in Python is traced again without operations for
    them. The graph was traced at sizes near those of the example.
    """
    nodes = list(plain.all_nodes())
    used = {size for node in nodes for spec in node.outputs for size in spec.shape}
    # A layer that is kept whole has sizes inside, as of the states of a cell.
    whole = (node.operation for node in nodes if node.is_layer)
    used |= {size for layer in whole for variable in layer.variables for size in variable.shape}
    failures: list[Exception] = []
    for records_creation in (True, False):
        # A layer that does not know of free sizes may have unrolled a loop over them.
        factors = (1, _LONGER) if has_free_sizes() else (1,)
        retries = [(shift, factor) for shift in _SHIFTS for factor in factors]
        for shift, factor in retries:
            traces = make_traces(records_creation)
            try:
                graph = traces.merge(used, shift, factor)
            except CollisionError as error:
                failures.append(error)
                continue
            except (DifferentError, CannotOpenError) as error:
                failures.append(error)
                if traces.first is not None and not _new_leaves(traces.first, plain):
                    raise failures[0] from error
                break
            leaves = _new_leaves(graph, plain)
            if not leaves:
                return graph
            reasons = ", ".join(f"{leaf.layer_class} {leaf.reason}" for leaf in leaves)
            failures.append(DifferentError(f"keeps other layers whole: {reasons}"))
            break
    raise failures[0]


def _new_leaves(graph: Graph, plain: Graph) -> list[Leaf]:
    return [leaf for path, leaf in graph.leaves.items() if path not in plain.leaves]


class _Traces:
    """Traces of a model at several sizes of its free axes."""

    def __init__(
        self,
        trace: Trace,
        example: Any,
        axes: Sequence[FreeAxis],
        agrees: Agreement,
        longest: int | None,
        records_creation: bool,
    ) -> None:
        self._trace = trace
        self._example = example
        self._axes = axes
        self._agrees = agrees
        self._shapes = [tuple(symbol.shape) for symbol in tree.flatten(example)]
        self._limits = [_LARGEST if axis.is_batch else longest or _LARGEST for axis in axes]
        self._records_creation = records_creation
        self._fixed: frozenset[int] = frozenset()
        self._graphs: list[Graph] = []
        self._sizes: list[list[int]] = []
        self._is_check: list[bool] = []
        self._tried: list[list[int]] = []
        self._disputed: list[tuple[list[int], DifferentError]] = []
        self._comparisons: collections.Counter[Comparison] = collections.Counter()
        self._settled: set[Comparison] = set()

    @property
    def first(self) -> Graph | None:
        """The graph that was traced near the sizes of the example."""
        return self._graphs[0] if self._graphs else None

    def merge(self, used: Collection[int], shift: int, factor: int) -> Graph:
        """Returns the first graph, in which numbers that differ in others are `Size`s.

        The axes get other sizes than the `used` ones, which fixed axes have.
        """
        self._fixed = frozenset(used)
        near = self._choose(used, [self._first(axis, factor) for axis in self._axes], shift)
        second = self._choose({*used, *near}, _further(near), shift)
        third = self._choose({*used, *near, *second}, _further(second))
        tried = {*used, *near, *second, *third}
        self._add(near)
        self._add(second)
        check_collisions(self._graphs)
        self._add([1 for _ in near], is_check=True)
        self._follow_branches()
        multiples = [_COMMON_MULTIPLE * (size // _COMMON_MULTIPLE + 1) for size in near]
        self._add(self._choose(used, multiples, step=_COMMON_MULTIPLE), is_check=True)
        pairs = zip(self._axes, third, strict=True)
        high = [3 * size if axis.is_batch else _LONG for axis, size in pairs]
        self._add(self._choose(tried, high))
        self._follow_branches()
        changes = self._find_all_changes(third, tried)
        if self._disputed:
            for change in changes:
                change()
            self._settle_disputes(self._graphs[0])
            self._graphs[0] = self._trace_at(near)
            changes, _ = self._find_changes()
        for change in changes:
            change()
        return self._with_numbers_in_shapes(self._graphs[0])

    def _find_all_changes(
        self, third: Sequence[int], tried: Collection[int]
    ) -> list[Callable[[], None]]:
        """Returns the functions of `_find_changes`; what is fitted is compared in more traces."""
        sizes = [*third]
        try:
            changes, has_fitted = self._find_changes(num_fitted=0)
        except DifferentError:  # A number that was not recorded.
            self._add(sizes)
            changes, has_fitted = self._find_changes()
        for _ in range(_MOST_BRANCHES):
            if not has_fitted or len(self._graphs) >= _NUM_FITTED + _NUM_CHECKS:
                return changes
            sizes = self._choose(tried, _further(sizes))
            self._add(sizes, is_check=True)
            changes, has_fitted = self._find_changes()
        raise DifferentError("there are too few sizes to try")

    def _with_numbers_in_shapes(self, graph: Graph) -> Graph:
        """Writes plain numbers into shapes, but for those of free axes that could be fixed ones."""
        check_numbers = [number for number, is_check in enumerate(self._is_check) if is_check]
        graph.free_sizes, small_axes = check_collisions(self._graphs, check_numbers)
        for node in graph.all_nodes():
            node.outputs = [Spec(tuple(map(int, spec.shape)), spec.dtype) for spec in node.outputs]
        for axis in small_axes:
            outputs, index = axis.value.node.outputs, axis.value.index
            sizes = list(outputs[index].shape)
            sizes[axis.axis] = Size(sizes[axis.axis], axis)
            outputs[index] = Spec(tuple(sizes), outputs[index].dtype)
        return graph

    def _settle_disputes(self, graph: Graph) -> None:
        """Compares the program with the model where that runs other operations."""
        read_sizes(graph)
        for sizes, error in self._disputed:
            shapes = with_sizes(self._shapes, self._axes, sizes)
            if max(sizes) > _LARGEST_COMPARED or not self._agrees(graph, shapes):
                raise error

    def _first(self, axis: FreeAxis, factor: int) -> int:
        size: int = self._shapes[axis.first.input][axis.first.axis]
        return max(2, size) if axis.is_batch else factor * max(_SHORTEST, size)

    def _choose(
        self, used: Collection[int], least: Sequence[int], shift: int = 0, step: int = 1
    ) -> list[int]:
        """Returns a size for each axis that is not used, from `least` on, a prime if possible."""
        chosen: list[int] = []
        for start, limit in zip(least, self._limits, strict=True):
            above = range(start, min(limit, 2 * start + 1000) + 1, step)
            candidates = itertools.chain(
                (size for size in above if step > 1 or _is_prime(size)),
                range(min(limit, start), 1, -1),
                range(start, limit + 1),
            )
            free = (size for size in candidates if size not in {*used, *chosen})
            size = next(itertools.islice(free, shift, None), None)
            if size is None:
                raise DifferentError(f"there are too few sizes up to {limit}")
            chosen.append(size)
        return chosen

    def _add(self, sizes: list[int], *, is_check: bool = False) -> None:
        """Adds the trace at sizes. A check is left out if the model does not take them."""
        self._tried.append(sizes)
        try:
            graph = self._trace_at(sizes)
        except CannotOpenError:
            if is_check:
                return
            raise
        if self._graphs:
            where = f"{self._describe(sizes)} than with {self._describe(self._sizes[0])}"
            try:
                check_nodes(self._graphs[0], graph, where)
            except DifferentError as error:
                self._disputed.append((sizes, error))
                if not is_check or len(self._disputed) > _MOST_DISPUTED:
                    raise self._disputed[0][1] from error
                return
        self._graphs.append(graph)
        self._sizes.append(sizes)
        self._is_check.append(is_check)

    def _trace_at(self, sizes: Sequence[int]) -> Graph:
        comparisons: set[Comparison] = set()
        marked = [
            Size(size, axis.first, comparisons)
            for size, axis in zip(sizes, self._axes, strict=True)
        ]
        with contextlib.ExitStack() as stack:
            kept = _KeptSizes(marked, self._fixed)
            if has_free_sizes():
                # A size that a fixed axis has too may get lost, and would then seem to be known.
                is_sure = self._fixed.isdisjoint(sizes)
                stack.enter_context(with_free_sizes(knows_others=is_sure))
            keep_sizes = kept if has_free_sizes() else _keep_sizes
            functions = replaced_functions(standardize_shape=keep_sizes, result_type=_result_type)
            stack.enter_context(functions)
            shapes = with_sizes(self._shapes, self._axes, marked)
            symbols = as_symbols(self._example, shapes)
            graph = self._trace(symbols, records_creation=self._records_creation)
        self._comparisons.update(comparisons)
        return graph

    def _describe(self, sizes: Sequence[int]) -> str:
        pairs = zip(self._axes, sizes, strict=True)
        return "size " + ", ".join(f"{size} of {axis}" for axis, size in pairs)

    def _follow_branches(self) -> None:
        """Adds traces until each comparison of sizes had each of its results."""
        for _ in range(_MOST_BRANCHES):
            sizes = self._untried_branch()
            if sizes is None:
                return
            self._add(sizes, is_check=True)
        if self._untried_branch() is not None:
            raise DifferentError("the model compares sizes with too many numbers")

    def _untried_branch(self) -> list[int] | None:
        """Returns sizes at which a comparison turns out as in no trace, or `None`."""
        numbers = {axis.first: number for number, axis in enumerate(self._axes)}
        # One that a single trace made is with a size of that trace.
        repeated = {key for key, number in self._comparisons.items() if number > 1}
        for comparison in repeated - self._settled:
            tried = {_sign(comparison, numbers, sizes) for sizes in self._tried}
            for axis in {axis for side in comparison for axis in axes_of(side)}:
                number = numbers[axis]  # type: ignore[index]

                def sizes_with(size: int, number: int = number) -> list[int]:
                    near = self._sizes[0]
                    return [*near[:number], size, *near[number + 1 :]]

                for size in _boundaries(
                    lambda size: _sign(comparison, numbers, sizes_with(size)),  # noqa: B023
                    self._limits[number],
                ):
                    if _sign(comparison, numbers, sizes_with(size)) not in tried:
                        return sizes_with(size)
            self._settled.add(comparison)
        return None

    def _find_changes(self, num_fitted: int = _NUM_FITTED) -> tuple[list[Callable[[], None]], bool]:
        """Returns functions that write `Size`s into the first graph, and if one was fitted."""
        order = sorted(range(len(self._graphs)), key=self._is_check.__getitem__)  # Stable.
        first_axes = [axis.first for axis in self._axes]
        sizes = [dict(zip(first_axes, self._sizes[number], strict=True)) for number in order]
        finder = SizeFinder(sizes, num_fitted)
        merger = Merger(finder, len(self._graphs))
        merger.merge_graphs([self._graphs[number] for number in order])
        return merger.changes, finder.has_fitted


class _KeptSizes:
    """Keeps each `Size` in the shapes of symbols, where Keras would make it an int, or computes it.

    Keras computes some shapes in ways that make plain numbers, as those of convolutions. So a
    number in a shape becomes the `Size` that had this number before, unless a fixed axis has it
    too: the sizes of a trace are chosen so that no other axis has them.
    """

    def __init__(self, sizes: Sequence[Size], fixed: Collection[int]) -> None:
        self._fixed = fixed
        self._sizes: dict[int, Size] = {}
        for size in sizes:
            self._keep(size)

    def __call__(self, standardize: Callable[[Any], Any], shape: Any) -> Any:
        """Returns the shape of a symbol."""
        return tuple(map(self._keep, _keep_sizes(standardize, shape)))

    def _keep(self, size: Any) -> Any:
        if not isinstance(size, Size):
            return self._sizes.get(size, size)
        if int(size) not in self._fixed:
            self._sizes.setdefault(int(size), size)
        return size


def _keep_sizes(standardize: Callable[[Any], Any], shape: Any) -> Any:
    """Returns the shape of a symbol, in which Keras would make each `Size` an int."""
    sizes = list(shape) if isinstance(shape, list | tuple) else []
    if not any(isinstance(size, Size) for size in sizes):
        return standardize(shape)
    plain = standardize([int(size) if isinstance(size, Size) else size for size in sizes])
    return tuple(
        size if isinstance(size, Size) else number
        for size, number in zip(sizes, plain, strict=True)
    )


def _result_type(original: Callable[..., str], *dtypes: Any) -> str:
    """Returns the dtype of a result, for which a `Size` is an int."""
    return original(*(int if dtype is Size else dtype for dtype in dtypes))


def _further(sizes: Sequence[int]) -> list[int]:
    """Returns larger sizes, from which to choose: each axis has another distance to its size."""
    return [size + 5 + 2 * number for number, size in enumerate(sizes)]


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _sign(comparison: Comparison, numbers: dict[InputAxis, int], sizes: Sequence[int]) -> int:
    """Returns -1, 0 or 1: which of two compared expressions is larger."""
    try:
        left, right = (evaluate(side, lambda axis: sizes[numbers[axis]]) for side in comparison)
    except ZeroDivisionError:
        return 0
    return int(np.sign(left - right))


def _boundaries(sign: Callable[[int], int], limit: int) -> Iterator[int]:
    """Yields sizes up to a limit, close to each at which a sign changes."""
    doubled = itertools.takewhile(lambda size: size <= limit, (2**n for n in range(8, 40)))
    grid = [*range(1, min(limit, 130) + 1), *doubled, limit]
    for low, high in itertools.pairwise(sorted(set(grid))):
        if sign(low) != sign(high):
            between = range(low, high + 1)
            first = bisect.bisect_left(between, 1, key=lambda size: int(sign(size) != sign(low)))
            yield from (low, between[first], high)
