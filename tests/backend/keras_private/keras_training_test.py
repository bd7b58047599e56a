"""Canaries: what these say is broken when a Keras release moves a private name."""

import keras
import numpy as np
from keras import ops

from keras_deepseek.backend.keras_private.keras_training import (
    NestedScope,
    add_metric,
    batch_states,
    block_states,
    call_for_training,
    compilation,
    compiled_metric_names,
    compute_training_loss,
    count_update,
    epoch_logs,
    exclude_from_decay,
    given_metric_variables,
    hearing_metrics,
    lent_train_step,
    losses_in_float32,
    map_with_masks,
    optimized_variables,
    optimizer_recipe,
    output_masks,
    own_train_step,
    remember_call,
    repeatable,
    split_floats,
    take_losses,
    track_loss,
    update_metrics,
    uses_decay,
)

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def build(layer_class=keras.Sequential, metrics=("mae",)):
    model = layer_class([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse", metrics=list(metrics))
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_scope_inside_another_sees_what_that_one_has_set():
    first = keras.Variable(1.0, trainable=False)
    second = keras.Variable(2.0, trainable=False)
    with keras.StatelessScope([(first, ops.convert_to_tensor(10.0))]) as outer:
        first.assign(11.0)
        with NestedScope([(second, ops.convert_to_tensor(20.0))]) as inner:
            assert float(ops.convert_to_numpy(first.value)) == 11.0
            second.assign(first + second)
        assert float(inner.get_current_value(second)) == 31.0
        assert outer.get_current_value(second) is None
    assert float(ops.convert_to_numpy(second.value)) == 2.0


def test_a_step_of_the_models_own_is_seen():
    class OwnStep(keras.Sequential):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    model = build()
    assert not own_train_step(model)
    model.train_step = print
    assert own_train_step(model)
    assert own_train_step(build(OwnStep))


def test_a_step_is_lent():
    model = build()
    with lent_train_step(model, print):
        assert model.train_step is print
        with lent_train_step(model, repr):
            assert model.train_step is repr
        assert model.train_step is print
    assert "train_step" not in vars(model)


def test_an_optimizer_knows_what_it_was_built_for():
    model = build()
    assert optimized_variables(model.optimizer) == model.trainable_variables
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "mse")
    assert optimized_variables(model.optimizer) is None


def test_a_model_is_called_in_training_mode_where_it_knows_one():
    class Plain(keras.Model):
        def call(self, inputs):
            return inputs + 1

    class Knowing(keras.Model):
        def call(self, inputs, training=False):
            return inputs + (2 if training else 1)

    for model, expected in ((Plain(), 1.0), (Knowing(), 2.0)):
        found = call_for_training(model, ops.zeros((1,)))
        np.testing.assert_array_equal(ops.convert_to_numpy(found), [expected])


def test_the_loss_of_a_model_holds_what_its_layers_add():
    model = build()
    y_pred = model(X)
    loss = ops.convert_to_numpy(compute_training_loss(model, X, X[:, :1], y_pred, None))
    kernel = model.get_weights()[0]
    predicted = ops.convert_to_numpy(y_pred)
    np.testing.assert_allclose(
        loss, np.mean((predicted - X[:, :1]) ** 2) + 0.01 * np.sum(kernel**2), rtol=1e-5
    )


def test_the_metrics_of_a_model_and_the_mean_of_its_loss_are_told_of_a_batch():
    model = build()
    y_pred = model(X)
    update_metrics(model, X, X[:, :1], y_pred, None)
    track_loss(model, 2.0, 3)
    track_loss(model, 6.0, 1)
    results = model.get_metrics_result()
    assert float(results["loss"]) == 3.0
    expected = np.abs(ops.convert_to_numpy(y_pred) - X[:, :1]).mean()
    np.testing.assert_allclose(float(results["mae"]), expected, rtol=1e-5)


def test_an_epoch_logs_its_means_or_what_else_its_last_step_has_logged():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert epoch_logs(model, {"loss": 7.0}) == model.get_metrics_result()
    assert epoch_logs(model, {"loss": 7.0, "other": 1.0}) == {"loss": 7.0, "other": 1.0}


def test_metrics_of_a_models_own_are_heeded():
    class OwnMetrics(keras.Sequential):
        seen = 0

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            self.seen += 1
            return super().compute_metrics(x, y, y_pred, sample_weight)

    model = build(OwnMetrics)
    update_metrics(model, X, X[:, :1], model(X), None)
    assert model.seen == 1


def test_metrics_see_the_mask_of_an_output():
    tokens = np.array([[1, 2, 0]])
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(4, 2, mask_zero=True), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    y_pred = model(tokens)
    (mask,) = output_masks(y_pred)
    np.testing.assert_array_equal(ops.convert_to_numpy(mask), tokens != 0)
    update_metrics(model, tokens, np.zeros((1, 3, 1)), y_pred, None)
    expected = np.abs(ops.convert_to_numpy(y_pred)[0, :2]).mean()
    np.testing.assert_allclose(float(model.get_metrics_result()["mae"]), expected, rtol=1e-5)


def test_an_output_without_a_mask_has_none():
    assert output_masks({"a": ops.ones((2,)), "b": [ops.ones((2,))]}) == [None, None]


def test_what_a_call_of_a_block_assigns_is_found():
    block = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=1)]
    )
    frozen = keras.layers.Dense(1)
    block.add(frozen)
    frozen.trainable = False
    names = [variable.path.split("/")[-1] for variable in block_states(block)]
    assert sorted(names) == ["moving_mean", "moving_variance", "seed_generator_state"]


