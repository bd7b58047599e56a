import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.precision import check_bfloat16
from keras_deepseek.errors import InvalidInputError

onnx = pytest.importorskip("onnx")

BRIEF = onnx.TensorProto.BFLOAT16


@pytest.fixture
def in_bfloat16(make_graph):
    """Returns a function from nodes that compute `z` of `b`, in bfloat16, to a model."""

    def make(nodes, size=3):
        around = f"b = Cast <to = {BRIEF}> (x)  {nodes}  y = Cast <to = 1> (z)"
        model = make_graph(around, {}, shape=(2, 1, None), output_shape=None)
        kernel = onnx.helper.make_tensor("kernel", BRIEF, (1, 1, size), np.ones(size))
        model.graph.initializer.append(kernel)
        return model

    return make


def test_what_onnx_has_in_bfloat16_passes(in_bfloat16):
    check_bfloat16(in_bfloat16("a = Mul (b, kernel)  z = Concat <axis = 0> (a, a, a)"), 25)


def test_the_opset_that_has_the_operator_is_named(in_bfloat16):
    model = in_bfloat16("z = Conv (b, kernel)")
    with pytest.raises(InvalidInputError, match=r"no Conv in bfloat16 at opset 18\. Pass opset=22"):
        check_bfloat16(model, 25)
    with pytest.raises(InvalidInputError, match=r"opset 18\. Pass precision='float16'"):
        check_bfloat16(model, 21)


def test_operators_inside_of_others_count(in_bfloat16):
    branch = "branch () => (bfloat16[] inner) { inner = Conv (b, kernel) }"
    nodes = f"""yes = Constant <value = bool {{1}}> ()
        z = If (yes) <then_branch = {branch}, else_branch = {branch}>"""
    with pytest.raises(InvalidInputError, match="no Conv in bfloat16"):
        check_bfloat16(in_bfloat16(nodes), 25)


def test_types_are_inferred_without_the_weights(in_bfloat16, monkeypatch):
    infer = onnx.shape_inference.infer_shapes
    sizes = []

    def measured(model, **options):
        sizes.append(model.ByteSize())
        return infer(model, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", measured)
    # The kernel alone says what the product is given.
    model = in_bfloat16("a = Mul (b, kernel)  z = Conv (a, kernel)", size=100_000)
    with pytest.raises(InvalidInputError, match=r"no Conv in bfloat16 at opset 18\. Pass opset=22"):
        check_bfloat16(model, 25)
    (size,) = sizes
    assert model.ByteSize() > 200_000 > 100 * size
    assert len(model.graph.initializer) == 1
