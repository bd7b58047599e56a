"""Layers as users write them, with Python that no trace of operations sees.

Each is a layer by its name. `backends` says where the code runs at all.
"""

import functools
import random

import keras
import numpy as np
from keras import layers, ops

BACKEND = keras.backend.backend()
FORMS = {}
ADMITTED = {
    *("divides_by_rows", "limits_length", "pads_to_block", "adds_positions"),
    *("takes_square_root_of_length", "reads_a_callbacks_attribute", "doubles_in_training"),
    *("asks_if_it_is_trainable", "reads_the_global_policy", "stops_the_gradient"),
    *("draws_by_a_generator", "drops_out", "assigns_a_counter", "assigns_a_moving_mean"),
    *("changes_a_weight", "an_operation_named_add", "uses_a_weight"),
    "an_attribute_that_a_callback_changes",
}
"""The forms of this file whose code is admitted."""
COUNTS = {"calls": 0}
FACTOR = {"value": 1.0}
"""A number that a callback changes at each batch."""


def form(*backends):
    """Adds a layer whose `call` is the function that follows, where it runs."""

    def add(call):
        if not backends or BACKEND in backends:
            FORMS[call.__name__] = type(call.__name__, (Written,), {"call": call})
        return call

    return add


def made(*backends):
    """Adds the layer that the function returns."""

    def add(make):
        if not backends or BACKEND in backends:
            FORMS[make.__name__] = make
        return make

    return add


class Written(layers.Layer):
    """A layer with what its `call` may use."""

    calls = 0
    flag = 0.0

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.state = self.add_weight(shape=(), initializer="zeros", trainable=False, name="state")
        self.count, self.mean, self.history, self.seen = 0, 0.0, [], {}
        self.generator = keras.random.SeedGenerator(7)
        self.dense = layers.Dense(shape[-1])
        self.dense.build(shape)
        self.metric = keras.metrics.Mean()

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, x.dtype)


# Sizes.


@form()
def triples_length_one(self, x):
    return x * 3.0 if x.shape[1] == 1 else x


@form()
def doubles_few_rows(self, x):
    return x * 2.0 if x.shape[0] is not None and x.shape[0] < 5 else x


@form()
def divides_by_rows(self, x):
    return x / ops.cast(ops.shape(x)[0], "float32")


@form("torch", "jax")
def limits_length(self, x):
    return x + ops.mean(x[:, : min(x.shape[1], 4)], axis=1, keepdims=True)


@form("torch", "jax")
def pads_to_block(self, x):
    length = x.shape[1]
    return ops.flip(ops.pad(x, [[0, 0], [0, -length % 5], [0, 0]]), axis=1)[:, -length:]


@form("torch", "jax")  # Keras on TensorFlow takes the positions for a bias.
def adds_positions(self, x):
    return x + ops.cast(ops.arange(ops.shape(x)[1]), "float32")[None, :, None]


@form("torch", "jax")
def loops_over_steps(self, x):
    return ops.stack([x[:, step] * (step + 1.0) for step in range(x.shape[1])], axis=1)


@form("torch", "jax")
def branches_by_even_length(self, x):
    return -x if x.shape[1] % 2 else x


@form("torch", "jax")
def takes_square_root_of_length(self, x):
    return x / x.shape[1] ** 0.5


# Python state.


@form()
def counts_calls(self, x):
    self.count += 1
    return x * (1.0 + 0.1 * self.count)


@form()
def counts_calls_of_the_class(self, x):
    type(self).calls += 1
    return x * (1.0 + 0.0 * type(self).calls)


@form()
def counts_calls_in_the_module(self, x):
    COUNTS["calls"] += 1
    return x * (1.0 + 0.0 * COUNTS["calls"])


@form("torch")
def reads_a_callbacks_attribute(self, x):
    return x * (1.0 + self.flag)


@form("torch")
def keeps_a_running_mean(self, x):
    if not x.is_meta:
        self.mean = 0.9 * self.mean + 0.1 * ops.stop_gradient(ops.mean(x))
    return x - self.mean


@form("torch")
def keeps_a_buffer(self, x):
    if not x.is_meta:
        self.seen.setdefault("sum", ops.zeros(()))
        self.seen["sum"] += ops.stop_gradient(ops.mean(x))
    return x - 0.01 * self.seen.get("sum", 0.0)


@form("torch")
def appends_to_a_list(self, x):
    self.history.append(0.0 if x.is_meta else float(ops.mean(x.detach())))
    return x * (1.0 + 0.01 * len(self.history))


@form()
def caches_by_shape(self, x):
    return x * (1.0 + 0.1 * self.seen.setdefault(str(tuple(x.shape)), len(self.seen)))


@form()
def differs_the_first_time(self, x):
    is_first, self.seen["was called"] = not self.seen, True
    return x * 1.5 if is_first else x


@functools.lru_cache
def factor_of(length):
    return 1.0 + (length or 0) / 10


@form()
def caches_in_a_function(self, x):
    return x * factor_of(x.shape[1])


# Questions.


