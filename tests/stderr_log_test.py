import logging

from keras_deepseek.stderr_log import has_users_handler, log_to_stderr, log_warnings_to_stderr

LOG = logging.getLogger("keras_deepseek.hall")


def test_lines_go_to_stderr_from_a_level_on_while_it_lasts(capsys):
    with log_to_stderr("info"):
        LOG.debug("Draw a breath.")
        LOG.info("Say it.")
    LOG.error("Nobody listens.")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO keras_deepseek.hall: Say it.")


def test_warnings_are_shown_where_nobody_takes_them_and_once(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own take all lines.
    with log_warnings_to_stderr(), log_warnings_to_stderr():
        LOG.info("Say it.")
        LOG.warning("Nobody listens.")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Nobody listens.")


def test_a_handler_of_the_user_is_enough(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.Handler()])
    assert has_users_handler(LOG)
    monkeypatch.setattr(logging.getLogger().handlers[0], "emit", lambda _: None)
    with log_warnings_to_stderr():
        LOG.warning("Somebody listens.")
    assert not capsys.readouterr().err
