"""Sharded optimizer state: each process updates its part of the weights (ZeRO).

References:
    - [ZeRO: Memory Optimizations Toward Training Trillion Parameter Models
      (Rajbhandari et al., 2020)](https://arxiv.org/abs/1910.02054)
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.artifacts.divided_array import ArrayPieces, Box, StoredArray, whole_box
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.optimizers import (
    exclude_from_decay,
    optimized_variables,
    own_update_method,
    plain_optimizer,
    uses_decay,
    weight_slots,
)
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.backend.processes.processes import PartReplicas, Processes
from keras_deepseek.backend.processes.weight_parts import Division
from keras_deepseek.backend.tensor_values import read_values
from keras_deepseek.errors import InvalidInputError, NotSupportedError

_ELEMENTWISE = (
    *(keras.optimizers.SGD, keras.optimizers.RMSprop, keras.optimizers.Adam),
    *(keras.optimizers.AdamW, keras.optimizers.Adagrad, keras.optimizers.Adadelta),
    *(keras.optimizers.Adamax, keras.optimizers.Nadam, keras.optimizers.Ftrl),
    keras.optimizers.Lion,
)
"""Optimizers of Keras that update each number by its own gradient. Others get whole weights."""
_COUNTERS = ("iteration", "learning_rate")


class OptimizerParts:
    """The parts of a model's weights that this process updates, with the optimizer's state.

    The weights themselves are whole in each process. Before an update its parts are read from them,
    and afterwards all processes send their parts to each other.

    """

    def __init__(self, processes: Processes, replicas: PartReplicas) -> None:
        self._processes = processes
        self.replicas = replicas
        self.weights: list[keras.Variable] = []
        """The weights that all processes update together."""
        self._parts: list[keras.Variable] = []  # One for each weight, perhaps of size 0.

    def prepare(self, model: keras.Model, *, by_weight: bool) -> None:
        """Creates the parts of a built model, and builds its optimizer for them.

        With `by_weight`, a weight belongs to one process as a whole, as clipping by the norm of
        each gradient needs. For optimizers that need matrices it does so in any case.
        """
        optimizer = plain_optimizer(model.optimizer)
        check_shardable(model)
        _check_update(model.optimizer)
        _check_update(optimizer)
        self.weights = list(model.trainable_variables)
        sizes = [int(np.prod(weight.shape)) for weight in self.weights]
        needs_matrices = not _is_elementwise(optimizer) or optimizer.clipnorm is not None
        by_weight = by_weight or needs_matrices
        self.division = Division(sizes, self._processes.world_size, by_weight=by_weight)
        self._parts = [self._make_part(index) for index in range(len(self.weights))]
        pairs = zip(self.weights, self._parts, strict=True)
        if optimizer.weight_decay:
            undecayed = [part for weight, part in pairs if not uses_decay(optimizer, weight)]
            exclude_from_decay(optimizer, undecayed)
        model.optimizer.build(self._parts)
        _check_state(optimizer)
        leave_out_of_files(model)

    def check_weights(self, model: keras.Model) -> None:
        """Raises an error if other weights are trainable than the optimizer was built for."""
        if list(map(id, model.trainable_variables)) != list(map(id, self.weights)):
            raise InvalidInputError(
                f"Weights of model {model.name!r} were frozen or unfrozen after the optimizer was "
                "built. Make a new Trainer, with a new optimizer (optimizer=...)."
            )

    @property
    def variables(self) -> list[keras.Variable]:
        """The parts that this process updates, those of size 0 left out."""
        return self.select(self._parts)

    def select(self, values: Sequence[Any]) -> list[Any]:
        """Returns those of some values, one for each weight, whose part is not empty."""
        pieces = self.division.pieces[self._processes.rank]
        return [value for piece, value in zip(pieces, values, strict=True) if piece.size]

    def sum_norms(self, norms: Any, parts: Sequence[keras.Variable]) -> Any:
        """Returns the L2 norm of something of each weight, from those of this process's parts."""
        indices = {id(part): index for index, part in enumerate(self._parts)}
        positions = np.array([[indices[id(part)]] for part in parts], "int32").reshape(-1, 1)
        squares = ops.scatter(positions, ops.square(norms), (len(self.weights),))
        return ops.sqrt(self.replicas.add_up(squares))

    def shape(self, vectors: Sequence[Any]) -> list[Any]:
        """Returns a vector for each weight in the shape of its part."""
        pairs = zip(vectors, self._parts, strict=True)
        return [ops.reshape(vector, part.shape) for vector, part in pairs]

    def take(self) -> None:
        """Reads the parts from the weights, which may have been changed since the last update."""
        for index, (weight, part) in enumerate(zip(self.weights, self._parts, strict=True)):
            part.assign(self._cut(index, ops.convert_to_tensor(weight)))

    def share(self) -> None:
        """Sends the updated parts to all processes, which put them together to weights."""
        self._send()
        for weight in self.weights:
            if weight.constraint is not None:
                weight.assign(weight.constraint(weight))

    def _send(self) -> None:
        vectors = [ops.reshape(ops.cast(part, "float32"), (-1,)) for part in self._parts]
        self.replicas.share_parts(self.division, vectors, self.weights)

    @contextmanager
    def averaging(self, model: keras.Model) -> Iterator[None]:
        """Context manager in which the model gets its moving averages when a training ends."""
        optimizer = plain_optimizer(model.optimizer)

        def finish(_: Sequence[keras.Variable]) -> None:
            type(optimizer).finalize_variable_values(optimizer, self._parts)
            self._send()  # Averages of constrained weights, as Keras has them.

        changed = {"finalize_variable_values": finish} if optimizer.use_ema else {}
        with own_attributes(optimizer, **changed):
            yield

    def read_state(self, model: keras.Model) -> Iterator[Array | ArrayPieces]:
        """Yields the values of all variables of the optimizer: this process's pieces of its state.

        Counters and the learning rate are whole.
        """
        owners = self._owners(model)
        for variable in model.optimizer.variables:
            (value,) = read_values([variable])
            index = owners.get(id(variable))
            yield value if index is None else self._as_pieces(index, value)

    def cut_state(
        self, model: keras.Model, values: Sequence[Array | StoredArray]
    ) -> list[Array | StoredArray]:
        """Returns this process's parts of the state of an optimizer of whole weights."""
        owners, by_weight = self._owners(model), self.division.by_weight
        pieces = self.division.pieces[self._processes.rank]
        cut: list[Array | StoredArray] = []
        for variable, value in zip(model.optimizer.variables, values, strict=True):
            index = owners.get(id(variable))
            if index is None:
                cut.append(value)
            elif by_weight and not pieces[index].size:  # Its state of nothing has any shape.
                cut += read_values([variable])
            else:
                cut.append(self._cut(index, value))
        return cut

    def _owners(self, model: keras.Model) -> dict[int, int]:
        """Returns the index of the weight that each variable of the optimizer belongs to, by id."""
        indices = {id(part): index for index, part in enumerate(self._parts)}
        return {id(slot): indices[id(part)] for slot, part in weight_slots(model.optimizer)}

    def _as_pieces(self, index: int, value: Array) -> ArrayPieces:
        piece = self.division.pieces[self._processes.rank][index]
        shape: tuple[int, ...] = tuple(self.weights[index].shape)
        box: Box = ((piece.start, piece.stop),)
        if self.division.by_weight:  # Its state may have other shapes.
            shape, box = value.shape, whole_box(value.shape)
        return ArrayPieces(shape, str(value.dtype), [(box, value)] if piece.size else [])

    def _make_part(self, index: int) -> keras.Variable:
        weight = self.weights[index]
        *scopes, name = weight.path.split("/")
        with ExitStack() as stack:  # An optimizer may tell weights apart by their paths.
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            return keras.Variable(
                self._cut(index, ops.convert_to_tensor(weight)),
                dtype=weight.dtype,
                name=name,
                autocast=False,
            )

    def _cut(self, index: int, value: Any) -> Any:
        """Returns this process's part of a weight or of a state that belongs to it."""
        piece = self.division.pieces[self._processes.rank][index]
        if self.division.by_weight and piece.size:
            return value
        if self.division.by_weight and len(value.shape):
            # Not (0, columns): Keras's sum on TensorFlow takes such a matrix for a bias.
            return value[(slice(0),) * len(value.shape)]
        if isinstance(value, StoredArray):
            return value.flat(piece.start, piece.stop)
        flat = value.reshape(-1) if isinstance(value, np.ndarray) else ops.reshape(value, (-1,))
        return flat[piece.start : piece.stop]


