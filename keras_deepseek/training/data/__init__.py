"""Batches of token sequences (packing, length buckets, masking), and the data of `fit`."""
