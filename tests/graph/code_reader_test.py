"""Attempts to get past the reader of code. Each does what a trace does not see."""

import time
import types

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.graph.known_code import find_foreign_code, read_layer
from tests.oracles.foreign_layers import BACKEND
from tests.oracles.user_layers import Number, Rich

ATTEMPTS = []
ADMITTED = []


class Odd(float):
    """A number whose product changes with each use."""

    uses = 0

    def __mul__(self, other):
        Odd.uses += 1
        return other * float(Odd.uses)


class Pair:
    """An object that counts how often it is unpacked."""

    count = 0

    def __iter__(self):
        self.count += 1
        return iter((1.0, float(self.count)))


class Generator(keras.random.SeedGenerator):
    """A source of seeds that always has the same one."""

    def next(self, ordered=True):
        return self.state


class WithMeta(type):
    @property
    def factor(cls):
        Odd.uses += 1
        return float(Odd.uses)


class Factors(metaclass=WithMeta):
    pass


class Module(types.ModuleType):
    factor = property(lambda self: float(time.time()))


module = Module("module")


class Layer(Rich):
    def build(self, shape):
        super().build(shape)
        self.number, self.odd, self.pair, self.log = Number(), Odd(2.0), Pair(), []
        self.push = self.log.append
        self.numbers = (value for value in (1.0, 2.0))
        self.view = types.MappingProxyType(self.__dict__)
        self.pairs_of_objects = [self.pair]
        self.draws = Generator(1)
        self.half = np.float32(0.5)


def attempt(call):
    ATTEMPTS.append(call)
    return call


def attempt_on_torch(call):
    """Adds an attempt to change a tensor in place, which only PyTorch does."""
    return attempt(call) if BACKEND == "torch" else call


def admitted(call):
    ADMITTED.append(call)
    return call


def is_refused(call):
    layer = type(call.__name__, (Layer,), {"call": call})()
    layer.build((None, None, 4))
    layer.built = True
    return find_foreign_code(layer) is not None


# The list of the layer by another name.


@attempt
def changes_an_element(self, x):
    (self.log,)[0].append(1)
    return x


@attempt
def changes_in_a_loop(self, x):
    for log in [self.log]:
        log.append(1)
    return x


@attempt
def changes_a_default(self, x):
    add = lambda log=self.log: log.append(1)  # noqa: E731
    add()
    return x


@attempt
def changes_in_an_expression(self, x):
    (log := self.log).append(1)
    return x * len(log)


@attempt
def changes_what_a_function_returns(self, x):
    def get():
        return self.log

    get().append(1)
    return x


@attempt
def changes_an_argument(self, x):
    def add(*args, log):
        log.append(args)

    add(1, log=self.log)
    return x


@attempt
def changes_in_a_comprehension(self, x):
    [log.append(1) for log in (self.log,)]
    return x


@attempt
def changes_in_training(self, x, training=None):
    log = self.log if training else []
    log.append(1)
    return x


@attempt
def changes_for_a_flag(self, x, flag=False):
    log = self.log if flag is None else []
    log.append(1)
    return x


@attempt
def changes_without_a_mask(self, x, mask=None):
    log = self.log if mask is None else []
    log.append(1)
    return x


@attempt
def changes_by_sign(self, x):
    log = self.log
    log += [1]
    return x


@attempt
def changes_from_a_box(self, x):
    box = {"a": [self.log].copy()}
    box.get("a").pop().append(1)
    return x


@attempt
def changes_by_a_method_that_it_holds(self, x):
    self.push(1)
    return x


# Objects of users, and iterators, that Python would run by itself.


@attempt
def multiplies_by_a_number_of_its_own(self, x):
    return x * self.odd


@attempt
def multiplies_a_weight_by_a_number_of_numpy(self, x):
    return x * (self.half * self.scale)


@attempt
def draws_by_a_generator_of_its_own(self, x):
    return x + keras.random.normal(ops.shape(x), seed=self.draws)


@attempt
def reads_by_a_metaclass(self, x):
    return x * Factors.factor


@attempt
def reads_a_module_of_a_class_of_its_own(self, x):
    return x * module.factor


@attempt
def reads_a_name_of_a_class(self, x):
    return x * __factor  # noqa: F821 - in a class it is `_Class__factor`


@attempt
def unpacks_an_object(self, x):
    first, second = self.pair
    return x * first * second


@attempt
def unpacks_an_object_in_a_loop(self, x):
    return x * sum(second for _, second in self.pairs_of_objects)


@attempt
def unpacks_into_nothing(self, x):
    () = self.pair
    return x


@attempt
def spreads_an_object(self, x):
    return ops.add(x, *self.pair)


@attempt
def makes_a_dict_of_an_object(self, x):
    return x * sum(dict([self.pair]).values())


@attempt
def uses_up_a_generator(self, x):
    return x * sum(self.numbers)


@attempt
def reads_a_view(self, x):
    return x * self.view["count"]


@attempt
def writes_an_object_in_a_text(self, x):
    return self.named[f"{self.number}"](x)


@attempt
def has_an_object_as_key(self, x):
    return {self.number: x}[self.number]


@attempt
def compares_an_object(self, x):
    return x if self.number == 1 else x * 2.0


@attempt
def reads_a_name_that_a_class_changes(self, x):
    return x * __hidden  # noqa: F821 - within a class it is `_Class__hidden`


# Numbers of tensors, sizes and what a trace does not record.


@attempt
def reads_a_number_from_a_shape(self, x):
    shape = x.shape[:0] + (ops.mean(x),)  # noqa: RUF005
    return x * float(shape[0])


