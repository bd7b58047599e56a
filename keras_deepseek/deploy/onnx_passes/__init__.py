"""Passes that change or check the ONNX graph that a backend has written."""
