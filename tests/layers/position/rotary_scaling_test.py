import json

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.position.rotary_scaling import (
    check_scaling,
    compute_frequencies,
    compute_score_factor,
)
from keras_deepseek.testing import assert_close
from tests.oracles.parity import read_arguments, read_cases

GOLDEN = read_cases("rotary_embedding")
YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "original_max_position_embeddings": 8,
    "short_factor": [1.0, 1.0],
    "long_factor": [1.0, 1.0],
}


@pytest.mark.parametrize(
    "name", ["linear", "yarn", "yarn mscale", "yarn untruncated", "llama3", "longrope short"]
)
def test_the_angles_are_those_of_transformers(name):
    case = GOLDEN[f"{name}, halves"]
    arguments = read_arguments(case)
    frequencies = compute_frequencies(
        16, arguments["max_wavelength"], check_scaling(arguments["scaling"])
    )
    # Relative to each angle: the slow pairs go furthest. The golden ones were added in float32.
    assert_close(frequencies.base / case["frequencies"], np.ones(8), 3e-6)
    assert frequencies.amplitude == pytest.approx(float(case["amplitude"]), rel=1e-12)


def test_yarn_keeps_the_fast_pairs_and_divides_the_slow_ones():
    plain = compute_frequencies(64, 10000.0, check_scaling(None)).base
    slowed = compute_frequencies(64, 10000.0, check_scaling(YARN)).base
    assert_close(slowed[:8], plain[:8])
    assert_close(slowed[-4:], plain[-4:] / 40, "float64")


def test_a_factor_of_one_changes_nothing():
    plain = compute_frequencies(16, 10000.0, check_scaling(None))
    for scaling in (YARN, LLAMA3):
        same = compute_frequencies(16, 10000.0, check_scaling({**scaling, "factor": 1.0}))
        assert_close(same.base, plain.base, "float64")
        assert same.amplitude == 1.0


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        (None, 1.0),
        (YARN, 1.0),
        ({**YARN, "mscale_all_dim": 1.0}, (0.1 * np.log(40) + 1) ** 2),
        ({**YARN, "factor": 0.5, "mscale_all_dim": 1.0}, 1.0),
    ],
)
def test_the_score_factor_is_the_square_of_mscale(scaling, factor):
    assert compute_score_factor(scaling) == pytest.approx(factor)


def test_the_older_name_of_the_type_is_known():
    assert check_scaling({"type": "linear", "factor": 2.0}) == {
        "rope_type": "linear",
        "factor": 2.0,
    }


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ("yarn", "must be None or a dict"),
        (
            {"factor": 2.0},
            "`scaling` has no 'rope_type', which must be one of default, dynamic, lin",
        ),
        ({"rope_type": ["yarn"]}, "Unknown rope_type of `scaling`"),
        ({"rope_type": "yarnn"}, "did you mean 'yarn'"),
        ({"rope_type": "linear", "faktor": 2.0}, "did you mean 'factor'"),
        ({"rope_type": "yarn", "factor": 2.0}, "needs original_max_position_embeddings as well"),
        (
            {"rope_type": "linear", "factor": 0},
            r"`scaling\['factor'\]` must be a finite number above 0",
        ),
        ({"rope_type": "linear", "factor": True}, r"`scaling\['factor'\]` must be a finite"),
        ({**YARN, "original_max_position_embeddings": None}, "must be an integer of at least 2"),
        ({**YARN, "original_max_position_embeddings": 4096.5}, "must be an integer of at least 2"),
        ({**YARN, "original_max_position_embeddings": 1}, "must be an integer of at least 2"),
        (
            {**YARN, "beta_fast": 2, "beta_slow": 3},
            "`beta_fast` .*not be below .* received 2 and 3",
        ),
        ({**YARN, "beta_slow": 33}, "`beta_fast` .* received 32 and 33"),
        ({**YARN, "beta_fast": 0.5}, "`beta_fast` .* received 0.5 and 1"),
        ({"rope_type": "yarn"}, r"needs factor, orig.* received \{'rope_type': 'yarn'\}"),
        ({**YARN, "beta_fast": -1}, r"`scaling\['beta_fast'\]` must be a finite number"),
        ({**YARN, "attention_factor": -3}, r"`scaling\['attention_factor'\]` must be"),
        ({**YARN, "mscale": "a"}, r"`scaling\['mscale'\]` must be a finite number of at least 0"),
        ({**YARN, "truncate": "no"}, r"`scaling\['truncate'\]` must be True or False"),
        ({**LONGROPE, "long_factor": 2.0}, r"`scaling\['long_factor'\]` must be a list"),
        ({**LONGROPE, "long_factor": "12"}, r"`scaling\['long_factor'\]` must be a list"),
        ({**LONGROPE, "long_factor": [1.0, 0.0]}, r"\['long_factor'\]\[1\]` must be a finite"),
        ({**LONGROPE, "short_factor": [-1.0, 1.0]}, r"\['short_factor'\]\[0\]` must be a finite"),
        ({**LONGROPE, "short_factor": [1.0, "a"]}, r"\['short_factor'\]\[1\]` must be a finite"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "must be below `high_freq_factor`"),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused(scaling, message):
    with pytest.raises(InvalidInputError, match=message):
        check_scaling(scaling)


def test_errors_name_the_argument_that_was_given():
    with pytest.raises(InvalidInputError, match=r"`rope_scaling\['factor'\]` must be a finite"):
        check_scaling({**YARN, "factor": 0}, "rope_scaling")


def test_numbers_of_numpy_are_returned_as_pythons():
    scaling = {**LONGROPE, "factor": np.float32(2), "long_factor": np.ones(2)}
    assert json.dumps(check_scaling(scaling)) == json.dumps(check_scaling(LONGROPE))


def test_longrope_needs_a_factor_for_each_pair():
    scaling = {**LONGROPE, "long_factor": [1.0, 1.0, 1.0]}
    with pytest.raises(InvalidInputError, match=r"`long_factor`.* the 2 pairs, .*\(3,\)"):
        compute_frequencies(4, 10000.0, check_scaling(scaling))
