"""Helpers of the ONNX and SavedModel writers."""
