"""Private names of Keras that a training step of ours can't do without.

Each has a canary test that says what broke when a Keras release moves it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras


class NestedScope(keras.StatelessScope):
    """A scope in which variables have other values, and all others those of the scope around.

    Args:
        mapping: Variables and their values. Defaults to none.
    """

    def __init__(self, mapping: Iterable[tuple[keras.Variable, Any]] = ()) -> None:
        super().__init__(list(mapping), collect_losses=True)
        self.state_mapping: dict[int, Any]
        around = keras.src.backend.common.stateless_scope.get_stateless_scope()
        if around is not None:
            self.state_mapping = {**around.state_mapping, **self.state_mapping}
        self.assigned: dict[int, keras.Variable] = {}
        """The variables that were assigned in it, by `id`."""

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Takes note of an assignment; Keras calls it."""
        variable, _ = update
        self.assigned[id(variable)] = variable
        super().add_update(update)


def scoped_variables(variables: Iterable[keras.Variable]) -> list[keras.Variable]:
    """Returns those of some variables that a stateless scope around gives their values."""
    around = keras.src.backend.common.stateless_scope.get_stateless_scope()
    if around is None:
        return []
    return [each for each in variables if around.get_current_value(each) is not None]


def own_train_step(model: keras.Model) -> bool:
    """Returns whether a model's class, or the model itself, has a training step of its own."""
    return "train_step" in vars(model) or has_own_step(model)


def has_own_step(model: keras.Model) -> bool:
    """Returns whether a model's class has a training step of its own, whatever it is lent."""
    return type(model).train_step is not keras.Model.train_step


@contextmanager
def lent_train_step(
    model: keras.Model,
    train_step: Callable[..., Any],
    build: Callable[[Any], None] | None = None,
) -> Iterator[None]:
    """Makes a model have another training step until the block ends.

    Args:
        model: `keras.Model`.
        train_step: The step, as Keras takes it.
        build: Function of a batch, where it takes more than Keras does to build the model for one.
            Defaults to `None`.
    """
    own = vars(model).get("train_step")
    if build is not None:
        model._symbolic_build = _build_by(model, build)
    model.train_step = train_step
    try:
        yield
    finally:
        vars(model).pop("_symbolic_build", None)
        if own is None:
            del model.train_step
        else:
            model.train_step = own


def _build_by(model: keras.Model, build: Callable[[Any], None]) -> Callable[..., None]:
    """Returns what Keras's `fit` calls to build a model, by another function of a batch."""

    def symbolic_build(iterator: Any = None, data_batch: Any = None) -> None:
        parts = (model, model.optimizer, model._compile_metrics, model._compile_loss)
        if all(part is None or part.built for part in parts):
            return
        if data_batch is None:  # As Keras takes it.
            _, _, data = next(iter(iterator))
            data_batch = data[0] if isinstance(data, list | tuple) else next(data)
        build(data_batch)

    return symbolic_build


def compilation(model: keras.Model) -> object:
    """Returns what `model.compile` made: another object after each call of it."""
    return model._compile_config


def optimized_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable] | None:
    """Returns the variables that an optimizer was built for, `None` where it was not yet."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return list(optimizer._trainable_variables) if optimizer.built else None


def optimizer_recipe(optimizer: keras.optimizers.Optimizer) -> tuple[type, dict[str, Any]]:
    """Returns the class and the config of an optimizer, a schedule as the object that it is."""
    config = dict(optimizer.get_config())
    if isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = optimizer._learning_rate  # Its class may be known here alone.
    return type(optimizer), config


def uses_decay(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Returns whether an optimizer's weight decay is for a variable, where it has one."""
    return bool(optimizer._use_weight_decay(variable))


