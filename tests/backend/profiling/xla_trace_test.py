import keras
import pytest

from keras_deepseek.backend.profiling.step_trace import Event, Owner
from keras_deepseek.backend.profiling.xla_trace import (
    Instruction,
    LayerScopes,
    Operation,
    make_lines,
)


def plane(name, *lines):
    return name, [
        [
            Operation(thread, start + 1, start + 1 + length, event, stats)
            for event, start, length, stats in events
        ]
        for thread, events in lines
    ]


def hlo(name, **more):
    return {"hlo_op": name, "hlo_module": "jit_run", "program_id": 7, **more}


def read(*planes, programs=()):
    layers = [keras.Input((2,)), keras.layers.Dense(1, name="head")]
    model = keras.Sequential(layers, name="all")
    model.compile("sgd", "mse")
    named_programs = [("jit_run", lambda program=program: program) for program in programs]
    return make_lines(planes, named_programs, LayerScopes(model, is_numbered=False))


SCOPE = "jit(run)/transpose(jvp(all))/head/"
PROGRAM = [
    ("region.1", [Instruction("max.1", SCOPE + "max", [], [])]),
    (
        "main",
        [
            Instruction("p.1", "args[0]", [], []),
            Instruction("fusion.1", "", ["p.1"], ["region.1"]),
            Instruction("convert.1", "", ["p.1"], []),
            Instruction("dot.1", SCOPE + "dot_general", ["convert.1", "fusion.1"], []),
            Instruction("copy.1", "", ["dot.1"], []),
            Instruction("copy", "", ["p.1"], []),
            Instruction("tuple", "", ["copy.1", "copy"], []),
        ],
    ),
]
BACKWARD, REST = Owner("backward", "all/head"), Owner("rest")


def test_an_instruction_has_the_layer_of_its_program():
    events = [
        ("dot.1", 2, 3, hlo("dot.1")),
        ("copy", 6, 1, hlo("copy")),
        ("Execute", 1, 9, {}),
        ("step.data_wait", 20, 1, {}),
    ]
    (line,) = read(plane("/host:CPU", ("python", events)), programs=[PROGRAM])
    assert line == [
        Event(3, 6, "dot.1", BACKWARD),
        Event(7, 8, "copy", REST),
        Event(2, 11, "Execute", None),
        Event(21, 22, "step.data_wait", Owner("data_wait")),
    ]


def test_an_instruction_without_a_scope_has_that_of_its_neighbours():
    names = ("fusion.1", "convert.1", "copy.1")
    events = [(name, index, 1, hlo(name)) for index, name in enumerate(names)]
    (line,) = read(plane("/host:CPU", ("worker", events)), programs=[PROGRAM])
    assert [event.owner for event in line] == [BACKWARD] * 3


def test_a_program_is_found_by_its_instructions():
    smaller = [("main", [Instruction("dot.1", "jit(run)/dot", [], [])])]
    copies = [Instruction(f"copy.{index}", "jit(run)/copy", [], []) for index in range(1, 9)]
    larger = [("main", [Instruction("dot.1", "jit(run)/dot", [], []), *copies])]
    events = [(name, start, 1, hlo(name)) for start, name in enumerate(["dot.1", "copy.1"])]
    host = plane("/host:CPU", ("worker", events))
    (line,) = read(host, programs=[larger, PROGRAM, smaller])
    assert [event.owner for event in line] == [BACKWARD] * 2


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_equal_programs_that_of_the_model_is_read(order):
    programs = [
        [("main", [Instruction("dot.1", f"jit(run)/transpose(jvp({path}))/dot", [], [])])]
        for path in ("all/head", "other/tail")
    ]
    host = plane("/host:CPU", ("worker", [("dot.1", 0, 1, hlo("dot.1"))]))
    (line,) = read(host, programs=programs[::order])
    assert line[0].owner == BACKWARD


def test_an_instruction_runs_on_until_another_thread_ends_it():
    first = ("worker", [("dot.1", 2, 1, hlo("dot.1", _p=12)), ("copy", 3, 1, hlo("copy", _p=13))])
    second = ("other", [("end: copy", 4, 0, {"_c": 13}), ("end: dot.1", 9, 0, {"_c": 12})])
    lines = read(plane("/host:CPU", first, second), programs=[PROGRAM])
    assert lines[2:] == [[Event(4, 10, "dot.1", BACKWARD)]]