@form()
def asks_for_symbols(self, x):
    return x * 5.0 if isinstance(x, keras.KerasTensor) else x


@form()
def asks_for_numpy(self, x):
    return x * 2.0 if hasattr(x, "numpy") else x


@form()
def tries_to_read(self, x):
    try:
        return x * (1.0 if float(ops.stop_gradient(ops.mean(x))) < 1e9 else 2.0)
    except (TypeError, ValueError, RuntimeError):
        return x * 0.5


@form()
def asks_for_the_type(self, x):
    return x * (1.0 + len(type(x).__name__) / 100)


@form()
def doubles_in_training(self, x, training=None):
    return x * 2.0 if training else x


@form()
def asks_if_it_is_trainable(self, x):
    return self.dense(x) if self.trainable else x


@form()
def reads_the_global_policy(self, x):
    return ops.cast(ops.cast(x, keras.config.floatx()), self.compute_dtype)


# Gradients.


@ops.custom_gradient
def reversed_gradient(x):
    def grad(*args, upstream=None):
        return -(args[0] if upstream is None else upstream)

    return x * 1.0, grad


@form()
def reverses_the_gradient(self, x):
    return reversed_gradient(x)


@form()
def stops_the_gradient(self, x):
    return ops.stop_gradient(x) * self.scale


@form("torch")
def computes_without_gradients(self, x):
    import torch

    with torch.no_grad():
        factor = ops.mean(x * self.scale)
    return x * factor


@form("torch")
def detaches(self, x):
    return x.detach() * self.scale


