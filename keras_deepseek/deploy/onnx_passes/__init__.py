"""What is done to an ONNX graph once a backend has written it: one file each."""
