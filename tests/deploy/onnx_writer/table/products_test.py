"""Products of matrices and tensors in an ONNX file compute what Keras does."""

import numpy as np
import pytest
from keras import ops

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import check_operation

_random = np.random.default_rng(0)


def normal(*shape):
    return _random.normal(size=shape).astype("float32")


X, KERNEL, STACK = normal(2, 4, 5), normal(5, 4, 3), normal(2, 5, 3)
SMALL = np.array([[127, 100, 3], [-128, -100, 2]], "int8")
BYTES = SMALL.astype("uint8")
LARGE = np.array([[2**31 - 5, 3], [-(2**31), 7]], "int32")

PRODUCTS = {
    "bij,bjk->bik": [(2, 3, 4), (2, 4, 5)],
    "bthd,bshd->bhts": [(2, 3, 4, 5), (2, 6, 4, 5)],
    "bhts,bshd->bthd": [(2, 4, 3, 6), (2, 6, 4, 5)],
    "...ij,...jk->...ik": [(2, 2, 3, 4), (2, 2, 4, 5)],
    "...i,...i->...": [(2, 4, 3), (2, 4, 3)],
    "bi,bi->b": [(2, 3), (2, 3)],
    "bi,bj->ij": [(2, 3), (2, 4)],
    "bij,bj": [(2, 3, 4), (2, 4)],
    "bij,bik->bj": [(2, 3, 4), (2, 3, 2)],
    "bij,bkl->bijkl": [(2, 3, 4), (2, 2, 3)],
    "bcd,bde->ceb": [(2, 3, 4), (2, 4, 5)],
    "bi,bj,bk->bijk": [(2, 3), (2, 4), (2, 2)],
    "bij->bji": [(2, 3, 4)],
    "bij->b": [(2, 3, 4)],
    "bii->bi": [(2, 3, 3)],
    "bii": [(2, 3, 3)],
}


@pytest.mark.parametrize("subscripts", PRODUCTS)
def test_einsum(subscripts):
    arrays = [normal(*shape) for shape in PRODUCTS[subscripts]]
    check_operation(lambda *tensors: ops.einsum(subscripts, *tensors), *arrays)


@pytest.mark.parametrize(
    "subscripts", ["bijc,bkc->bijk", "bijc,bkc->bkij", "bijc,bijd->bcd", "bijc,bijkd->bckd"]
)
def test_einsum_merges_axes_of_free_lengths(subscripts):
    shapes = {"bijc": (2, 3, 2, 4), "bkc": (2, 5, 4), "bijd": (2, 3, 2, 3)}
    terms = subscripts.partition("->")[0].split(",")
    arrays = [normal(*shapes.get(term, (2, 3, 2, 2, 3))) for term in terms]
    check_operation(lambda *x: ops.einsum(subscripts, *x), *arrays, free_axes=[1])


