import itertools

import numpy as np
import pytest

from keras_deepseek.backend.data.batch_source import BatchSource
from keras_deepseek.backend.data.batch_stream import BatchStream
from keras_deepseek.errors import InvalidInputError


class Numbers(BatchSource):
    """Each batch is `(pass, index, a number of NumPy's shared generator)`."""

    kind = "numbers"

    def __init__(self, length, exact=False, is_counted=True):
        self.length = length
        self.num_batches = length if is_counted or exact else None
        self.is_length_exact = exact
        self.ended = 0

    def batches(self, index, first):
        numbers = itertools.count() if self.length is None else range(self.length)
        numbers = itertools.islice(numbers, first if self.is_length_exact else 0, None)
        batches = ((index, number, np.random.randint(10**9)) for number in numbers)  # noqa: NPY002
        if not self.is_length_exact:
            next(itertools.islice(batches, first, first), None)
        return batches

    def end_pass(self):
        self.ended += 1


KINDS = {
    "exact": {"length": 5, "exact": True},
    "counted": {"length": 5},
    "unknown": {"length": 5, "is_counted": False},
    "endless": {"length": None},
}


def go_through(stream, epochs, position=None, stop=None):
    """Returns the batches of the epochs, and the position after `stop` of them."""
    batches, position_after = [], None
    done = 0
    for _ in range(epochs):
        stream.begin_epoch(done)
        for batch in stream.batches():
            done += 1
            batches.append(batch)
            if len(batches) == stop:
                if done == stream.epoch_length:
                    stream.end_epoch()
                    done = 0
                return batches, (done, stream.read_position(done), np.random.get_state())  # noqa: NPY002
        assert done == stream.epoch_length
        stream.end_epoch()
        done = 0
    return batches, position_after


@pytest.mark.parametrize("kind", ["exact", "counted", "unknown"])
def test_an_epoch_is_a_pass(kind):
    stream = BatchStream(Numbers(**KINDS[kind]), None)
    batches, _ = go_through(stream, 3)
    assert [batch[:2] for batch in batches] == [(i, j) for i in range(3) for j in range(5)]
    assert stream.source.ended == 3


@pytest.mark.parametrize("kind", ["exact", "counted", "unknown"])
def test_epochs_of_so_many_steps_follow_each_other_through_the_passes(kind):
    stream = BatchStream(Numbers(**KINDS[kind]), 2)
    assert stream.steps == 2
    lengths = []
    for _ in range(4):
        stream.begin_epoch()
        lengths.append(len(list(stream.batches())))
        stream.end_epoch()
    assert lengths == [2, 2, 1, 2]  # As Keras: a pass that ends early ends the epoch.
    assert stream.source.ended == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [None, 3, 5])
def test_it_goes_on_from_any_position(kind, steps):
    if kind == "endless" and steps is None:
        pytest.skip("An epoch without end.")
    np.random.seed(1)  # noqa: NPY002
    expected, _ = go_through(BatchStream(Numbers(**KINDS[kind]), steps), 3)
    for stop in range(1, len(expected)):
        np.random.seed(1)  # noqa: NPY002
        stream = BatchStream(Numbers(**KINDS[kind]), steps)
        used, (done, position, state) = go_through(stream, 3, stop=stop)
        np.random.seed(99)  # noqa: NPY002
        resumed = BatchStream(Numbers(**KINDS[kind]), steps)
        resumed.go_to(position)
        np.random.set_state(state)  # noqa: NPY002
        resumed.begin_epoch(done)
        unused = list(resumed.batches())
        assert used + unused == expected[: len(used) + len(unused)]
        resumed.end_epoch()
        if len(used) + len(unused) < len(expected):
            resumed.begin_epoch()
            assert next(resumed.batches()) == expected[len(used) + len(unused)]


@pytest.mark.parametrize("kind", ["unknown", "endless"])
def test_no_batch_is_drawn_that_no_epoch_needs(kind):
    stream = BatchStream(Numbers(**KINDS[kind]), 3)
    go_through(stream, 1)
    assert stream.read_position()["drawn"] == 3
    assert stream.can_go_on()


@pytest.mark.parametrize(("steps", "epochs"), [(None, 1), (3, 2), (5, 1), (9, 1)])
def test_data_that_can_t_be_repeated_have_an_end(steps, epochs):
    source = Numbers(5, is_counted=False)
    source.can_repeat = False
    stream = BatchStream(source, steps)
    for epoch in range(1, epochs + 1):
        go_through(stream, 1)
        assert stream.can_go_on() == (epoch < epochs)
    assert stream.is_epoch_short == (steps in (3, 9))


