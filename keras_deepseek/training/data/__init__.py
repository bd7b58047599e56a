"""Batches of sequences: packing, length buckets, masked tokens."""
