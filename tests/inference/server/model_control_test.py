import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.errors import NotPermittedError
from keras_deepseek.inference.server.tokens import ModelControl


@pytest.mark.parametrize(
    ("mode", "tokens", "message"),
    [
        ("poll", None, 'must be "none" or "explicit", received \'poll\''),
        ("explicit", None, "without `management_tokens`"),
        ("none", ["secret"], "without model_control="),
    ],
)
def test_a_mode_and_tokens_that_do_not_fit_are_refused(mode, tokens, message):
    with pytest.raises(InvalidInputError, match=message):
        ModelControl(mode, tokens)


def test_without_model_control_no_token_helps():
    with pytest.raises(NotPermittedError, match="--model-control explicit"):
        ModelControl("none", None).check("Bearer secret")


def test_with_model_control_its_own_token_is_needed():
    control = ModelControl("explicit", ["secret"])
    control.check("Bearer secret")
    for authorization in (None, "", "Bearer other"):
        with pytest.raises(NotPermittedError, match="needs a management token"):
            control.check(authorization)
