"""Private names of Keras that the package can't do without.

Each has a canary test that says what broke when a Keras release moves it.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import keras
import numpy as np
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

__all__ = [
    "DataAdapter",
    "Distribution",
    "array_slices",
    "attend",
    "attention_projections",
    "batch_specs",
    "build_for_training",
    "callbacks_beside",
    "compile_arguments",
    "copied_batches",
    "count_samples",
    "count_train_steps",
    "delete_variables",
    "example_inputs",
    "find_data_adapter",
    "finish_building",
    "finish_callbacks",
    "first_call_shapes",
    "flatten_layers",
    "forget_global_seed",
    "functional_graph",
    "global_seed_state",
    "has_global_seed",
    "image_operations",
    "infers_shapes",
    "leaving_no_nodes",
    "numpy_batches",
    "order_metrics",
    "py_dataset_batches",
    "read_learning_rate",
    "set_mask",
    "split_validation",
    "tensorflow_specs",
    "uses_flash_attention",
]

Distribution: TypeAlias = keras.distribution.DataParallel | keras.distribution.ModelParallel
"""Keras's distributions: what they have in common has no public name."""


def flatten_layers(model: keras.Layer) -> list[keras.Layer]:
    """Returns the model and every layer inside it, at any depth.

    `model.layers` stops at the first level: the projections inside an attention layer, or the cell
    inside a recurrent one, are found here alone.
    """
    return list(model._flatten_layers())


@contextmanager
def leaving_no_nodes(model: keras.Model) -> Iterator[None]:
    """Removes, when the block ends, what calls on symbols have left in the layers of a model.

    A graph that is made of the layers later would find those calls, and fails by them.
    """
    nodes = [
        (nodes, len(nodes))
        for layer in flatten_layers(model)
        for nodes in (layer._inbound_nodes, layer._outbound_nodes)
    ]
    try:
        yield
    finally:
        for found, number in nodes:
            del found[number:]


def delete_variables(layer: keras.Layer, names: Iterable[str]) -> None:
    """Deletes attributes of a layer that are variables.

    `del` collects garbage for each: of a large model that takes a tenth of a second or more.

    Args:
        layer: `keras.Layer`.
        names: iterable of strings. The names of the attributes.
    """
    for name in names:
        layer._untrack_variable(getattr(layer, name))
        object.__delattr__(layer, name)


def functional_graph(model: keras.Layer) -> Any:
    """Returns what holds the `inputs` and `operations` of a model that is a graph, or `None`."""
    graph = getattr(model, "_functional", None) or model  # A Sequential has one inside.
    return graph if hasattr(graph, "operations") and hasattr(graph, "inputs") else None


def image_operations() -> Any:
    """Returns the module whose `resize` the layers call, and whose `Resize` looks at no size."""
    return keras.src.ops.image


def infers_shapes() -> bool:
    """Whether Keras calls layers to learn the shapes of their outputs, maybe on made-up numbers.

    On PyTorch these are ones in every place, of tensors that look like any other.
    """
    return bool(in_symbolic_scope())


