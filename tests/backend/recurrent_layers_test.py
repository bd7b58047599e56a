import itertools
import threading

import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek.backend import current
from keras_deepseek.backend.export.named_model import NamedModel

if keras.backend.backend() != "torch":
    pytest.skip("Only on PyTorch, layers run a loop in Python.", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from keras_deepseek.backend.torch.recording import record
from keras_deepseek.backend.torch.recurrences import run_recurrence

LENGTH, FEATURES, UNITS = 7, 5, 4
STEPS = np.arange(LENGTH)
MASKS = {
    "none": None,
    "right": np.array([[7], [3], [1]]) > STEPS,
    "left": np.array([[2], [0], [6]]) <= STEPS,
    "holes": np.array([[1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0], [0] * 7], bool),
}
KINDS = {
    "LSTM": (layers.LSTM, {}),
    "GRU": (layers.GRU, {}),
    "GRU, reset before": (layers.GRU, {"reset_after": False}),
    "SimpleRNN": (layers.SimpleRNN, {}),
    "SimpleRNN, relu": (layers.SimpleRNN, {"activation": "relu"}),
}


def make_layer(kind, **options):
    layer_class, settings = KINDS[kind]
    keras.utils.set_random_seed(1)
    layer = layer_class(UNITS, bias_initializer="normal", **settings, **options)
    layer.build((3, LENGTH, FEATURES))
    return layer


def make_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, LENGTH, FEATURES, generator=generator, dtype=dtype).requires_grad_()


def fused():
    return current().step.fuse_recurrent_layers(keras.Sequential())


def is_fused(outputs):
    """Returns True if the gradient of outputs goes through a recurrence that is one operation."""
    nodes, visited = [output.grad_fn for output in keras.tree.flatten(outputs)], {None}
    while nodes:
        node = nodes.pop()
        if node not in visited:
            visited.add(node)
            nodes += [after for after, _ in node.next_functions]
    return any("FusedRecurrence" in node.name() for node in visited if node is not None)


def call(layer, inputs, **arguments):
    """Returns outputs, whether they are fused, and the gradients by inputs, states and weights."""
    outputs = keras.tree.flatten(layer(inputs, **arguments))
    total = sum(
        (output * torch.linspace(1, 2, output.numel()).view(output.shape)).sum()
        for output in outputs
    )
    sources = [inputs, *arguments.get("initial_state", ())]
    sources += [variable.value for variable in layer.trainable_variables]
    gradients = torch.autograd.grad(total, sources)
    return [tensor.detach() for tensor in (*outputs, *gradients)], is_fused(outputs)


