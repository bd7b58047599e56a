import types

import pytest

from keras_deepseek.deploy.formats.tensorrt_engine.capabilities import (
    check_capabilities,
    check_turing,
)
from keras_deepseek.errors import InvalidInputError


class ComputeCapability:
    NONE, CURRENT, SM120, SM75, SM86, SM89 = range(6)


RTX = types.SimpleNamespace(__version__="1.7", ComputeCapability=ComputeCapability)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (("86",), ("86",)),
        (["8.9", "SM120", 86, "sm_86"], ("89", "120", "86")),
        ((), ()),
    ],
)
def test_a_capability_is_named_as_people_name_it(capabilities, expected):
    assert check_capabilities(capabilities, RTX) == expected


@pytest.mark.parametrize("capability", ["90", "100", "80", "none", "CURRENT", "", 8.95])
def test_one_that_it_can_not_build_for_is_refused_with_those_that_it_can(capability):
    with pytest.raises(InvalidInputError, match=r"RTX 1\.7 can't .* can for 75, 86, 89, 120\."):
        check_capabilities(("86", capability), RTX)


@pytest.mark.parametrize("capabilities", ["86", 86])
def test_one_alone_is_no_sequence(capabilities):
    with pytest.raises(InvalidInputError, match=r"as in \('86', '89'\); received"):
        check_capabilities(capabilities, RTX)


def test_turing_stands_alone():
    assert check_capabilities(("75", "7.5"), RTX) == ("75",)
    with pytest.raises(InvalidInputError, match=r"received 75, 86\. .*any of 86, 89, 120"):
        check_capabilities(("75", "86"), RTX)


@pytest.mark.parametrize("precision", [None, "bfloat16", "int8"])
def test_turing_computes_in_float16_alone(precision):
    with pytest.raises(InvalidInputError, match=r"Pass precision='float16', or .* of 86, 89, 120"):
        check_turing(RTX, precision)