def test_a_call_that_is_remembered_is_in_training_mode_and_half_precision_again():
    seen = []

    class Inner(keras.layers.Layer):
        def call(self, inputs, training=False):
            seen.append(training)
            return inputs

    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype="mixed_bfloat16")
            self.inner = Inner(dtype="mixed_bfloat16")
            self.again = None

        def build(self, input_shape):
            self.scale = self.add_weight(shape=())

        def call(self, inputs):
            def compute():
                return self.inner(inputs) * self.scale

            self.again = remember_call(compute)
            return compute()

    layer = Outer()
    layer(ops.ones((2,)), training=True)
    assert keras.backend.standardize_dtype(layer.again().dtype) == "bfloat16"
    assert seen == [True, True]


def test_what_is_repeated_assigns_nothing_the_second_time():
    state = keras.Variable(1.0, trainable=False)

    def add():
        state.assign_add(1.0)
        return ops.convert_to_numpy(state.value).item()

    again = repeatable(add, [state])
    assert again() == 2.0
    state.assign(10.0)
    assert again() == 2.0
    assert ops.convert_to_numpy(state.value) == 10.0


def test_the_losses_of_a_call_are_taken():
    outer = keras.Sequential([keras.layers.Identity()])

    def call():
        outer.add_loss(ops.ones(()))
        return 7

    outputs, (loss,) = take_losses(outer, call)()
    assert (outputs, float(loss)) == (7, 1.0)
    assert outer.losses == []


def test_floats_are_split_from_other_arguments_and_keep_their_masks():
    tokens = np.array([[1, 2, 0]])
    embedded = keras.layers.Embedding(4, 2, mask_zero=True)(tokens)
    floats, put = split_floats(((embedded, ops.convert_to_tensor(tokens)), {"training": True}))
    assert len(floats) == 1
    (other, ids), named = put([embedded * 2.0])
    assert named == {"training": True}
    np.testing.assert_array_equal(ops.convert_to_numpy(ids), tokens)
    np.testing.assert_allclose(ops.convert_to_numpy(other), 2 * ops.convert_to_numpy(embedded))
    np.testing.assert_array_equal(ops.convert_to_numpy(output_masks(other)[0]), tokens != 0)


def test_each_compilation_of_a_model_is_another():
    model = build()
    first = compilation(model)
    assert compilation(model) is first
    model.compile("adam", "mse")
    assert compilation(model) is not first