def common_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of a model and its optimizer that all processes have alike."""
    variables = [*model.variables, *model.optimizer.variables]
    variable_ids = {id(variable) for variable in variables}
    if all(id(weight) in variable_ids for weight in optimized_variables(model.optimizer) or []):
        return variables
    sharded = {id(slot) for slot, _ in weight_slots(model.optimizer)}
    return [variable for variable in variables if id(variable) not in sharded]


def check_shardable(model: keras.Model) -> None:
    """Raises an error for a model or an optimizer whose state can't be sharded."""
    optimizer = plain_optimizer(model.optimizer)
    if not model.built:
        raise InvalidInputError(
            f"shard_optimizer=True shards the state of known weights, and model {model.name!r} is "
            "not built yet. Call it on a batch, or begin it with keras.Input, before the Trainer."
        )
    if model.optimizer.built:
        raise InvalidInputError(
            f"The {type(optimizer).__name__} has been built for whole weights, so that its state "
            "is in memory already. Pass a new optimizer to the Trainer with shard_optimizer=True."
        )
    if getattr(optimizer, "optimizers", None):
        raise NotSupportedError(
            f"shard_optimizer=True does not support {type(optimizer).__name__}, which holds other "
            "optimizers. Use one optimizer for all weights."
        )
    if optimizer.global_clipnorm is not None:
        raise InvalidInputError(
            f"global_clipnorm={optimizer.global_clipnorm} of the optimizer would see this "
            "process's parts alone. Pass "
            f"gradient_clip=('global_norm', {optimizer.global_clipnorm}) to the Trainer instead."
        )
    if any(weight.overwrite_with_gradient for weight in model.trainable_variables):
        raise NotSupportedError("shard_optimizer=True does not support float8 training.")


