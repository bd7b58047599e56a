"""Collects the errors that TensorRT logs instead of returning them from calls."""

from typing import Any


def make_error_log(tensorrt: Any) -> Any:
    """Returns a TensorRT logger that collects errors in its list `errors`, and prints nothing."""

    class ErrorLog(tensorrt.ILogger):
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)  # The C++ base class requires the explicit call.
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= tensorrt.ILogger.ERROR:
                self.errors.append(message)

    return ErrorLog()
