"""ONNX and SavedModel files written from JAX."""

import contextlib
import importlib
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.export
import keras
import numpy as np

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.random_batch import Shapes, with_named_axes
from keras_deepseek.backend.export.saved_model_writer import ServingSignatures, save_as_saved_model
from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes
from keras_deepseek.backend.protocols.inference import Export
from keras_deepseek.errors import MissingExtraError


class JaxExport(Export):
    """Implements `Export` by JAX."""

    def write_saved_model(
        self, model: NamedModel, path: str, signatures: ServingSignatures
    ) -> None:
        def write(shapes: Shapes) -> None:
            options = {"polymorphic_shapes": [_polymorphic(shapes)]}
            save_as_saved_model(model, path, signatures, jax2tf_kwargs=options)

        with warnings.catch_warnings():
            # Keras uses a deprecated option of jax2tf.
            warnings.filterwarnings("ignore", ".*native_serialization", DeprecationWarning)
            with_named_axes(model.signature, write)

    def write_onnx(self, model: NamedModel, path: str, opset: int) -> None:
        try:
            import jax2onnx
        except ImportError as error:
            raise MissingExtraError("jax2onnx", "onnx-jax", "to export ONNX from JAX") from error

        names = [spec.name for spec in model.signature.inputs]

        def run(*tensors: Any) -> tuple[Any, ...]:
            # A layer that assigns a variable must not leave a value of the trace in it.
            with (
                keras.StatelessScope(),
                _iota_for_free_sizes(),
                _attention_in_parts(),
                _functions_in_parts(),
            ):
                outputs = model.trace(dict(zip(names, tensors, strict=True)))
            return tuple(outputs[spec.name] for spec in model.signature.outputs)

        def write(shapes: Shapes) -> None:
            symbolic = _with_symbols(shapes)
            jax2onnx.to_onnx(
                run,
                inputs=[
                    jax.ShapeDtypeStruct(symbolic[spec.name], jax.numpy.dtype(spec.dtype))
                    for spec in model.signature.inputs
                ],
                input_names=names,
                opset=opset,
                return_mode="file",
                output_path=path,
            )

        with _primitives_in_parts(), _whole_tracebacks():
            with_named_axes(model.signature, write)
        pool_over_fewer_axes(path)


def _polymorphic(shapes: Shapes) -> dict[str, str]:
    """Converts input shapes to the strings of jax2tf, with symbols for free axes."""
    named = _with_symbols(shapes)
    return {name: ", ".join(map(str, shape)) for name, shape in named.items()}


def _with_symbols(shapes: Shapes) -> Shapes:
    """Replaces the names of free axes in input shapes by JAX's symbolic sizes.

    JAX would read a name such as `left-right_axis_1` as a difference.
    """
    names = dict.fromkeys(size for shape in shapes.values() for size in shape)
    symbols = {name: f"axis_{index}" for index, name in enumerate(names) if isinstance(name, str)}
    return {
        name: tuple(symbols[size] if isinstance(size, str) else size for size in shape)
        for name, shape in shapes.items()
    }


@contextlib.contextmanager
def _whole_tracebacks() -> Iterator[None]:
    """Context manager that keeps JAX's frames in tracebacks, and with them those of layers."""
    previous_filtering = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        yield
    finally:
        jax.config.update("jax_traceback_filtering", previous_filtering)


@contextlib.contextmanager
def _iota_for_free_sizes() -> Iterator[None]:
    """Context manager that replaces `jax.numpy.arange` by `iota` for free sizes.

    For `arange` of a free size, jax2onnx writes a placeholder number as the size.
    """
    arange = jax.numpy.arange

    def count(start: Any, stop: Any = None, step: Any = None, dtype: Any = None) -> Any:
        is_free = jax.export.is_symbolic_dim(start) and stop is None and step is None
        if not is_free:
            bounds = [start, stop, step]
            while bounds[-1] is None:  # jax2onnx's replacement of `arange` takes no `None`.
                bounds.pop()
            return arange(*bounds, dtype=dtype)
        return jax.lax.broadcasted_iota(jax.numpy.dtype(dtype or "int32"), (start,), 0)

    with temporary_attributes(jax.numpy, arange=count):
        yield


