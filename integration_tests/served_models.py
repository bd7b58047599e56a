"""What `served_openapi_test` and `served_page_test` serve: models of every form of input."""

from collections.abc import Iterator
from contextlib import contextmanager

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference import HttpServer, ModelOptions, ServingEngine


class Negation:
    """One input and one output of floats."""

    signature = Signature(
        (TensorSpec("x", (None, 3), "float32"),), (TensorSpec("y", (None, 3), "float32"),)
    )

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return {"y": -inputs["x"]}


class Mixture:
    """Several inputs and outputs: integers, booleans and strings."""

    signature = Signature(
        (
            TensorSpec("numbers", (None, 2), "int32"),
            TensorSpec("flag", (None,), "bool"),
            TensorSpec("text", (None,), "object"),
        ),
        (TensorSpec("sum", (None, 1), "float32"), TensorSpec("label", (None,), "object")),
    )

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        sums = inputs["numbers"].sum(1, keepdims=True, dtype="float32")
        return {"sum": sums, "label": inputs["text"]}


@contextmanager
def serve(**options: object) -> Iterator[HttpServer]:
    """Serves both."""
    with ServingEngine(Negation(), name="negation") as engine:
        engine.load(Mixture(), name="mixture", options=ModelOptions(warm_up=False))
        engine.models["negation"].set_labels({"stable": 1})
        yield engine.serve(0, **options)  # type: ignore[arg-type]
