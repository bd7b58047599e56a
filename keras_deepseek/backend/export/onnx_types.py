"""The numbers of dtypes in `onnx.TensorProto`, defined here to avoid importing `onnx`."""

FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64 = 1, 2, 3, 4, 5, 6, 7
BOOL, FLOAT16, DOUBLE, UINT32, UINT64 = 9, 10, 11, 12, 13
SHORT_INTEGERS = (INT8, UINT8, INT16, UINT16, INT32, UINT32)
"""The integers of 32 bits or fewer."""