def first_call_shapes(model: keras.Model) -> dict[str, Any]:
    """Returns the shapes that a subclassed model was built with, by argument of `call`."""
    return dict(_untracked(model._build_shapes_dict or {}))


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns the objects that `model.compile` was called with, by argument.

    The public `get_compile_config` serializes them, and so loses metrics and losses that are plain
    functions.
    """
    return dict(model._compile_config.config)


def attention_projections(attention: keras.Layer) -> dict[str, keras.Layer]:
    """Returns the projections of a built attention layer of Keras.

    Args:
        attention: `keras.layers.MultiHeadAttention` or `GroupQueryAttention`.

    Returns:
        A dict of layers: "query", "key", "value", "output", and "gate" where there is one.
    """
    names = ("query", "key", "value", "gate", "output")
    found = {name: getattr(attention, f"_{name}_dense", None) for name in names}
    return {name: projection for name, projection in found.items() if projection is not None}


def attend(
    attention: keras.Layer, query: Any, key: Any, value: Any, mask: Any, training: bool | None
) -> Any:
    """Returns the heads that an attention layer of Keras makes of what is projected already.

    Args:
        attention: `keras.layers.MultiHeadAttention` or `GroupQueryAttention`.
        query: Tensor of shape `(batch_size, query_length, num_heads, dim)`.
        key: Tensor of shape `(batch_size, key_length, num_heads, dim)`.
        value: Tensor of the same shape but for its dim.
        mask: Boolean tensor that broadcasts to `(batch_size, query_length, key_length)`.
        training: boolean or `None`. Whether to drop attention weights.
    """
    return attention._compute_attention(query, key, value, attention_mask=mask, training=training)[
        0
    ]


def uses_flash_attention(attention: keras.Layer) -> bool:
    """Returns whether an attention layer of Keras was told to use flash attention alone."""
    return bool(attention._flash_attention)


def global_seed_state() -> keras.Variable:
    """Returns the variable of the seed generator that all of Keras shares.

    Where there is none yet it is made, and seeded by a number that Python's generator gives.
    """
    return keras.src.random.seed_generator.global_seed_generator().state


def has_global_seed() -> bool:
    """Returns whether there is a seed generator yet that all of Keras shares."""
    name = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    return keras.src.backend.common.global_state.get_global_attribute(name) is not None


def forget_global_seed() -> None:
    """Makes Keras make its shared seed generator anew when it is next asked for."""
    name = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    keras.src.backend.common.global_state.set_global_attribute(name, None)


def build_for_training(model: keras.Model, batch: Any) -> None:
    """Makes the variables of a compiled model, its metrics and its optimizer, for such a batch.

    Args:
        model: `keras.Model`, compiled.
        batch: Structure of arrays, tensors or symbolic ones; or `None` in it.
    """

    def describe(leaf: Any) -> keras.KerasTensor | None:
        is_described = leaf is None or isinstance(leaf, keras.KerasTensor)
        return leaf if is_described else keras.KerasTensor(leaf.shape, leaf.dtype)

    try:
        keras.Model._symbolic_build(model, data_batch=keras.tree.map_structure(describe, batch))
    except Exception as error:
        error.add_note("It came as the model was built for the first batch.")
        raise


def finish_building(model: keras.Model) -> bool:
    """Builds the optimizer of a model whose layers are built; returns whether they are."""
    if not all(layer.built for layer in model._flatten_layers(include_self=False)):
        return False
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model._post_build()
    return True


def order_metrics(model: keras.Model, logs: dict[str, Any]) -> Any:
    """Returns the logs of `evaluate` as it returns them by itself: a list, or its only number."""
    return model._flatten_metrics_in_order(logs)


def finish_callbacks(callbacks: keras.callbacks.CallbackList) -> None:
    """Waits for the callbacks that Keras runs in a thread of their own."""
    callbacks._flush_futures()


def count_train_steps(model: keras.Model) -> int:
    """Returns the steps that a model's optimizer has been asked to make, as a training begins.

    Its public count leaves out those that only added to accumulated gradients.
    """
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return int(optimizer._iterations)


def count_samples(model: keras.Model) -> float | None:
    """Returns the samples that a model has been trained on since the epoch began.

    Keras weighs the loss of each batch by its samples, so its mean loss counts them. `None` where
    the model's own `train_step` does without that. See `_value_during_step`.
    """
    count = getattr(getattr(model, "_loss_tracker", None), "count", None)
    return None if count is None else (_value_during_step(model, count) or None)


def read_learning_rate(model: keras.Model) -> float | None:
    """Returns the learning rate of a training that is under way; `None` where it has no number.

    See `_value_during_step`.
    """
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(optimizer, "_learning_rate", None)
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        step = keras.ops.convert_to_tensor(
            int(_value_during_step(model, optimizer._iterations)), "int32"
        )
        return float(keras.ops.convert_to_numpy(rate(step)))
    if isinstance(rate, keras.Variable):
        return _value_during_step(model, rate)
    return None


def example_inputs(model: keras.Model) -> Any:
    """Returns one sample of zeros for a model; `None` where it does not say its inputs' shapes."""
    functional = getattr(model, "_functional", model)  # That of a `Sequential`.
    structure = getattr(functional, "_inputs_struct", None)
    if structure is None or any(
        None in tuple(tensor.shape)[1:] for tensor in keras.tree.flatten(structure)
    ):
        return None
    return keras.tree.map_structure(
        lambda tensor: keras.ops.zeros((1, *tuple(tensor.shape)[1:]), tensor.dtype),
        _untracked(structure),
    )


def _value_during_step(model: keras.Model, variable: keras.Variable) -> float:
    """Returns a number that the training step changes, to be asked for before a step begins.

    On JAX the values live outside of the variables during an epoch, and Keras's own way to them
    brings back all there are, which costs the next step dearly.
    """
    state = getattr(model, "_jax_state", None)
    if state and not model._jax_state_synced:
        groups = {
            "metrics_variables": model.metrics_variables,
            "optimizer_variables": model.optimizer.variables,
        }
        for group, variables in groups.items():
            for known, value in zip(variables, state[group], strict=True):
                if known is variable:
                    return float(value)
    return float(keras.ops.convert_to_numpy(variable.value))