CASES = {
    "cdist": (ops.cdist, normal(2, 4, 5), normal(2, 6, 5)),
    "dot by a number": (lambda x: ops.dot(x, 2.0), X),
    "dot of a matrix": (lambda x: ops.dot(x, KERNEL[:, 0]), X),
    "dot of a vector": (lambda x: ops.dot(x, KERNEL[:, 0, 0]), X),
    "einsum by a kernel": (lambda x: ops.einsum("btd,dhk->bthk", x, KERNEL), X),
    "einsum by a kernel, transposed": (lambda x: ops.einsum("btd,dhk->bhkt", x, KERNEL), X),
    "einsum by a kernel, back": (
        lambda x: ops.einsum("bthk,dhk->btd", x, KERNEL),
        normal(2, 6, 4, 3),
    ),
    "einsum by a vector": (lambda x: ops.einsum("btd,d->bt", x, KERNEL[:, 0, 0]), X),
    "einsum of int8": (lambda x: ops.einsum("bi,ij->bj", x, SMALL[:1].T * SMALL[:1]), SMALL),
    "inner": (lambda x: ops.inner(x, KERNEL[:, 0].T), X),
    "inner of a number": (lambda x: ops.inner(x, ops.sum(x)), X),
    "kron": (lambda x: ops.kron(x, KERNEL[0]), X[0]),
    "matmul of bytes overflows": (lambda x: ops.matmul(x, BYTES[:1].T), BYTES),
    "matmul of int8": (lambda x: ops.matmul(x, SMALL[:1].T), SMALL),
    "matmul of no numbers": (lambda x: ops.matmul(x[:, :, :0], KERNEL[:0, 0]), X),
    "matmul of stacks": (ops.matmul, X, normal(2, 5, 2)),
    "matmul of vectors": (lambda x: ops.matmul(x[:, 0], KERNEL[:, 0, 0]), X),
    "outer": (lambda x: ops.outer(x, KERNEL[0, 0]), X),
    "tensordot": (lambda x: ops.tensordot(x, KERNEL, axes=[[1, 2], [1, 0]]), X),
    "tensordot of last axes": (lambda x: ops.tensordot(x, KERNEL[:, 0].T, axes=[[-1], [-1]]), X),
    "tensordot of no axes": (lambda x: ops.tensordot(x, KERNEL[0, 0], axes=0), X),
    "tensordot of one axis": (lambda x: ops.tensordot(x, KERNEL[:, 0], axes=1), X),
    "vdot": (lambda x: ops.vdot(ops.ravel(x), ops.ravel(x) * 2), X),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:NotImplemented should not be used:DeprecationWarning")
@pytest.mark.parametrize("case", CASES)  # Keras compares shapes with `!=` of a tuple and a list.
def test_product(case):
    function, *arrays = CASES[case]
    check_operation(function, *arrays)


REFERENCES = {
    # PyTorch takes the first axis of size 3 for that of the vectors.
    "cross": (ops.cross, np.cross, normal(2, 4, 3), normal(2, 4, 3)),
    "cross along an axis": (
        lambda x, y: ops.cross(x, y, axis=1),
        lambda x, y: np.cross(x, y, axis=1),
        normal(2, 3, 4),
        normal(2, 3, 4),
    ),
    # TensorFlow refuses sizes of 1.
    "einsum that broadcasts": (
        lambda x: ops.einsum("bij,jk->bik", x, KERNEL[:1, 0]),
        lambda x: np.einsum("bij,jk->bik", x, KERNEL[:1, 0]),
        X,
    ),
    # TensorFlow computes with floats, and clips.
    "matmul of integers overflows": (
        lambda x: ops.matmul(x, LARGE),
        lambda x: np.matmul(x, LARGE),
        LARGE,
    ),
    # PyTorch multiplies the tensors as stacks of matrices.
    "dot of tensors": (lambda x: ops.dot(x, STACK), lambda x: np.dot(x, STACK), X),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_product_follows_numpy(case):
    function, reference, *arrays = REFERENCES[case]
    check_operation(function, *arrays, reference=reference)


def test_half_precision():
    half = X.astype("float16")

    def function(x):
        return ops.einsum("btd,dhk->bthk", x, KERNEL.astype("float16"))

    check_operation(function, half, tolerance=2e-3)


def test_an_einsum_of_two_tensors_needs_one_product_and_no_transposition_behind_it():
    proto = check_operation(
        lambda x, y: ops.einsum("bthd,bshd->bhts", x, y), normal(2, 3, 4, 5), normal(2, 6, 4, 5)
    )
    kinds = [node.op_type for node in proto.graph.node]
    assert sorted(kinds) == ["MatMul", "Transpose", "Transpose"]


def test_a_kernel_is_arranged_when_the_file_is_written():
    proto = check_operation(lambda x: ops.einsum("btd,dhk->bthk", x, KERNEL), X)
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Reshape"]


def test_a_cross_product_of_two_numbers_is_refused():
    with pytest.raises(NoEntryError):
        check_operation(lambda x: ops.cross(x, x), X[:, :, :2])
