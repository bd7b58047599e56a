"""Passes that change the dtype in which an ONNX graph computes."""
