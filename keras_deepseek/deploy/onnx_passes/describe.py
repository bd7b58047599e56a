"""Metadata about a file's origin, without times, so that equal exports have equal bytes."""

from typing import Any

from keras_deepseek import __version__


def describe(model: Any, properties: dict[str, str]) -> None:
    """Writes producer name and `metadata_props` into an `onnx.ModelProto`, in place."""
    model.producer_name, model.producer_version = "keras_deepseek", __version__
    model.graph.name = properties["name"]
    model.doc_string = ""
    del model.metadata_props[:]
    for key in sorted(properties):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, properties[key]
