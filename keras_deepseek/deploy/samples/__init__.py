"""The batches that an artifact is verified on."""