def exclude_from_decay(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> None:
    """Makes the weight decay of an optimizer, not built yet, leave out variables by themselves."""
    optimizer.exclude_from_weight_decay(var_list=list(variables))


def count_update(optimizer: keras.optimizers.Optimizer) -> None:
    """Counts an update by which no variable changes."""
    optimizer._iterations.assign(optimizer._iterations.value + 1)


def call_for_training(model: keras.Model, x: Any) -> Any:
    """Returns the outputs of a model on inputs, in training mode where it knows one."""
    return model(x, training=True) if model._call_has_training_arg else model(x)


def compute_training_loss(
    model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any
) -> Any:
    """Returns the loss of a compiled model, with what its layers added; an override is heeded."""
    return model._compute_loss(x, y, y_pred, sample_weight=sample_weight, training=True)


@contextmanager
def losses_in_float32(model: keras.Model) -> Iterator[None]:
    """Hands a model's outputs to its losses and metrics in float32 until the block ends.

    So it does what layers add to the loss: TensorFlow adds no numbers of two dtypes. What is not in
    half precision stays as it is.

    Args:
        model: `keras.Model`, compiled.
    """

    def whole(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Any = None, y: Any = None, y_pred: Any = None, *rest: Any, **more: Any) -> Any:
            return method(x, y, keras.tree.map_structure(_in_float32, y_pred), *rest, **more)

        return call

    aggregate = model._aggregate_additional_loss
    lent = {
        "_aggregate_additional_loss": lambda loss: aggregate(_in_float32(loss)),
        "compute_loss": whole(model.compute_loss),
        "compute_metrics": whole(model.compute_metrics),
    }
    own = {name: vars(model)[name] for name in lent if name in vars(model)}
    vars(model).update(lent)
    try:
        yield
    finally:
        for name in lent:
            del vars(model)[name]
        vars(model).update(own)


def _in_float32(tensor: Any) -> Any:
    if keras.backend.standardize_dtype(tensor.dtype) not in ("float16", "bfloat16"):
        return tensor
    mask = keras.src.backend.get_keras_mask(tensor)
    whole = keras.ops.cast(tensor, "float32")
    if mask is not None:
        keras.src.backend.set_keras_mask(whole, mask)
    return whole


def update_metrics(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> None:
    """Tells the metrics of a compiled model of a batch; an override of `compute_metrics` is heeded.

    They get outputs in float32. Nothing is differentiated through them.
    """

    def detach(output: Any) -> Any:
        detached = keras.ops.stop_gradient(output)
        mask = keras.src.backend.get_keras_mask(output)
        if mask is not None:
            keras.src.backend.set_keras_mask(detached, mask)
        return _in_float32(detached)

    y_pred = keras.tree.map_structure(detach, y_pred)
    if type(model).compute_metrics is not keras.Model.compute_metrics:
        model.compute_metrics(x, y, y_pred, sample_weight)
    elif model._compile_metrics is not None:  # The results are computed once, at the step's end.
        model._compile_metrics.update_state(y, y_pred, sample_weight)


def epoch_logs(model: keras.Model, logs: dict[str, Any]) -> dict[str, Any]:
    """Returns what an epoch logs whose last step has logged `logs`, as `model.fit` does."""
    return dict(model._get_metrics_result_or_logs(logs))


def track_loss(model: keras.Model, loss: Any, num_rows: Any) -> None:
    """Tells the mean of a compiled model's loss of a batch."""
    tracker = model._loss_tracker
    if type(tracker) is not keras.metrics.Mean:
        tracker.update_state(loss, sample_weight=num_rows)
        return
    # What `update_state` comes to for one number, without its handling of shapes and masks.
    num_rows = keras.ops.cast(num_rows, tracker.dtype)
    tracker.total.assign_add(keras.ops.cast(loss, tracker.dtype) * num_rows)
    tracker.count.assign_add(num_rows)


@contextmanager
def hearing_metrics(model: keras.Model) -> Iterator[list[None]]:
    """Yields a list that is filled when the metrics that a model was compiled with are told.

    It is filled at once where there are none, or where the model's class tells them in its own way.
    """
    metrics = model._compile_metrics
    heard: list[None] = []
    if metrics is None or type(model).compute_metrics is not keras.Model.compute_metrics:
        yield [None]
        return

    def update_state(*arguments: Any, **options: Any) -> Any:
        heard.append(None)
        return type(metrics).update_state(metrics, *arguments, **options)

    metrics.update_state = update_state
    try:
        yield heard
    finally:
        del metrics.update_state


def compiled_metric_names(model: keras.Model) -> list[str]:
    """Returns the names under which the metrics that a model was compiled with are logged."""
    return [] if model._compile_metrics is None else list(model._compile_metrics.result())


def given_metric_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of metric objects that a model was compiled with.

    Their owner made them before the model was compiled, and Keras makes them the model's no sooner
    than the first batch.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return []
    given = keras.tree.flatten([compiled._user_metrics, compiled._user_weighted_metrics])
    metrics = [each for each in given if isinstance(each, keras.metrics.Metric)]
    return [variable for metric in metrics for variable in metric.variables]


def batch_states(model: keras.Model) -> list[keras.Variable]:
    """Returns what a batch leaves in the layers of a model, such as moving statistics.

    Weights that are frozen are not among them, nor are the states of random number generators.
    """
    return [
        variable for layer in model._flatten_layers() for variable in layer._non_trainable_variables
    ]


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of the random number generators that the layers of a model have."""
    states = [
        generator.state
        for layer in model._flatten_layers()
        for generator in getattr(layer, "_seed_generators", ())
    ]
    return list({id(state): state for state in states}.values())


@contextmanager
def add_metric(model: keras.Model, metric: keras.metrics.Metric) -> Iterator[None]:
    """Makes a metric one of a model's until the block ends, without the model saving it."""
    model._metrics.append(metric)
    _forget_validation(model)
    try:
        yield
    finally:
        model._metrics[:] = [each for each in model._metrics if each is not metric]
        _forget_validation(model)


def _forget_validation(model: keras.Model) -> None:
    """Makes Keras compile a validation anew, where it was for so many metrics and no more."""
    if keras.distribution.distribution() is not None:
        model.test_function = None


def block_states(layer: keras.Layer) -> list[keras.Variable]:
    """Returns all that a call of a layer may assign: moving statistics, seeds, and the like.

    Weights that are frozen are not among them.
    """
    weights = {
        id(variable) for inner in layer._flatten_layers() for variable in inner._trainable_variables
    }
    return [each for each in layer.non_trainable_variables if id(each) not in weights]


def remember_call(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that does, whenever it is called, what it would do if called now.

    In training mode or not, and with variables in half precision or not: layers take both from the
    layer that calls them. And on its device, which each thread has its own of: PyTorch's backward
    pass has a thread for each GPU.
    """
    state = keras.src.backend.common.global_state
    names = ("current_call_ctx", "autocast_scope", "torch_device")
    remembered = [state.get_global_attribute(name) for name in names]

    def run(*args: Any, **kwargs: Any) -> Any:
        now = [state.get_global_attribute(name) for name in names]
        for name, value in zip(names, remembered, strict=True):
            state.set_global_attribute(name, value)
        try:
            return call(*args, **kwargs)
        finally:
            for name, value in zip(names, now, strict=True):
                state.set_global_attribute(name, value)

    return run


def repeatable(call: Callable[..., Any], states: Sequence[keras.Variable]) -> Callable[..., Any]:
    """Returns a function that, called again, does what it did at first, and assigns nothing.

    Args:
        call: Function.
        states: The variables that it assigns, such as the seed of a dropout.
    """
    first: list[Any] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        now = [keras.ops.copy(state.value) for state in states]
        if not first:
            first.append(now)
            return call(*args, **kwargs)
        for state, value in zip(states, first[0], strict=True):
            state.assign(value)
        try:
            return call(*args, **kwargs)
        finally:
            for state, value in zip(states, now, strict=True):
                state.assign(value)

    return run


def take_losses(layer: keras.Layer, call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of the outputs of a call, and of the losses that it adds, which it takes.

    Args:
        layer: `keras.Layer`.
        call: Its `call`, or what stands for it.
    """

    def run(*args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        layers = layer._flatten_layers()
        kept = [(inner, list(inner._losses)) for inner in layers]
        outputs = call(*args, **kwargs)
        losses = [loss for inner, before in kept for loss in inner._losses[len(before) :]]
        for inner, before in kept:
            inner._losses = before
        return outputs, losses

    return run


def recomputed_call(
    layer: keras.Layer,
    call: Callable[..., Any],
    states: Sequence[keras.Variable],
    checkpoint: Callable[[Callable[..., Any], Sequence[Any]], Any],
) -> Callable[..., Any]:
    """Returns a layer's `call` in a form that a framework may run a second time, for the gradient.

    Args:
        layer: `keras.Layer`.
        call: Its `call`.
        states: The variables that it assigns: those of the second time are not kept.
        checkpoint: Function of a function and the tensors that it is called with; it returns what
            that returns, and lets the framework compute it anew.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        floats, put = split_floats((args, kwargs))
        again = remember_call(take_losses(layer, repeatable(call, states)))

        def compute(*floats: Any) -> Any:
            given, named = put(floats)
            return again(*given, **named)

        outputs, losses = checkpoint(compute, floats)
        for loss in losses:
            layer.add_loss(loss)
        return outputs

    return run


def split_floats(arguments: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Returns the floating-point tensors among arguments, and what puts others in their place.

    Those others get the masks that Keras has put on these.
    """

    def is_float(leaf: Any) -> bool:
        return hasattr(leaf, "dtype") and keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(leaf.dtype)
        )

    leaves = keras.tree.flatten(arguments)
    masks = output_masks(leaves)  # Now: Keras may take them off again.

    def put(floats: Sequence[Any]) -> Any:
        left = iter(floats)
        replaced = [next(left) if is_float(leaf) else leaf for leaf in leaves]
        for mask, leaf in zip(masks, replaced, strict=True):
            if mask is not None:
                keras.src.backend.set_keras_mask(leaf, mask)
        return keras.tree.pack_sequence_as(arguments, replaced)

    return [leaf for leaf in leaves if is_float(leaf)], put


def output_masks(y_pred: Any) -> list[Any]:
    """Returns the masks that Keras's layers have put on outputs, `None` where there is none."""
    return [keras.src.backend.get_keras_mask(output) for output in keras.tree.flatten(y_pred)]


def map_with_masks(function: Callable[[Any], Any], structure: Any) -> Any:
    """Returns a structure of what a function returns of its leaves, with the masks put on these.

    Args:
        function: Function of a leaf. It is asked for the masks that Keras has put on some, too.
        structure: Structure of tensors and other leaves.
    """

    def run(leaf: Any) -> Any:
        made, mask = function(leaf), keras.src.backend.get_keras_mask(leaf)
        if mask is not None and made is not leaf:
            keras.src.backend.set_keras_mask(made, function(mask))
        return made

    return keras.tree.map_structure(run, structure)
