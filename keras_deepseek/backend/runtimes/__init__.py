"""Runs SavedModel, OpenVINO and TensorRT artifacts without Keras."""
