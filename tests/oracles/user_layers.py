"""Layers as users write them, of which a program may or may not run the operations.

`EXPECTED` says for each form whether its code is admitted: `None`, or words of the reason why not.
"""

import dataclasses
import functools
import math
import time
import weakref

import keras
import numpy as np
from keras import layers, ops

from tests.oracles.foreign_layers import ADMITTED, BACKEND, FORMS, Written

EXPECTED = {name: None if name in ADMITTED else "" for name in FORMS}
WIDTH = 4
SLOPE = 0.3
SHIFTS = [0.5, 0.25]
FACTOR = 1.0
"""A number that a callback changes at each batch."""


@dataclasses.dataclass
class Config:
    factor: float = 0.5
    heads: int = 2


class Rich(Written):
    """A layer with more that a `call` may use."""

    table = "of the class"

    def build(self, shape):
        super().build(shape)
        self.norm = layers.LayerNormalization()
        self.norm.build(shape)
        self.blocks = [layers.Dense(WIDTH, activation="tanh", name=f"block_{i}") for i in range(3)]
        self.named = {f"block_{i}": layers.Dense(WIDTH) for i in range(2)}
        for layer in (*self.blocks, *self.named.values()):
            layer.build(shape)
        self.wide = layers.Dense(2 * WIDTH)
        self.wide.build(shape)
        self.narrow = layers.Dense(WIDTH)
        self.narrow.build((None, None, 2 * WIDTH))
        self.gate = layers.Dense(3, activation="softmax")
        self.gate.build(shape)
        self.positions = self.add_weight(shape=(32, WIDTH), name="positions")
        self.mean_of_all = self.add_weight(shape=(WIDTH,), trainable=False, name="mean_of_all")
        self.dropout = layers.Dropout(0.0, seed=3)  # A program may draw fewer numbers.
        self.shortcut = None
        self.uses_norm, self.factor, self.steps, self.factors = True, 0.5, 2, [0.5, 2.0]
        self.mode, self.config, self.activation = "b", Config(), keras.activations.get("gelu")
        self.pairs = (("a", 0.5), ("b", 2.0))

    def compute_output_spec(self, x, training=None, mask=None):
        return keras.KerasTensor(x.shape, x.dtype)

    def shifted(self, x, by=0.5, *, scaled=False):
        return self.scale * x + by if scaled else x + by

    @staticmethod
    def squared(x):
        return ops.square(x)

    @property
    def doubled_factor(self):
        return 2.0 * self.factor


def form(*backends, reason=None, base=Rich):
    """Adds a layer whose `call` is the function that follows, where it runs."""

    def add(call):
        if not backends or BACKEND in backends:
            FORMS[call.__name__] = type(call.__name__, (base,), {"call": call})
            EXPECTED[call.__name__] = reason
        return call

    return add


def made(*backends, reason=None):
    """Adds the layer that the function returns."""

    def add(make):
        if not backends or BACKEND in backends:
            FORMS[make.__name__] = make
            EXPECTED[make.__name__] = reason
        return make

    return add


IN_PLACE = "in place" if BACKEND == "torch" else None
MUTABLE = "may change" if BACKEND == "torch" else None

# Blocks.


@form()
def is_a_residual_block(self, x):
    shortcut = x if self.shortcut is None else self.shortcut(x)
    return shortcut + self.narrow(ops.relu(self.wide(self.norm(x))))


@form()
def is_a_post_norm_block(self, x, training=None):
    y = self.dropout(self.blocks[0](x), training=training)
    return self.norm(x + 0.0 * y)


@form()
def splits_heads(self, x):
    rows, length, _ = ops.shape(x)
    heads = ops.reshape(self.dense(x), (rows, length, 2, 2))
    scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", heads, heads) / math.sqrt(2))
    return ops.reshape(ops.einsum("bhqk,bkhd->bqhd", scores, heads), ops.shape(x))


