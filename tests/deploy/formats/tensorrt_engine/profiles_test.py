import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.deploy.formats.tensorrt_engine.profiles import resolve_profiles
from keras_deepseek.errors import InvalidInputError

TEXT = Signature(
    inputs=(
        TensorSpec("tokens", (None, None), "int32"),
        TensorSpec("features", (None, 8, None), "float32"),
    ),
    outputs=(),
)
FIXED = Signature(inputs=(TensorSpec("image", (2, 8), "float32"),), outputs=())


def test_free_axes_are_bounded_and_fixed_ones_kept():
    (profile,) = resolve_profiles(TEXT, None)
    assert profile.shapes == {
        "tokens": ((1, 1), (4, 16), (32, 64)),
        "features": ((1, 8, 1), (4, 8, 16), (32, 8, 64)),
    }
    assert str(profile) == "batch 1/4/32, tokens_axis_1 1/16/64, features_axis_2 1/16/64"


def test_an_axis_is_given_its_sizes_by_name():
    (profile,) = resolve_profiles(TEXT, {"batch": (2, 2, 2), "tokens_axis_1": [5, 6, 7]})
    assert profile.shapes == {
        "tokens": ((2, 5), (2, 6), (2, 7)),
        "features": ((2, 8, 1), (2, 8, 16), (2, 8, 64)),
    }


def test_an_input_is_given_its_whole_shapes_and_their_batch_is_everyones():
    (profile,) = resolve_profiles(
        TEXT,
        {"features": ((1, 8, 3), (2, 8, 4), (3, 8, 5)), "tokens_axis_1": (1, 2, 3)},
    )
    assert profile.shapes["tokens"] == ((1, 1), (2, 2), (3, 3))
    assert profile.sizes["features_axis_2"] == (3, 4, 5)


def test_there_may_be_several_profiles():
    first, second = resolve_profiles(TEXT, [{"batch": (1, 1, 1)}, {"batch": (2, 8, 16)}])
    assert first.sizes["batch"] == (1, 1, 1)
    assert second.sizes["batch"] == (2, 8, 16)


def test_a_batch_is_within_a_profile_or_not():
    (profile,) = resolve_profiles(TEXT, {"batch": (2, 3, 4)})
    assert profile.takes({"tokens": (2, 1), "features": (2, 8, 64)})
    assert not profile.takes({"tokens": (1, 1), "features": (1, 8, 64)})
    assert not profile.takes({"tokens": (2, 1), "features": (2, 8, 65)})


def test_an_input_may_have_the_name_of_the_batch():
    batch = Signature(inputs=(TensorSpec("batch", (None, 3), "float32"),), outputs=())
    (by_axis,) = resolve_profiles(batch, {"batch": (1, 2, 3)})
    (by_input,) = resolve_profiles(batch, {"batch": ((1, 3), (2, 3), (3, 3))})
    assert by_axis == by_input


def test_without_a_free_axis_there_is_nothing_to_choose():
    (profile,) = resolve_profiles(FIXED, None)
    assert profile.shapes == {"image": ((2, 8),) * 3}
    assert str(profile) == "fixed sizes"
    with pytest.raises(InvalidInputError, match="Known: image"):
        resolve_profiles(FIXED, {"batch": (1, 2, 3)})


@pytest.mark.parametrize("profiles", [[], "batch", 3, [("batch", (1, 2, 3))], [{}, None]])
def test_what_is_no_profile_is_refused(profiles):
    with pytest.raises(InvalidInputError, match=r"must be a dict, as in .*received"):
        resolve_profiles(TEXT, profiles)


@pytest.mark.parametrize(
    ("profile", "match"),
    [
        ({"tokens_axis1": (1, 2, 3)}, "did you mean 'tokens_axis_1'"),
        ({"batch": (4, 2, 8)}, "must ascend from 1"),
        ({"batch": (0, 2, 8)}, "must ascend from 1"),
        ({"batch": (1, 2)}, "three integers, the smallest, usual, largest"),
        ({"batch": 4}, "three integers"),
        ({"batch": (1, 2.0, 3)}, "three integers"),
        ({"batch": ((1, 2), (2, 2), (3, 2))}, "three integers"),
        ({"tokens": (1, 2, 3)}, r"three shapes.*tokens: int32 \(any, any\)"),
        ({"tokens": ((1, 2, 3), (1, 2, 3), (1, 2, 3))}, "three shapes"),
        ({"features": ((1, 9, 1), (1, 9, 1), (1, 9, 1))}, "three shapes"),
        ({"tokens": ((1, 4), (1, 2), (1, 8))}, "axis 1 of input 'tokens'.*must ascend"),
        ({"tokens": ((1, 1), (2, 2), (3, 3)), "batch": (1, 2, 4)}, "'batch' is given two ranges"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(profile, match):
    with pytest.raises(InvalidInputError, match=match):
        resolve_profiles(TEXT, profile)
