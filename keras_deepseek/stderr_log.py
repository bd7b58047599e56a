"""The package's log on the standard error, for the command line and for servers that block."""

import contextlib
import logging
import sys
from collections.abc import Iterator

_NAME = "keras-deepseek"


@contextlib.contextmanager
def log_to_stderr(level: str) -> Iterator[None]:
    """Context manager that writes the package's log to the standard error, from a level on."""
    log = logging.getLogger(__package__)
    handler, old_level = _StderrHandler(), log.level
    handler.set_name(_NAME)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(level.upper())
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(old_level)


def log_warnings_to_stderr() -> contextlib.AbstractContextManager[None]:
    """Returns `log_to_stderr("warning")`; if the log has a handler, one that does nothing."""
    log = logging.getLogger(__package__)
    is_shown = _has_own_handler(log) or has_users_handler(log)
    return contextlib.nullcontext() if is_shown else log_to_stderr("warning")


def has_users_handler(logger: logging.Logger | None) -> bool:
    """Returns True if a logger's lines go to a handler that is not this package's own."""
    while logger is not None:
        for handler in logger.handlers:
            if handler.name != _NAME and not isinstance(handler, logging.NullHandler):
                return True
        logger = logger.parent if logger.propagate else None
    return False


def _has_own_handler(log: logging.Logger) -> bool:
    return any(handler.name == _NAME for handler in log.handlers)


class _StderrHandler(logging.Handler):
    """Writes to the current `sys.stderr`, which a progress display of rich may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):  # Its reader may be gone.
            self.handleError(record)
