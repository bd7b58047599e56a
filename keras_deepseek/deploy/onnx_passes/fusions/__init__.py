"""Passes that write several ONNX operators as fewer."""