@attempt
def branches_by_the_number_of_outputs(self, x):
    outputs = [x[:, step] for step in range(x.shape[1])]
    return x * 2.0 if len(outputs) == 1 else x


@attempt
def looks_a_size_up(self, x):
    return x * {1: 3.0}.get(x.shape[1], 1.0)


@attempt
def has_a_size_as_key(self, x):
    return x * len({x.shape[0]: 1, x.shape[1]: 2})


@attempt
def passes_a_size_on(self, x):
    def times(y, n=1):
        return y if n == 1 else y * 2.0

    return times(x, n=x.shape[1])


@attempt
def raises_by_numbers(self, x):
    if ops.any(x > 1e9):
        raise ValueError
    return x


class Adding(layers.Layer):
    def add_loss(self, loss):
        return super().add_loss(loss)

    def call(self, x):
        self.add_loss(ops.mean(x))
        return x


@attempt
def calls_a_base_by_name(self, x):
    super(layers.Layer, self).__setattr__("count", 1)
    return x


@attempt_on_torch
def changes_a_tensor_that_a_list_holds(self, x):
    tensors = [x * 1.0]
    for y in tensors:
        y += 1.0  # noqa: PLW2901
    return tensors[0]


@attempt_on_torch
def changes_a_tensor_of_two_names(self, x):
    y = z = x * 1.0
    y += 1.0
    return y + z


@attempt_on_torch
def changes_a_tensor_that_a_function_reads(self, x):
    y = x * 1.0
    get = lambda: y  # noqa: E731
    z = get()
    y += 1.0
    return y + z


@attempt
def calls_the_base_of_another_object_in_a_lambda(self, x):
    add = lambda layer: super().add_loss(ops.mean(x))  # noqa: E731
    add(self)
    return x


@attempt
def deforms_images_without_a_generator(self, x):
    return ops.image.elastic_transform(x[..., None])[..., 0]


@attempt
def loops_over_the_number_of_elements(self, x):
    for _ in range(ops.size(x)):
        x = 2.0 * x
    return x


# What users write.


@admitted
def sums_up(self, x):
    total = 0.0
    for index, block in enumerate(self.blocks):
        total += block(x) * (index + 1.0)
    y = total + x
    y += self.scale
    return self.norm(y)


@admitted
def chooses_by_settings(self, x, training=None, mask=None):
    y = self.dense(x) if self.uses_norm and self.mode in ("a", "b") else x
    if training and mask is not None:
        y = y * ops.cast(mask, y.dtype)[..., None]
    if x.shape[-1] != 4:
        raise ValueError(f"{x.shape} has another width.")
    return self.shifted(y, by=2.0, scaled=not training)


@pytest.mark.parametrize("call", ATTEMPTS, ids=lambda call: call.__name__)
def test_code_that_a_trace_does_not_see_is_refused(call):
    assert is_refused(call)


@pytest.mark.parametrize("call", ADMITTED, ids=lambda call: call.__name__)
def test_code_that_a_trace_sees_is_admitted(call):
    assert not is_refused(call)


def test_a_method_that_only_calls_the_one_of_keras_is_no_better_than_it():
    assert "super().add_loss" in find_foreign_code(Adding())


class Setting:
    def __init__(self):
        self.factor = 1.0


def replace_dict(setting):
    setting.__dict__ = {"factor": 2.0}


def add_property(setting):
    type(setting).factor = property(lambda _: 2.0)


def change_class(setting):
    setting.__class__ = type("Other", (Setting,), {"factor": property(lambda _: 2.0)})


@pytest.mark.parametrize("change", [replace_dict, add_property, change_class])
def test_an_attribute_that_changes_by_its_object_is_noticed(change):
    layer = type("Reading", (Layer,), {"call": lambda self, x: x * self.setting.factor})()
    layer.setting = type("Own", (Setting,), {})()
    layer.build((None, None, 4))
    layer.built = True
    reading = read_layer(layer)
    assert reading.reason is None
    assert reading.is_current()
    change(layer.setting)
    assert not reading.is_current()


def test_the_branch_of_another_setting_is_read_when_it_is_taken():
    def call(self, x):
        if self.mode == "a":
            self.count += 1
        return x * x.shape[1] if self.mode == "c" else x

    layer = type("Branching", (Layer,), {"call": call})()
    layer.build((None, None, 4))
    layer.built = True
    assert find_foreign_code(layer) is not None  # It writes an attribute in any branch.

    def call_by_mode(self, x):
        if self.mode == "a":
            self.log.append(1)
        return x * x.shape[1] if self.mode == "c" else x

    layer = type("Branching", (Layer,), {"call": call_by_mode})()
    layer.build((None, None, 4))
    layer.built = True
    assert not read_layer(layer).reads_sizes
    layer.mode = "c"
    assert read_layer(layer).reads_sizes
    layer.mode = "a"
    assert "which may change" in find_foreign_code(layer)


class Touched:
    """An object that tells when its attributes are read."""

    uses = 0

    def __getattribute__(self, name):
        Touched.uses += 1
        return super().__getattribute__(name)


touched = Touched()


def test_reading_code_runs_no_getter_of_an_object():
    layer = type("Touching", (Layer,), {"call": lambda self, x: x if touched else x * 2.0})()
    layer.build((None, None, 4))
    old_uses = Touched.uses
    assert find_foreign_code(layer) is not None
    assert Touched.uses == old_uses


def test_another_class_of_a_layer_is_noticed():
    layer = type("First", (Layer,), {"call": lambda self, x: x * 2.0})()
    layer.build((None, None, 4))
    reading = read_layer(layer)
    layer.__class__ = type("Second", (Layer,), {"call": lambda self, x: x * 3.0})
    assert not reading.is_current()
