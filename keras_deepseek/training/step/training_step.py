"""One step of training, in one order on every backend.

Micro-batches, then unscale, finite check, clip, update and moving averages. `Trainer` puts it in
place of the model's own `train_step` for as long as `fit` runs.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.gradient_scale import multiply_gradients
from keras_deepseek.backend.keras_private.keras_internals import build_for_training
from keras_deepseek.backend.keras_private.keras_training import (
    call_for_training,
    compiled_metric_names,
    compute_training_loss,
    hearing_metrics,
    track_loss,
    update_metrics,
)
from keras_deepseek.backend.loss_means import hearing_means
from keras_deepseek.backend.processes.processes import (
    ComputePart,
    FinishPart,
    Receive,
    RemoteReplicas,
    Replicas,
)
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.gradient_clip import GradientClip
from keras_deepseek.training.step.gradient_residual import GradientResidual
from keras_deepseek.training.step.gradient_update import GradientUpdate, is_scaled
from keras_deepseek.training.step.guarded_steps import GuardedSteps
from keras_deepseek.training.step.label_check import marking_wrong_labels
from keras_deepseek.training.step.loss_weight import find_reduction, weigh_loss
from keras_deepseek.training.step.micro_batches import (
    Batch,
    MicroBatches,
    check_same_rows,
    count_rows,
    with_a_row,
)
from keras_deepseek.training.step.no_loss import no_loss_error
from keras_deepseek.training.step.rematerialization import (
    Remat,
    find_blocks,
    find_normalizations,
    rematerialized,
)
from keras_deepseek.training.step.replica_states import ReplicaStates
from keras_deepseek.training.step.step_result import check_log_names, read_result
from keras_deepseek.training.step.weighted_sums import LEAST_WEIGHT, WeightedSums, counting

_logger = logging.getLogger(__name__)

_WEIGHT = 1  # Where the weight stands among the scalars that replicas sum.

Backward = Callable[[Any, Receive | None], list[Any]]
"""The backward pass of a part, from what its sums are divided by, or `None`, to its gradients."""

Sums = tuple[list[Any], list[Any], list[Any]]
"""What replicas sum: scalars, those that the backward pass finds, and gradients."""


class TrainingStep:
    """A step of training, from the data of a batch to the logs.

    Args:
        model: `keras.Model`, compiled.
        compute: Function of `x`, `y` and `sample_weight` to the loss, or to a dict of it and what
            else `Trainer.train_step` may return.
        micro_batches: integer. The parts that each batch is computed in, one after the other.
        gradient_clip: tuple of the kind of clip and its bound, or `None`.
        guard: `GuardedSteps`, which says whether a step is good, or `None`.
        remat: boolean or names of layers: the blocks that are computed anew for the backward pass.
        replicas: `Replicas`, of which each computes rows of its own and all make the same update;
            or `None` for one alone.
        devices: `Replicas` in this process, among which it divides its rows, or `None`.
        on_built: Function that is called in the first step, where that has built the model or its
            optimizer. Defaults to one that does nothing.
        residual: `GradientResidual`, where the replicas compress what they send, or `None`.
    """

    def __init__(
        self,
        model: keras.Model,
        compute: Callable[..., Any],
        *,
        micro_batches: int,
        gradient_clip: GradientClip | None,
        guard: GuardedSteps | None,
        remat: Remat,
        replicas: RemoteReplicas | None = None,
        devices: Replicas | None = None,
        on_built: Callable[[], None] = lambda: None,
        residual: GradientResidual | None = None,
    ) -> None:
        self._model = model
        self._compute = compute
        self._micro_batches = micro_batches
        self._guard = guard
        self._remat = remat
        self._found_blocks: list[keras.Layer] | None = None
        self._replicas = replicas
        self._devices = devices
        self._on_built = on_built
        self._residual = residual
        self._update = GradientUpdate(model, gradient_clip, guard, residual)
        self._is_in_parts = micro_batches > 1 or replicas is not None or devices is not None
        self._is_sum = self._is_in_parts and find_reduction(model.loss) == "sum"
        self._num_rows: Any = None  # Of the whole batch, while a step is made of it.
        self._tells_metrics = True  # Whether the computation does, as it was when last traced.
        self._has_warned = False

    def __call__(self, data: Any) -> dict[str, Any]:
        """Makes a step and returns its logs."""
        batch = keras.utils.unpack_x_y_sample_weight(data)
        num_rows = count_rows(batch)
        if isinstance(num_rows, int) and num_rows == 0 and self._replicas is None:
            raise InvalidInputError("A batch without rows can't be trained on.")
        if self._micro_batches > 1:
            check_same_rows(batch, num_rows)
        variables, optimizer = self._model.trainable_variables, self._model.optimizer
        if not (self._model.built and optimizer.built):
            build_for_training(self._model, data)
            self._on_built()
            variables = self._model.trainable_variables
        states = self._guard.read_states(self._model) if self._guard else []
        keep: Callable[[], None] | None = None
        with rematerialized(self.find_blocks()), self._whole_batch(num_rows):
            if self._replicas is None:
                loss, logs, gradients = self._compute_batch(batch, variables)
            else:
                loss, logs, gradients, num_rows, keep = self._compute_with_replicas(
                    batch, variables, self._replicas
                )
        if not isinstance(num_rows, int):
            loss = ops.where(num_rows > 0, loss, float("nan"))
        present = [gradient is not None for gradient in gradients]
        if variables and not any(present):
            raise InvalidInputError(
                f"The loss depends on no trainable weight of {self._model.name!r}: there is "
                "nothing to train by it."
            )
        is_good, update_logs = self._update(
            loss,
            [gradient for gradient in gradients if gradient is not None],
            [variable for variable, is_there in zip(variables, present, strict=True) if is_there],
            keep,
        )
        track_loss(self._model, loss, num_rows)
        for state, before in states:
            state.assign(ops.where(is_good, state.value, before))
        means = self._model.get_metrics_result()
        if not self._tells_metrics:
            means = self._without_untold(means)
        if self._guard is not None:
            means = self._guard.mark_means(means)
        check_log_names(logs, {**means, **update_logs})
        return {**means, **logs, **update_logs}

    def count_kept_bytes(self, data: Any) -> int:
        """Returns the bytes that a step on a batch keeps for its backward pass.

        Args:
            data: Tensors of a batch, as Keras gives them to a step.
        """
        batch = keras.utils.unpack_x_y_sample_weight(data)
        num_rows = count_rows(batch)
        if self._micro_batches > 1:
            batch = MicroBatches(batch, self._micro_batches).take(0)
        with rematerialized(self.find_blocks()), self._whole_batch(num_rows):
            return backend.current().count_kept_bytes(
                self._bind(batch), self._model.trainable_variables, self._states(), batch
            )

    def compute_loss(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """Returns the loss that the model was compiled with, and tells its metrics of the batch.

        Of a part of a batch it is a dict of the loss and of what that counts by.

        Args:
            x: Inputs of the batch.
            y: Targets, or `None`.
            sample_weight: Weights of the samples, or `None`.
        """
        model = self._model
        with hearing_means() as means:
            y_pred = call_for_training(model, x)
        loss = compute_training_loss(model, x, y, y_pred, sample_weight)
        is_kerass = type(model).compute_loss is keras.Model.compute_loss
        if is_kerass and model.loss is None and not model.losses:  # JAX would make it 0.
            raise no_loss_error(model)
        update_metrics(model, x, y, y_pred, sample_weight)
        if not self._is_in_parts:
            return loss
        _refuse_losses_of_rows(model)
        if self._is_sum:
            return {"loss": self._share_added(loss, count_rows((x, y, sample_weight)))}
        if means and model.loss is None:
            return {"loss": loss, "weight": sum(map(ops.convert_to_tensor, means))}
        return {"loss": loss, "weight": weigh_loss(model.loss, y, y_pred, sample_weight)}

    def _share_added(self, loss: Any, num_rows: Any) -> Any:
        """Returns a part's loss with its share of what layers have added, in place of all of it.

        That is a mean, or none of the data's, beside a sum: of all parts it makes one.
        """
        added = self._model.losses
        if not added or type(self._model).compute_loss is not keras.Model.compute_loss:
            return loss  # Nobody knows whether a loss of the model's own has them in it.
        share = ops.cast(num_rows, "float32") / ops.cast(self._num_rows, "float32")
        return loss - (1.0 - share) * sum(ops.convert_to_tensor(each, "float32") for each in added)

    @contextmanager
    def _whole_batch(self, num_rows: Any) -> Iterator[None]:
        """Lets parts know of how many rows the whole is until the block ends."""
        self._num_rows = num_rows
        try:
            yield
        finally:
            self._num_rows = None  # It may be of a graph that is done with.

    def prepare(self) -> None:
        """Makes what steps of a model that is built need before the first of them.

        Raises:
            InvalidInputError: The names of some blocks stand for none.
        """
        self.find_blocks()
        if self._residual is not None:
            self._residual.prepare(self._model.trainable_variables)

    def carried(self) -> list[keras.Variable]:
        """Returns the variables that steps assign, and Keras knows nothing of."""
        return [] if self._residual is None else self._residual.variables

    def find_blocks(self) -> list[keras.Layer]:
        """Returns the layers that are computed anew for the backward pass.

        Raises:
            InvalidInputError: The names of some stand for none.
        """
        if self._found_blocks is None:  # By now all layers are built.
            blocks = find_blocks(self._model, self._remat)
            self._found_blocks = [*blocks, *find_normalizations(self._model, blocks)]
        return self._found_blocks

    def _compute_batch(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[Any, dict[str, Any], list[Any]]:
        """Returns the loss, what else is logged, and the gradients, by micro-batches if asked."""
        if not self._is_in_parts:
            (loss, _, logs), backward = self._differentiate(batch, variables)
            return loss, logs, backward()
        return self._sum_batch(batch, variables).means(is_sum=self._is_sum)

    def _compute_with_replicas(
        self, batch: Batch, variables: Sequence[keras.Variable], replicas: RemoteReplicas
    ) -> tuple[Any, dict[str, Any], list[Any], Any, Callable[[], None] | None]:
        """Returns what `_compute_batch` does, of the rows of all replicas, and their number.

        Behind it a function that is to be called where the step is not left out, or `None`.
        """
        if self._is_sum:  # Each part takes its share of what layers add.
            self._num_rows = replicas.count(ops.cast(count_rows(batch), "float32"))
        keep: list[Callable[[], None]] = []

        def reduce(compute: ComputePart) -> Sums:
            optimizer = self._model.optimizer
            scale = optimizer.dynamic_scale if is_scaled(optimizer) else None
            compression = None
            if self._residual is not None:
                compression = self._residual.compression(1.0 if scale is None else scale)
            if compression is None:
                return replicas.sum(compute, batch, variables)
            scalars, counts, gradients, keep_residual = replicas.sum_compressed(
                compute, batch, variables, compression
            )
            keep.append(keep_residual)
            if scale is not None:
                gradients = [gradient * scale for gradient in gradients]
            return scalars, counts, gradients

        def divisor(scalars: Sequence[Any]) -> Any:
            return 1.0 if self._is_sum else ops.maximum(scalars[_WEIGHT], LEAST_WEIGHT)

        sums, num_rows = self._sum_replicas(
            variables, replicas, reduce, lambda rows: self._begin(rows, variables), divisor
        )
        loss, logs, _ = replace(sums, gradients=[]).means(is_sum=self._is_sum)
        return loss, logs, sums.gradients, num_rows, keep[0] if keep else None

    def _sum_replicas(
        self,
        variables: Sequence[keras.Variable],
        replicas: Replicas,
        reduce: Callable[[ComputePart], Sums],
        begin: Callable[[Batch], tuple[WeightedSums, Backward]],
        divisor: Callable[[Sequence[Any]], Any],
    ) -> tuple[WeightedSums, Any]:
        """Returns the sums over replicas of what each computes of its rows, and their number.

        Gradients are divided by what `divisor` returns of the sums of the scalars, unless that is
        `None`. A replica without rows computes on zeros, which count for nothing.
        """
        states = ReplicaStates(self._model)
        found: list[WeightedSums] = []
        is_present = [False for _ in variables]

        def compute_part(rank: int, batch: Batch) -> tuple[list[Any], FinishPart]:
            num_rows = ops.cast(count_rows(batch), "float32")
            if found:
                states.restore()
            with states.own_seeds(rank), replicas.own_random_numbers():
                sums, backward = begin(with_a_row(batch))
            found.append(sums)

            where_rows = counting(num_rows)

            def counted(index: int, gradient: Any) -> Any:
                gradient, shape = where_rows(gradient), tuple(variables[index].shape)
                # A sparse one forgets its shape.
                return gradient if gradient.shape == shape else ops.reshape(gradient, shape)

            def finish(
                scalars: Sequence[Any], receive: Receive | None
            ) -> tuple[list[Any], list[Any]]:
                told: dict[int, Any] = {}

                def tell(index: int, gradient: Any) -> None:
                    told[index] = counted(index, gradient)
                    if receive:
                        receive(index, told[index])

                gradients = backward(divisor(scalars), tell if receive else None)
                for index, gradient in enumerate(gradients):
                    is_present[index] |= gradient is not None
                    if gradient is None:
                        tell(index, ops.zeros(variables[index].shape))
                    elif index not in told:
                        tell(index, gradient)
                counts = [float(gradient is not None) for gradient in gradients]
                return [ops.convert_to_tensor(counts)], [told[index] for index in sorted(told)]

            scalars = [where_rows(scalar) for scalar in sums.scalars()]
            return [num_rows, *scalars, *states.changes(num_rows)], finish

        (num_rows, *scalars), (counts,), gradients = reduce(compute_part)
        num_scalars = len(found[0].scalars())
        states.write(scalars[num_scalars:], num_rows)
        gradients = _without_absent(gradients, is_present, counts)
        return found[0].with_parts(scalars[:num_scalars], gradients), num_rows

    def _begin(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[WeightedSums, Backward]:
        """Returns the sums of a batch without gradients, and the backward pass for these.

        In one piece it has yet to be made, so that gradients can be sent while it is.
        """
        if self._micro_batches == 1 and self._devices is None:
            return self._begin_alone(batch, variables)
        sums = self._sum_batch(batch, variables)

        def backward(divisor: Any, _: Receive | None) -> list[Any]:
            return [None if gradient is None else gradient / divisor for gradient in sums.gradients]

        return replace(sums, gradients=[]), backward

    def _begin_alone(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[WeightedSums, Backward]:
        """Returns the sums of a part without gradients, and the backward pass for these."""
        (loss, weight, logs), differentiate = self._differentiate(batch, variables)

        where_weighty, densify = counting(weight), backend.current().densify

        def counted(_: int, gradient: Any) -> Any:  # Of nothing it may be NaN.
            return where_weighty(ops.cast(densify(gradient), "float32"))

        def backward(divisor: Any, receive: Receive | None) -> list[Any]:
            # Sums are far larger than means, and not computed in half precision.
            factor = None if divisor is None else weight / divisor
            gradients = [
                None if gradient is None else counted(index, gradient)
                for index, gradient in enumerate(differentiate(factor, _changing(receive, counted)))
            ]
            if divisor is None:
                gradients = multiply_gradients(gradients, weight)
            return gradients

        return WeightedSums.of(loss, weight, logs), backward

    def _sum_batch(self, batch: Batch, variables: Sequence[keras.Variable]) -> WeightedSums:
        """Returns the sums over the micro-batches of a batch, and over the devices for each."""
        if self._micro_batches == 1:
            return self._sum_piece(batch, variables)[0]
        pieces = MicroBatches(batch, self._micro_batches)
        first, weight = self._sum_piece(pieces.take(0), variables)
        first = first.with_multiples(weight)

        def add(batch: Batch, sums: Sequence[Any]) -> Sequence[Any]:
            others, weight = self._sum_piece(batch, variables)
            return first.with_tensors(sums).plus(others, weight).tensors()

        sums: Sequence[Any] = backend.current().repeat(
            lambda index, *sums: add(pieces.take(index + 1), sums),
            pieces.number - 1,
            first.tensors(),
            self._states(),
        )
        return first.with_tensors(pieces.with_rest(add, sums))

    def _sum_piece(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[WeightedSums, Any]:
        """Returns the sums of a micro-batch, and what to multiply its gradients by."""
        devices = self._devices
        if devices is None:
            sums, backward = self._begin_alone(batch, variables)
            divisor = ops.maximum(sums.weight, LEAST_WEIGHT)
            return replace(sums, gradients=backward(divisor, None)), sums.weight
        sums, _ = self._sum_replicas(
            variables,
            devices,
            lambda compute: devices.sum(compute, batch, variables),
            lambda rows: self._begin_alone(rows, variables),
            lambda _: None,
        )
        return sums, 1.0

    def _differentiate(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[tuple[Any, Any, dict[str, Any]], Callable[..., list[Any]]]:
        return backend.current().differentiate(self._bind(batch), variables, self._states())

    def _bind(self, batch: Batch) -> Callable[[], tuple[Any, Any]]:
        """Returns the computation of a batch: what is differentiated, and what else is found."""

        def compute() -> tuple[Any, Any]:
            with hearing_metrics(self._model) as heard, marking_wrong_labels(self._model):
                loss, weight, logs = read_result(self._compute(*batch))
            self._tells_metrics = bool(heard)
            if self._is_in_parts:
                weight = 1.0 if weight is None or self._is_sum else weight
                weight = ops.cast(weight, "float32")
            scaled = self._model.optimizer.scale_loss(loss)
            return scaled, (ops.stop_gradient(loss), weight, logs)

        return compute

    def _without_untold(self, means: dict[str, Any]) -> dict[str, Any]:
        """Returns the logs without metrics that nobody tells of a batch: they would be 0."""
        untold = compiled_metric_names(self._model)
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "`train_step` tells the metrics of %r nothing, and %s are not logged in training. "
                "Call self.model.compute_metrics(x, y, outputs, sample_weight) in it.",
                self._model.name,
                ", ".join(untold),
            )
        return {name: value for name, value in means.items() if name not in untold}

    def _states(self) -> list[keras.Variable]:
        """Returns all variables that the forward pass may assign."""
        model = self._model
        return [
            *model.non_trainable_variables,
            *model.optimizer.variables,
            *model.metrics_variables,
        ]


def _refuse_losses_of_rows(model: keras.Model) -> None:
    """Raises an error where layers add a loss of one number a row: Keras sums it, parts average."""
    if any(len(ops.shape(each)) for each in model.losses):
        raise InvalidInputError(
            f"A layer of {model.name!r} adds a loss of one number a row. Keras adds these up, and "
            "of parts of a batch (micro_batches, devices, processes) the mean would be taken. Let "
            "the layer hand on their mean: self.add_loss(ops.mean(losses))."
        )


def _without_absent(gradients: Sequence[Any], is_present: Sequence[bool], counts: Any) -> list[Any]:
    """Returns the sums of gradients, and `None` for those that no replica has.

    What depends on the rows, as which expert is chosen, may differ by replica.

    Args:
        gradients: Sums over all replicas.
        is_present: Whether this process has one.
        counts: Vector. How many replicas have one.
    """
    known = None
    if not all(is_present) and backend.current().can_read_shapes(counts):
        known = ops.convert_to_numpy(counts)

    def is_absent(index: int) -> bool:
        if is_present[index] or (known is not None and known[index]):
            return False
        # What compression has left of earlier gradients is sent without one of this step, too.
        return known is None or not np.any(ops.convert_to_numpy(gradients[index]))

    return [None if is_absent(index) else each for index, each in enumerate(gradients)]


def _changing(receive: Receive | None, change: Callable[[int, Any], Any]) -> Receive | None:
    """Returns what tells `receive` of gradients that are changed first."""
    if receive is None:
        return None
    return lambda index, gradient: receive(index, change(index, gradient))
