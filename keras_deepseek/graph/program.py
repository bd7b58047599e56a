"""Programs: graphs as Python functions that can be read."""

import re
from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_deepseek.backend.keras_private.layer_precision import without_autocast
from keras_deepseek.backend.keras_private.masks import set_mask
from keras_deepseek.backend.keras_private.variables import stored_dtype
from keras_deepseek.graph.ir import CONSTANT, INPUT, WEIGHT, Graph, Node, Value

_FILE = "<program of keras_deepseek.graph>"


class Program:
    """A graph as a function of a model's inputs, and its source code."""

    def __init__(self, graph: Graph) -> None:
        _exchange_terms(graph)
        self.graph = graph
        writer = _Writer(graph)
        self.source = writer.source
        """The source code. Its names stand for weights, constants and operations."""
        self._layers_of_lines = writer.layers_of_lines
        self._run: Callable[..., tuple[Any, Any]] = writer.function()

    def __call__(self, inputs: Any) -> Any:
        """Returns the model's outputs for a structure of tensors."""
        with without_autocast():  # The dtype of each weight stands in the program.
            outputs, masks = self._run(*tree.flatten(inputs))
        for output, mask in zip(outputs, masks, strict=True):
            set_mask(output, mask)
        return tree.pack_sequence_as(self.graph.structure, outputs)

    def failed_layer(self, error: BaseException) -> str | None:
        """Returns the path of the layer at whose operation an error was raised, if there is one."""
        layer = None
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == _FILE:
                layer = self._layers_of_lines.get(traceback.tb_lineno)
            traceback = traceback.tb_next
        return layer


def _exchange_terms(graph: Graph) -> None:
    """Exchanges the terms of sums that Keras on TensorFlow may compute wrongly.

    Keras takes a second term of shape `(n, 1, 1)` for a bias if the last axis of the first one has
    the size `n`, and adds it along that axis. The operator `+`, as a layer wrote it, does not.
    """
    for node in graph.all_nodes():
        shape = (
            node.args[-1].shape if node.kind == "Add" and isinstance(node.args[-1], Value) else ()
        )
        if shape[-1:] == (1,) and sum(size != 1 for size in shape) == 1:
            node.args = node.args[::-1]


class _Writer:
    """Writes the source code of a graph. Values are deleted after their last use."""

    def __init__(self, graph: Graph) -> None:
        self._scope: dict[str, Any] = {"cast": keras.ops.cast, "flatten": tree.flatten}
        self._counts: dict[str, int] = {}
        self._texts: dict[Value, str] = {}
        nodes = graph.nodes()
        last_use = {value: node for node in nodes for value in node.values()}
        last_use.update(dict.fromkeys(graph.roots(), None))  # type: ignore[arg-type]
        for index, node in enumerate(graph.inputs):
            self._texts[Value(node)] = f"x{index}"
        self.layers_of_lines: dict[int, str] = {}
        lines: list[str] = []
        for index, node in enumerate(nodes):
            if node.kind == INPUT:
                continue
            if node.kind == CONSTANT:
                self._texts[Value(node)] = self._name("constant", node.content)
                continue
            lines.append(self._statement(node, f"v{index}"))
            self.layers_of_lines[len(lines) + 1] = node.layer  # The first line is the signature.
            ended = {self._texts[value] for value in node.values() if last_use[value] is node}
            if deleted := sorted(text for text in ended if re.fullmatch(r"v\d+", text)):
                lines.append(f"del {', '.join(deleted)}")
        outputs = "".join(f"{self._texts[value]}, " for value in graph.outputs)
        masks = "".join(f"{mask and self._texts[mask]}, " for mask in graph.masks)
        arguments = ", ".join(f"x{index}" for index in range(len(graph.inputs)))
        body = "\n    ".join([*lines, f"return ({outputs}), ({masks})"])
        self.source = f"def program({arguments}):\n    {body}\n"

    def function(self) -> Callable[..., Any]:
        exec(compile(self.source, _FILE, "exec"), self._scope)
        function: Callable[..., Any] = self._scope["program"]
        return function

    def _statement(self, node: Node, variable: str) -> str:
        if node.kind == WEIGHT:
            self._texts[Value(node)] = variable
            text = f"{self._name(node.content.name, node.content)}.value"
            if node.spec.dtype != stored_dtype(node.content):
                text = f"cast({text}, {node.spec.dtype!r})"
            return f"{variable} = {text}  # {node.content.path}"
        operation = node.operation if node.is_layer else node.operation.call
        name = self._name(node.operation.name if node.is_layer else node.kind, operation)
        arguments = [self._text(argument) for argument in node.args]
        arguments += [f"{name}={self._text(argument)}" for name, argument in node.kwargs.items()]
        text = f"{name}({', '.join(arguments)})"
        if len(node.outputs) == 1 and not node.graphs:
            self._texts[Value(node)] = variable
        else:
            text = f"flatten({text})"
            for index in range(len(node.outputs)):
                self._texts[Value(node, index)] = f"{variable}[{index}]"
        return f"{variable} = {text}" + (f"  # {node.layer}" if node.layer else "")

    def _text(self, argument: Any) -> str:  # noqa: PLR0911 - one line a type
        if isinstance(argument, Value):
            return self._texts[argument]
        if isinstance(argument, list):
            return f"[{', '.join(map(self._text, argument))}]"
        if isinstance(argument, tuple):
            text = f"({''.join(f'{self._text(element)}, ' for element in argument)})"
            kind = type(argument)
            is_named = hasattr(kind, "__match_args__")
            return f"{self._name(kind.__name__, kind)}(*{text})" if is_named else text
        if isinstance(argument, dict):
            items = (f"{key!r}: {self._text(element)}" for key, element in argument.items())
            return f"{{{', '.join(items)}}}"
        if isinstance(argument, slice):
            parts = (argument.start, argument.stop, argument.step)
            return f"slice({', '.join(map(self._text, parts))})"
        if argument is None or argument is Ellipsis or type(argument) in (bool, int, str):
            return repr(argument)
        return self._name("argument", argument)

    def _name(self, text: str, value: Any) -> str:
        stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)
        stem = re.sub(r"\W", "_", stem).lower().strip("_") or "value"
        number = self._counts[stem] = self._counts.get(stem, 0) + 1
        self._scope[f"{stem}_{number}"] = value
        return f"{stem}_{number}"
