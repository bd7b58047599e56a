import os

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.server import tokens
from keras_deepseek.inference.server.tokens import TokenCheck, is_loopback


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


@pytest.mark.parametrize(
    "invalid_tokens", [[], [""], ["a b"], ["é"], ["a\n"], "secret", [b"secret"], 3]
)
def test_tokens_that_nobody_could_send_are_refused_and_not_shown(invalid_tokens):
    with pytest.raises(InvalidInputError) as refusal:
        TokenCheck(invalid_tokens)
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


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("first\n")
    return path


def write(path, text):
    """Writes a file anew, with a time of change that is another one in any case."""
    changed = path.stat().st_mtime_ns + 1_000_000_000 if path.exists() else 1
    path.write_text(text)
    os.utime(path, ns=(changed, changed))


def test_a_file_that_has_changed_is_read_again_once_a_second_at_most(path, monkeypatch):
    clock, read = Clock(), []
    check = TokenCheck(path, clock)
    monkeypatch.setattr(tokens, "_read_file", lambda path: read.append(path) or ["second"])
    clock.now = 0.9
    write(path, "second\n")
    assert check.allows("Bearer first")
    clock.now = 1.0
    assert (check.allows("Bearer first"), check.allows("Bearer second")) == (False, True)
    for _ in range(5):
        clock.now += 1.0
        assert check.allows("Bearer second")
    assert len(read) == 1  # It has not changed since.


def test_a_file_that_takes_the_place_of_another_is_read(path, tmp_path):
    clock = Clock()
    check = TokenCheck(path, clock)
    old_time = path.stat().st_mtime_ns
    (tmp_path / "new").write_text("other\n")  # Of the same size and time.
    os.utime(tmp_path / "new", ns=(old_time, old_time))
    (tmp_path / "new").replace(path)
    clock.now = 1.0
    assert (check.allows("Bearer first"), check.allows("Bearer other")) == (False, True)


@pytest.mark.parametrize("text", [None, "", "# none\n", "two words\n", "é\n"])
def test_what_holds_no_tokens_changes_nothing_and_is_told_once(path, caplog, text):
    clock = Clock()
    check = TokenCheck(path, clock)
    if text is None:
        path.unlink()
    else:
        write(path, text)
    for _ in range(3):
        clock.now += 1.0
        assert check.allows("Bearer first")
    (record,) = caplog.records
    assert "The old tokens stay valid" in record.message
    assert "first" not in record.message
    write(path, "second\n")
    clock.now += 1.0
    assert (check.allows("Bearer first"), check.allows("Bearer second")) == (False, True)
    path.unlink()
    clock.now += 1.0
    assert check.allows("Bearer second")
    assert len(caplog.records) == 2  # It is told again, for it had been well meanwhile.
