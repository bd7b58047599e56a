import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.tokens import TokenCheck, is_loopback


def test_a_file_has_a_token_in_each_line(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# of the team\nfirst\n\n  second  \n")
    check = TokenCheck(path)
    assert check.allows("Bearer first")
    assert check.allows("bearer second")
    assert not check.allows("Bearer # of the team")
    assert not check.allows("Bearer ")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "first",
        "Basic first",
        "Bearer firs",
        "Bearer \udcff",
        "Bearer é",
    ],
)
def test_another_value_is_not_allowed(value):
    assert not TokenCheck(["first"]).allows(value)


@pytest.mark.parametrize("tokens", [[], [""], ["a b"], ["é"], ["a\n"], "secret", [b"secret"]])
def test_tokens_that_nobody_could_send_are_refused_and_not_shown(tokens):
    with pytest.raises(InvalidInputError) as refusal:
        TokenCheck(tokens)
    assert "secret" not in str(refusal.value)


def test_a_file_without_tokens_or_that_is_missing_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="Can't read the tokens"):
        TokenCheck(tmp_path / "missing")
    (tmp_path / "empty").write_text("# none\n")
    with pytest.raises(InvalidInputError, match="no token"):
        TokenCheck(tmp_path / "empty")


def test_loopback_is_told_from_what_others_reach():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))