@form("torch")
def has_an_autograd_function(self, x):
    import torch

    class Negative(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x * 1.0

        @staticmethod
        def backward(context, upstream):
            return -upstream

    return Negative.apply(x)


@form("jax")
def has_a_custom_vjp(self, x):
    import jax

    run = jax.custom_vjp(lambda x: x)
    run.defvjp(lambda x: (x, None), lambda _, upstream: (-upstream,))
    return run(x)


@form("tensorflow")
def has_a_gradient_of_tensorflow(self, x):
    import tensorflow as tf

    return tf.custom_gradient(lambda x: (x * 1.0, lambda upstream: -upstream))(x)


# Indices.


@form("torch", "jax")
def takes_steps_by_an_array(self, x):
    return x + x[:, np.array([0])]


@form("torch")
def takes_steps_by_a_list(self, x):
    return x + x[:, [0, -1]].mean(1, keepdims=True)


@form("torch")
def takes_weights_by_a_list(self, x):
    return x * self.scale[[0, 0, 1, 1]]


@form("torch")
def selects_by_a_mask(self, x):
    return x + x[x > 0].mean()


@form("torch")
def writes_in_place(self, x):
    y = x.clone()
    y[:, 0] = 0.0
    return y


@form("jax")
def writes_by_at(self, x):
    return x.at[:, 0].set(0.0)


@form("tensorflow")
def masks_by_where(self, x):
    import tensorflow as tf

    return tf.where(x > 0, x, tf.zeros_like(x))


@form("torch", "tensorflow")
def counts_values(self, x):
    counts = ops.bincount(ops.cast(ops.reshape(x, (-1,)) > 0, "int32"), minlength=2)
    return x * (1.0 + ops.cast(counts[0], "float32") / 1e3)


# Random numbers.


@form("torch")
def draws_from_torch(self, x, training=None):
    import torch

    return x + 0.1 * torch.randn(x.shape) if training else x


@form("torch")
def draws_from_numpy(self, x, training=None):
    return x * (1.0 + np.random.rand()) if training else x  # noqa: NPY002


@form("torch")
def draws_from_python(self, x, training=None):
    return x * (1.0 + random.random()) if training else x


@form("torch", "tensorflow")
def draws_without_a_seed(self, x, training=None):
    return x + 0.1 * keras.random.normal(ops.shape(x)) if training else x


@form()
def draws_by_a_generator(self, x, training=None):
    return x + 0.1 * keras.random.normal(ops.shape(x), seed=self.generator) if training else x


@form()
def drops_out(self, x, training=None):
    return keras.random.dropout(x, 0.3, seed=self.generator) if training else x


# Variables and numbers.


@form()
def assigns_a_counter(self, x):
    self.state.assign(self.state + 1.0)
    return x * (1.0 + 0.1 * self.state)


@form()
def assigns_a_moving_mean(self, x, training=None):
    if training:
        self.state.assign(0.9 * self.state + 0.1 * ops.stop_gradient(ops.mean(x)))
    return x - self.state


@form()
def adds_a_loss(self, x):
    self.add_loss(0.1 * ops.mean(ops.square(x)))
    return x


@form("torch")
def updates_a_metric(self, x):
    self.metric.update_state(ops.stop_gradient(x))
    return x * (1.0 + 0.01 * self.metric.result())


@form("torch")
def reads_a_weight(self, x):
    return x * float(self.scale[0].detach())


@form("torch")
def reads_an_item(self, x):
    return x * (2.0 if x.mean().item() > 0 else 1.0)


@form("torch")
def goes_through_numpy(self, x):
    return x + float(np.abs(ops.convert_to_numpy(x)).mean())


@form("torch")
def changes_a_weight(self, x):
    self.scale.assign(self.scale * 0.99)
    return x * self.scale


# Control flow and other people's layers.


@form("torch", "tensorflow")
def branches_on_data(self, x):
    return ops.cond(ops.sum(x) > 0, lambda: x * 2.0, lambda: x)


@form()
def maps_rows(self, x):
    return ops.vectorized_map(lambda row: row * ops.mean(row), x)


def leaky(x):
    return x * 2.0 if x.shape[1] == 1 else ops.maximum(x, 0.1 * x)


@made()
def an_activation_by_length():
    return layers.Activation(leaky)


@made()
def a_dense_layer_with_an_activation_by_length():
    return layers.Dense(4, activation=leaky)


@made()
def a_lambda_by_length():
    return layers.Lambda(lambda x: x * 3.0 if x.shape[1] == 1 else x)


class Scaled(layers.Dense):
    def call(self, x):
        return super().call(x) * (3.0 if x.shape[1] == 1 else 1.0)


@made()
def a_dense_layer_of_another_call():
    return Scaled(4)


class Sharp(layers.Attention):
    def _calculate_scores(self, query, key):
        return super()._calculate_scores(query, key) * (3.0 if (query.shape[1] or 9) < 4 else 1.0)


class SelfAttention(layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = Sharp()

    def call(self, x):
        return self.attention([x, x])


@made("torch", "tensorflow")
def an_attention_with_other_scores():
    return SelfAttention()


class Add(keras.Operation):
    """An operation with the name of one of Keras."""

    def call(self, x, y):
        return x - y * (2.0 if x.shape[1] == 1 else 1.0)

    def compute_output_spec(self, x, y):
        return keras.KerasTensor(x.shape, x.dtype)


@made()
def an_operation_named_add():
    x = keras.Input((None, 4))
    return keras.Model(x, Add()(x, ops.ones((4,))))


@made()
def a_replaced_call():
    layer = layers.Dense(4)
    call = layer.call
    layer.call = lambda x, **_: call(x) * (3.0 if x.shape[1] == 1 else 1.0)
    return layer


class Around(layers.Wrapper):
    def call(self, x):
        return self.layer(x) * (3.0 if x.shape[1] == 1 else 1.0)


@made()
def a_wrapper():
    return Around(layers.Dense(4))


class Branching(keras.Model):
    def call(self, x, training=None):
        return super().call(x, training=training) * (3.0 if x.shape[1] == 1 else 1.0)


@made()
def a_model_of_another_call():
    x = keras.Input((None, 4))
    return Branching(x, layers.Dense(4)(x))


class Counting(layers.Dense):
    def __call__(self, x, **kwargs):
        return super().__call__(x, **kwargs) * (3.0 if x.shape[1] == 1 else 1.0)


@made("torch", "jax")
def a_dense_layer_that_is_called_otherwise():
    return Counting(4)


class Leaky(layers.LeakyReLU):
    @property
    def negative_slope(self):
        return 0.3 * FACTOR["value"]

    @negative_slope.setter
    def negative_slope(self, value):
        pass


@made("torch")
def a_property_in_place_of_an_attribute():
    return Leaky()


class Times:
    """A function object that holds one of Keras."""

    def __init__(self, func):
        self.func = func

    def __call__(self, x):
        return self.func(x) * FACTOR["value"]


@made("torch")
def an_activation_that_is_an_object():
    return layers.Dense(4, activation=Times(keras.activations.relu))


@made("torch")
def an_activation_in_a_partial_function():
    activation = functools.partial(keras.tree.map_structure, lambda x: x * FACTOR["value"])
    return layers.Dense(4, activation=activation)


@made("torch")
def a_recomputed_activation():
    return layers.Dense(4, activation=keras.remat(lambda x: x * FACTOR["value"]))


class Scaling(keras.Operation):
    def __call__(self, x):
        return x * FACTOR["value"]

    def call(self, x):
        return x


@made("torch")
def an_operation_as_activation():
    return layers.Dense(4, activation=Scaling())


@made("torch")
def a_model_of_a_replaced_call():
    x = keras.Input((None, 4))
    model = keras.Model(x, layers.Dense(4)(x))
    call = model.call
    model.call = lambda *args, **kwargs: call(*args, **kwargs) * FACTOR["value"]
    return model


@form("torch")
def keeps_a_layer_beside_a_counter(self, x):
    state = self.seen.setdefault("state", {"layer": self.dense, "calls": 0})
    state["calls"] += not x.is_meta
    return state["layer"](x) * (1.0 + 0.1 * state["calls"])


@form("torch")
def keeps_what_can_not_be_copied(self, x):
    self.history = self.history or [iter(range(1000))]
    return x * (1.0 if x.is_meta else 1.0 + next(self.history[0]) / 10)


@form()
def uses_a_weight(self, x):
    return self.dense(x) * self.scale


@made("torch")
def an_attribute_that_a_callback_changes():
    return layers.LeakyReLU(0.3)