def _check_update(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises an error for an optimizer with a method that would get a part of all gradients."""
    method = own_update_method(optimizer)
    if method is not None:
        raise NotSupportedError(
            f"shard_optimizer=True does not support {type(optimizer).__name__}: its own {method}() "
            "would get the gradients of this process's parts alone. Override update_step(), which "
            "gets one weight at a time, or clip with gradient_clip of the Trainer."
        )


def _check_state(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises an error for an optimizer with a state that depends on all gradients together."""
    if _is_elementwise(optimizer):
        return
    slot_ids = {id(slot) for slot, _ in weight_slots(optimizer)}
    shared = [
        variable.name
        for variable in optimizer.variables
        if id(variable) not in slot_ids and variable.name not in _COUNTERS
    ]
    if shared:
        raise NotSupportedError(
            f"shard_optimizer=True does not support {type(optimizer).__name__}: its variables "
            f"{', '.join(shared)} belong to no single weight, and would differ between processes."
        )


def leave_out_of_files(model: keras.Model) -> None:
    """Leaves the optimizer's variables out of each file of its model; Keras warns at loading.

    A file with one process's part of them is of no use. The optimizer has that part alone for good,
    also when the model is saved after the training.
    """
    for owner in (model.optimizer, plain_optimizer(model.optimizer)):
        owner.save_own_variables = _save_nothing


def _save_nothing(store: Any) -> None:
    pass


def _is_elementwise(optimizer: keras.optimizers.Optimizer) -> bool:
    is_of_keras = type(optimizer).__module__.startswith("keras.")  # A subclass may need matrices.
    return is_of_keras and isinstance(optimizer, _ELEMENTWISE)