def test_a_metric_is_a_models_for_as_long_as_it_is_lent():
    model, metric = build(), keras.metrics.Mean(name="lent")
    with add_metric(model, metric):
        assert metric in model.metrics
        assert model.metrics_variables[-2:] == metric.variables
    assert metric not in model.metrics


def test_what_a_batch_leaves_in_layers_are_statistics_and_no_seeds():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=1)]
    )
    names = [variable.path.split("/")[-1] for variable in batch_states(model)]
    assert sorted(names) == ["moving_mean", "moving_variance"]


def test_an_optimizer_is_made_again_with_its_schedule_as_the_object_that_it_is():
    class Own(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.25

        def get_config(self):
            return {}

    schedule = Own()
    made, config = optimizer_recipe(keras.optimizers.Adam(schedule, beta_1=0.5))
    assert issubclass(made, keras.optimizers.Adam)  # On PyTorch it is one of its own.
    assert (config["beta_1"], config["learning_rate"]) == (0.5, schedule)
    again = made.from_config(config)
    assert float(again.learning_rate) == 0.25
    assert optimizer_recipe(keras.optimizers.SGD(0.5))[1]["learning_rate"] == 0.5


def test_a_variable_that_weight_decay_leaves_out_is_known():
    variables = [keras.Variable(np.ones(2), name=name) for name in ("kernel", "bias")]
    by_name, by_itself = (keras.optimizers.AdamW(0.1) for _ in range(2))
    by_name.exclude_from_weight_decay(var_names=["bias"])
    exclude_from_decay(by_itself, variables[1:])
    for optimizer in (by_name, by_itself):
        assert [uses_decay(optimizer, each) for each in variables] == [True, False]


def test_an_update_without_gradients_is_counted():
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([keras.Variable(np.ones(2))])
    count_update(optimizer)
    assert int(optimizer.iterations) == 1


def test_the_metrics_that_a_model_was_compiled_with_are_heard():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    x, y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    model.evaluate(x, y, verbose=0)
    assert compiled_metric_names(model) == ["mae"]
    with hearing_metrics(model) as heard:
        model(x)
        assert not heard
        model.compute_metrics(x, y, model(x))
        assert heard
    assert "update_state" not in vars(model._compile_metrics)
    without = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    without.compile("sgd", "mse")
    with hearing_metrics(without) as heard:
        assert heard
    assert compiled_metric_names(without) == []


def test_what_is_made_of_tensors_has_masks_that_are_made_likewise():
    tokens = np.array([[1, 2, 0]])
    masked = keras.layers.Embedding(3, 2, mask_zero=True)(tokens)
    made = map_with_masks(
        lambda leaf: ops.copy(leaf) if keras.ops.is_tensor(leaf) else leaf, {"x": masked, "y": None}
    )
    assert made["y"] is None
    assert made["x"] is not masked
    (mask,) = output_masks(made["x"])
    np.testing.assert_array_equal(ops.convert_to_numpy(mask), tokens != 0)


def test_the_variables_of_metric_objects_are_known_before_the_first_batch():
    """Keras's private `_user_metrics` and `_user_weighted_metrics` hold them."""
    one, other = keras.metrics.MeanSquaredError(), keras.metrics.MeanAbsoluteError()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert given_metric_variables(model) == []
    model.compile("sgd", "mse", metrics=["mae", one], weighted_metrics=[other])
    found = {id(variable) for variable in given_metric_variables(model)}
    assert found == {id(variable) for metric in (one, other) for variable in metric.variables}


def test_losses_have_outputs_and_what_layers_add_in_float32():
    seen = []

    class Watched(keras.Model):
        def call(self, inputs):
            self.add_loss(ops.cast(ops.mean(inputs), "float16"))
            return ops.cast(inputs, "float16")

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            seen.append(keras.backend.standardize_dtype(y_pred.dtype))
            return {}

    model = Watched()
    model.compile("sgd", "mse")
    x = np.ones((2, 3), "float32")
    outputs = model(x)
    with losses_in_float32(model):
        loss = model.compute_loss(x, x, outputs)
        model.compute_metrics(x, x, outputs)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == 1.0
    model.compute_metrics(x, x, outputs)
    assert seen == ["float32", "float16"]
