"""Parity with other libraries while they run, on the backend that `KERAS_BACKEND` names.

`pytest` of the repository leaves this folder out: it takes torch and transformers as well, which
the tox environment `parity` installs.
"""

import keras
import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the largest relative errors of each case."""
    terminalreporter.section(f"errors of outputs and gradients, {keras.backend.backend()}")
    for report in terminalreporter.stats.get("passed", []):
        for _, line in report.user_properties:
            terminalreporter.write_line(line)
