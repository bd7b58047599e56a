"""The numbers that ONNX has for types: as `onnx.TensorProto` has them, which need not be loaded."""

FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64 = 1, 2, 3, 4, 5, 6, 7
BOOL, FLOAT16, DOUBLE, UINT32, UINT64 = 9, 10, 11, 12, 13
