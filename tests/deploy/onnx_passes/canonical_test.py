import random

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.canonical import make_canonical
from keras_deepseek.errors import ExportError


@pytest.fixture
def branching(make_graph):
    """Returns a function from a seed to one model, each time written otherwise."""

    def make(seed):
        from onnx import helper

        chance = random.Random(seed)
        tags = chance.sample(range(10_000), 20)

        def name(index):
            return f"layer_{tags[index]}/out:{tags[index]}"

        def branch(scale):
            inner = name(9)
            return helper.make_graph(
                [
                    helper.make_node("Mul", [name(0), scale], [inner]),
                    helper.make_node("Add", [inner, name(6)], [name(10)]),
                ],
                f"branch{tags[11]}",
                [],
                [helper.make_tensor_value_info(name(10), 1, [f"unknown_{tags[13]}", 3])],
            )

        nodes = [
            helper.make_node("MatMul", ["x", name(5)], [name(0)], doc_string=f"line {tags[0]}"),
            helper.make_node("ReduceSum", [name(0)], [name(1)], keepdims=0),
            helper.make_node("Greater", [name(1), name(7)], [name(2)]),
            helper.make_node(
                "If", [name(2)], [name(3)], then_branch=branch(name(8)), else_branch=branch(name(7))
            ),
            helper.make_node("Relu", [name(3)], ["y"]),
            helper.make_node("Neg", [name(0)], [name(4)]),  # Nobody needs it.
        ]
        generator = np.random.default_rng(0)
        weights = {
            name(5): generator.normal(size=(4, 3)).astype("float32"),
            name(6): generator.normal(size=3).astype("float32"),
            name(7): np.array(0.5, "float32"),
            name(8): np.array(2.0, "float32"),
        }
        shuffled = list(weights.items())
        chance.shuffle(shuffled)
        model = make_graph(nodes, dict(shuffled))
        for node in model.graph.node:
            entry = node.metadata_props.add()
            entry.key, entry.value = "stack_trace", f"/home/{tags[12]}/train.py"
        return model

    return make


def test_one_model_is_one_file_however_it_was_written(branching):
    files = set()
    for seed in range(5):
        model = branching(seed)
        make_canonical(model)
        files.add(model.SerializeToString())
    assert len(files) == 1
    assert b"/home/" not in files.pop()


def test_it_computes_the_same_and_leaves_out_what_nobody_needs(branching, run):
    import onnx

    model = branching(1)
    generator = np.random.default_rng(1)
    samples = [sign * generator.random((2, 4)).astype("float32") for sign in (1, -1)]
    expected = [run(model, x) for x in samples]
    make_canonical(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == [
        "MatMul",
        "ReduceSum",
        "Greater",
        "If",
        "Relu",
    ]
    for x, values in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(run(model, x), values)


def test_a_weight_that_is_an_output_stays(make_graph, run):
    model = make_graph([], {"y": np.ones((1, 3), "float32")}, output_shape=(1, 3))
    make_canonical(model)
    np.testing.assert_array_equal(run(model, np.ones((1, 4), "float32")), np.ones((1, 3)))


@pytest.mark.parametrize("copied", [0, 1])
def test_of_two_equal_outputs_of_a_loop_always_the_same_is_a_copy(make_graph, run, copied):
    names = ["sum", "sum"]
    names[copied] = "copy"
    nodes = f"""left_end, right_end = Loop (steps, , x, x) <body = body
        (int64 step, bool going, float[N, 4] left, float[N, 4] right)
        => (bool goes_on, float[N, 4] {names[0]}, float[N, 4] {names[1]})
        {{ goes_on = Identity (going)  sum = Add (left, right)  copy = Identity (sum) }}>
        difference = Sub (left_end, right_end)  y = Add (difference, left_end)"""
    model = make_graph(nodes, {"steps": np.array(3)}, output_shape=(None, 4))
    x = np.arange(8, dtype="float32").reshape(2, 4)
    expected = run(model, x)
    make_canonical(model)
    np.testing.assert_array_equal(run(model, x), expected)
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    kinds = [node.op_type for node in loop.attribute[0].g.node]
    assert kinds == ["Identity", "Add", "Identity"]
    last = loop.attribute[0].g.node[-1]
    assert loop.attribute[0].g.output[2].name == last.output[0]


def test_a_graph_that_goes_round_is_refused(make_graph):
    model = make_graph("a = Add (x, b)  b = Neg (a)  y = Relu (b)", {})
    with pytest.raises(ExportError, match="has a cycle"):
        make_canonical(model)