def check_equal(actual, expected, tolerance=1e-5):
    for a, b in zip(actual, expected, strict=True):
        scale = max(float(b.abs().max()), 1e-30)
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_states_and_gradients_are_those_of_keras(kind, mask):
    array, flags = MASKS[mask], (False, True)
    for sequences, backwards, bias, zeros in itertools.product(flags, flags, flags, flags):
        layer = make_layer(
            kind,
            return_sequences=sequences,
            return_state=True,
            go_backwards=backwards,
            use_bias=bias,
        )
        layer.zero_output_for_mask = zeros
        shape = (3, UNITS)
        states = [torch.full(shape, 0.3, requires_grad=True) for _ in layer.state_size]
        inputs = make_inputs()
        arguments = {"initial_state": states}
        if array is not None:
            arguments["mask"] = torch.tensor(array)
        expected, _ = call(layer, inputs, **arguments)
        with fused():
            first, _ = call(layer, inputs, **arguments)
            second, is_one_operation = call(layer, inputs, **arguments)
        assert is_one_operation or (kind == "SimpleRNN, relu" and array is not None)
        check_equal(first, expected)
        assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrences_are_the_modules_of_pytorch(kind):
    dtype = torch.float32 if kind == "LSTM" else torch.float64
    name, module_class, order = {
        "LSTM": ("lstm", torch.nn.LSTM, [0, 1, 2, 3]),
        "GRU": ("gru", torch.nn.GRU, [1, 0, 2]),  # Keras has the update gate first.
        "SimpleRNN": ("rnn_tanh", torch.nn.RNN, [0]),
    }[kind]
    module, inputs = module_class(FEATURES, UNITS, dtype=dtype), make_inputs(dtype)

    def reorder(weight):
        return torch.cat([weight.chunk(len(order))[gate] for gate in order])

    weights = [reorder(weight).detach() for weight in module.parameters()]
    kernel, recurrent_kernel, bias, recurrent_bias = weights
    bias = torch.stack([bias, recurrent_bias]) if kind == "GRU" else bias + recurrent_bias
    states = [torch.full((LENGTH, UNITS), 0.3, dtype=dtype) for _ in range(1 + (kind == "LSTM"))]
    sources = [kernel.T.requires_grad_(), recurrent_kernel.T.requires_grad_()]
    outputs, *_ = run_recurrence(name, [inputs, *sources, bias, *states])
    in_front = [state[None] for state in states]
    expected, _ = module(inputs, tuple(in_front) if kind == "LSTM" else in_front[0])
    d_inputs, *d_kernels = torch.autograd.grad(outputs.cos().sum(), (inputs, *sources))
    actual = [outputs.detach(), d_inputs, *(kernel.T for kernel in d_kernels)]
    gradients = torch.autograd.grad(
        expected.cos().sum(), (inputs, module.weight_ih_l0, module.weight_hh_l0)
    )
    gradients = [gradients[0], *map(reorder, gradients[1:])]
    check_equal(actual, [expected.detach(), *gradients], 1e-6 if kind == "LSTM" else 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_second_gradients_are_those_of_keras(kind):
    layer, inputs = make_layer(kind), make_inputs()
    weights = [variable.value for variable in layer.trainable_variables]

    def penalty():
        outputs = layer(inputs)
        (slope,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(slope.square().sum() + outputs.sum(), weights)

    expected = penalty()
    with fused():
        check_equal(penalty(), expected)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRU, reset before", "SimpleRNN"])
@pytest.mark.parametrize("mask", ["none", "right"])
def test_dropout_draws_the_numbers_of_keras(kind, mask):
    array = MASKS[mask]
    arguments = {"training": True, "mask": None if array is None else torch.tensor(array)}
    layer, same = make_layer(kind, dropout=0.4, seed=3), make_layer(kind, dropout=0.4, seed=3)
    for _ in range(2):
        expected, _ = call(layer, make_inputs(), **arguments)
        with fused():
            actual, is_one_operation = call(same, make_inputs(), **arguments)
        assert is_one_operation
        check_equal(actual, expected)


class OwnCell(layers.LSTMCell):
    def call(self, inputs, states, training=False):
        output, states = super().call(inputs, states, training=training)
        return output + 1, states


class OwnLoop(layers.GRU):
    def inner_loop(self, *arguments, **options):
        output, *others = super().inner_loop(*arguments, **options)
        return output + 1, *others


def watched_layer():
    layer = make_layer("SimpleRNN")
    layer.cell.register_forward_hook(lambda *_: None)
    return layer


LEFT_TO_KERAS = {
    "activation": lambda: make_layer("LSTM", activation="relu"),
    "recurrent activation": lambda: make_layer("GRU", recurrent_activation="hard_sigmoid"),
    "recurrent dropout": lambda: make_layer("LSTM", recurrent_dropout=0.3, seed=1),
    "dropout of each gate": lambda: layers.RNN(
        layers.GRUCell(UNITS, implementation=1, dropout=0.3, seed=1)
    ),
    "an own cell": lambda: layers.RNN(OwnCell(UNITS)),
    "an own loop": lambda: OwnLoop(UNITS),
    "stacked cells": lambda: layers.RNN([layers.GRUCell(UNITS), layers.GRUCell(UNITS)]),
    "a hook": watched_layer,
    "use_cudnn=False": lambda: make_layer("LSTM", use_cudnn=False),
    "half precision": lambda: make_layer("GRU", dtype="mixed_bfloat16"),
    "double precision": lambda: make_layer("GRU", dtype="float64"),
}


@pytest.mark.parametrize("case", LEFT_TO_KERAS)
def test_other_layers_run_the_loop_of_keras(case):
    layer, inputs = LEFT_TO_KERAS[case](), make_inputs()
    layer(inputs)
    variables = layer.non_trainable_variables
    before = [variable.numpy() for variable in variables]
    expected = layer(inputs, training=True)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    with fused():
        actual = layer(inputs, training=True)
    assert not is_fused(actual)
    assert torch.equal(actual, expected)


def test_a_cell_in_an_rnn_and_no_steps():
    layer, inputs = layers.RNN(layers.LSTMCell(UNITS), return_sequences=True), make_inputs()
    expected = layer(inputs)
    with fused():
        actual = layer(inputs)
        assert is_fused(actual)
        check_equal([actual.detach()], [expected.detach()])
        assert layer(inputs[:0]).shape == (0, LENGTH, UNITS)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("mask", ["none", "right", "holes"])
def test_both_directions_are_those_of_keras(kind, mask):
    array = MASKS[mask]
    keras.utils.set_random_seed(1)
    layer = layers.Bidirectional(KINDS[kind][0](UNITS, return_sequences=True, return_state=True))
    arguments = {} if array is None else {"mask": torch.tensor(array)}
    layer(make_inputs())
    expected, _ = call(layer, make_inputs(), **arguments)
    with fused():
        actual, is_one_operation = call(layer, make_inputs(), **arguments)
    assert is_one_operation
    check_equal(actual, expected)


@pytest.mark.parametrize("kind", ["LSTM", "SimpleRNN"])
def test_a_stateful_layer_carries_its_states_on(kind):
    # The gradient of an LSTM with states fails in Keras's loop.
    mode, results = torch.no_grad if kind == "LSTM" else torch.enable_grad, []
    for block in (fused, torch.enable_grad):
        keras.utils.set_random_seed(1)
        layer = KINDS[kind][0](UNITS, stateful=True)
        model = keras.Sequential([keras.Input(batch_shape=(3, LENGTH, FEATURES)), layer])
        with block(), mode():
            outputs = [model(make_inputs()) for _ in range(3)]
            if kind != "LSTM":
                outputs += torch.autograd.grad(outputs[-1].sum(), layer.cell.kernel.value)
        results.append([output.detach() for output in outputs])
    check_equal(*results)


def test_a_layer_that_differs_keeps_the_loop_and_says_so(monkeypatch):
    layer, inputs = make_layer("SimpleRNN", name="twice"), make_inputs()
    original = layers.SimpleRNNCell.call

    def double(self, *arguments, **options):
        output, states = original(self, *arguments, **options)
        return 2 * output, states

    monkeypatch.setattr(layers.SimpleRNNCell, "call", double)
    expected = layer(inputs)
    with fused():
        with pytest.warns(UserWarning, match="'twice' runs Keras's own"):
            assert torch.equal(layer(inputs), expected)
        assert torch.equal(layer(inputs), expected)
        assert layer(inputs[:1]).shape == (1, UNITS)


def test_a_layer_that_differs_later_keeps_the_loop(monkeypatch):
    layer, inputs, factor = make_layer("SimpleRNN"), make_inputs(), [1]
    original = layers.SimpleRNNCell.call

    def multiply(self, *arguments, **options):
        output, states = original(self, *arguments, **options)
        return factor[0] * output, states

    monkeypatch.setattr(layers.SimpleRNNCell, "call", multiply)
    with fused():
        assert is_fused(layer(inputs))
        factor[0] = 2
        with pytest.warns(UserWarning, match="runs Keras's own"):
            outputs = layer(inputs)
    assert torch.equal(outputs, layer(inputs))


def test_a_gradient_whose_terms_cancel_out_is_no_difference():
    for seed in (190, 411, 753):  # The gradient of the recurrent kernel is tiny.
        keras.utils.set_random_seed(seed)
        layer = layers.SimpleRNN(1)
        with fused():
            assert is_fused(layer(torch.randn(4, 5, 2)))


def test_infinite_numbers_prove_nothing():
    layer, inputs = make_layer("GRU"), make_inputs()
    with fused():
        assert not is_fused(layer(inputs * float("nan")))
        assert is_fused(layer(inputs))


def test_numbers_behind_a_mask_do_not_matter():
    inputs, mask = make_inputs().detach(), torch.tensor(MASKS["right"])
    for kind in ("LSTM", "GRU"):
        layer = make_layer(kind)
        with fused(), torch.no_grad():
            expected = layer(inputs, mask=mask)
            filled = inputs.masked_fill(~mask.unsqueeze(2), float("inf"))
            assert torch.equal(layer(filled, mask=mask), expected)


class _Operations(TorchDispatchMode):
    """Lists the operations that run in its block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_recording_has_fewer_operations_and_reads_weights_anew(kind):
    layer, inputs = make_layer(kind, return_sequences=True), make_inputs().detach()
    mask = torch.tensor(MASKS["holes"])
    weights = [variable.value for variable in layer.trainable_variables]

    def step(inputs):
        loss = layer(inputs, mask=mask).square().sum()
        return loss, *torch.autograd.grad(loss, weights)

    with fused():
        step(inputs)
        recording = record(lambda: step(inputs), [inputs])
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.1)
        with _Operations() as operations:
            actual = recording([inputs])
        assert all(map(torch.equal, actual, step(inputs)))
    with _Operations() as operations_of_loop:
        record(lambda: step(inputs), [inputs])([inputs])
    assert len(operations.names) < len(operations_of_loop.names) / 2


def test_what_was_never_compared_is_recorded_as_the_loop():
    layer, inputs = make_layer("GRU"), make_inputs().detach()
    with fused():
        recording = record(lambda: layer(inputs), [inputs])
    with _Operations() as operations:
        recording([inputs])
    assert "keras_deepseek.recurrence.default" not in operations.names


def test_blocks_may_overlap_and_other_threads_have_the_loop():
    layer, inputs, is_fused_there = make_layer("GRU"), make_inputs(), []
    original = layers.GRU.inner_loop
    first, second = fused(), fused()
    first.__enter__()
    second.__enter__()
    thread = threading.Thread(target=lambda: is_fused_there.append(is_fused(layer(inputs))))
    thread.start()
    thread.join()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert is_fused_there == [False]
    assert layers.GRU.inner_loop is original


def test_it_survives_a_checkpoint_at_the_first_call():
    layer, inputs = make_layer("LSTM"), make_inputs()
    expected, _ = call(layer, inputs)
    checkpoint = torch.utils.checkpoint.checkpoint
    with fused():
        outputs = checkpoint(layer, inputs, use_reentrant=False)
        total = (outputs * torch.linspace(1, 2, outputs.numel()).view(outputs.shape)).sum()
        weights = [variable.value for variable in layer.trainable_variables]
        gradients = torch.autograd.grad(total, [inputs, *weights])
    check_equal([outputs.detach(), *gradients], expected)


def test_a_served_model_is_the_model():
    layer = make_layer("LSTM")
    model = NamedModel(keras.Sequential([keras.Input((LENGTH, FEATURES), name="x"), layer]))
    batch = {"x": make_inputs().detach().numpy()}
    (expected,) = current().inference.plain_inference(model)(batch).values()
    (actual,) = current().inference.compile_inference(model)(batch).values()
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_run_eagerly_keeps_the_loop_of_keras():
    model = keras.Sequential([keras.Input((LENGTH, FEATURES)), make_layer("GRU")])
    model.run_eagerly = True
    with current().step.fuse_recurrent_layers(model):
        assert not is_fused(model(make_inputs()))
