"""Executors for a process of their own: what a row starts with is done to that process."""

import os
import signal
import threading
from typing import Any

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec

FAILS, EXITS, HANGS, CRASHES, REFUSED = -1, -2, -3, -4, -5


class Faulty:
    """Doubles its input."""

    signature = Signature(
        inputs=(TensorSpec("x", (None, 2), "float32"),),
        outputs=(TensorSpec("y", (None, 2), "float32"),),
    )

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        first = set(inputs["x"][:, 0].tolist())
        if FAILS in first:
            raise ArithmeticError("a row fails")
        if REFUSED in first:
            raise InvalidInputError("a row is refused")
        if EXITS in first:
            os._exit(7)
        if HANGS in first:
            threading.Event().wait()
        if CRASHES in first:
            os.kill(os.getpid(), signal.SIGSEGV)
        print("what a framework says goes to the standard output")
        return {"y": 2 * inputs["x"]}


class OfOneSize(Faulty):
    """Takes eight rows alone."""

    signature = Signature((TensorSpec("x", (8, 2), "float32"),), Faulty.signature.outputs)


class AfraidOfZeros(Faulty):
    """Fails when it is warmed up."""

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        raise ArithmeticError("no zeros")


def refuse() -> Any:
    """Can't be opened."""
    raise FileNotFoundError("no such model")


def leave() -> Any:
    """Ends the process while it is opened."""
    os._exit(9)


def nothing() -> Any:
    """Forgets to return what it made."""


START = "FAULTY_START"
"""The variable of the environment that says what `start_as_told` does."""


def start_as_told() -> Any:
    """Is opened, fails or hangs, as a variable of the environment says."""
    match os.environ.get(START):
        case "hangs":
            threading.Event().wait()
        case "fails":
            raise ConnectionError("no storage")
    return Faulty()
