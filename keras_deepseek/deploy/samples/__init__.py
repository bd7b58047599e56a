"""The input batches on which an artifact is verified."""
