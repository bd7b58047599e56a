"""Recordings of PyTorch's operations."""

import weakref

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="They are PyTorch's.")

if keras.backend.backend() == "torch":
    from keras_deepseek.backend.torch.recording import CannotRecordError, record, record_call


def record_one(function, *inputs):
    """Returns the recording of a function of tensors, as a function of them."""
    recording = record(lambda: function(*inputs), list(inputs))
    return lambda *tensors: recording(list(tensors))


def test_a_result_that_is_constant_may_be_overwritten():
    weight = torch.ones(3, requires_grad=True)

    def differentiate(x):
        return x * 2, torch.autograd.grad((weight * torch.ones(3)).sum(), weight)[0]

    run = record_one(differentiate, torch.ones(3))
    for _ in range(2):
        _, gradient = run(torch.ones(3))
        assert gradient.tolist() == [1.0, 1.0, 1.0]
        gradient.mul_(0)


def test_a_tensor_that_is_filled_starts_anew_each_time():
    def count(x):
        total = torch.zeros(2)
        total.add_(x)
        return total, total.clone()

    run = record_one(count, torch.ones(2))
    for _ in range(3):
        assert [tensor.tolist() for tensor in run(torch.full((2,), 5.0))] == [[5.0, 5.0]] * 2


def test_a_write_to_a_number_of_python_is_refused():
    def count(x):
        total = torch.tensor([0.0, 0.0])
        total.add_(x)
        return total

    with pytest.raises(CannotRecordError, match="constant"):
        record_one(count, torch.ones(2))


def test_variables_are_as_before_and_written_by_each_call():
    variable = torch.zeros(2)

    def add(x):
        variable.add_(x)
        return variable * 2

    run = record_one(add, torch.ones(2))
    assert variable.tolist() == [0.0, 0.0]
    for number in (1.0, 2.0):
        assert run(torch.ones(2)).tolist() == [2 * number] * 2
        assert variable.tolist() == [number] * 2


def test_a_copy_of_a_tensor_that_is_changed_later_stays():
    def change(x):
        hidden = x * 1.0
        kept = hidden.clone(memory_format=torch.contiguous_format)
        hidden.add_(1.0)
        return kept + hidden

    run = record_one(change, torch.zeros(2))
    assert run(torch.full((2,), 3.0)).tolist() == [7.0, 7.0]


def test_copies_of_copies_have_the_layout_of_the_last():
    def transpose(x):
        first = x.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
        second = first.clone(memory_format=torch.channels_last)
        return second * 2

    images = torch.arange(48.0).reshape(2, 4, 3, 2)
    run = record_one(transpose, images)
    expected, received = transpose(images + 1), run(images + 1)
    assert received.stride() == expected.stride()
    np.testing.assert_array_equal(received.numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 3, 128, 512), (3, 2, 0, 1)),  # The kernel of a convolution.
        ((1, 1, 512, 640), (3, 2, 0, 1)),
        ((3, 3, 3, 64, 256), (4, 3, 0, 1, 2)),
        ((64, 64, 512), (2, 0, 1)),
        ((64, 64, 512), (0, 2, 1)),  # Many matrices.
        ((64, 8, 8, 512), (2, 1, 0, 3)),
    ],
)
@pytest.mark.parametrize("is_part", [False, True])
def test_large_tensors_are_copied_to_the_layout_that_was_asked_for(shape, axes, is_part):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    memory_format = formats.get(len(axes), torch.contiguous_format)
    x = torch.randn(2, *shape).transpose(0, 1)[:, 1] if is_part else torch.randn(shape)
    x = x[..., 1:] if is_part else x

    def copy(x):
        permuted = x.permute(axes)
        return permuted.contiguous(memory_format=memory_format) + 0, permuted.contiguous()

    for copied, expected in zip(record_one(copy, x)(x), copy(x), strict=True):
        assert torch.equal(copied, expected)
        assert copied.stride() == expected.stride()


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x * float(x.sum()),
        lambda x: x * x.tolist()[0],
        lambda x: x * x.detach().numpy()[0],
        lambda x: x * torch.tensor(np.asarray(x)),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0],
        torch.nonzero,
        lambda x: x * np.float32(torch.unique(x).shape[0]),
        lambda x: x.clone().unsqueeze_(0),
    ],
)
def test_what_depends_on_numbers_is_refused(read):
    with pytest.raises(CannotRecordError):
        record_one(read, torch.ones(3))


def test_a_tensor_of_numbers_is_recorded_in_inference_mode_too():
    with torch.inference_mode():
        run = record_one(lambda x: x + torch.tensor([1.0, 2.0]).detach_(), torch.ones(2))
        assert run(torch.zeros(2)).tolist() == [1.0, 2.0]


def test_numbers_of_python_may_be_read():
    run = record_one(lambda x: x * float(torch.tensor(2.0) + 1), torch.ones(3))
    assert run(torch.ones(3)).tolist() == [3.0, 3.0, 3.0]


def test_random_numbers_are_fresh_and_those_of_the_generator():
    run = record_one(lambda x: torch.dropout(x, 0.5, train=True) + torch.rand(64), torch.ones(64))
    torch.manual_seed(3)
    received = [run(torch.ones(64)) for _ in range(2)]
    torch.manual_seed(3)
    for tensor in received:
        expected = torch.dropout(torch.ones(64), 0.5, train=True) + torch.rand(64)
        np.testing.assert_array_equal(tensor.numpy(), expected.numpy())
    assert not torch.equal(*received)


def test_setting_the_generator_is_refused():
    def draw(x):
        torch.manual_seed(3)
        return x + torch.rand(3)

    with pytest.raises(CannotRecordError, match="generator"):
        record_one(draw, torch.ones(3))


def test_structures_and_other_objects_come_back():
    marker = object()
    run = record_one(lambda x: ({"b": x + 1, "a": [x * 2, None]}, (marker,), 3, ()), torch.ones(1))
    result = run(torch.ones(1))
    assert list(result[0]) == ["b", "a"]
    assert result[0]["b"].tolist() == [2.0]
    assert result[0]["a"][1] is None
    assert result[1:] == ((marker,), 3, ())


def test_each_tensor_is_freed_after_its_last_use():
    alive = []

    def look(tensor):
        alive.append(weakref.ref(tensor))
        return tensor * 1

    def chain(x):
        for _ in range(4):
            x = record_call(look, [x])
        return x

    run = record_one(chain, torch.ones(3))
    alive.clear()
    result = run(torch.ones(3))
    assert [reference() is not None for reference in alive[1:]] == [False] * 3
    assert result.tolist() == [1.0] * 3
