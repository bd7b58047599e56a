"""The batching of requests: queues, the policies by which batches leave them, and model threads."""