def callbacks_beside(callback: keras.callbacks.Callback) -> list[keras.callbacks.Callback]:
    """Returns the callbacks of the training that is calling one of them, that one included.

    Keras tells a callback nothing of the others, so the call itself is asked: it goes through the
    list of them.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and any(
            each is callback for each in caller.callbacks
        ):
            return list(caller.callbacks)
        frame = frame.f_back
    return [callback]


_KINDS = {
    "ArrayDataAdapter": "arrays",
    "GeneratorDataAdapter": "generator",
    "GrainDatasetAdapter": "Grain",
    "PyDatasetAdapter": "PyDataset",
    "TFDatasetAdapter": "tf.data",
    "TorchDataLoaderAdapter": "DataLoader",
}


def find_data_adapter(x: Any, **arguments: Any) -> tuple[str | None, Any]:
    """Returns the kind of some training data, and what Keras goes through them by.

    Args:
        x: Training data as `keras.Model.fit` takes it.
        **arguments: `y`, `sample_weight`, `batch_size`, `steps_per_epoch`, `shuffle` and
            `class_weight`, likewise.

    Returns:
        `"arrays"`, `"generator"`, `"Grain"`, `"PyDataset"`, `"tf.data"` or `"DataLoader"`, and
        `None` for another; Keras's adapter.
    """
    adapter = keras.src.trainers.data_adapters.get_data_adapter(x, **arguments)
    return _KINDS.get(type(adapter).__name__), adapter


def array_slices(adapter: Any) -> tuple[int, Callable[[Any], Any]]:
    """Returns the number of rows of an adapter's arrays, and a function from indices to a batch.

    A batch holds NumPy arrays, and on PyTorch what Keras makes tensors of there: those of a GPU
    stay on it.
    """
    slicing = keras.src.trainers.data_adapters.array_slicing
    target, convert = "numpy", "convert_to_numpy"
    if keras.backend.backend() == "torch":
        target, convert = "torch", "convert_to_torch_compatible"
    arrays = slicing.convert_to_sliceable(adapter._inputs, target_backend=target)

    def take(indices: Any) -> Any:
        return keras.tree.map_structure(
            lambda array: getattr(array, convert)(array[indices]), arrays, none_is_leaf=False
        )

    return adapter._num_samples, take


def numpy_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches with their tensors, of whichever framework, as NumPy arrays."""
    utils = keras.src.trainers.data_adapters.data_adapter_utils
    yield from utils.get_numpy_iterator(batches)


def copied_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches as copies, so that who makes them may make the next in the same memory.

    They hold NumPy arrays, and on PyTorch tensors, where Keras computes.
    """
    is_torch = keras.backend.backend() == "torch"

    def copy(leaf: Any) -> Any:
        if is_torch:
            is_tensor = keras.ops.is_tensor(leaf)
            return keras.ops.copy(leaf) if is_tensor else keras.ops.convert_to_tensor(leaf)
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    for batch in batches if is_torch else numpy_batches(batches):
        yield keras.tree.map_structure(copy, batch, none_is_leaf=False)


def from_scipy(leaf: Any) -> Any:
    """Returns a sparse matrix of SciPy as Keras's backend has them, anything else as it is."""
    utils = keras.src.trainers.data_adapters.data_adapter_utils
    if not utils.is_scipy_sparse(leaf):
        return leaf
    if keras.backend.backend() == "jax":
        return utils.scipy_sparse_to_jax_sparse(leaf)
    return utils.scipy_sparse_to_tf_sparse(leaf)


def py_dataset_batches(dataset: keras.utils.PyDataset, class_weight: Any) -> Iterator[Any]:
    """Yields the batches of a `PyDataset` as Keras goes through it, with its workers."""
    adapters = keras.src.trainers.data_adapters.py_dataset_adapter
    adapter = adapters.PyDatasetAdapter(dataset, class_weight=class_weight, shuffle=False)
    adapter.on_epoch_begin()
    try:
        yield from copied_batches(adapter._get_iterator())
    finally:
        adapter.on_epoch_end()  # Ends its workers.


def split_validation(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """Returns the part of the arrays to train on, and that which `validation_split` sets aside."""
    slicing = keras.src.trainers.data_adapters.array_slicing
    train, validation = slicing.train_validation_split(arrays, validation_split=validation_split)
    return train, validation


def batch_specs(batches: list[Any]) -> Any:
    """Returns the shapes and dtypes of batches as `KerasTensor`s: `None` where the sizes differ."""

    def describe(leaf: Any) -> Any:
        # TensorFlow's strings are objects in NumPy.
        is_text = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU"
        return keras.KerasTensor(leaf.shape, "string") if is_text else leaf

    batches = keras.tree.map_structure(describe, batches)
    return keras.src.trainers.data_adapters.data_adapter_utils.get_keras_tensor_spec(batches)


def tensorflow_specs(specs: Any) -> Any:
    """Returns `KerasTensor`s as TensorFlow's specs of batches of any number of rows."""
    convert = keras.src.trainers.data_adapters.data_adapter_utils.convert_to_tf_tensor_spec
    return keras.tree.map_structure(
        lambda spec: convert(spec) if spec is None or isinstance(spec, keras.KerasTensor) else spec,
        specs,
    )


def _untracked(structure: Any) -> Any:
    """Returns Keras's tracked containers as plain ones, which JAX needs."""
    if isinstance(structure, dict):
        return {name: _untracked(value) for name, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(_untracked(value) for value in structure)
    return structure


def set_mask(tensor: Any, mask: Any) -> Any:
    """Returns a tensor with a mask of its own, which Keras puts no other in place of.

    Args:
        tensor: What a layer's `call` returns.
        mask: Boolean tensor, or `None` for none of its own.
    """
    if mask is not None:
        keras.src.backend.set_keras_mask(tensor, mask)
    return tensor