@contextlib.contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Context manager in which `jax.nn.dot_product_attention` is traced as single operations.

    If all keys of a query are masked, jax2onnx's version returns zeros, and JAX the mean of the
    values.
    """
    with temporary_attributes(jax.nn, dot_product_attention=_attend):
        yield


def _attend(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    implementation: str | None = None,
) -> Any:
    """Computes `jax.nn.dot_product_attention` by single operations.

    All tensors have the shape `(batch, length, heads, features)`.
    """
    num_heads, head_dim = query.shape[2:]
    key, value = (_repeat_heads(array, num_heads) for array in (key, value))
    scores = jax.numpy.einsum("btnh,bsnh->bnts", query, key)
    scores = scores.astype("float32") * (head_dim**-0.5 if scale is None else scale)
    if bias is not None:
        scores += bias
    if is_causal:
        rows, columns = (jax.numpy.arange(scores.shape[axis]) for axis in (2, 3))
        scores = jax.numpy.where(rows[:, None] >= columns[None], scores, _NEVER)
    if mask is not None:
        scores = jax.numpy.where(mask, scores, _NEVER)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jax.numpy.einsum("bnts,bsnh->btnh", weights, value)


_NEVER = -0.7 * float(np.finfo("float32").max)


def _repeat_heads(array: Any, num_heads: int) -> Any:
    """Repeats key or value heads of `(batch, length, heads, features)` for grouped queries."""
    batch, length, num_groups, features = array.shape
    if num_groups == num_heads:
        return array
    sizes = (batch, length, num_groups, num_heads // num_groups, features)
    repeated = jax.numpy.broadcast_to(array[:, :, :, None], sizes)
    return repeated.reshape((batch, length, num_heads, features))


@contextlib.contextmanager
def _functions_in_parts() -> Iterator[None]:
    """Context manager that replaces functions of JAX which jax2onnx writes wrongly."""
    one_hot = jax.nn.one_hot

    def one_hot_zero_negative(x: Any, num_classes: int, **options: Any) -> Any:
        """Returns `one_hot`, with zeros for negative classes, which ONNX counts from the end."""
        if jax.numpy.issubdtype(x.dtype, jax.numpy.signedinteger):
            x = x.astype(jax.numpy.promote_types(x.dtype, "int32"))
            x = jax.numpy.where(x < 0, num_classes, x)
        return one_hot(x, num_classes, **options)

    with (
        temporary_attributes(jax.nn, log_sigmoid=_log_sigmoid, one_hot=one_hot_zero_negative),
        temporary_attributes(jax.numpy, digitize=_digitize, searchsorted=_searchsorted),
    ):
        yield


def _searchsorted(a: Any, v: Any, side: str = "left") -> Any:
    """Returns `searchsorted` as a count in which NaN, as in JAX, comes after all numbers."""
    values = v[..., None]
    is_beyond = values <= a if side == "left" else values < a
    return jax.numpy.sum(~is_beyond, axis=-1, dtype="int32")


def _digitize(x: Any, bins: Any) -> Any:
    """Returns `digitize` for bins that rise or fall, by `_searchsorted`."""
    falling = bins.shape[0] - _searchsorted(bins[::-1], x, "right")
    return jax.numpy.where(bins[-1] >= bins[0], _searchsorted(bins, x, "right"), falling)


@contextlib.contextmanager
def _primitives_in_parts() -> Iterator[None]:
    """Context manager in which jax2onnx writes some primitives by more exact formulas."""
    system: Any = importlib.import_module("jax2onnx.plugins.plugin_system")
    system.import_all_plugins()
    registry: dict[str, Any] = system.PLUGIN_REGISTRY
    original_plugins = {name: registry[name] for name in _FORMULAS if name in registry}
    registry.update({name: _InParts(formula, registry) for name, formula in _FORMULAS.items()})
    try:
        yield
    finally:
        for name in _FORMULAS:
            del registry[name]
        registry.update(original_plugins)


class _InParts:
    """A jax2onnx plugin that writes a JAX primitive as a formula."""

    def __init__(self, formula: Callable[[Any], Any], registry: dict[str, Any]) -> None:
        self._formula = formula
        self._compiled = registry[jax.make_jaxpr(jax.jit(formula))(0.0).eqns[0].primitive.name]

    def lower(self, context: Any, equation: Any) -> None:
        """Writes the formula into the ONNX graph in place of the primitive."""
        aval = equation.invars[0].aval
        traced = jax.make_jaxpr(self._formula)(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        self._compiled.lower(
            context,
            types.SimpleNamespace(
                params={"jaxpr": traced}, invars=equation.invars[:1], outvars=equation.outvars
            ),
        )


def _expm1(x: Any) -> Any:
    """Returns `exp(x) - 1` as `tanh(x / 2) (exp(x) + 1)`, which is exact for small numbers."""
    return jax.lax.tanh(x * 0.5) * (jax.lax.exp(x) + 1)


def _log1p(x: Any) -> Any:
    """Returns `log(1 + x)`; for small numbers as `log(u) x / (u - 1)` with `u = 1 + x`.

    `u` has lost part of `x`. It has lost it in both factors, so that the errors cancel.
    """
    following = x + 1
    logarithm = jax.lax.log(following)
    increment = following - 1
    small = jax.numpy.where(increment == 0, x, logarithm * (x / increment))
    return jax.numpy.where(jax.lax.abs(x) < _SMALL, small, logarithm)


def _log_sigmoid(x: Any) -> Any:
    """Returns `min(x, 0) - log1p(exp(-|x|))`: jax2onnx's `log(sigmoid(x))` loses small results."""
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
        x = x.astype("float32")
    negative = jax.lax.min(x, jax.lax.full_like(x, 0))
    return negative - jax.lax.log1p(jax.lax.exp(-jax.lax.abs(x)))


