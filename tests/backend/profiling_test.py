import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.profiling.step_trace import DATA_WAIT, WINDOW, Owner, divide_time


def test_a_trace_has_the_window_the_waits_and_the_work(tmp_path):
    step = backend.current().step
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="head")])
    model.compile("sgd", "mse")
    x = np.ones((32, 64), "float32")
    model.train_on_batch(x, x)
    lines = []
    with step.trace_steps(model, lines), step.annotate(WINDOW), step.mark("outer"):
        with step.annotate(DATA_WAIT):
            pass
        model.train_on_batch(x, x)
    names = [event.name for line in lines for event in line]
    assert (names.count(WINDOW), names.count(DATA_WAIT)) == (1, 1)
    spent = divide_time(lines)
    assert spent[Owner("data_wait")] > 0
    assert sum(spent[owner] for owner in spent if owner.layer.endswith("head")) > 0
    assert sum(spent.values()) == pytest.approx(
        next(e.end - e.start for line in lines for e in line if e.name == WINDOW)
    )


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch has no such programs.")
def test_operations_in_the_loop_of_a_compiled_program_have_their_layer():
    step = backend.current().step
    model = keras.Sequential([keras.Input((9, 64)), keras.layers.LSTM(64, name="memory")])
    model.compile("sgd", "mse", jit_compile=True)
    x, y = np.ones((8, 9, 64), "float32"), np.ones((8, 64), "float32")
    model.train_on_batch(x, y)
    lines = []
    with step.trace_steps(model, lines), step.annotate(WINDOW):
        model.train_on_batch(x, y)
    names = {owner.layer for owner in divide_time(lines) if owner.part == "forward"}
    assert any(name.endswith("memory/lstm_cell") for name in names)


class KinetoEvent:
    """An event as Kineto reports it, by functions."""

    def __init__(self, name, start, length, **more):
        values = {
            "scope": 0,
            "sequence_nr": -1,
            "fwd_thread_id": 0,
            "start_thread_id": 1,
            "device_type": None,
            "device_index": 0,
            "device_resource_id": 7,
            "correlation_id": 0,
            "linked_correlation_id": 0,
            **more,
        }
        for key, value in {
            "name": name,
            "start_ns": start,
            "duration_ns": length,
            **values,
        }.items():
            setattr(self, key, lambda value=value: value)


@pytest.mark.torch_alone
def test_operations_of_pytorch_have_the_owner_of_the_marks_around_them():
    torch = pytest.importorskip("torch")
    from keras_deepseek.backend.torch.profiling import read_lines

    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [
        KinetoEvent("layer:head", 0, 20, scope=7),
        KinetoEvent("aten::to", 1, 1, sequence_nr=5),  # It makes no node, the next one does.
        KinetoEvent("aten::addmm", 3, 9, sequence_nr=5, correlation_id=1),
        KinetoEvent("step.loss", 20, 10, scope=7),
        KinetoEvent("aten::mean", 21, 5, sequence_nr=6),
        KinetoEvent("step.backward", 40, 60, scope=7),
        KinetoEvent("MeanBackward", 41, 5, scope=1, sequence_nr=6, fwd_thread_id=1),
        KinetoEvent("AddmmBackward", 50, 20, scope=1, sequence_nr=5, fwd_thread_id=1),
        KinetoEvent("aten::mm", 51, 9, correlation_id=2),
        KinetoEvent("layer:head", 61, 8, scope=7),  # It is computed again.
        KinetoEvent("aten::relu", 62, 6, sequence_nr=9),
        KinetoEvent("aten::add", 80, 6),
        KinetoEvent("enumerate(DataLoader)#_Iter.__next__", 100, 9, scope=7),
        KinetoEvent("aten::copy_", 120, 6, correlation_id=3),
    ]
    for event in events:
        event.device_type = lambda: cpu
    (line,) = read_lines(events, "model", None)
    assert [(event.name, event.owner) for event in line if event.owner] == [
        ("aten::to", ("forward", "head")),
        ("aten::addmm", ("forward", "head")),
        ("aten::mean", ("loss", "")),
        ("MeanBackward", ("loss", "")),
        ("AddmmBackward", ("backward", "head")),
        ("aten::mm", ("backward", "head")),
        ("aten::relu", ("backward", "head")),
        ("aten::add", ("backward", "model")),
        ("enumerate(DataLoader)#_Iter.__next__", ("data_wait", "")),
        ("aten::copy_", ("rest", "")),
    ]
    kernels = [
        KinetoEvent("sgemm", 200, 9, linked_correlation_id=1, device_type=cuda),
        KinetoEvent("sgemm", 210, 9, linked_correlation_id=2, device_type=cuda),
        KinetoEvent("memcpy", 220, 9, linked_correlation_id=3, device_type=cuda),
    ]
    host, device = read_lines([*events, *kernels], "model", None)
    assert [event.owner.part for event in host if event.owner] == ["data_wait"]
    assert [tuple(event.owner) for event in device] == [
        ("forward", "head"),
        ("backward", "head"),
        ("rest", ""),
    ]
