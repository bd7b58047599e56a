"""Batches of sequences (packing, length buckets, masked tokens), and the data of a `fit`."""