_SMALL = 0.5


_FORMULAS: dict[str, Callable[[Any], Any]] = {
    "expm1": _expm1,
    # Replaces jax2onnx's plugin for this function, so that it reaches the primitive.
    "jax.numpy.expm1": _expm1,
    "log1p": _log1p,
}


_MOST_POOLED = 3
"""The most axes that onnxruntime pools over."""


def pool_over_fewer_axes(path: str) -> None:
    """Rewrites each `MaxPool` of an ONNX file that pools over more axes than onnxruntime can.

    jax2onnx adds two axes of size 1 in front, and pools over all of the tensor's own. The batch and
    the channels, which have windows of 1, take the place of the added axes.
    """
    import onnx

    model = onnx.load(path)
    nodes = {output: node for node in model.graph.node for output in node.output}
    changed = False
    for pool in [node for node in model.graph.node if node.op_type == "MaxPool"]:
        options = {
            attribute.name: onnx.helper.get_attribute_value(attribute)
            for attribute in pool.attribute
        }
        inner_input = _inner_input(nodes, pool.input[0])
        after = [node for node in model.graph.node if pool.output[0] in node.input]
        if len(options["kernel_shape"]) <= _MOST_POOLED or inner_input is None or len(after) != 1:
            continue
        order = _order(options)
        if order is None or after[0].op_type != "Squeeze":
            continue
        _replace(model.graph, pool, after[0], inner_input, order, options)
        changed = True
    if changed:
        onnx.save(model, path)


def _inner_input(nodes: dict[str, Any], name: str) -> str | None:
    """Returns the tensor before two `Unsqueeze` nodes in front of a pooling, or `None`."""
    for _ in range(2):
        node = nodes.get(name)
        if node is None or node.op_type != "Unsqueeze":
            return None
        name = node.input[0]
    return name


def _order(options: dict[str, Any]) -> list[int] | None:
    """Returns an axis order that begins with two unpooled axes, or `None` if there are none."""
    windows = options["kernel_shape"]
    rank = len(windows)
    pads, strides = options.get("pads", [0] * 2 * rank), options.get("strides", [1] * rank)
    single = [
        axis
        for axis in range(rank)
        if windows[axis] == strides[axis] == 1 and pads[axis] == pads[axis + rank] == 0
    ][:2]
    pooled = [axis for axis in range(rank) if axis not in single]
    return single + pooled if len(pooled) == rank - 2 <= _MOST_POOLED else None


def _replace(
    graph: Any, pool: Any, squeeze: Any, inner_input: str, order: list[int], options: dict[str, Any]
) -> None:
    from onnx import helper

    rank = len(order)
    pool_options: dict[str, Any] = {
        name: [values[axis] for axis in order[2:]] if len(values) == rank else values
        for name, values in options.items()
        if name in ("kernel_shape", "strides", "dilations")
    }
    if "pads" in options:
        pool_options["pads"] = [
            options["pads"][axis + end] for end in (0, rank) for axis in order[2:]
        ]
    pool_options |= {name: options[name] for name in ("auto_pad", "ceil_mode") if name in options}
    back = [order.index(axis) for axis in range(rank)]
    name = pool.output[0]
    first, last = f"{name}/pooled_last", f"{name}/pooled"
    index = list(graph.node).index(pool)
    for node in (
        helper.make_node("Transpose", [last], [squeeze.output[0]], perm=back),
        helper.make_node("MaxPool", [first], [last], **pool_options),
        helper.make_node("Transpose", [inner_input], [first], perm=order),
    ):
        graph.node.insert(index, node)
    graph.node.remove(pool)
    graph.node.remove(squeeze)
