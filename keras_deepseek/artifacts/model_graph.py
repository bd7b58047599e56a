"""The form of a model's graph in a run record: layers in layers, down to Keras operations."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

End = int | Literal["in", "out", "const"]
"""An end of an edge: a child's index, an input or output of the layer, a weight or constant."""


@dataclass
class GraphNode:
    """A layer, with what happens inside it, or an operation.

    Args:
        kind: `"layer"`, `"op"` or `"input"`.
        name: string. The name of the layer; of an operation, its class.
        cls: string. The class of the layer or operation.
        path: string. The path of the layer, which no other layer has; `""` for an operation.
        params: integer. The numbers in its weights, those of inner layers included.
        flops: integer. The floating-point operations of a forward pass in products, convolutions
            and attention, a multiply-add counted as two; `None` if the layer could not be opened,
            or if the sizes of an operation are not known.
        out: list of `(shape, dtype)` pairs, one for each output.
        children: list of `GraphNode`s, in the order in which they are computed.
        edges: list of `(from, to)` pairs between the children. `from` may be `"in"` or `"const"`,
            and `to` may be `"out"`.
        reason: string. Why the layer could not be opened; `None` if it was.
    """

    kind: Literal["layer", "op", "input"]
    name: str
    cls: str
    path: str = ""
    params: int = 0
    flops: int | None = 0
    out: list[tuple[list[int], str]] = field(default_factory=list)
    children: list["GraphNode"] = field(default_factory=list)
    edges: list[tuple[End, End]] = field(default_factory=list)
    reason: str | None = None

    def as_document(self) -> dict[str, Any]:
        """Returns the content of the document `model_graph`."""
        return asdict(self)
