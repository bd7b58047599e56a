import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import ResidualStreamCollapse
from keras_deepseek.testing import LayerTestCase
from tests.oracles.parity import check_case, make_layer, read_cases

CASES = read_cases("residual_stream_collapse")


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_transformers(name):
    check_case(make_layer(CASES[name]), CASES[name])


@pytest.mark.parametrize(
    ("init_kwargs", "shape"),
    [({}, (2, 3, 4, 5)), ({"stream_epsilon": 1e-3, "epsilon": 1e-2}, (3, 2, 6))],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs, shape):
    # The routine masks streams; a mask has one entry a token. That is tested with the connections.
    LayerTestCase().run_layer_test(
        ResidualStreamCollapse, init_kwargs, shape, supports_masking=False
    )


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (1, 1, 4, 5)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    outputs = ResidualStreamCollapse()(np.ones(shape, "float32"))
    assert tuple(outputs.shape) == (*shape[:2], 5)


def test_the_variables_have_names_that_a_layout_map_can_match():
    layer = ResidualStreamCollapse(name="collapse")
    layer.build((None, None, 4, 5))
    assert [weight.path for weight in layer.weights] == [
        "collapse/kernel",
        "collapse/bias",
        "collapse/scale",
    ]


def test_inputs_that_are_no_streams_are_refused():
    with pytest.raises(InvalidInputError, match=r"2 or more streams, received \(2, 1, 5\)"):
        ResidualStreamCollapse()(np.ones((2, 1, 5), "float32"))


@pytest.mark.parametrize("name", ["stream_epsilon", "epsilon"])
def test_what_is_no_epsilon_is_refused(name):
    with pytest.raises(InvalidInputError, match=f"`{name}` must be a finite number of at least 0"):
        ResidualStreamCollapse(**{name: float("nan")})
