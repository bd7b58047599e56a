"""Says in the file itself where it comes from. One export differs in nothing from the next."""

from typing import Any

from keras_deepseek import __version__


def describe(model: Any, properties: dict[str, str]) -> None:
    """Writes who made a file, and what else is worth knowing of it.

    Args:
        model: `onnx.ModelProto`, changed in place.
        properties: dict. What its `metadata_props` are to hold.
    """
    model.producer_name, model.producer_version = "keras_deepseek", __version__
    model.graph.name = properties["name"]
    model.doc_string = ""
    del model.metadata_props[:]
    for key in sorted(properties):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, properties[key]
