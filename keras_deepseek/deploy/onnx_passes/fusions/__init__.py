"""Fusion passes, which replace several ONNX operators by fewer.

They do not use onnxscript's rewriter (tried with 0.7, for GELU). Its constants match only tensors
without axes, with one tolerance for all dtypes; the commuted forms of GELU are 1,920 rules, which
take 5 s on ten nodes; and patterns cannot express chains of free length or checks of sizes.
"""
