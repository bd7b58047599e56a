"""Small ONNX graphs, written by hand: these passes know nothing of Keras."""

from collections import Counter

import numpy as np
import pytest


@pytest.fixture
def make_graph():
    """Returns a function from nodes and weights to a model with input `x` and output `y`.

    The nodes are ONNX's own, or a text: `"z = MatMul (x, kernel)  y = Cast <to = 7> (z)"`.
    """
    helper = pytest.importorskip("onnx.helper")
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import parser

    def make(nodes, weights, shape=(None, 4), output_shape=(None, 3), dtype=onnx.TensorProto.FLOAT):
        if isinstance(nodes, str):
            nodes = parser.parse_graph(f"graph () => () {{ {nodes} }}").node
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", dtype, output_shape)],
            [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    return make


@pytest.fixture
def dense(make_graph):
    """A product, a sum and a rectifier."""
    generator = np.random.default_rng(0)
    weights = {
        "kernel": generator.normal(size=(4, 3)).astype("float32"),
        "bias": generator.normal(size=3).astype("float32"),
    }
    nodes = "product = MatMul (x, kernel)  sum = Add (product, bias)  y = Relu (sum)"
    return make_graph(nodes, weights)


@pytest.fixture
def run():
    """Returns a function that runs a model on an array."""
    onnxruntime = pytest.importorskip("onnxruntime")

    def run_model(model, x):
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return session.run(None, {"x": x})[0]

    return run_model


@pytest.fixture
def parse():
    """Returns a function from the text of nodes, an input and an output to a model.

    Weights stand between `<` and `>` behind the output.
    """
    parser = pytest.importorskip("onnx.parser")
    pytest.importorskip("onnxruntime")

    def make(nodes, inputs="float[N,S,4] x", outputs="float[A,B,C] y", weights="", opset=18):
        text = f'<ir_version: 10, opset_import: ["" : {opset}]> graph ({inputs}) => ({outputs})'
        return parser.parse_model(f"{text} <{weights}> {{ {nodes} }}")

    return make


@pytest.fixture
def run_all():
    """Returns a function that runs a model on a dict of arrays."""
    onnxruntime = pytest.importorskip("onnxruntime")

    def run_model(model, arrays):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        input_names = {value.name for value in session.get_inputs()}
        return session.run(None, {name: arrays[name] for name in arrays if name in input_names})

    return run_model


@pytest.fixture
def check_pass(run_all):
    """Returns a function that applies a pass, compares what is computed, and counts operators.

    It returns how many replacements the pass says it made, and a `Counter` of the operators.
    """
    import onnx

    from keras_deepseek.deploy.onnx_passes.graph_view import GraphView

    def check(apply, model, batches, tolerance=1e-5):
        outputs_before = [run_all(model, arrays) for arrays in batches]
        num_replaced = apply(GraphView(model))
        onnx.checker.check_model(model, full_check=True)
        for arrays, expected in zip(batches, outputs_before, strict=True):
            for expected_array, received_array in zip(
                expected, run_all(model, arrays), strict=True
            ):
                np.testing.assert_allclose(
                    received_array, expected_array, atol=tolerance, rtol=tolerance
                )
        return num_replaced, Counter(node.op_type for node in model.graph.node)

    return check


@pytest.fixture
def check_changed(parse, check_pass):
    """Returns a function that applies a pass to a graph of which some texts were replaced.

    A text is replaced in the nodes or in the weights. It returns what `check_pass` does.
    """

    def check(apply, batches, nodes, weights, *changes, **options):
        for old, new in changes:
            assert old in nodes + weights
            nodes, weights = nodes.replace(old, new), weights.replace(old, new)
        return check_pass(apply, parse(nodes, weights=weights, **options), batches)

    return check


@pytest.fixture
def draw():
    """Returns a function from shapes by name to arrays of normal numbers by name."""

    def make(**shapes):
        generator = np.random.default_rng(0)
        return {
            name: generator.normal(size=shape).astype("float32") for name, shape in shapes.items()
        }

    return make
