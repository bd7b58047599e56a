"""A package, since tf2onnx installs one of this name, which would be imported in its place."""