def test_operations_of_tensorflow_have_their_scope_as_name():
    events = [
        ("all/head/MatMul:MatMul", 0, 1, {}),
        ("Iterator::Root", 1, 1, {}),
        ("EagerExecute: run", 2, 1, {}),
    ]
    pipeline = [("GatherV2:GatherV2", 0, 1, {}), ("IteratorGetNextOp::DoCompute", 2, 1, {})]
    lines = read(plane("/host:CPU", ("tf_Compute/1", events), ("tf_data_iterator/2", pipeline)))
    assert [event.owner for line in lines for event in line] == [
        *(Owner("forward", "all/head"), None, None, None, Owner("data_wait")),
    ]


def test_where_a_device_computes_the_host_does_no_work():
    host = ("python", [("a/b:Op", 0, 9, {}), ("step.data_wait", 10, 1, {})])
    kernels = [("sgemm", 2, 1, hlo("dot.1")), ("kernel", 3, 1, {"tf_op": "all/head/MatMul"})]
    device = plane("/device:GPU:0", ("Stream #1", kernels))
    lines = read(plane("/host:CPU", host), device, programs=[PROGRAM])
    assert [[event.owner for event in line] for line in lines] == [
        [None, Owner("data_wait")],
        [BACKWARD, Owner("forward", "all/head")],
    ]


def build():
    """Returns a model whose names could be taken for others, as those that Keras gives are."""
    inner = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4, name="dense"), keras.layers.Dense(4, name="up")],
        name="block",
    )
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4, name="dense_1")(inner(inputs))
    hidden = keras.layers.Add(name="add")([hidden, inputs])
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden), name="model")
    model.compile(keras.optimizers.Adam(name="adam"), "mse")
    return model


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("jit(_run)/jvp(model)/head/dot_general", ("forward", "head")),
        ("jit(_run)/transpose(jvp(model))/head/dot_general", ("backward", "head")),
        ("jit(_run)/jvp(model)/block/dense/jit(relu)/max", ("forward", "block/dense")),
        ("jit(_run)/jvp(model)/add/add", ("forward", "add")),
        ("jit(_run)/jvp(model)/dense_1/add", ("forward", "dense_1")),  # The name of the operation.
        ("jit(_run)/transpose(jvp(model))/add_any", ("backward", "model")),
        ("jit(_run)/jvp(compile_loss)/mean_squared_error/sub", ("loss", "")),
        ("jit(_run)/transpose(jvp(step.loss))/compile_loss/mul", ("loss", "")),
        ("jit(_run)/step.optimizer/adam/mul", ("optimizer", "")),
        ("jit(_run)/adam/mul", ("optimizer", "")),
        ("jit(_run)/jvp()/convert_element_type", ("forward", "model")),
        ("jit(_run)/step.backward/while/body/add", ("backward", "model")),
        ("jit(_run)/convert_element_type", ("rest", "")),
        ("copy", ("rest", "")),
        ("", ("rest", "")),
    ],
)
def test_a_scope_of_jax_names_its_owner(scope, expected):
    assert LayerScopes(build(), is_numbered=False).owner(scope) == expected


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("StatefulPartitionedCall/model_1/head_1/MatMul:_MklMatMul", ("forward", "head")),
        ("StatefulPartitionedCall/gradient_tape/model_1/head_1/MatMul", ("backward", "head")),
        # The first scope of `dense_1` has the name that the second one of `dense` got.
        ("model_1/block_1/dense_1/MatMul:MatMul", ("forward", "block/dense")),
        ("model_1/dense_1_1/MatMul:MatMul", ("forward", "dense_1")),
        ("model_1/dense_1_2/MatMul:MatMul", ("forward", "dense_1")),
        ("step.backward/AddN_6:AddN", ("backward", "model")),
        ("step.loss_1/compile_loss/sub:Sub", ("loss", "")),
        ("step.optimizer/adam/Mul_3:Mul", ("optimizer", "")),
        ("ReadVariableOp:ReadVariableOp", ("rest", "")),
    ],
)
def test_a_scope_of_tensorflow_names_its_owner(scope, expected):
    assert LayerScopes(build(), is_numbered=True).owner(scope) == expected
