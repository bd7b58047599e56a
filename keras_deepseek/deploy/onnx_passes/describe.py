"""The origin of a file, written into it without times, so that each export is the same."""

from typing import Any

from keras_deepseek import __version__


def describe(model: Any, properties: dict[str, str]) -> None:
    """Writes the producer and the `metadata_props` into an `onnx.ModelProto`, in place."""
    model.producer_name, model.producer_version = "keras_deepseek", __version__
    model.graph.name = properties["name"]
    model.doc_string = ""
    del model.metadata_props[:]
    for key in sorted(properties):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, properties[key]
