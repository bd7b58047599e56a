"""The batching of requests: queues, the rules by which batches leave them, and model threads."""