@form("torch", "jax", reason="branches by a size")  # TensorFlow's `fit` has no length.
def splits_heads_by_division(self, x):
    _, t, c = x.shape
    y = ops.reshape(x, (-1, t or 1, self.config.heads, c // self.config.heads))
    y = ops.matmul(ops.softmax(ops.matmul(y, ops.swapaxes(y, -1, -2))), y)
    return ops.reshape(y, (-1, t or 1, c))


@form()
def attends(self, x, mask=None):
    q, k, v = (block(x) for block in self.blocks)
    scores = ops.matmul(q, ops.transpose(k, (0, 2, 1))) / WIDTH**0.5
    if mask is not None:
        scores = scores - 1e9 * (1.0 - ops.cast(mask, "float32")[:, None])
    return ops.matmul(ops.softmax(scores, axis=-1), v)


@form()
def attends_causally(self, x):
    length = ops.shape(x)[1]
    scores = ops.matmul(x, ops.swapaxes(x, 1, 2))
    mask = ops.expand_dims(ops.arange(length), 0) <= ops.expand_dims(ops.arange(length), 1)
    return ops.matmul(ops.softmax(ops.where(mask[None], scores, -1e9)), x)


@form()
def normalizes(self, x):
    mean = ops.mean(x, axis=-1, keepdims=True)
    variance = ops.var(x, axis=-1, keepdims=True)
    return (x - mean) * ops.rsqrt(variance + 1e-3) * self.scale + self.positions[0]


@form()
def normalizes_by_squares(self, x):
    return x / ops.sqrt(ops.mean(x**2, axis=-1, keepdims=True) + keras.backend.epsilon())


@form()
def keeps_moving_statistics(self, x, training=False):
    if training:
        mean = ops.mean(x, axis=(0, 1))
        self.mean_of_all.assign(0.9 * self.mean_of_all + 0.1 * ops.stop_gradient(mean))
    else:
        mean = self.mean_of_all
    return (x - mean) * self.scale


@form()
def squeezes_and_excites(self, x):
    weights = ops.sigmoid(self.narrow(ops.relu(self.wide(ops.mean(x, axis=1, keepdims=True)))))
    return x * weights


@form()
def is_a_gated_unit(self, x):
    value, gate = ops.split(self.wide(x), 2, axis=-1)
    return value * ops.silu(gate)


@form()
def is_a_gated_unit_by_slices(self, x):
    y = self.wide(x)
    return y[..., :WIDTH] * keras.activations.gelu(y[..., WIDTH:])


@form()
def is_a_highway(self, x):
    gate = ops.sigmoid(self.dense(x))
    return gate * self.blocks[0](x) + (1 - gate) * x


@form()
def mixes_experts(self, x):
    gates = self.gate(x)
    return sum(gates[..., i : i + 1] * block(x) for i, block in enumerate(self.blocks))


@form()
def mixes_experts_in_a_loop(self, x):
    gates = self.gate(x)
    total = 0.0
    for index, block in enumerate(self.blocks):
        total += gates[..., index : index + 1] * block(x)
    return total


@form()
def chooses_experts(self, x):
    values, indices = ops.top_k(self.gate(x), 2)
    chosen = ops.one_hot(indices, 3) * values[..., None]
    y = ops.stack([block(x) for block in self.blocks], axis=-1)
    return ops.sum(y * ops.sum(chosen, axis=-2)[:, :, None], axis=-1)


@form()
def crosses_features(self, x):
    crossed = x
    for layer in self.named.values():
        crossed = x * layer(crossed) + crossed
    return crossed


@form()
def crosses_pairs(self, x):
    pairs = [x[..., i] * x[..., j] for i in range(WIDTH) for j in range(i)]
    return x + ops.expand_dims(sum(pairs), -1)


@form()
def factorizes(self, x):
    square_of_sum = ops.square(ops.sum(x, axis=-1, keepdims=True))
    return x + 0.5 * (square_of_sum - ops.sum(self.squared(x), axis=-1, keepdims=True))


@form()
def has_an_adapter(self, x):
    return self.dense(x) + 0.5 * ops.matmul(
        ops.matmul(x, self.positions[:4, :2]), self.positions[:2]
    )


@form()
def ties_weights(self, x):
    return ops.matmul(self.dense(x), ops.transpose(self.dense.kernel))


@form()
def standardizes_a_weight(self, x):
    kernel = self.dense.kernel
    return ops.matmul(x, (kernel - ops.mean(kernel, axis=0)) / (ops.std(kernel, axis=0) + 1e-3))


# Positions.


@form()
def adds_learnt_positions(self, x):
    return x + self.positions[: ops.shape(x)[1]]


@form()
def adds_sinusoids(self, x):
    steps = ops.cast(ops.arange(ops.shape(x)[1]), x.dtype)[:, None]
    rates = ops.exp(-ops.arange(0, WIDTH, dtype="float32") * (math.log(100.0) / WIDTH))
    return x + ops.expand_dims(ops.sin(steps * rates), 0)


@form()
def rotates(self, x):
    first, second = x[..., ::2], x[..., 1::2]
    angles = ops.cast(ops.arange(ops.shape(x)[1]), "float32")[None, :, None]
    cosine, sine = ops.cos(angles), ops.sin(angles)
    y = ops.stack([first * cosine - second * sine, first * sine + second * cosine], axis=-1)
    return ops.reshape(y, ops.shape(x))


@form("torch", "jax")
def halves_the_length(self, x):
    return x - ops.mean(x[:, : (x.shape[1] + 1) // 2], axis=1, keepdims=True)


@form("torch", "jax", reason="counts to a size")
def unrolls_a_recurrence(self, x):
    state = ops.zeros_like(x[:, 0])
    outputs = []
    for step in range(x.shape[1]):
        state = ops.tanh(self.dense(x[:, step]) + state)
        outputs.append(state)
    return ops.stack(outputs, axis=1)


# Recurrence and other people's wrappers.


class Cell(layers.Layer):
    state_size = output_size = WIDTH

    def build(self, shape):
        self.dense = layers.Dense(WIDTH)
        self.dense.build((None, 2 * WIDTH))

    def call(self, x, states, training=None):
        state = ops.tanh(self.dense(ops.concatenate([x, states[0]], axis=-1)))
        return state, [state]


@made()
def has_a_cell_of_its_own():
    return layers.RNN(Cell(), return_sequences=True)


class Doubled(layers.Wrapper):
    def call(self, x):
        return self.layer(x) * 2.0


@made()
def is_a_wrapper():
    return Doubled(layers.Dense(WIDTH))


class Network(keras.Model):
    def __init__(self, depth=2):
        super().__init__()
        self.blocks = [layers.Dense(WIDTH, activation="relu") for _ in range(depth)]
        self.norm, self.head = layers.LayerNormalization(), layers.Dense(WIDTH)

    def call(self, inputs, training=None):
        x = inputs
        for block in self.blocks:
            x = x + block(self.norm(x))
        return self.head(x)


@made()
def is_a_model_of_its_own_call():
    return Network()


class Outer(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = Network(1)
        self.stack = keras.Sequential([layers.Dense(WIDTH), layers.Activation("tanh")])

    def call(self, x, training=False):
        y = {"x": self.inner(x, training=training), "y": self.stack(x)}
        return y["x"] + y["y"]


@made()
def is_a_model_of_models():
    return Outer()


class Loops(keras.Model):
    def __init__(self):
        super().__init__()
        self.a, self.b = layers.Dense(WIDTH), layers.Dense(WIDTH)

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@made()
def is_a_model_that_loops_over_its_layers():
    return Loops()


class Above(layers.Dense):
    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs)


class Below(Above):
    def call(self, inputs, training=None):
        return ops.tanh(super().call(inputs, training=training))


@made()
def calls_a_chain_of_bases():
    return Below(WIDTH)


class AfterALambda(layers.Dense):
    def call(self, x):
        double = lambda y: 2.0 * y * self.units  # noqa: E731
        return super().call(double(x))


@made()
def calls_its_base_after_a_lambda():
    return AfterALambda(WIDTH)


class Scores(layers.Attention):
    def _calculate_scores(self, query, key):
        return 0.5 * super()._calculate_scores(query, key)


class OnItself(layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = Scores()

    def call(self, x):
        return self.attention([x, x])


@made("torch", "tensorflow")
def is_an_attention_of_other_scores():
    return OnItself()


# Activations and functions.


def slope(x, by=SLOPE):
    return ops.where(x > 0, x, by * x)


def of(factor):
    return lambda x: factor * ops.tanh(x)


@made()
def has_an_activation():
    return layers.Dense(WIDTH, activation=slope)


@made()
def has_an_activation_of_a_closure():
    return layers.Dense(WIDTH, activation=of(0.5))


@made(reason="partial")
def has_a_partial_activation():
    return layers.Dense(WIDTH, activation=functools.partial(slope, by=0.1))


@made()
def is_a_lambda():
    return layers.Lambda(lambda x: ops.tanh(x) * WIDTH)


@made(reason="activation")
def has_a_recomputed_activation():
    return layers.Dense(WIDTH, activation=keras.remat(slope))


def doubled(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return 2.0 * function(*args, **kwargs)

    return wrapper


@form(reason="any arguments")
@doubled
def is_wrapped(self, x):
    return self.dense(x)


@form()
def has_inner_functions(self, x):
    def scaled(y, by=2.0):
        return y * by * self.scale

    added = lambda y: scaled(y) + x  # noqa: E731
    return added(ops.tanh(x))


@form()
def uses_helpers(self, x):
    return self.shifted(x, scaled=True) + self.squared(slope(x)) * self.doubled_factor


@form()
def passes_functions_to_its_own(self, x):
    def apply(function, *args):
        return function(*args)

    return apply(self.blocks[1], apply(ops.tanh, x))


@form()
def uses_a_dict_of_functions(self, x):
    functions = {"a": ops.tanh, "b": slope}
    return functions[self.mode](x)


# Settings and control flow.


@form()
def branches_by_settings(self, x):
    if self.uses_norm and self.mode == "b" and not self.shortcut:
        x = self.norm(x)
    elif self.mode in ("c", "d"):
        x = self.blocks[2](x)
    return x * (self.factor if self.steps > 1 else 1.0)


@form()
def loops_by_settings(self, x):
    step = 0
    while step < self.steps:
        x = self.named[f"block_{step}"](x)
        step += 1
    return x


@form()
def reads_lists_of_numbers(self, x):
    for factor, block in zip(self.factors, self.blocks, strict=False):
        x = factor * block(x)
    return x + sum(by for name, by in self.pairs if name != "a")


@form()
def reads_a_config(self, x):
    return x * self.config.factor


@form("torch")
def reads_a_global_number(self, x):
    return x * FACTOR


@form()
def reads_a_constant_of_the_class(self, x):
    return x * len(self.table)


@form()
def reads_its_dtype(self, x):
    return ops.cast(ops.cast(x, "float32"), self.compute_dtype)


@form()
def checks_its_input(self, x):
    if len(x.shape) != 3:
        raise ValueError(f"Expected three axes, received {x.shape}.")
    assert x.shape[-1] == WIDTH
    return self.dense(x)


@form()
def checks_the_length(self, x):
    if x.shape[1] is not None and x.shape[1] > 20:
        raise ValueError("Too long.")
    return x + self.positions[: ops.shape(x)[1]]


@form()
def branches_by_rank(self, x):
    return x if x.ndim == 3 else ops.expand_dims(x, 1)


@form(reason="ops.ndim")  # A tensor, where it is asked of a symbol.
def branches_by_rank_of_an_operation(self, x):
    return x if ops.ndim(x) == 3 else 2.0 * x


@form()
def divides_by_the_number_of_elements(self, x):
    return x + ops.sum(x) / ops.cast(ops.size(x), x.dtype)


@form()
def resizes_images(self, x):
    return x + ops.image.resize(x[..., None], (1, WIDTH), data_format="channels_last")[..., 0]


@form(reason="writes *some")
def makes_lists_and_dicts(self, x):
    outputs, named = [], {}
    for name, layer in self.named.items():
        named[name] = layer(x)
        outputs += [named[name]]
    outputs.append(x)
    *some, last = outputs
    return sum(some) * last + named["block_1"]


@form()
def assigns_in_expressions(self, x):
    return y + self.scale if (y := self.dense(x)) is not None else x


@form()
def computes_numbers(self, x):
    return x * (math.pi / max(2, -self.steps) + round(0.6)) * float("1.5")


@form()
def formats_names(self, x):
    return self.named["{}_{}".format("BLOCK".lower(), 1)](x)


@form()
def returns_early(self, x, training=None):
    if not training:
        return self.blocks[0](x)
    return self.blocks[0](x) * 1.0


@form()
def quantizes_straight_through(self, x):
    return x + ops.stop_gradient(ops.round(x) - x)


@form()
def calls_its_activation(self, x):
    return self.activation(x) + self.scale.value


@form()
def adds_noise(self, x, training=None):
    if training:
        x = x + 0.1 * keras.random.normal(ops.shape(x), seed=self.generator)
    return x


@form()
def drops_the_block(self, x, training=None):
    return x + self.dropout(self.dense(x), training=training)


@form(reason=IN_PLACE)
def adds_in_place(self, x):
    x += 1.0
    return x


@form(reason=IN_PLACE)
def adds_a_bias_of_zeros_in_place(self, x):
    y = x * 1.0
    z = y
    y += 0.0 * self.scale
    return y + z


# Python state, in ways that are hard to see.


@form(reason="may change")
def appends_by_an_alias(self, x):
    seen = self.history
    seen.append(1.0)
    return x * len(seen)


def counting(x, calls=[]):  # noqa: B006
    calls.append(1)
    return x * (1.0 + 0.0 * len(calls))  # It sees more calls.


@form(reason="default")
def has_a_mutable_default(self, x):
    return counting(x)


def counter():
    count = 0

    def count_up(x):
        nonlocal count
        count += 1
        return x * (1.0 + 0.0 * count)

    return count_up


@made(reason="nonlocal")
def counts_in_a_closure():
    return layers.Dense(WIDTH, activation=counter())


def remembering():
    memory = {}
    return lambda x: x * memory.setdefault("factor", 1.0)


@made(reason="from outside")
def remembers_in_a_closure():
    return layers.Dense(WIDTH, activation=remembering())


@form(reason="from outside")
def reads_a_global_list(self, x):
    return x * SHIFTS[0]


class Counted(Rich):
    @property
    def calls_so_far(self):
        self.count += 1
        return 1.0 + 0.1 * self.count


@form(reason="writes self.count", base=Counted)
def reads_a_property_that_counts(self, x):
    return x * self.calls_so_far


class Descriptor:
    def __get__(self, owner, kind=None):
        owner.count += 1
        return 1.0 + 0.1 * owner.count


class Described(Rich):
    described = Descriptor()


@form(reason="Descriptor", base=Described)
def reads_a_descriptor(self, x):
    return x * self.described


class Dynamic(Rich):
    def __getattr__(self, name):
        if name == "dynamic":
            self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
            return 1.0 + 0.1 * self.__dict__["calls"]
        return (
            super().__getattr__(name) if BACKEND == "torch" else object.__getattribute__(self, name)
        )


@form(reason="__getattr__", base=Dynamic)
def reads_by_getattr(self, x):
    return x * self.dynamic


class Number:
    def __init__(self):
        self.uses = 0

    def __mul__(self, other):
        self.uses += 1
        return other * (1.0 + 0.1 * self.uses)


class Numbered(Rich):
    def build(self, shape):
        super().build(shape)
        self.number = Number()


@form(reason="class Number", base=Numbered)
def multiplies_by_an_object(self, x):
    return self.number * x


class Lazy(Rich):
    @functools.cached_property
    def once(self):
        return time.time()


@form(reason="cached_property", base=Lazy)
def reads_a_cached_property(self, x):
    return x + 0.0 * self.once


@form(reason="__dict__")
def writes_to_its_dict(self, x):
    self.__dict__["count"] += 1
    return x * self.count


@form(reason="setattr")
def sets_an_attribute(self, x):
    setattr(self, "count", self.count + 1)  # noqa: B010
    return x * self.count


@form(reason="getattr")
def gets_an_attribute(self, x):
    return x * getattr(self, "factor", 1.0)


@form(reason="`global`")
def writes_a_global(self, x):
    global SLOPE  # noqa: PLW0603
    SLOPE = 0.3
    return x * SLOPE


@form(reason="eval")
def evaluates(self, x):
    return eval("x * 2.0")


class Base(Rich):
    def call(self, x):
        return self.helped(x) * 1.0

    def helped(self, x):
        return x


class Helped(Base):
    def helped(self, x):
        self.count += 1
        return x * self.count


@made(reason="writes self.count")
def overrides_what_the_base_calls():
    return Helped()


@made(reason="from outside")
def has_a_method_replaced_on_the_object():
    layer = Base()
    calls = []
    object.__setattr__(layer, "helped", lambda x: x * len([calls.append(1)]))
    return layer


class Called(layers.Dense):
    calls = 0

    def __call__(self, x, **kwargs):
        self.calls += 1
        return super().__call__(x, **kwargs) * (1.0 + 0.1 * self.calls)


@made("torch", reason="__call__")
def counts_around_its_call():
    return Called(WIDTH)


class Fake:
    """Stands for a module."""

    calls = 0

    def tanh(self, x):
        type(self).calls += 1
        return x * (1.0 + 0.0 * type(self).calls)


fake = Fake()


@form(reason="writes")
def shadows_the_operations(self, x):
    ops = fake
    return ops.tanh(x)


def abs(x):  # noqa: A001
    return counting(x)


@form(reason="default")
def shadows_a_builtin(self, x):
    return abs(x)


@form(reason="array" if BACKEND == "torch" else None)
def reads_a_tensor(self, x):
    return x + self.constant


class Constant(Rich):
    def build(self, shape):
        super().build(shape)
        self.constant = ops.ones((WIDTH,))


FORMS["reads_a_tensor"] = type("reads_a_tensor", (Constant,), {"call": reads_a_tensor})


class Table(Rich):
    def build(self, shape):
        super().build(shape)
        self.numbers = np.ones(WIDTH, "float32")


@form(reason="array", base=Table)
def reads_an_array(self, x):
    return x + ops.convert_to_tensor(self.numbers)


class Weak(Rich):
    def build(self, shape):
        super().build(shape)
        self.weak = weakref.ref(self.dense)


@form(reason="self.weak", base=Weak)
def calls_a_weak_reference(self, x):
    return self.weak()(x)


# Questions, numbers and calls of others.


@form(reason="dtype")
def branches_by_dtype(self, x):
    return x if x.dtype == "float32" else x * 2.0


@form("jax", "torch", reason="branches")
def branches_by_len(self, x):
    return x * 2.0 if len(x) < 3 else x


@form(reason="isinstance")
def asks_for_a_class(self, x):
    return x if isinstance(x, (list, tuple)) else x * 2.0


@form(reason="ops.is_tensor")
def asks_for_tensors(self, x):
    return x if ops.is_tensor(x) else x * 0.5


@form(reason="which object")
def asks_for_identity(self, x):
    return x if x is self.history else x * 0.5


@form(reason="`with`")
def opens_a_scope(self, x):
    with keras.name_scope("inner"):
        return self.dense(x)


@form(reason="`import`")
def imports(self, x):
    import math as other_math

    return x * other_math.pi


@form(reason="time.time")
def reads_the_clock(self, x):
    return x + 0.0 * time.time()


@form(reason="np.sqrt")
def takes_a_root_by_numpy(self, x):
    return x / np.sqrt(WIDTH)


@form(reason="print")
def prints(self, x):
    print(end="")
    return x


@form(reason="ops.scan")
def scans(self, x):
    _, y = ops.scan(lambda s, row: (s + row, s + row), x[0] * 0.0, x)
    return y


@form(reason="ops.while_loop")
def loops_while(self, x):
    return ops.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, y * 1.5), (0, x))[1]


@form(reason="seed generator")
def drops_without_a_seed(self, x, training=None):
    return keras.random.dropout(x, 0.0) if training else x


@form("torch", "jax", reason="x.mean")
def calls_a_method_of_a_tensor(self, x):
    return x - x.mean()


@form(reason="decorates custom")
def has_a_custom_gradient_inside(self, x):
    @ops.custom_gradient
    def custom(y):
        return y * 1.0, lambda *args, upstream=None: args[0] if upstream is None else upstream

    return custom(x)


@form(reason="yield")
def yields(self, x):
    def generate():
        yield x

    return next(generate())


@form(reason="keras.layers.Activation")
def makes_a_layer(self, x):
    return keras.layers.Activation("tanh")(x)


@form(reason="sort")
def sorts_by_a_key(self, x):
    return x + 0.0 * sorted([x, 2.0 * x], key=id)[0]
