"""The messages are encoded here by hand, as the published `.proto` files number their fields."""

import keras
import pytest

from keras_deepseek.backend.profiling.layer_scopes import LayerScopes
from keras_deepseek.backend.profiling.step_trace import Event, Owner
from keras_deepseek.backend.profiling.xplane import read_lines

NAMES = ["hlo_op", "hlo_module", "program_id", "_p", "_c", "tf_op", "jit_run"]


def integer(value):
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def message(*fields):
    """Returns a message of `(number, value)` pairs: integers, texts or messages."""
    encoded = b""
    for number, value in fields:
        if isinstance(value, int):
            encoded += integer(number << 3) + integer(value)
            continue
        data = value.encode() if isinstance(value, str) else value
        encoded += integer(number << 3 | 2) + integer(len(data)) + data
    return encoded


def table(number, names):
    return [
        (number, message((1, index), (2, message((1, index), (2, name)))))
        for index, name in enumerate(names)
    ]


def plane(name, *lines):
    names = list(dict.fromkeys(event for _, events in lines for event, *_ in events))
    lines_message = []
    for line, events in lines:
        fields = []
        for event, start, length, stats in events:
            statistics = [
                (4, message((1, NAMES.index(stat)), (7, NAMES.index(value))))
                if value in NAMES
                else (
                    4,
                    message((1, NAMES.index(stat)), (5 if isinstance(value, str) else 4, value)),
                )
                for stat, value in stats.items()
            ]
            at = [(2, start * 10**12), (3, length * 10**12)]
            fields.append((4, message((1, names.index(event)), *at, *statistics)))
        lines_message.append((3, message((2, line), (3, 10**9), *fields)))
    return message((2, name), *lines_message, *table(4, names), *table(5, NAMES))


def computation(number, *instructions):
    """Returns a computation of `(id, name, scope, operands, called)` tuples."""
    instruction_messages = [
        message(
            *((1, name), (7, message((2, scope))), (35, number)),
            (36, b"".join(map(integer, operands))),
            (38, b"".join(map(integer, called))),
        )
        for number, name, scope, operands, called in instructions
    ]
    return (3, message(*((2, instruction) for instruction in instruction_messages), (5, number)))


def program(module, *computations):
    proto = message((1, message((1, "jit_run"), *computations)))
    entry = message((1, 3), (2, message((1, 3), (2, module), (5, message((1, 0), (6, proto))))))
    return (4, entry)


def programs(*encoded_programs):
    return message((2, "/host:metadata"), *encoded_programs)


def hlo(name, **more):
    return {"hlo_op": name, "hlo_module": "jit_run", "program_id": 7, **more}


@pytest.fixture
def read(tmp_path):
    def read(*planes):
        folder = tmp_path / "plugins/profile/now"
        folder.mkdir(parents=True)
        (folder / "host.xplane.pb").write_bytes(
            message(*((1, encoded_plane) for encoded_plane in planes))
        )
        layers = [keras.Input((2,)), keras.layers.Dense(1, name="head")]
        model = keras.Sequential(layers, name="all")
        model.compile("sgd", "mse")
        return read_lines(str(tmp_path), LayerScopes(model, is_numbered=False))

    return read


SCOPE = "jit(run)/transpose(jvp(all))/head/"
STEP = (
    computation(1, (11, "max.1", SCOPE + "max", [], [])),
    computation(
        0,
        (0, "p.1", "args[0]", [], []),
        (1, "fusion.1", "", [0], [1]),
        (2, "convert.1", "", [0], []),
        (3, "dot.1", SCOPE + "dot_general", [2, 1], []),
        (4, "copy.1", "", [3], []),
        (5, "copy", "", [0], []),
        (6, "tuple", "", [4, 5], []),
    ),
)
PROGRAM = programs(program("jit_run(7)", *STEP))
BACKWARD, REST = Owner("backward", "all/head"), Owner("rest")


def test_an_instruction_has_the_layer_of_its_program(read):
    events = [
        ("dot.1", 2, 3, hlo("dot.1")),
        ("copy", 6, 1, hlo("copy")),
        ("Execute", 1, 9, {}),
        ("step.data_wait", 20, 1, {}),
    ]
    (line,) = read(PROGRAM, plane("/host:CPU", ("python", events)))
    assert [event._replace(start=round(event.start), end=round(event.end)) for event in line] == [
        Event(3, 6, "dot.1", BACKWARD),
        Event(7, 8, "copy", REST),
        Event(2, 11, "Execute", None),
        Event(21, 22, "step.data_wait", Owner("data_wait")),
    ]


def test_an_instruction_without_a_scope_has_that_of_its_neighbours(read):
    names = ("fusion.1", "convert.1", "copy.1")
    events = [(name, index, 1, hlo(name)) for index, name in enumerate(names)]
    (line,) = read(PROGRAM, plane("/host:CPU", ("worker", events)))
    assert [event.owner for event in line] == [BACKWARD] * 3


@pytest.mark.parametrize("number", [7, 9])
def test_a_program_of_the_compilation_cache_has_another_number(read, number):
    """It ran as 7, which may be that of a smaller or of a larger program of its name."""
    smaller = program("jit_run(8)", computation(2, (0, "dot.1", "jit(run)/dot", [], [])))
    copies = [(index, f"copy.{index}", "jit(run)/copy", [], []) for index in range(1, 9)]
    larger = program(
        f"jit_run({16 - number})",
        computation(3, (0, "dot.1", "jit(run)/dot", [], []), (20, "max", "", [], []), *copies),
    )
    events = [(name, start, 1, hlo(name)) for start, name in enumerate(["dot.1", "copy.1"])]
    metadata = programs(larger, program(f"jit_run({number})", *STEP), smaller)
    (line,) = read(metadata, plane("/host:CPU", ("worker", events)))
    assert [event.owner for event in line] == [BACKWARD] * 2


def test_an_instruction_runs_on_until_another_thread_ends_it(read):
    first = ("worker", [("dot.1", 2, 1, hlo("dot.1", _p=12)), ("copy", 3, 1, hlo("copy", _p=13))])
    second = ("other", [("end: copy", 4, 0, {"_c": 13}), ("end: dot.1", 9, 0, {"_c": 12})])
    lines = read(PROGRAM, plane("/host:CPU", first, second))
    assert lines[2:] == [[Event(pytest.approx(4), pytest.approx(10), "dot.1", BACKWARD)]]


def test_operations_of_tensorflow_have_their_scope_as_name(read):
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


def test_where_a_device_computes_the_host_does_no_work(read):
    host = ("python", [("a/b:Op", 0, 9, {}), ("step.data_wait", 10, 1, {})])
    kernels = [("sgemm", 2, 1, hlo("dot.1")), ("kernel", 3, 1, {"tf_op": "all/head/MatMul"})]
    device = plane("/device:GPU:0", ("Stream #1", kernels))
    lines = read(PROGRAM, plane("/host:CPU", host), device)
    assert [[event.owner for event in line] for line in lines] == [
        [None, Owner("data_wait")],
        [BACKWARD, Owner("forward", "all/head")],
    ]