def test_batches_that_keras_took_ahead_are_not_used_yet():
    stream = BatchStream(Numbers(5), None)
    stream.begin_epoch()
    iterator = stream.batches()
    drawn = [next(iterator) for _ in range(3)]
    position = stream.read_position(done=2)
    resumed = BatchStream(Numbers(5), None)
    resumed.go_to(position)
    resumed.begin_epoch(2)
    assert next(resumed.batches()) == drawn[2]


def test_before_an_epoch_the_next_batch_can_be_looked_at():
    stream = BatchStream(Numbers(2), None)
    assert [batch[:2] for batch in stream.peek(3)] == [(0, 0), (0, 1)]
    assert [batch[:2] for batch in stream.batches()] == [(0, 0)]
    batches, _ = go_through(stream, 1)
    assert [batch[:2] for batch in batches] == [(0, 0), (0, 1)]


def test_no_data_at_all_are_refused():
    with pytest.raises(InvalidInputError, match="hold no batch"):
        BatchStream(Numbers(0), None).begin_epoch()


@pytest.mark.parametrize(
    ("other", "steps", "match"),
    [
        (Numbers(4), None, "num_batches is 4 and was 5"),
        (Numbers(5), 2, "steps_per_epoch is 2 and was None"),
    ],
)
def test_other_data_are_refused(other, steps, match):
    stream = BatchStream(Numbers(5), None)
    stream.begin_epoch()
    next(stream.batches())
    with pytest.raises(InvalidInputError, match=match):
        BatchStream(other, steps).go_to(stream.read_position(1))


def test_data_that_end_before_the_position_are_refused():
    stream = BatchStream(Numbers(5, is_counted=False), None)
    stream.begin_epoch()
    assert len(list(itertools.islice(stream.batches(), 4))) == 4
    with pytest.raises(InvalidInputError, match="end before batch 5"):
        BatchStream(Numbers(2, is_counted=False), None).go_to(stream.read_position(4))


def test_data_that_end_before_they_said_are_refused():
    class Short(Numbers):
        def batches(self, index, first):
            return itertools.islice(super().batches(index, first), 2)

    stream = BatchStream(Short(5, exact=True), None)
    stream.begin_epoch()
    with pytest.raises(InvalidInputError, match="ended after 2 batches; expected 5"):
        list(stream.batches())


def test_an_error_of_the_data_is_kept():
    class Failing(Numbers):
        def batches(self, index, first):
            yield from [0][first:]
            raise RuntimeError("no more")

    stream = BatchStream(Failing(5), None)
    assert stream.peek(2) == [0]
    stream.begin_epoch()
    batches = stream.batches()
    assert next(batches) == 0  # The look ahead at the next one hides no good batch.
    assert stream.error is None
    with pytest.raises(RuntimeError):
        next(batches)
    assert str(stream.error) == "no more"
    resumed = BatchStream(Failing(5), None)
    resumed.go_to(stream.read_position(1))
    resumed.begin_epoch(1)
    with pytest.raises(RuntimeError, match="no more"):
        next(resumed.batches())


def test_a_pass_that_is_left_is_closed():
    class Loading(Numbers):
        is_loading = False

        def batches(self, index, first):
            self.is_loading = True
            try:
                yield from super().batches(index, first)
            finally:
                self.is_loading = False

    source = Loading(length=5)
    stream = BatchStream(source, None)
    stream.close()  # Nothing was begun.
    stream.begin_epoch()
    assert next(stream.batches())[1] == 0
    assert source.is_loading
    stream.close()
    assert not source.is_loading


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("kind", ["exact", "counted", "unknown"])
def test_the_batches_that_are_looked_at_are_the_next_of_the_epoch(kind, steps):
    stream = BatchStream(Numbers(**KINDS[kind]), steps)
    assert stream.look_ahead(2) == []
    drawn = []
    stream.on_take = drawn.append
    stream.begin_epoch()
    batches = stream.batches()
    assert [number for _, number, _ in stream.look_ahead(2)] == [0, 1]
    assert [number for _, number, _ in stream.look_ahead(9)] == list(range(steps or 5))
    assert next(batches)[1] == 0
    assert [number for _, number, _ in stream.look_ahead(9)] == list(range(1, steps or 5))
    assert [batch[1] for batch in batches] == list(range(1, steps or 5))
    assert stream.look_ahead(2) == []
    assert [number for _, number, _ in drawn] == list(range(steps or 5))


def test_a_batch_that_fails_fails_when_it_is_taken():
    class Failing(Numbers):
        def batches(self, index, first):
            yield (index, 0, 0)
            raise ValueError("The data fail.")

    stream = BatchStream(Failing(5), None)
    stream.begin_epoch()
    assert len(stream.look_ahead(3)) == 1
    batches = stream.batches()
    next(batches)
    assert stream.look_ahead(3) == []
    with pytest.raises(ValueError, match="The data fail"):
        next(batches)
