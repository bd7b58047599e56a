"""Passes that change or check an ONNX graph after a backend has written it."""
