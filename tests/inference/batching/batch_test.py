import gc
import threading
import weakref

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError
from keras_deepseek.inference.batching.batch import Batch, Request, Slice, check_rows


def whole(request):
    return Slice(request, 0, request.rows)


def batch_of(*slices):
    return Batch(slices, "idle", 0.0)


def test_rows_of_several_requests_are_stacked_and_the_last_is_repeated(rows):
    batch = batch_of(whole(Request(rows(1, 2))), whole(Request(rows(3))))
    assert batch.rows == 3
    assert batch.stack(5)["x"][:, 0].tolist() == [1, 2, 3, 3, 3]


def test_a_batch_without_rows_is_filled_with_zeros_of_the_right_shape(rows):
    stacked = batch_of(whole(Request(rows()))).stack(2)["x"]
    assert stacked.dtype == np.float32
    assert stacked.tolist() == [[0, 0], [0, 0]]


def test_strings_are_filled_up_and_none_is_an_empty_one():
    none, two = np.zeros((0, 1), object), np.array([[b"a"], ["b"]], object)
    assert batch_of(whole(Request({"x": none}))).stack(2)["x"].tolist() == [[b""], [b""]]
    assert batch_of(whole(Request({"x": two}))).stack(3)["x"].tolist() == [[b"a"], ["b"], ["b"]]


def test_outputs_without_a_row_for_each_are_named():
    check_rows({"y": np.ones((2, 3)), "z": np.ones(2)}, 2)
    for array in (np.ones(()), np.ones((3, 2))):
        with pytest.raises(NotSupportedError, match=r"Output 'y' has shape .* for 2 rows"):
            check_rows({"y": array}, 2)


def test_each_request_gets_its_own_rows_and_no_padding(rows):
    first, second = Request(rows(1, 2)), Request(rows(3))
    batch = batch_of(whole(first), whole(second))
    batch.distribute(batch.stack(4), 4)
    assert first.outputs["x"][:, 0].tolist() == [1, 2]
    assert second.outputs["x"][:, 0].tolist() == [3]


def test_parts_are_put_together_in_the_order_of_their_rows(rows):
    request = Request(rows(1, 2, 3))
    late, early = batch_of(Slice(request, 2, 3)), batch_of(Slice(request, 0, 2))
    late.distribute(late.stack(1), 1)
    assert not request.is_over
    early.distribute(early.stack(2), 2)
    assert request.outputs["x"][:, 0].tolist() == [1, 2, 3]


def test_a_request_that_failed_in_one_part_keeps_its_error(rows):
    request = Request(rows(1, 2))
    batch_of(Slice(request, 0, 1)).fail(ArithmeticError("first"))
    batch_of(Slice(request, 1, 2)).fail(ArithmeticError("second"))
    assert str(request.error) == "first"


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_an_output_without_a_row_for_each_row_is_refused(rows, shape):
    batch = batch_of(whole(Request(rows(1, 2))))
    with pytest.raises(NotSupportedError, match="one row in the first axis"):
        batch.distribute({"y": np.zeros(shape)}, 2)


@pytest.mark.parametrize(
    "inputs", [{}, {"x": np.zeros(())}, {"x": np.zeros((1, 2)), "z": np.zeros((2, 2))}]
)
def test_inputs_without_one_number_of_rows_are_refused(inputs):
    with pytest.raises(InvalidInputError, match="same number of rows"):
        Request(inputs)


def test_only_equal_shapes_and_dtypes_share_a_queue():
    shape_key = Request({"x": np.zeros((1, 2), "float32")}).shape_key
    assert Request({"x": np.zeros((5, 2), "float32")}).shape_key == shape_key
    assert Request({"x": np.zeros((1, 3), "float32")}).shape_key != shape_key
    assert Request({"x": np.zeros((1, 2), "int32")}).shape_key != shape_key


def test_splitting_gives_each_request_a_batch_of_its_own(rows):
    batch = batch_of(whole(Request(rows(1))), whole(Request(rows(2, 3))))
    assert [(part.rows, part.reason) for part in batch.split()] == [(1, "retried"), (2, "retried")]


def test_a_request_is_delivered_once_whoever_comes_first(rows):
    delivered = []
    request = Request(rows(1), delivered.append)
    request.answer(0, {"y": rows(2)["x"]}, 1)
    request.fail(ArithmeticError("too late"))
    request.answer(0, {"y": rows(3)["x"]}, 1)
    assert delivered == [request]
    assert request.error is None
    assert request.outputs["y"][0, 0] == 2
    assert not request.withdraw()


def test_of_many_threads_that_finish_a_request_one_does(rows):
    for _ in range(20):
        delivered, start = [], threading.Barrier(4)
        request = Request(rows(1), delivered.append)

        def finish(number, request=request, start=start):
            start.wait(60)
            request.fail(ArithmeticError(str(number)))

        threads = [threading.Thread(target=finish, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert delivered == [request]


def test_what_was_withdrawn_is_not_delivered(rows):
    delivered = []
    request = Request(rows(1), delivered.append)
    assert request.withdraw()
    request.answer(0, rows(1), 1)
    assert delivered == []
    assert request.is_over
    assert not request.has_answer


def test_a_request_and_what_has_taken_its_answer_do_not_keep_each_other(rows):
    class Taker:
        def __call__(self, request):
            pass

    taker = Taker()
    taker.request = Request(rows(1), taker)
    taker.request.answer(0, rows(1), 1)
    taker_reference = weakref.ref(taker)
    gc.disable()
    try:
        del taker
        assert taker_reference() is None
    finally:
        gc.enable()
